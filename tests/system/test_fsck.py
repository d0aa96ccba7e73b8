"""The parameter fsck: an image's filesystem is checked before it is mounted."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from conftest import FilesystemFactory, fill, needs, run
from driver import (
    MIB,
    Driver,
    Mode,
    block_capability,
    from_snapshot,
    from_volume,
    mount_capability,
    refused,
)

from pycsi.linux import kernel, loop, program
from pycsi.proto import csi_pb2 as csi

Code = grpc.StatusCode
EXT4 = mount_capability("ext4")
CHECKED = {"type": "image", "fsck": "true"}
INDIRECT = "-O ^extent,^64bit"
"""Options of mkfs for files whose blocks `harm` can change."""


def image_of(pool: Path, volume_id: str) -> Path:
    return pool / "volumes" / volume_id / "disk.img"


def debugfs(image: Path, *commands: str) -> None:
    for command in commands:
        run("debugfs", "-w", "-R", command, image)


def doubt(image: Path) -> None:
    """Have the superblock say that errors were met."""
    debugfs(image, "ssv state 2")


def miscount(image: Path) -> None:
    """Give a file a wrong count of links, which takes no decision to mend."""
    debugfs(image, "sif f1 links_count 7")
    doubt(image)


def harm(image: Path) -> None:
    """Let two files claim one block: that is left to a person."""
    block = run("debugfs", "-R", "blocks f1", image).strip().split()[0]
    debugfs(image, f"sif f2 block[0] {block}")
    doubt(image)


def is_whole(image: Path) -> bool:
    done = subprocess.run(["e2fsck", "-f", "-n", image], capture_output=True, check=False)
    return done.returncode == 0


class Spy:
    """An e2fsck of our own before the real one, which notes each run; `script` precedes that."""

    def __init__(self, folder: Path, script: str = "") -> None:
        real = shutil.which("e2fsck")
        needs("e2fsck", met=real is not None)
        folder.mkdir()
        self._runs = folder / "runs"
        self.program = folder / "e2fsck"
        self.path = f"{folder}:{os.environ['PATH']}"
        self._real = real
        self.set(script)

    def set(self, script: str) -> None:
        self.program.write_text(
            f'#!/bin/sh\necho "$@" >> {self._runs}\n{script}\nexec {self._real} "$@"\n'
        )
        self.program.chmod(0o755)

    def runs(self) -> int:
        return len(self._runs.read_text().splitlines()) if self._runs.exists() else 0


@pytest.fixture
def spy(tmp_path: Path, root: None) -> Spy:
    return Spy(tmp_path / "bin")


@pytest.fixture
def spied(serve: Callable[..., Driver], pool: Path, spy: Spy) -> Driver:
    """Return a driver whose e2fsck is `spy`."""
    return serve(pool, PATH=spy.path)


def filled(driver: Driver, folder: Path, name: str = "v", **parameters: str) -> str:
    """Make a volume with two files in it."""
    given = {"type": "image"} | parameters
    volume_id = driver.create(name, 64 * MIB, capability=EXT4, parameters=given).volume_id
    with driver.published(volume_id, folder, EXT4) as target:
        (target / "f1").write_text("kept")
        (target / "f2").write_text("other")
    return volume_id


def nothing_is_left(driver: Driver, volume_id: str, staging: Path) -> None:
    """Expect that nothing was mounted or attached."""
    assert kernel.topmost(staging) is None
    assert loop.find(image_of(driver.folders[0], volume_id)) == []


def test_once_before_it_is_mounted(spied: Driver, spy: Spy, tmp_path: Path) -> None:
    """A clean one is staged; what is staged already is not checked, here or at another path."""
    volume_id = spied.create("v", 32 * MIB, capability=EXT4, parameters=CHECKED).volume_id
    for number in (1, 2):
        for path in ("a", "a", "b"):
            spied.stage(volume_id, tmp_path / path, EXT4)
            assert spy.runs() == number
        for path in ("a", "b"):
            spied.unstage(volume_id, tmp_path / path)


@pytest.mark.parametrize("parameters", [{}, {"fsck": "false"}])
def test_not_asked_for(
    spied: Driver, spy: Spy, pool: Path, tmp_path: Path, parameters: dict[str, str]
) -> None:
    """No program is run, whatever the superblock says."""
    volume_id = filled(spied, tmp_path, **parameters)
    miscount(image_of(pool, volume_id))
    with spied.published(volume_id, tmp_path, EXT4):
        pass
    assert spy.runs() == 0


@pytest.mark.parametrize(("fs_type", "size"), [("xfs", 300 * MIB), ("btrfs", 256 * MIB)])
def test_others_recover_when_they_are_mounted(
    spied: Driver, spy: Spy, tmp_path: Path, fs_type: str, size: int
) -> None:
    """Their fsck does nothing, so the parameter is accepted and nothing is run."""
    wanted = mount_capability(fs_type)
    volume_id = spied.create("v", size, capability=wanted, parameters=CHECKED).volume_id
    with spied.published(volume_id, tmp_path, wanted):
        pass
    assert spy.runs() == 0


@pytest.mark.parametrize("readonly", [False, True])
def test_mended(driver: Driver, root: None, pool: Path, tmp_path: Path, readonly: bool) -> None:
    """What takes no decision is mended, also where nobody may write, and the log says what."""
    volume_id = filled(driver, tmp_path, fsck="true", lostAndFound="false")
    miscount(image_of(pool, volume_id))
    mode = Mode.SINGLE_NODE_READER_ONLY if readonly else Mode.SINGLE_NODE_WRITER
    wanted = mount_capability("ext4", mode)
    with driver.published(volume_id, tmp_path, wanted) as target:
        assert (target / "f1").stat().st_nlink == 1
        assert {item.name for item in target.iterdir()} == {"f1", "f2"}
        assert not driver.stats(volume_id, target).volume_condition.abnormal
    assert "ref count is 7, should be 1" in driver.log
    assert is_whole(image_of(pool, volume_id))


def test_left_to_a_person(driver: Driver, root: None, pool: Path, tmp_path: Path) -> None:
    """It is not mounted; the answer says what was found and what to run, and then it is staged."""
    volume_id = filled(driver, tmp_path, fsck="true", mkfsOptions=INDIRECT)
    image, staging = image_of(pool, volume_id), tmp_path / "staging"
    harm(image)
    for _ in range(2):
        words = ("e2fsck failed with exit status 4", "RUN fsck MANUALLY", f"e2fsck -f {image}")
        with refused(Code.FAILED_PRECONDITION, *words):
            driver.stage(volume_id, staging, EXT4)
        nothing_is_left(driver, volume_id, staging)
        driver.restart()
    driver.unstage(volume_id, staging)
    program.run("e2fsck", "-f", "-y", image, ok=(0, 1))
    with driver.published(volume_id, tmp_path, EXT4) as target:
        assert (target / "f1").read_text() == "kept"


@pytest.mark.parametrize("script", ["exit 2", "exit 8", "exit 32", "kill -9 $$"])
def test_check_that_fails(spied: Driver, spy: Spy, tmp_path: Path, script: str) -> None:
    volume_id = filled(spied, tmp_path, fsck="true")
    spy.set(script)
    with refused(Code.FAILED_PRECONDITION, "the check of its ext4 did not pass", "e2fsck"):
        spied.stage(volume_id, tmp_path / "staging", EXT4)
    nothing_is_left(spied, volume_id, tmp_path / "staging")
    spy.set("")
    with spied.published(volume_id, tmp_path, EXT4) as target:
        assert (target / "f1").read_text() == "kept"


def test_modified(driver: Driver, root: None, pool: Path, tmp_path: Path) -> None:
    """It can be switched on and off for a volume that there is."""
    volume_id = filled(driver, tmp_path, mkfsOptions=INDIRECT)
    harm(image_of(pool, volume_id))
    driver.modify(volume_id, fsck="true")
    driver.restart()
    with refused(Code.FAILED_PRECONDITION, "e2fsck"):
        driver.stage(volume_id, tmp_path / "staging", EXT4)
    driver.modify(volume_id, fsck="false", onDelete="retain")
    driver.stage(volume_id, tmp_path / "staging", EXT4)
    driver.unstage(volume_id, tmp_path / "staging")


def test_modified_where_it_cannot_be(driver: Driver, root: None, pool: Path) -> None:
    """Nothing of such a change is made."""
    directory = driver.create("d", type="directory", quota="none").volume_id
    block = driver.create("b", capability=block_capability()).volume_id
    for volume_id, kind in ((directory, "directory"), (block, "raw block")):
        record = pool / "volumes" / volume_id / "volume.json"
        before = record.read_bytes()
        with refused(Code.INVALID_ARGUMENT, kind, "filesystem of its own"):
            driver.modify(volume_id, onDelete="retain", fsck="true")
        with refused(Code.INVALID_ARGUMENT, "fsck is 'yes'", "true or false"):
            driver.modify(volume_id, fsck="yes")
        assert record.read_bytes() == before
        driver.modify(volume_id, fsck="false")


@pytest.mark.parametrize("value", ["", "True", "1", "yes", "true "])
def test_impossible_values(driver: Driver, root: None, value: str) -> None:
    with refused(Code.INVALID_ARGUMENT, "parameter fsck is", "true or false"):
        driver.create("v", 32 * MIB, type="image", fsck=value)
    assert driver.volume_ids() == []


def test_what_it_makes(driver: Driver, root: None) -> None:
    """It makes an image where the type is open, and is refused where that cannot be."""
    made = driver.create("v", 32 * MIB, capability=EXT4, fsck="true")
    assert made.volume_context["type"] == "image"
    assert driver.create("v", 32 * MIB, capability=EXT4, fsck="true") == made
    with refused(Code.ALREADY_EXISTS, "parameters"):
        driver.create("v", 32 * MIB, capability=EXT4)
    free = {"type": "directory", "quota": "none"}
    for parameters in (free, {"quota": "none"}):
        with refused(Code.INVALID_ARGUMENT, "fsck", "no filesystem of its own"):
            driver.create("w", parameters=parameters, fsck="true")
        with refused(Code.INVALID_ARGUMENT, "fsck"):
            driver.capacity(**parameters, fsck="true")
    with refused(Code.INVALID_ARGUMENT, "fsck", "raw block"):
        driver.create("w", capability=block_capability(), fsck="true")
    directory = driver.create("d", parameters=free).volume_id
    with refused(Code.INVALID_ARGUMENT, "fsck"):
        driver.create("w", fsck="true", source=from_volume(directory))
    assert sorted(driver.volume_ids()) == sorted([made.volume_id, directory])
    assert driver.capacity(fsck="true").available_capacity > 0


def test_mutable_parameters_win(driver: Driver, root: None) -> None:
    """They decide also what is made."""

    def make(name: str, mutable: str, **parameters: str) -> csi.Volume:
        made: csi.Volume = driver.controller.CreateVolume(
            csi.CreateVolumeRequest(
                name=name,
                capacity_range=csi.CapacityRange(required_bytes=32 * MIB),
                volume_capabilities=[mount_capability()],
                parameters=parameters,
                mutable_parameters={"fsck": mutable},
            )
        ).volume
        return made

    with refused(Code.INVALID_ARGUMENT, "fsck"):
        make("v", "true", quota="none")
    assert make("v", "false", quota="none", fsck="true").volume_context["type"] == "directory"


@pytest.mark.parametrize("how", ["clone", "restore"])
def test_copies(spied: Driver, spy: Spy, tmp_path: Path, how: str) -> None:
    """A copy is checked where its own request says so, not its source's."""
    plain, checked = filled(spied, tmp_path, "p"), filled(spied, tmp_path, "c", fsck="true")
    before = spy.runs()
    for source, more in ((plain, {"fsck": "true"}), (checked, {})):
        content = (
            from_volume(source)
            if how == "clone"
            else from_snapshot(spied.snapshot(f"of-{source[0]}", source).snapshot_id)
        )
        copy = spied.create(
            f"copy-{source[0]}", 64 * MIB, capability=EXT4, parameters=more, source=content
        ).volume_id
        with spied.published(copy, tmp_path, EXT4) as target:
            assert (target / "f1").read_text() == "kept"
    assert spy.runs() == before + 1


@pytest.mark.parametrize("option", ["noload", "norecovery"])
def test_mounted_without_recovery(spied: Driver, spy: Spy, tmp_path: Path, option: str) -> None:
    """Who looks at a filesystem as a crash left it has nothing written to it."""
    volume_id = spied.create("v", 32 * MIB, capability=EXT4, parameters=CHECKED).volume_id
    spied.stage(volume_id, tmp_path / "a", mount_capability("ext4", flags=["ro", option]))
    assert spy.runs() == 0
    spied.unstage(volume_id, tmp_path / "a")


def test_grown_afterwards(driver: Driver, root: None, pool: Path, tmp_path: Path) -> None:
    """What was mended can grow, which the kernel refuses to a filesystem that has met errors."""
    volume_id = filled(driver, tmp_path, fsck="true")
    miscount(image_of(pool, volume_id))
    driver.expand(volume_id, 256 * MIB)
    with driver.published(volume_id, tmp_path, EXT4) as target:
        facts = os.statvfs(target)
        assert facts.f_blocks * facts.f_frsize > 200 * MIB
        assert (target / "f1").read_text() == "kept"


def test_full_pool(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], spy: Spy, tmp_path: Path
) -> None:
    """A thin one is staged unchecked, as it would be without: a repair could be cut off."""
    pool = filesystem("xfs", 512 * MIB)
    driver = serve(pool, PATH=spy.path)
    thin = filled(driver, tmp_path, "thin", fsck="true")
    thick = filled(driver, tmp_path, "thick", fsck="true", allocation="thick")
    fill(pool.parent / "others")
    for volume_id, checked in ((thin, False), (thick, True)):
        miscount(image_of(pool, volume_id))
        before = spy.runs()
        with driver.published(volume_id, tmp_path, EXT4) as target:
            assert (target / "f2").read_text() == "other"
            (target / "f2").unlink()
        assert spy.runs() == before + checked
    assert "a filesystem is not checked" in driver.log


@contextlib.contextmanager
def outliving(driver: Driver, spy: Spy, volume_id: str, staging: Path) -> Iterator[None]:
    """Kill the driver while e2fsck runs, which goes on through the `with` block."""
    interceptor, begun = spy.program.with_name("interceptor"), spy.program.with_name("begun")
    interceptor.touch()
    spy.set(f"touch {begun}\nwhile [ -e {interceptor} ]; do sleep 0.05; done")
    staging.mkdir(exist_ok=True)
    call = driver.node.NodeStageVolume.future(
        csi.NodeStageVolumeRequest(
            volume_id=volume_id, staging_target_path=str(staging), volume_capability=EXT4
        )
    )
    deadline = time.monotonic() + 20
    while not begun.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    driver.restart(signal.SIGKILL)
    call.cancel()
    try:
        yield
    finally:
        interceptor.unlink()


def test_e2fsck_that_outlives_the_driver(
    spied: Driver, spy: Spy, pool: Path, tmp_path: Path
) -> None:
    """Until it ends nothing mounts what it works on, also where no check is wanted any more."""
    volume_id = filled(spied, tmp_path, fsck="true")
    miscount(image_of(pool, volume_id))
    staging = tmp_path / "staging"
    with outliving(spied, spy, volume_id, staging):
        for value in ("true", "false", "true"):
            spied.modify(volume_id, fsck=value)
            with refused(Code.ABORTED):
                spied.stage(volume_id, staging, EXT4)
            with refused(Code.ABORTED):
                spied.snapshot("s", volume_id)
            nothing_is_left(spied, volume_id, staging)
    deadline = time.monotonic() + 20
    while True:
        try:
            spied.stage(volume_id, staging, EXT4)
        except grpc.RpcError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            break
    spied.unstage(volume_id, staging)
    assert is_whole(image_of(pool, volume_id))


def test_killed_with_the_driver(spied: Driver, spy: Spy, pool: Path, tmp_path: Path) -> None:
    """SIGKILL of both in the middle: the next staging checks again."""
    volume_id = filled(spied, tmp_path, fsck="true")
    miscount(image_of(pool, volume_id))
    spy.set("kill -9 $PPID $$")
    with pytest.raises(grpc.RpcError):
        spied.stage(volume_id, tmp_path / "staging", EXT4)
    spied.stop()
    spy.set("")
    spied.start()
    with spied.published(volume_id, tmp_path, EXT4) as target:
        assert (target / "f1").stat().st_nlink == 1
    assert is_whole(image_of(pool, volume_id))


def test_inline_volumes_take_no_fsck(driver: Driver, root: None, tmp_path: Path) -> None:
    """They are new whenever they are mounted."""
    context = {"csi.storage.k8s.io/ephemeral": "true", "fsck": "true"}
    with refused(Code.INVALID_ARGUMENT, "unknown parameter 'fsck'"):
        driver.publish("csi-1", None, tmp_path / "target", context=context)
    assert driver.volume_ids() == []
