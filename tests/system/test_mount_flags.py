"""Mount flags on a pool whose own mount forbids or does what they ask for otherwise."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from conftest import FilesystemFactory, needs
from driver import GIB, MIB, Driver, Mode, mount_capability, refused

from pycsi.linux import kernel

HARDENED = {"nosuid", "nodev", "noexec", "noatime", "nodiratime", "nosymfollow"}
"""What nobody sees in a volume's mount options unless the pool is mounted so."""


@pytest.fixture
def hardened(filesystem: FilesystemFactory) -> Path:
    """Return a pool on a filesystem that is mounted as a hardened /var is."""
    return filesystem("ext4", GIB, options=",".join(sorted(HARDENED)))


def options(path: Path) -> set[str]:
    """Return the options of the mount at `path` that say what it forbids, or strictatime."""
    found = kernel.topmost(path)
    assert found is not None
    row = next(
        row.split()
        for row in Path("/proc/self/mountinfo").read_text().splitlines()
        if row.split()[4] == str(path)
    )
    return set(row[5].split(",")) - {"rw", "relatime"}


def directory(driver: Driver, *flags: str) -> tuple[str, Driver]:
    wanted = mount_capability(flags=flags)
    made = driver.create(
        "v", 32 * MIB, capability=wanted, parameters={"type": "directory", "quota": "none"}
    )
    return made.volume_id, driver


@pytest.mark.parametrize(
    ("flags", "left"),
    [
        ((), HARDENED),
        (("exec",), HARDENED - {"noexec"}),
        (("suid,dev",), HARDENED - {"nosuid", "nodev"}),
        (("relatime",), HARDENED - {"noatime"}),
        (("atime", "diratime"), HARDENED - {"noatime", "nodiratime"}),
        (("strictatime",), HARDENED - {"noatime"}),
        (("noatime",), HARDENED),
        (("symfollow",), HARDENED - {"nosymfollow"}),
        (("defaults",), HARDENED - {"nosuid", "nodev", "noexec"}),
        (("user",), HARDENED),
        (("user,exec",), HARDENED - {"noexec"}),
        (("defaults,nosuid", "ro"), (HARDENED - {"nodev", "noexec"}) | {"ro"}),
    ],
)
def test_directory_has_what_its_flags_say(
    hardened: Path,
    serve: Callable[..., Driver],
    tmp_path: Path,
    flags: tuple[str, ...],
    left: set[str],
) -> None:
    """A flag is honoured where it is staged and where it is published; the rest is the pool's."""
    volume_id, driver = directory(serve(hardened), *flags)
    wanted = mount_capability(flags=flags)
    with driver.published(volume_id, tmp_path, wanted) as target:
        assert options(tmp_path / f"staging-{volume_id}") == left
        assert options(target) == left


def test_flags_that_only_the_publication_has(
    hardened: Path, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """A flag of NodePublishVolume alone holds at its target alone."""
    volume_id, driver = directory(serve(hardened))
    staging, target = tmp_path / "staging", tmp_path / "target"
    driver.stage(volume_id, staging)
    driver.publish(volume_id, staging, target, mount_capability(flags=["exec"]))
    assert options(staging) == HARDENED
    program = target / "program"
    program.write_text("#!/bin/sh\necho runs\n")
    program.chmod(0o755)
    assert subprocess.run([program], capture_output=True, check=True).stdout == b"runs\n"
    driver.unpublish(volume_id, target)
    driver.unstage(volume_id, staging)


@pytest.mark.parametrize("how", ["mode", "flag"])
def test_read_only_wins_over_rw(
    hardened: Path, serve: Callable[..., Driver], tmp_path: Path, how: str
) -> None:
    """A read-only publication stays so, whatever the mount flags say."""
    volume_id, driver = directory(serve(hardened), "rw")
    mode = Mode.SINGLE_NODE_READER_ONLY if how == "mode" else Mode.SINGLE_NODE_MULTI_WRITER
    wanted = mount_capability("", mode, flags=["rw"])
    with driver.published(volume_id, tmp_path, wanted, readonly=how == "flag") as target:
        assert "ro" in options(target)


def test_image_has_a_mount_of_its_own(
    hardened: Path, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """An image is not forbidden what its pool's mount forbids."""
    driver = serve(hardened)
    volume_id = driver.create("v", 32 * MIB, type="image").volume_id
    with driver.published(volume_id, tmp_path, mount_capability(flags=["exec"])) as target:
        assert options(target) == set()


@pytest.mark.parametrize(
    ("flags", "seen"),
    [
        ("user", {"nodev", "noexec", "nosuid"}),
        ("user,exec", {"nodev", "nosuid"}),
        ("user,noatime,user", {"noatime", "nodev", "noexec", "nosuid"}),
        ("exec,user", {"nodev", "noexec", "nosuid"}),
        ("users", {"nodev", "noexec", "nosuid"}),
        ("users,dev,suid", {"noexec"}),
        ("owner", {"nodev", "nosuid"}),
        ("group,exec,dev", {"nosuid"}),
        ("exec,dev,user,group,dev", {"noexec", "nosuid"}),
        ("X-mount.mkdir=700,X-note,x-systemd.automount,comment=fast", set()),
        ("silent,norelatime,nostrictatime", set()),
        ("noatime,norelatime,loud", {"noatime"}),
    ],
)
def test_options_that_mount_reads(
    driver: Driver, root: None, tmp_path: Path, flags: str, seen: set[str]
) -> None:
    """Who may mount means what is taken away, but for what a later option gives back."""
    volume_id = driver.create("v", 32 * MIB, type="image").volume_id
    wanted = mount_capability("ext4", flags=[flags])
    with driver.published(volume_id, tmp_path, wanted) as target:
        assert options(tmp_path / f"staging-{volume_id}") == seen
        assert options(target) == seen


@pytest.mark.parametrize("flags", ["ro=recursive", "rw=1", "sync=no", "sync,async", "lazytime=0"])
def test_what_the_kernel_would_take_and_not_do(driver: Driver, root: None, flags: str) -> None:
    """Values that the kernel does not look at are refused, and so are options that contradict."""
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "mount flag"):
        driver.create("v", 32 * MIB, capability=mount_capability("ext4", flags=[flags]))


@pytest.mark.parametrize("kind", ["ext4", "btrfs"])
@pytest.mark.parametrize(
    "flags",
    [
        "X-mount.subdir=a",
        "X-mount.idmap=b:0:1000:1",
        "X-mount.owner=1000",
        "X-mount.group=1000",
        "X-mount.mode=700",
        "subvol=a",
        "subvolid=256",
        "errors=panic",
        "fatal_errors=panic",
    ],
)
def test_what_no_volume_honours(driver: Driver, root: None, kind: str, flags: str) -> None:
    """Such a flag is refused when the volume is created, not only when it is staged."""
    wanted = mount_capability(kind, flags=["noatime", flags])
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "mount flag 2"):
        driver.create("v", 256 * MIB, capability=wanted)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_options_that_the_kernel_does_not_know(driver: Driver, root: None, kind: str) -> None:
    """An unknown option, or value, is refused when the volume is created; those before are not."""
    known = {"ext4": "commit=7", "xfs": "logbufs=8", "btrfs": "compress=zstd"}
    unknown = {"ext4": "commit=soon", "xfs": "logbufs=many", "btrfs": "compress=much"}
    for flag in ("secretword", "nosuch=secretword", unknown[kind]):
        wanted = mount_capability(kind, flags=[known[kind], f"noatime,{flag}"])
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "mount flag 3", kind):
            driver.create("v", 300 * MIB, capability=wanted)
    assert "secretword" not in driver.log


def test_image_that_is_staged_read_only_is_not_published_writable(
    driver: Driver, root: None, tmp_path: Path
) -> None:
    """Where the filesystem itself is read-only, `rw` is refused: it would do nothing."""
    volume_id = driver.create("v", 32 * MIB, type="image").volume_id
    staging, target = tmp_path / "staging", tmp_path / "target"
    driver.stage(volume_id, staging, mount_capability(flags=["ro"]))
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "staged read-only"):
        driver.publish(volume_id, staging, target, mount_capability(flags=["rw"]))
    driver.unstage(volume_id, staging)


def test_options_of_a_filesystem_count_when_it_is_mounted(
    driver: Driver, root: None, tmp_path: Path
) -> None:
    """Where it is mounted already other ones would do nothing, and are refused."""
    volume_id = driver.create("v", 32 * MIB, type="image").volume_id
    staging, second, target = tmp_path / "staging", tmp_path / "second", tmp_path / "target"
    plain, late = mount_capability("ext4"), mount_capability("ext4", flags=["commit=7,noexec"])
    other = mount_capability("ext4", flags=["noexec", "commit=8"])
    driver.stage(volume_id, staging, late)
    for wanted in (plain, other):
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "mount flags"):
            driver.stage(volume_id, second, wanted)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "mount flags"):
        driver.publish(volume_id, staging, target, other)
    assert not target.exists()
    for wanted in (plain, mount_capability("ext4", flags=["noexec", "commit=7"])):
        driver.publish(volume_id, staging, target, wanted)
        assert options(target) == {"noexec"}
        driver.unpublish(volume_id, target)
    driver.stage(volume_id, second, mount_capability("ext4", flags=["commit=7"]))
    driver.unstage(volume_id, second)
    driver.unstage(volume_id, staging)


def test_locked_by_a_user_namespace(
    hardened: Path, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """What the kernel lets nobody clear, in a user namespace, is refused; without it is staged."""
    wrapper = ("unshare", "--user", "--map-root-user", "--mount")
    needs("user namespaces", met=subprocess.run([*wrapper, "true"], check=False).returncode == 0)
    volume_id, driver = directory(serve(hardened, wrapper=wrapper))
    staging = tmp_path / "staging"
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "user namespace", "mount flags"):
        driver.stage(volume_id, staging, mount_capability(flags=["exec"]))
    driver.stage(volume_id, staging)
    driver.unstage(volume_id, staging)


def test_comma_in_quotes(driver: Driver, root: None, tmp_path: Path) -> None:
    """An SELinux label reaches the kernel whole, which takes it or says that it cannot."""
    volume_id = driver.create("v", 32 * MIB, type="image").volume_id
    label = 'context="system_u:object_r:container_file_t:s0:c1,c2"'
    staging = tmp_path / "staging"
    if Path("/sys/fs/selinux/enforce").exists():
        pytest.skip("this kernel has SELinux, and may take the label or not")
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "mount flag 1: ext4"):
        driver.stage(volume_id, staging, mount_capability("ext4", flags=[label]))
    assert not kernel.topmost(staging)
