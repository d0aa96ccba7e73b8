"""The container image: what is in it, and that the driver works in it as Kubernetes runs it.

`make image-archive` builds it with buildah, in a storage that is removed again. Where no registry
can be reached, debootstrap makes the image that it is based on.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cluster import make_certificates
from conftest import needs, run

import pycsi
from pycsi.linux import mkfs
from pycsi.proto import csi_pb2 as csi
from pycsi.proto import csi_pb2_grpc

pytestmark = pytest.mark.timeout(600)

REPOSITORY = Path(__file__).resolve().parents[2]
INSIDE = Path(__file__).with_name("inside")
BASE = "docker.io/library/debian:trixie-slim"
NAME = "localhost/pycsi:test"
REVISION = "0123456789abcdef0123456789abcdef01234567"
# A company's proxy answers for PyPI with a certificate that only its own machines know.
CERTIFICATES = Path("/usr/local/share/ca-certificates")
NOT_IN_SLIM = ("usr/share/doc", "usr/share/info", "usr/share/locale", "usr/share/man")

LARGEST = 215_000_000
NONROOT = 65532


@dataclasses.dataclass(frozen=True)
class Image:
    """The image's files and configuration, and the archive that it came in."""

    root: Path
    config: dict[str, Any]
    archive: Path

    def command(self, *words: str, folder: Path, user: int = 0) -> list[str | Path]:
        """Return what runs a command in the image, with `folder` as /mnt."""
        inside = ["unshare", "--mount", INSIDE, self.root, folder, str(user)]
        return [*inside, *self.config["Env"], *words]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    needs("root", met=os.geteuid() == 0)
    needs("buildah", met=shutil.which("buildah") is not None)
    folder = tmp_path_factory.mktemp("image")
    try:
        yield _build(folder)
    finally:
        run("rm", "-rf", "--one-file-system", folder)


def _build(folder: Path) -> Image:
    # What buildah mounts is in a namespace of its own, and goes with it.
    storage = (f"--root={folder}/storage", f"--runroot={folder}/run")
    buildah = ("env", f"TMPDIR={folder}", "unshare", "--mount", "buildah", *storage)
    _provide_base(buildah, folder / "base")
    flags = ["--isolation=chroot", "--network=host"]
    if CERTIFICATES.exists():
        flags.append(f"--volume={CERTIFICATES}:{CERTIFICATES}:ro")
    archive = folder / "pycsi.tar"
    variables = {
        "CONTAINER_TOOL": " ".join(buildah),
        "BUILD_FLAGS": " ".join(flags),
        "IMAGE": NAME,
        "REVISION": REVISION,
        "ARCHIVE": archive,
    }
    make = ("make", "--directory", REPOSITORY, "image-archive")
    run(*make, *(f"{name}={value}" for name, value in variables.items()))
    config = json.loads(run(*buildah, "inspect", "--type=image", NAME))["OCIv1"]["config"]
    container = run(*buildah, "from", NAME).strip()
    root = folder / "root"
    copy = f'cp --archive "$(buildah {" ".join(storage)} mount {container})" {root}'
    run("unshare", "--mount", "sh", "-c", copy)
    return Image(root=root, config=config, archive=archive)


def _provide_base(buildah: tuple[str, ...], root: Path) -> None:
    pull = ("timeout", "60", *buildah, "pull", BASE)
    if subprocess.run(pull, capture_output=True, check=False).returncode == 0:
        return
    needs("a registry, or debootstrap", met=shutil.which("debootstrap") is not None)
    bootstrap = ("unshare", "--mount", "debootstrap", "--variant=minbase", "trixie", root)
    made = subprocess.run(bootstrap, capture_output=True, text=True, check=False)
    needs(f"a registry, or a mirror of Debian: {made.stderr}", met=made.returncode == 0)
    for name in (*NOT_IN_SLIM, "var/cache/apt", "var/lib/apt/lists"):
        shutil.rmtree(root / name)
    excluded = "".join(f"path-exclude /{name}/*\n" for name in NOT_IN_SLIM)
    (root / "etc/dpkg/dpkg.cfg.d/slim").write_text(excluded)
    container = run(*buildah, "from", "scratch").strip()
    run(*buildah, "add", container, root, "/")
    run(*buildah, "commit", "--rm", container, BASE)
    shutil.rmtree(root)


@contextlib.contextmanager
def serving(
    image: Image, folder: Path, *arguments: str, user: int = 0
) -> Iterator[csi_pb2_grpc.IdentityStub]:
    """Serve on a socket in `folder`, as what a container of the image starts."""
    words = [*image.config["Entrypoint"], "serve", "--endpoint=unix:///mnt/csi.sock", *arguments]
    with subprocess.Popen(image.command(*words, folder=folder, user=user)) as driver:
        try:
            options = [("grpc.default_authority", "localhost")]
            with grpc.insecure_channel(f"unix://{folder}/csi.sock", options) as channel:
                yield csi_pb2_grpc.IdentityStub(channel)  # type: ignore[no-untyped-call]
        finally:
            driver.terminate()
    assert driver.returncode == 0


def ready(identity: csi_pb2_grpc.IdentityStub) -> bool:
    response = identity.Probe(csi.ProbeRequest(), wait_for_ready=True, timeout=60)
    value: bool = response.ready.value
    return value


def test_no_tool() -> None:
    make = ("make", "--directory", REPOSITORY, "image", "CONTAINER_TOOL=")
    done = subprocess.run(make, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "no docker, podman or buildah works here\n" in done.stdout


def test_labels(image: Image) -> None:
    prefix = "org.opencontainers.image."
    labels = image.config["Labels"]
    assert labels[f"{prefix}title"] == "pycsi"
    assert labels[f"{prefix}description"]
    assert labels[f"{prefix}licenses"] == "Apache-2.0"
    assert labels[f"{prefix}version"] == pycsi.__version__
    assert labels[f"{prefix}revision"] == REVISION


def test_archive(image: Image) -> None:
    (manifest,) = json.loads(run("tar", "-xOf", image.archive, "manifest.json"))
    assert manifest["RepoTags"] == [NAME]
    assert image.archive.stat().st_size < LARGEST


def test_what_is_not_in_it(image: Image) -> None:
    for name in ("cc", "gcc", "ld", "make", "pip*", "xfs_scrub*"):
        assert list(image.root.glob(f"**/*bin/{name}")) == []
    for package in ("pip", "setuptools", "wheel"):
        assert list(image.root.rglob(package)) == []
    for folder in ("var/lib/apt/lists", "var/cache/apt", "var/log", "root/.cache", "tmp", "src"):
        assert list((image.root / folder).glob("*")) == []


def test_programs(image: Image, tmp_path: Path) -> None:
    """They are there, and packages that are not have taken no library away from any of them."""
    for kind, facts in mkfs.KINDS.items():
        for program in facts.programs:
            assert list(image.root.glob(f"usr/*bin/{program}")), f"{program} for {kind}"
    linked = "ldd /usr/bin/* /usr/sbin/* 2>/dev/null | grep 'not found' || true"
    assert run(*image.command("sh", "-c", linked, folder=tmp_path)) == ""


def test_start_compiles_nothing(image: Image, tmp_path: Path) -> None:
    """Python could not keep it on a read-only root."""
    words = ("python3", "-v", "-c", "import pycsi.cli, pycsi.server")
    done = subprocess.run(
        image.command(*words, folder=tmp_path), capture_output=True, text=True, check=True
    )
    loaded = [line for line in done.stderr.splitlines() if line.startswith("# code object from")]
    assert loaded
    assert [line for line in loaded if line.endswith(".py")] == []


def test_default_is_help(image: Image, tmp_path: Path) -> None:
    words = (*image.config["Entrypoint"], *image.config["Cmd"])
    assert run(*image.command(*words, folder=tmp_path)).startswith("Usage: pycsi ")


def test_version(image: Image, tmp_path: Path) -> None:
    said = run(*image.command("pycsi", "--version", folder=tmp_path))
    assert said == f"pycsi {pycsi.__version__}\n"
    said = run(*image.command("pycsi", "version", folder=tmp_path))
    assert said.startswith(f"pycsi {pycsi.__version__} (commit {REVISION})\n")


def test_tracing(image: Image, tmp_path: Path) -> None:
    """What `--tracing` needs is there."""
    run(*image.command("python3", "-c", "import pycsi.server.otel.tracer", folder=tmp_path))


def test_node(image: Image, tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    pool = "--pool=default=/mnt/pool,allow-volatile"
    with serving(image, tmp_path, "--mode=node", "--node-id=node-1", pool) as identity:
        assert ready(identity)


def test_controller_is_not_root(image: Image, tmp_path: Path) -> None:
    make_certificates(tmp_path / "tls")
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.chown(path, NONROOT, NONROOT)
    options = ("--mode=controller", "--node=a=127.0.0.1:9", "--tls-directory=/mnt/tls/controller")
    with serving(image, tmp_path, *options, user=NONROOT) as identity:
        assert ready(identity)
        assert (tmp_path / "csi.sock").stat().st_uid == NONROOT


def test_demo(image: Image, tmp_path: Path) -> None:
    needs("loop devices", met=Path("/dev/loop-control").exists())
    output = run(*image.command("pycsi", "demo", "--directory=/mnt", folder=tmp_path))
    assert "All that was shown was proved" in output
    assert "left out" not in output
    assert list(tmp_path.iterdir()) == []
