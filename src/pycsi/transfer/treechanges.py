"""What has changed from one tree to another, as a tar archive: the increment of a directory.

Both trees are compared, entry by entry, so it serves every filesystem, and is checked like a full
archive. A changed file is there whole; so is, under all its names, one whose names have changed.
"""

import collections
import contextlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from pycsi.linux import filecopy, treecopy
from pycsi.linux.descriptor import opened
from pycsi.linux.tree import refuse_mounts
from pycsi.transfer import pax
from pycsi.transfer.pack import Bytes, Packer, send_parts
from pycsi.transfer.writer import StreamWriter

Names = Mapping[int, frozenset[bytes]]


Same = Callable[[int, int], bool]
"""Tells whether two open files, first the earlier one, have the same data."""


def send(
    root: Path, base: Path, same: Same, writer: StreamWriter, progress: Callable[[int], None]
) -> int:
    """Write what has changed from the tree `base` to `root` as `pack.send` writes a tree."""
    return send_parts(_ChangesPacker(root, base, same).parts(), writer, progress)


class _ChangesPacker(Packer):
    """The archive of what is not in the tree `base` as it is in the tree `root`.

    Each directory on the way to a change is in it, and what is gone.
    """

    def __init__(self, root: Path, base: Path, same: Same) -> None:
        super().__init__(root)
        refuse_mounts(base)
        self._base = base
        self._same = same
        self._before, self._after = _names_of_linked(base), _names_of_linked(root)
        self._judged: dict[int, bool] = {}
        """By inode, whether a file with several names is as it was."""
        self._unsent: list[bytes] = []
        """The headers of the directories on the way here, as long as nothing in them is sent."""

    def parts(self) -> Iterator[Bytes]:
        """Yield the archive, part by part."""
        with treecopy.Cursor(self._base) as self._there:
            self._absent = 0
            yield from super().parts()

    def _entered(self, fd: int, names: Sequence[bytes]) -> Iterator[Bytes]:
        if self._path:
            self._follow(os.fsdecode(self._path[-1]))
        entry = self._directory(fd)
        self._unsent.append(pax.header(entry))
        if self._absent:
            yield from self._way()
            return
        if not self._path or self._directory(self._there.fd) != entry:
            yield from self._way()
        present = {*names}
        for name in self._names(self._there.fd):
            if name not in present:
                yield from self._way()
                path = b"/".join((self._name, name))
                records = {pax.TYPE: pax.REMOVED}
                yield pax.header(pax.Entry(path=path, type=pax.FileType.REGULAR, records=records))

    def _follow(self, name: str) -> None:
        """Go into the directory of that name in the base too, or note that there is none."""
        if not self._absent:
            with contextlib.suppress(FileNotFoundError):
                self._there.enter(name)
                return
        self._absent += 1

    def _left(self) -> None:
        if self._unsent:
            self._unsent.pop()
        if self._absent:
            self._absent -= 1
        else:
            self._there.leave()

    def _way(self) -> Iterator[bytes]:
        """Yield the headers of the directories on the way here that were not sent yet."""
        sent, self._unsent = self._unsent, []
        yield from sent

    def _file(self, name: bytes, status: os.stat_result, here: int) -> Iterator[Bytes]:
        if status.st_nlink == 1:
            unchanged = self._is_unchanged(name, status, here)
        else:
            if status.st_ino not in self._judged:
                self._judged[status.st_ino] = self._is_unchanged(name, status, here)
            unchanged = self._judged[status.st_ino]
        if not unchanged:
            yield from self._way()
            yield from super()._file(name, status, here)

    def _is_unchanged(self, name: bytes, status: os.stat_result, here: int) -> bool:
        if self._absent:
            return False
        try:
            before = os.stat(name, dir_fd=self._there.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        if stat.S_IFMT(before.st_mode) != stat.S_IFMT(status.st_mode):
            return False
        alone = frozenset((self._name,))
        if self._before.get(before.st_ino, alone) != self._after.get(status.st_ino, alone):
            return False
        if stat.S_ISREG(status.st_mode):
            return self._is_same_file(os.fsdecode(name), here)
        return self._special(name, before, self._there.fd) == self._special(name, status, here)

    def _is_same_file(self, name: str, here: int) -> bool:
        with (
            opened(name, treecopy.FILE, at=self._there.fd) as old,
            opened(name, treecopy.FILE, at=here) as new,
        ):
            before, after = os.fstat(old), os.fstat(new)
            size = after.st_size
            return (
                before.st_size == size
                and self._entry(before, old) == self._entry(after, new)
                and list(filecopy.data_ranges(old, size)) == list(filecopy.data_ranges(new, size))
                and self._same(old, new)
            )


def _names_of_linked(root: Path) -> Names:
    """Return, by inode, the paths of the files in a tree that have several names."""
    found: dict[int, list[bytes]] = collections.defaultdict(list)
    path: list[str] = ["."]
    with treecopy.Cursor(root) as here:
        pending = [os.listdir(here.fd)]
        while True:
            while pending[-1]:
                name = pending[-1].pop()
                status = os.stat(name, dir_fd=here.fd, follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    here.enter(name)
                    path.append(name)
                    pending.append(os.listdir(here.fd))
                elif status.st_nlink > 1:
                    found[status.st_ino].append(os.fsencode("/".join((*path, name))))
            pending.pop()
            if here.at_root:
                return {number: frozenset(names) for number, names in found.items()}
            here.leave()
            path.pop()
