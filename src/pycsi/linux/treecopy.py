"""Copying directory trees with untrusted content, which may change during the copy.

As with `cp -a --reflink=auto`, hard links, extended attributes, ACLs, owners, modes, times and
holes are kept. Unlike with cp, an entry that is replaced by a symbolic link during the copy cannot
lead out of the tree: each name is opened relative to its open directory, and no link is followed.
The depth of the tree costs neither stack nor file descriptors.
"""

import contextlib
import errno
import os
import stat
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Self

from pycsi.linux import filecopy
from pycsi.linux.descriptor import DIRECTORY, names_in, opened
from pycsi.linux.program import unpinned
from pycsi.linux.tree import refuse_mounts, remove

CLOCK_REALTIME_COARSE = 5
"""The clock of the kernel's file timestamps."""

FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOATIME
"""The flags that open a file of a tree for reading, and leave no trace."""
_REPLACED = frozenset({errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.ESTALE})
_SECTOR = 512
NOT_KEPT = ("security.selinux", "btrfs.")
"""The beginnings of the names of extended attributes that belong to a place, and not to a file."""

NOT_COPIED = (*NOT_KEPT, "trusted.SGI_ACL_")
"""The same with those that XFS shows beside the usual ones of an ACL, and makes of them itself."""


class TreeChangedError(Exception):
    """The tree was changed while it was read."""


class Cursor:
    """The current directory of a walk through a tree, which follows no symbolic links.

    `fd` is the directory, opened; it is another one after each step.
    """

    def __init__(self, root: Path) -> None:
        self.fd = os.open(root, DIRECTORY | os.O_CLOEXEC)
        self._filesystem = os.fstat(self.fd).st_dev
        self._above: list[tuple[int, int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    @property
    def at_root(self) -> bool:
        """Whether the walk is where it began."""
        return not self._above

    def enter(self, name: str) -> None:
        """Go down into the directory `name`; EXDEV if that is another filesystem or subvolume.

        `FileNotFoundError` if `name` is no longer a directory.
        """
        here = self._identity(self.fd)
        self._move(name, lambda found: found[0] == self._filesystem)
        self._above.append(here)

    def leave(self) -> None:
        """Go back up; `TreeChangedError` if the parent is no longer the directory of before."""
        expected = self._above.pop()
        self._move("..", lambda found: found == expected)

    def _move(self, name: str, fits: Callable[[tuple[int, int]], bool]) -> None:
        try:
            fd = os.open(name, DIRECTORY | os.O_CLOEXEC, dir_fd=self.fd)
        except OSError as error:
            if error.errno in _REPLACED:
                raise FileNotFoundError(error.errno, "replaced", name) from None
            raise
        found = self._identity(fd)
        if not fits(found):
            os.close(fd)
            if name == "..":
                raise TreeChangedError("a directory was moved")
            raise OSError(errno.EXDEV, "a subvolume begins here; move it away", name)
        os.close(self.fd)
        self.fd = fd

    @staticmethod
    def _identity(fd: int) -> tuple[int, int]:
        status = os.fstat(fd)
        return status.st_dev, status.st_ino


def fence() -> int:
    """Return a time in nanoseconds; every file that changes from now on gets a later ctime."""
    # A file's time may lie between two ticks of this clock (Linux 6.13), so that of a file that was
    # changed just before may be later than this tick: take the next.
    since = _tick_after(time.clock_gettime_ns(CLOCK_REALTIME_COARSE))
    _tick_after(since)
    return since


def _tick_after(then: int) -> int:
    while (now := time.clock_gettime_ns(CLOCK_REALTIME_COARSE)) <= then:
        time.sleep(0.001)
    return now


def walk(root: Path, visit: Callable[[str, os.stat_result | None, int], None]) -> None:
    """Call `visit` for the root and for every entry in the tree, each directory before its entries.

    Its arguments are the entry's name, its status, and an open descriptor of its directory; the
    root's name is ".". The status is None for an entry that disappears during the walk. EBUSY if
    anything is mounted in the tree, even a file or directory of the same filesystem: a mount hides
    the tree's own entries. EXDEV if it contains a subvolume.
    """
    refuse_mounts(root)
    with Cursor(root) as place:
        visit(".", os.fstat(place.fd), place.fd)
        pending = [os.listdir(place.fd)]
        while True:
            while pending[-1]:
                name = pending[-1].pop()
                try:
                    status = os.stat(name, dir_fd=place.fd, follow_symlinks=False)
                    visit(name, status, place.fd)
                    if stat.S_ISDIR(status.st_mode):
                        place.enter(name)
                        pending.append(os.listdir(place.fd))
                except FileNotFoundError:
                    visit(name, None, place.fd)
            pending.pop()
            if place.at_root:
                return
            place.leave()


def refuse_changed(root: Path, since: int) -> None:
    """Raise `TreeChangedError` if any ctime in the tree is later than `since`, from `fence`.

    EBUSY if anything is mounted in the tree, and EXDEV if it contains a subvolume.
    """

    def refuse_later(name: str, status: os.stat_result | None, _: int) -> None:
        if status is None or status.st_ctime_ns > since:
            raise TreeChangedError(f"{name!r} was changed")

    walk(root, refuse_later)


def occupied(root: Path) -> int:
    """Return how many bytes the tree occupies on disk; approximate if it changes meanwhile."""
    total = 0
    seen: set[int] = set()

    def count(_: str, status: os.stat_result | None, __: int) -> None:
        nonlocal total
        if status is None:
            return
        if status.st_nlink == 1 or stat.S_ISDIR(status.st_mode):
            total += status.st_blocks * _SECTOR
        elif status.st_ino not in seen:
            seen.add(status.st_ino)
            total += status.st_blocks * _SECTOR

    with contextlib.suppress(TreeChangedError):
        walk(root, count)
    return total


@unpinned()
def copy(source: Path, target: Path, progress: Callable[[], None]) -> None:
    """Make the directory `target`, which has nothing or a copy that was cut off, what `source` is.

    Of an earlier copy what is already right is not written again: files are compared by their
    content. `progress` is called for each entry, and for each MiB; an exception from it ends the
    copy. An entry that disappears during the copy is left out, which `refuse_changed` detects.
    EBUSY if anything is mounted in `source`, and EXDEV if it contains a subvolume.
    """
    refuse_mounts(source)
    _keep_usable(source, target)
    # Holds one link to each copied file that has several names, until all of them are linked.
    links = target / f".links-{uuid.uuid4().hex}"
    links.mkdir(mode=0o700)
    with opened(links, DIRECTORY) as linked, Cursor(source) as here, Cursor(target) as there:
        _copy_tree(here, there, linked, progress)
        for name in names_in(linked):
            os.unlink(name, dir_fd=linked)
        links.rmdir()
        keep_attributes(here.fd, there.fd)


def _keep_usable(source: Path, target: Path) -> None:
    """Delete what an earlier copy has in `target`, but directories and files to go on with."""
    with Cursor(source) as here, Cursor(target) as there:
        pending = [_usable(here.fd, there.fd)]
        while True:
            while pending[-1]:
                name = pending[-1].pop()
                try:
                    here.enter(name)
                except FileNotFoundError:
                    raise TreeChangedError(f"{name!r} was replaced") from None
                there.enter(name)
                pending.append(_usable(here.fd, there.fd))
            pending.pop()
            if here.at_root:
                return
            here.leave()
            there.leave()


def _usable(here: int, there: int) -> list[str]:
    """Delete in a directory what cannot be gone on with; return the directories that are in both.

    A file with several names is copied again: it may be another one by now under each of them.
    """
    names = os.listdir(there)
    if names:
        # What an access control list says of new files is for those of the directory's users.
        drop_xattrs(there)
    folders = []
    for name in names:
        status = os.stat(name, dir_fd=there, follow_symlinks=False)
        wanted, links = 0, 0
        with contextlib.suppress(FileNotFoundError):
            before = os.stat(name, dir_fd=here, follow_symlinks=False)
            wanted, links = stat.S_IFMT(before.st_mode), before.st_nlink
        same = wanted == stat.S_IFMT(status.st_mode)
        if same and stat.S_ISDIR(wanted):
            folders.append(name)
        elif same and stat.S_ISREG(wanted) and links == status.st_nlink == 1:
            with opened(name, os.O_RDONLY | os.O_NOFOLLOW, at=there) as fd:
                drop_xattrs(fd)
        elif stat.S_ISDIR(status.st_mode):
            remove(Path(f"/proc/self/fd/{there}/{name}"))
        else:
            os.unlink(name, dir_fd=there)
    return folders


def drop_xattrs(fd: int) -> None:
    """Remove the extended attributes, and ACLs, of an open file, but those of its place."""
    for name in os.listxattr(fd):
        if not name.startswith(NOT_COPIED):
            os.removexattr(fd, name)


def _copy_tree(here: Cursor, there: Cursor, linked: int, progress: Callable[[], None]) -> None:
    pending = [os.listdir(here.fd)]
    while True:
        while pending[-1]:
            progress()
            name = pending[-1].pop()
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(name, dir_fd=here.fd, follow_symlinks=False)
                if not stat.S_ISDIR(status.st_mode):
                    _copy_once(name, status, here.fd, there.fd, linked, progress)
                    continue
                here.enter(name)
                with contextlib.suppress(FileExistsError):  # of an earlier copy
                    os.mkdir(name, 0o700, dir_fd=there.fd)
                there.enter(name)
                pending.append(os.listdir(here.fd))
        pending.pop()
        if here.at_root:
            return
        keep_attributes(here.fd, there.fd)
        here.leave()
        there.leave()


def _copy_once(  # noqa: PLR0917  (two directories, and what to do with a name in them)
    name: str,
    status: os.stat_result,
    here: int,
    there: int,
    linked: int,
    progress: Callable[[], None],
) -> None:
    """Copy an entry that is no directory, or link to the copy made for another of its names."""
    key = str(status.st_ino)
    if status.st_nlink > 1:
        try:
            os.link(key, name, src_dir_fd=linked, dst_dir_fd=there, follow_symlinks=False)
        except FileNotFoundError:
            pass  # this name is the first
        except OSError as error:
            if error.errno != errno.EMLINK:
                raise
            os.unlink(key, dir_fd=linked)  # too many links to one file: make another copy
        else:
            return
    if stat.S_ISREG(status.st_mode):
        copy_file(name, here, there, progress)
    else:
        copy_special(name, status, here, there)
    if status.st_nlink > 1:
        os.link(name, key, src_dir_fd=there, dst_dir_fd=linked, follow_symlinks=False)


def copy_file(name: str, here: int, there: int, progress: Callable[[], None]) -> None:
    """Copy the file `name` of the open directory `here` to a new one in the directory `there`.

    `FileNotFoundError` if it is no file any more.
    """
    with contextlib.ExitStack() as open_files:
        try:
            source = open_files.enter_context(opened(name, FILE, at=here))
            regular = stat.S_ISREG(os.fstat(source).st_mode)
        except OSError as error:
            if error.errno not in _REPLACED:
                raise
            regular = False
        if not regular:
            raise FileNotFoundError(errno.ENOENT, "replaced", name)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        target = open_files.enter_context(opened(name, flags, at=there))
        filecopy.bring(source, target, progress)
        keep_attributes(source, target)


def copy_special(name: str, status: os.stat_result, here: int, there: int) -> None:
    """Copy a symbolic link, FIFO, socket or device node."""
    if stat.S_ISLNK(status.st_mode):
        try:
            leads_to = os.readlink(name, dir_fd=here)
        except OSError as error:
            if error.errno == errno.EINVAL:  # no longer a link
                raise FileNotFoundError(errno.ENOENT, "replaced", name) from None
            raise
        os.symlink(leads_to, name, dir_fd=there)
    else:
        os.mknod(name, status.st_mode, status.st_rdev, dir_fd=there)
    os.chown(name, status.st_uid, status.st_gid, dir_fd=there, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=there)  # of the copy, made just now
    # Such files cannot be opened, so these paths name them in their open directories.
    _keep_xattrs(f"/proc/self/fd/{here}/{name}", f"/proc/self/fd/{there}/{name}")
    times = (status.st_atime_ns, status.st_mtime_ns)
    os.utime(name, ns=times, dir_fd=there, follow_symlinks=False)


def keep_attributes(source: int, target: int) -> None:
    """Give the open file `target` the owner, mode, extended attributes and times of `source`."""
    status = os.fstat(source)
    os.fchown(target, status.st_uid, status.st_gid)
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    _keep_xattrs(source, target)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _keep_xattrs(source: int | str, target: int | str) -> None:
    follow = isinstance(source, int)
    for name in os.listxattr(source, follow_symlinks=follow):
        if name.startswith(NOT_COPIED):
            continue
        try:
            value = os.getxattr(source, name, follow_symlinks=follow)
        except OSError as error:
            if error.errno != errno.ENODATA:  # removed since the listing
                raise
        else:
            os.setxattr(target, name, value, follow_symlinks=follow)
