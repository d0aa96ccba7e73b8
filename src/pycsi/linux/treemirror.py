"""Bringing the copy of a directory tree up to date with its source, and comparing both.

A copy is made while the source may change, and brought up to date when it does not any more. What
has not changed since a fence is not read again then: the kernel sets a file's ctime whenever its
content, its attributes or its names change, and nobody can set it to another time. A directory that
was renamed may bring unchanged files to a path at which the copy has others; so below it nothing
counts as unchanged.
"""

import contextlib
import dataclasses
import enum
import errno
import os
import stat
import uuid
from collections.abc import Callable
from pathlib import Path

from pycsi.linux import acl, filecopy, filemirror, tree, treecopy
from pycsi.linux.descriptor import DIRECTORY, names_in, opened
from pycsi.linux.program import unpinned
from pycsi.linux.tree import refuse_mounts

_REWRITE = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOATIME


class DifferenceError(Exception):
    """A copy is not what its source is; the message names the first file that differs."""


class Part(enum.Enum):
    """The files of a tree that are meant."""

    ALL = enum.auto()
    UNCHANGED = enum.auto()
    """Those that have not changed since the fence."""
    CHANGED = enum.auto()
    """All others."""


@unpinned()
def update(
    source: Path, copy: Path, fence: int | None, part: Part, progress: Callable[[], None]
) -> None:
    """Make the directory `copy` what `source` is, as `treecopy.copy` copies it.

    With `Part.CHANGED` what has not changed since `fence` is passed over: the copy has it. What
    disappears meanwhile may be left out. `progress` is called for each entry, and for each MiB; an
    exception from it ends the update. EBUSY if anything is mounted in `source`, EXDEV if it
    contains a subvolume, `TreeChangedError` if directories are renamed so that it cannot be read.
    """
    links = copy / f".links-{uuid.uuid4().hex}"
    links.mkdir(mode=0o700)
    with opened(links, DIRECTORY) as linked:
        _Update(source, copy, fence, part, progress, links=linked, kept=links.name).run()


@unpinned()
def compare(
    source: Path, copy: Path, fence: int | None, part: Part, progress: Callable[[], None]
) -> None:
    """Raise `DifferenceError` unless `copy` is what `source` is, as far as `part` says.

    All is read, the copy from its disk. What changes meanwhile is passed over with
    `Part.UNCHANGED`; otherwise nothing may change.
    """
    _Compare(source, copy, fence, part, progress).run()


@dataclasses.dataclass(slots=True)
class _Level:
    """A directory of the walk: the `names` in it that are still to come.

    It is `sure` if what has not changed since the fence was at the same path then, and `changed`
    if it has itself changed since.
    """

    names: list[str]
    sure: bool
    changed: bool


@dataclasses.dataclass(eq=False)
class _Walk:
    """A walk through a source and its copy, each directory before its entries."""

    source: Path
    copy: Path
    fence: int | None
    part: Part
    progress: Callable[[], None]

    def run(self) -> None:
        refuse_mounts(self.source)
        with treecopy.Cursor(self.source) as here, treecopy.Cursor(self.copy) as there:
            levels = [self._level(here.fd, there.fd, sure=self.fence is not None)]
            while True:
                while levels[-1].names:
                    self.progress()
                    name = levels[-1].names.pop()
                    with contextlib.suppress(FileNotFoundError):
                        status = os.stat(name, dir_fd=here.fd, follow_symlinks=False)
                        if not stat.S_ISDIR(status.st_mode):
                            self._entry(name, status, here.fd, there.fd, levels[-1])
                            continue
                        self.directory(name, status, there.fd)
                        here.enter(name)
                        there.enter(name)
                        levels.append(self._below(levels[-1], here.fd, there.fd))
                left = levels.pop()
                meant = self._is_meant(unchanged=left.sure and not left.changed)
                if here.at_root:
                    self.root(here.fd, there.fd, meant=meant)
                    return
                if meant:
                    self.attributes(here.fd, there.fd)
                here.leave()
                there.leave()

    def _below(self, above: _Level, here: int, there: int) -> _Level:
        renamed = above.changed and self._has_changed(os.fstat(here))
        return self._level(here, there, sure=above.sure and not renamed)

    def _level(self, here: int, there: int, *, sure: bool) -> _Level:
        changed = self._has_changed(os.fstat(here))
        names = names_in(here)
        if self._is_meant(unchanged=sure and not changed):
            self.names(set(names), here, there)
        return _Level(names, sure, changed)

    def _has_changed(self, status: os.stat_result) -> bool:
        return self.fence is None or status.st_ctime_ns > self.fence

    def _is_meant(self, *, unchanged: bool) -> bool:
        return self.part is Part.ALL or unchanged is (self.part is Part.UNCHANGED)

    def _entry(
        self, name: str, status: os.stat_result, here: int, there: int, level: _Level
    ) -> None:
        unchanged = level.sure and not self._has_changed(status)
        if self._is_meant(unchanged=unchanged):
            self.entry(name, status, here, there)
        else:
            self.passed(name, status, here, there)

    # What is done; in an update and in a comparison

    def directory(self, name: str, status: os.stat_result, there: int) -> None:
        """See to a directory called `name` in the copy's directory `there`, before it is entered.

        `FileNotFoundError` if it is not to be entered.
        """

    def names(self, names: set[str], here: int, there: int) -> None:
        """See to that the copy's directory `there` has these names, and no others."""

    def entry(self, name: str, status: os.stat_result, here: int, there: int) -> None:
        """See to an entry that is no directory."""

    def passed(self, name: str, status: os.stat_result, here: int, there: int) -> None:
        """Pass over an entry that is no directory."""

    def attributes(self, here: int, there: int) -> None:
        """See to the attributes of a directory that is left."""

    def root(self, here: int, there: int, *, meant: bool) -> None:
        """See to the root at the end."""
        if meant:
            self.attributes(here, there)


@dataclasses.dataclass(eq=False)
class _Update(_Walk):
    """Makes the copy what the source is.

    `links` is an open directory in the copy, called `kept`: it holds one link to the copy of each
    file with several names, called by the file's number in the source.
    """

    _: dataclasses.KW_ONLY
    links: int
    kept: str

    def directory(self, name: str, status: os.stat_result, there: int) -> None:
        found = _status(name, there)
        if found and not stat.S_ISDIR(found.st_mode):
            os.unlink(name, dir_fd=there)
            found = None
        if found is None:
            os.mkdir(name, 0o700, dir_fd=there)

    def names(self, names: set[str], here: int, there: int) -> None:
        for name in set(names_in(there)) - names - {self.kept}:
            _remove(name, there)
        with contextlib.suppress(OSError):  # or what is made here would inherit it
            os.removexattr(there, acl.DEFAULT)

    def attributes(self, here: int, there: int) -> None:
        filemirror.align(here, there)

    def root(self, here: int, there: int, *, meant: bool) -> None:
        for name in names_in(self.links):
            os.unlink(name, dir_fd=self.links)
        os.rmdir(self.kept, dir_fd=there)
        self.attributes(here, there)  # in any case: that has changed its time

    def passed(self, name: str, status: os.stat_result, here: int, there: int) -> None:
        found = _status(name, there)
        if found is None or not _alike(status, found):
            self.entry(name, status, here, there)
        elif status.st_nlink > 1 and not self._is_linked(status, found):
            if self._link(status, name, there, found):
                return
            self._remember(status, name, there)

    def entry(self, name: str, status: os.stat_result, here: int, there: int) -> None:
        found = _status(name, there)
        if status.st_nlink > 1:
            if self._is_linked(status, found) or self._link(status, name, there, found):
                return
        elif (
            found
            and found.st_nlink == 1
            and stat.S_ISREG(status.st_mode)
            and stat.S_ISREG(found.st_mode)
        ):
            self._rewrite(name, here, there)
            return
        if found:
            _remove(name, there)
        if stat.S_ISREG(status.st_mode):
            treecopy.copy_file(name, here, there, self.progress)
        else:
            treecopy.copy_special(name, status, here, there)
        if status.st_nlink > 1:
            self._remember(status, name, there)

    def _rewrite(self, name: str, here: int, there: int) -> None:
        with (
            opened(name, treecopy.FILE, at=here) as source,
            opened(name, _REWRITE, at=there) as copy,
        ):
            size = os.fstat(source).st_size
            os.ftruncate(copy, size)
            filecopy.update(source, copy, [(0, size)], self.progress)
            filemirror.align(source, copy)

    def _is_linked(self, status: os.stat_result, found: os.stat_result | None) -> bool:
        """Tell whether the copy's entry is the file that was made for another name already."""
        made = _status(str(status.st_ino), self.links)
        return found is not None and made is not None and found.st_ino == made.st_ino

    def _link(
        self, status: os.stat_result, name: str, there: int, found: os.stat_result | None
    ) -> bool:
        """Make the copy's entry a link to the one that was made for another name, if there is."""
        key = str(status.st_ino)
        if _status(key, self.links) is None:
            return False
        if found:
            _remove(name, there)
        try:
            os.link(key, name, src_dir_fd=self.links, dst_dir_fd=there, follow_symlinks=False)
        except OSError as error:
            if error.errno != errno.EMLINK:
                raise
            os.unlink(key, dir_fd=self.links)  # too many links to one file: make another copy
            return False
        return True

    def _remember(self, status: os.stat_result, name: str, there: int) -> None:
        os.link(
            name,
            str(status.st_ino),
            src_dir_fd=there,
            dst_dir_fd=self.links,
            follow_symlinks=False,
        )


@dataclasses.dataclass(eq=False)
class _Compare(_Walk):
    """Compares the copy with the source."""

    linked: dict[int, int] = dataclasses.field(default_factory=dict, init=False)
    """By the number of a file with several names in the source, that of its copy."""

    def directory(self, name: str, status: os.stat_result, there: int) -> None:
        found = _status(name, there)
        if found is None or not stat.S_ISDIR(found.st_mode):
            self._differs(f"{name!r} is no directory there", status)
            raise FileNotFoundError(errno.ENOENT, "made since", name)

    def names(self, names: set[str], here: int, there: int) -> None:
        if differ := names ^ set(names_in(there)):
            self._differs(f"{min(differ)!r} is only in one of them", os.fstat(here))

    def attributes(self, here: int, there: int) -> None:
        if how := filemirror.other_attributes(here, there):
            self._differs(f"a directory has another {how}", os.fstat(here))

    def passed(self, name: str, status: os.stat_result, here: int, there: int) -> None:
        found = _status(name, there)
        if self.part is Part.CHANGED and (found is None or not _alike(status, found)):
            raise DifferenceError(f"{name!r} is missing, or another file")

    def entry(self, name: str, status: os.stat_result, here: int, there: int) -> None:
        found = _status(name, there)
        if found is None:
            self._differs(f"{name!r} is missing", _status(name, here))
        elif how := self._differing(name, status, found, here, there):
            self._differs(f"{name!r} has another {how}", _status(name, here))

    def _differing(
        self, name: str, status: os.stat_result, found: os.stat_result, here: int, there: int
    ) -> str | None:
        """Return in what an entry differs; None if it does not."""
        kind = stat.S_IFMT(status.st_mode)
        if kind != stat.S_IFMT(found.st_mode):
            return "kind"
        if status.st_nlink > 1 and (
            self.linked.setdefault(status.st_ino, found.st_ino) != found.st_ino
        ):
            return "hard link"
        if kind == stat.S_IFREG:
            return self._differing_file(name, here, there)
        leads_to = [os.readlink(name, dir_fd=at) for at in (here, there) if kind == stat.S_IFLNK]
        if len(set(leads_to)) > 1 or status.st_rdev != found.st_rdev:
            return "target"
        return filemirror.other_status(status, found) or filemirror.other_xattrs(
            f"/proc/self/fd/{here}/{name}", f"/proc/self/fd/{there}/{name}"
        )

    def _differing_file(self, name: str, here: int, there: int) -> str | None:
        with (
            opened(name, treecopy.FILE, at=here) as one,
            opened(name, treecopy.FILE, at=there) as other,
        ):
            size = os.fstat(one).st_size
            if os.fstat(other).st_size != size:
                return "size"
            if not filemirror.is_same(one, other, [(0, size)], self.progress):
                return "content"
            return filemirror.other_attributes(one, other)

    def _differs(self, how: str, now: os.stat_result | None) -> None:
        """Raise `DifferenceError`, unless the source has changed while it was compared."""
        if self.part is Part.UNCHANGED and (now is None or self._has_changed(now)):
            return
        raise DifferenceError(how)


def _remove(name: str, there: int) -> None:
    """Delete an entry of the copy, with all that is in it; absent is fine."""
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=there)
    except IsADirectoryError:
        tree.remove(Path(f"/proc/self/fd/{there}/{name}"))


def _status(name: str, directory: int) -> os.stat_result | None:
    with contextlib.suppress(FileNotFoundError):
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    return None


def _alike(one: os.stat_result, other: os.stat_result) -> bool:
    """Tell whether two files look the same, without reading them."""
    sizes = not stat.S_ISREG(one.st_mode) or one.st_size == other.st_size
    return stat.S_IFMT(one.st_mode) == stat.S_IFMT(other.st_mode) and sizes
