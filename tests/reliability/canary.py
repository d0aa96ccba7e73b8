"""What no request and no volume may touch: looked at before and after, down to the last ctime."""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

from conftest import run

from pycsi.linux import kernel
from pycsi.linux.libc import function

CLONE_NEWNS = 0x20000
ETC = Path("/etc")

_setns = function("setns", ctypes.c_int, ctypes.c_int)
_unshare = function("unshare", ctypes.c_int)

Facts = dict[str, tuple[object, ...]]


def facts_of(*places: Path) -> Facts:
    """Return what lstat(2) says of all that is in directory trees, and where links lead."""
    found: Facts = {}
    for place in places:
        names = [str(place)]
        for folder, folders, files in os.walk(place):
            names += [os.path.join(folder, name) for name in (*folders, *files)]  # noqa: PTH118
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                status = os.lstat(name)
                leads_to = os.readlink(name) if os.path.islink(name) else None  # noqa: PTH114, PTH115
                found[name] = (
                    status.st_ino,
                    status.st_mode,
                    status.st_uid,
                    status.st_gid,
                    status.st_size,
                    status.st_nlink,
                    status.st_mtime_ns,
                    status.st_ctime_ns,
                    leads_to,
                )
    return found


def mounted_in(*places: Path) -> list[str]:
    """Return what is mounted at or below places."""
    return [
        item.target
        for item in kernel.mountinfo()
        if any(Path(item.target).is_relative_to(place) for place in places)
    ]


@contextlib.contextmanager
def untouched(*places: Path) -> Iterator[None]:
    """Expect that nothing in `places` is made, changed, deleted or mounted over."""
    before, mounted = facts_of(*places), mounted_in(*places)
    yield
    after = facts_of(*places)
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    assert not changed, f"touched: {sorted(changed)[:10]}"
    assert mounted_in(*places) == mounted


@contextlib.contextmanager
def etc_of_our_own(copy: Path) -> Iterator[None]:
    """Let this process, and what it starts, see a copy of /etc through the `with` block.

    Others, such as a package manager, may change the real one meanwhile. What is mounted in the
    block is gone after it.
    """
    run("cp", "--archive", ETC, copy)
    folder = Path.cwd()
    outside = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _unshare(CLONE_NEWNS)
        try:
            run("mount", "--make-rprivate", "/")
            run("mount", "--bind", copy, ETC)
            yield
        finally:
            _setns(outside, CLONE_NEWNS)
            os.chdir(folder)
    finally:
        os.close(outside)
