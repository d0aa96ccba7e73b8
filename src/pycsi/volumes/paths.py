"""The staging and target paths of requests: how they are checked, made and removed."""

import contextlib
import errno
import os
import stat
from pathlib import Path

from pycsi.linux.descriptor import is_directory, no_symlinks, opened
from pycsi.linux.kernel import topmost
from pycsi.model.errors import FailedPrecondition, InvalidArgument

_LONGEST_PATH = 4095
_LONGEST_NAME = 255


def resolved(text: str, field: str) -> str:
    """Return a path of a request in the form in which the kernel lists mounts.

    Symbolic links are refused, not followed: a user who can plant one must not choose where a
    volume is mounted. The system calls that use the path refuse them again. `InvalidArgument` for
    links, '..', a relative or an overlong path.
    """
    names = [name for name in text.split("/") if name not in {"", "."}]
    raw = os.fsencode(text)
    if b"\0" in raw or len(raw) > _LONGEST_PATH or max(map(len, raw.split(b"/"))) > _LONGEST_NAME:
        raise InvalidArgument(
            f"{field} holds a NUL byte, or is over {_LONGEST_PATH} bytes long, or a name in it is "
            f"over {_LONGEST_NAME}"
        )
    if not text.startswith("/") or ".." in names or not names:
        raise InvalidArgument(f"{field} {text!r}: give an absolute path without '..'")
    path, folder = f"/{'/'.join(names)}", f"/{'/'.join(names[:-1])}"
    with contextlib.suppress(OSError), no_symlinks(folder):
        return path
    for parent in reversed(Path(path).parents):
        if os.path.islink(parent):  # a path that cannot be examined counts as no link
            raise InvalidArgument(
                f"{field} {text!r}: {parent} is a symbolic link; give the real path"
            )
    return path


def refuse_unfit(target: str, *, is_file: bool) -> None:
    """Raise `FailedPrecondition` if a target cannot be made, and does not exist as an empty one."""
    folder, _ = os.path.split(target)
    if not is_directory(folder):
        raise FailedPrecondition(f"target_path: {folder} is not a directory; create it")
    try:
        mode = os.lstat(target).st_mode
    except OSError:
        return
    if not (stat.S_ISREG(mode) if is_file else is_empty_directory(target)):
        kind = "a file" if is_file else "an empty directory"
        raise FailedPrecondition(f"target_path {target} exists and is not {kind}")


def is_empty_directory(path: str) -> bool:
    """Tell whether `path` is an empty directory; False if it is removed meanwhile."""
    with contextlib.suppress(OSError):
        return is_directory(path) and not os.listdir(path)
    return False


def make_target(target: str, *, is_file: bool) -> bool:
    """Make a directory, or a file for a device, at `target`; return False if it existed."""
    folder, name = os.path.split(target)
    with no_symlinks(folder, os.O_DIRECTORY) as parent:
        try:
            if is_file:
                with opened(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, at=parent):
                    pass
            else:
                os.mkdir(name, 0o750, dir_fd=parent)
        except FileExistsError:
            return False
    return True


def remove_unused(target: str) -> bool:
    """Remove a target, and return True; False if it does not exist, or something is mounted there.

    `FailedPrecondition` if the target is not empty.
    """
    if topmost(target) or not os.path.lexists(target):
        return False
    remove_target(target)
    return True


def remove_target(target: str) -> None:
    """Remove an unmounted target, if it exists; `FailedPrecondition` if it is not empty."""
    folder, name = os.path.split(target)
    try:
        with no_symlinks(folder, os.O_DIRECTORY) as parent:
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                os.rmdir(name, dir_fd=parent)
            elif stat.S_ISREG(status.st_mode) and status.st_size == 0:
                os.unlink(name, dir_fd=parent)
            else:
                raise FailedPrecondition(
                    f"target_path {target} is not what was made there; remove it"
                )
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        raise FailedPrecondition(
            f"target_path {target} holds files that are not the volume's; move them away"
        ) from None
