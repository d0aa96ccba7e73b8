"""The recipes of docs/backup.md with restic: what was backed up comes back."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import FilesystemFactory, needs
from driver import GIB, MIB, Driver, block_capability, mount_capability
from exports import image_of, same_image, scribble, to
from leftovers import content, fill
from terminal import PYCSI, environment, piped

EXT4 = mount_capability("ext4")


@pytest.fixture
def restic(root: None, tmp_path: Path) -> Callable[..., bytes]:
    """Return what runs restic on a new repository."""
    needs("restic", met=shutil.which("restic") is not None)
    (tmp_path / "password").write_text("secret")
    variables = {
        "RESTIC_REPOSITORY": str(tmp_path / "repository"),
        "RESTIC_PASSWORD_FILE": str(tmp_path / "password"),
        "RESTIC_CACHE_DIR": str(tmp_path / "cache"),
    }

    def run(*words: str | Path, **more: object) -> bytes:
        done = subprocess.run(
            ["restic", *words], stdout=subprocess.PIPE, check=True,
            env=environment(**variables), **more,  # type: ignore[call-overload]
        )  # fmt: skip
        return bytes(done.stdout)

    run("init")
    return run


@pytest.mark.parametrize("kind", ["image", "directory"])
def test_files(
    filesystem: FilesystemFactory,
    serve: Callable[..., Driver],
    tmp_path: Path,
    restic: Callable[..., bytes],
    kind: str,
) -> None:
    """A snapshot's files are backed up while the volume is in use, and restored into another."""
    driver = serve(filesystem("btrfs", GIB))
    capability = EXT4 if kind == "image" else None
    volume_id = driver.create("v", 128 * MIB, type=kind, capability=capability).volume_id
    place = tmp_path / "mounted"
    place.mkdir()
    endpoint = f"--endpoint={driver.socket}"
    state = f"--run-directory={tmp_path / 'state'}"
    with driver.published(volume_id, tmp_path, capability) as target:
        fill(target)
        for words in (("snapshot", "v", "s"), ("restore", "s", "copy")):
            assert piped(*words, endpoint).returncode == 0
        before = content(target)
        (target / "file").write_text("written since")
        assert piped("mount", "copy", place, endpoint, state).returncode == 0
        restic("backup", place)
    assert piped("unmount", place, endpoint, state).returncode == 0
    driver.delete("copy@node-1")
    driver.create("again", 128 * MIB, type=kind, capability=capability)
    assert piped("mount", "again", place, endpoint, state).returncode == 0
    restic("restore", "latest", "--target", "/")
    assert content(place) == before
    assert piped("unmount", place, endpoint, state).returncode == 0


def test_export(driver: Driver, tmp_path: Path, restic: Callable[..., bytes]) -> None:
    """An export through standard input comes back byte for byte; one that was cut off does not."""
    volume_id = driver.create("v", 64 * MIB, capability=block_capability()).volume_id
    scribble(image_of(driver, volume_id))
    store = ("backup", "--stdin", "--stdin-filename", "data.pycsi")
    command = [*PYCSI, "export", "v", "-", to(driver)[0]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as export:
        restic(*store, stdin=export.stdout)
    assert export.returncode == 0
    stored = tmp_path / "stored"
    stored.write_bytes(restic("dump", "latest", "data.pycsi"))
    done = piped("import", stored, "again", *to(driver))
    assert (done.returncode, done.stderr) == (0, "")
    same_image(image_of(driver, volume_id), image_of(driver, "again@node-1"))
    restic(*store, input=stored.read_bytes()[: 5 * MIB])
    stored.write_bytes(restic("dump", "latest", "data.pycsi"))
    done = piped("import", stored, "none", *to(driver))
    assert done.returncode == 1
    assert "is cut off after" in done.stderr
    assert driver.volume_ids() == ["again@node-1", volume_id]
