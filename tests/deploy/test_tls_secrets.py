"""The script that makes the certificates of controller and nodes."""

import base64
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import needs, run

SCRIPT = Path(__file__).resolve().parents[2] / "deploy/kubernetes/tls-secrets.sh"
FILES = ["ca.crt", "tls.crt", "tls.key"]
ROLES = ["controller", "node"]


@pytest.fixture(autouse=True)
def _openssl() -> None:
    needs("openssl", met=shutil.which("openssl") is not None)


def secrets(*options: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(run(SCRIPT, *options)))


def is_accepted(folder: Path, *options: str) -> bool:
    """Tell whether openssl takes a folder's certificate by that folder's authority."""
    command: list[str | Path] = [
        "openssl",
        "verify",
        *options,
        "-CAfile",
        folder / "ca.crt",
        folder / "tls.crt",
    ]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_secrets() -> None:
    """Two of them with one authority, of which each role has its own key and no other."""
    made = secrets("--namespace", "storage", "--release", "local")
    assert [item["metadata"] for item in made] == [
        {"name": f"local-{role}-tls", "namespace": "storage"} for role in ROLES
    ]
    for item in made:
        assert (item["apiVersion"], item["kind"]) == ("v1", "Secret")
        assert item["type"] == "kubernetes.io/tls"
        assert sorted(item["data"]) == FILES
    controller, node = (item["data"] for item in made)
    assert controller["ca.crt"] == node["ca.crt"]
    assert controller["tls.key"] != node["tls.key"]
    decoded = [base64.b64decode(value) for item in made for value in item["data"].values()]
    assert sum(value.count(b"PRIVATE KEY") for value in decoded) == 2 * len(made)


def test_directory(tmp_path: Path) -> None:
    """Each role has its files, which it alone may read, and which fit its certificate."""
    assert run(SCRIPT, tmp_path / "tls") == ""
    for role in ROLES:
        folder = tmp_path / "tls" / role
        assert sorted(path.name for path in folder.iterdir()) == FILES
        assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
        of_key = run("openssl", "pkey", "-pubout", "-in", folder / "tls.key")
        assert run("openssl", "x509", "-pubkey", "-noout", "-in", folder / "tls.crt") == of_key
        assert "prime256v1" in run("openssl", "pkey", "-text", "-noout", "-in", folder / "tls.key")


def test_purposes(tmp_path: Path) -> None:
    """The controller's is a client's only, and the node's a server's only, by their DNS names."""
    run(SCRIPT, "--driver-name", "Local.Example.com", tmp_path)
    for role, purpose, other in (
        ("controller", "sslclient", "sslserver"),
        ("node", "sslserver", "sslclient"),
    ):
        folder = tmp_path / role
        name = f"{role}.local.example.com"
        assert is_accepted(folder, "-purpose", purpose, "-verify_hostname", name)
        assert not is_accepted(folder, "-purpose", other)
        assert not is_accepted(folder, "-verify_hostname", f"{role}.pycsi.storage")
        show = ["openssl", "x509", "-noout", "-ext", "subjectAltName"]
        shown = run(*show, "-in", folder / "tls.crt")
        assert shown.split()[-1] == f"DNS:{name}"


def test_validity(tmp_path: Path) -> None:
    """Authority and certificates end after the days that are asked for."""
    run(SCRIPT, "--days", "2", tmp_path)
    day = 24 * 60 * 60
    for role in ROLES:
        for name in ("ca.crt", "tls.crt"):
            check: list[str | Path] = [
                "openssl",
                "x509",
                "-noout",
                "-in",
                tmp_path / role / name,
                "-checkend",
            ]
            lasts = [
                subprocess.run([*check, str(seconds)], capture_output=True, check=False).returncode
                for seconds in (day, 3 * day)
            ]
            assert lasts == [0, 1]


def test_renewal(tmp_path: Path) -> None:
    """A second run replaces all files, by an authority that does not know the old ones."""
    run(SCRIPT, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.glob("*/*")}
    run(SCRIPT, tmp_path)
    assert all(path.read_bytes() != content for path, content in before.items())
    old = tmp_path / "old.crt"
    old.write_bytes(before[tmp_path / "node" / "tls.crt"])
    verify: list[str | Path] = ["openssl", "verify", "-CAfile", tmp_path / "node" / "ca.crt"]
    assert subprocess.run([*verify, old], capture_output=True, check=False).returncode != 0
    assert len(list(tmp_path.glob("*/*"))) == len(before)


@pytest.mark.parametrize(
    "options",
    [
        ("--driver-name", "a,DNS:controller.pycsi.storage"),
        ("--driver-name", "a\n[more]"),
        ("--driver-name", "a" * 64),
        ("--namespace", "a b"),
        ("--release", "-a"),
        ("--days", "0"),
        ("--days", "1; true"),
        ("--days",),
        ("--other",),
        ("one", "two"),
    ],
)
def test_wrong_options(options: tuple[str, ...], tmp_path: Path) -> None:
    """They are refused with a message, and nothing is printed or written."""
    command = [str(SCRIPT), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("tls-secrets.sh: ")
    assert not list(tmp_path.iterdir())
