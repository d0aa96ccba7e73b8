"""The faults of a filesystem in an image: damaged, shut down or read-only.

`kind` is the type that the filesystem should have, such as "ext4".
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from pycsi.linux import btrfs, filesystem, mount
from pycsi.linux.kernel import Mount
from pycsi.model.health import Fault, Reason


def in_image(kind: str, image: Path) -> Iterator[Fault]:
    """Yield the faults that the superblock in the file `image` shows, which is not mounted."""
    found = filesystem.identify(image)
    if found is None or found.kind != kind:
        holds = found.kind if found else "foreign data"
        yield Fault(Reason.FOREIGN_DATA, f"its image holds {holds}, not {kind}")
    elif found.errors:
        yield _counted(kind, found.errors, "check it")


def listed(kind: str, mounts: Iterable[Mount]) -> Iterator[Fault]:
    """Yield the faults that the kernel lists among the options of `mounts`."""
    for item in mounts:
        if "shutdown" in item.super_options:
            yield _shut_down(kind)
        elif item.super_options & {"ro", "emergency_ro"} and not item.readonly:
            yield Fault(
                Reason.FILESYSTEM_READ_ONLY,
                f"its {kind} has gone read-only; look at the kernel's log",
            )


def at_mount(kind: str, mounted: Mount) -> Iterator[Fault]:
    """Yield the faults that the filesystem itself tells where it is mounted."""
    if not mount.answers(mounted.target):
        yield _shut_down(kind)
        return
    errors = 0
    if kind == "btrfs":
        errors = btrfs.errors(Path(mounted.target))
    elif kind == "ext4":
        errors = filesystem.errors(mounted.device)
    if errors:
        yield _counted(kind, errors, "look at the kernel's log")


def _shut_down(kind: str) -> Fault:
    return Fault(
        Reason.FILESYSTEM_SHUT_DOWN, f"its {kind} has been shut down; look at the kernel's log"
    )


def _counted(kind: str, errors: int, advice: str) -> Fault:
    return Fault(Reason.FILESYSTEM_ERRORS, f"its {kind} has counted {errors} errors; {advice}")
