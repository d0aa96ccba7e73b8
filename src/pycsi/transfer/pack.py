"""The content of a directory: its tree out of the pool, as a tar archive.

The tree is read as `treecopy` reads it: nothing in it leads out of it.
"""

import dataclasses
import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pycsi.linux import acl, filecopy, treecopy
from pycsi.linux.descriptor import opened
from pycsi.linux.tree import refuse_mounts
from pycsi.transfer import pax
from pycsi.transfer.format import StreamError
from pycsi.transfer.image import pread
from pycsi.transfer.writer import StreamWriter

_STEP = 1024 * 1024
_ACLS = {acl.ACCESS: pax.ACL_ACCESS, acl.DEFAULT: pax.ACL_DEFAULT}

Bytes = bytes | memoryview
Range = tuple[int, int]


def send(root: Path, writer: StreamWriter, progress: Callable[[int], None]) -> int:
    """Write the tree of the directory `root` as a tar archive; return the archive's bytes.

    `progress` is told how many bytes were done. EBUSY if anything is mounted in the tree, EXDEV if
    it contains a subvolume, `TreeChangedError` if it changes so that it cannot be read.
    """
    return send_parts(Packer(root).parts(), writer, progress)


def send_parts(
    parts: Iterator[Bytes], writer: StreamWriter, progress: Callable[[int], None]
) -> int:
    """Write an archive that comes in parts; return its bytes."""
    written = 0
    for data in _gathered(parts):
        writer.data(written, data)
        written += len(data)
        progress(len(data))
    return written


def _gathered(parts: Iterator[Bytes]) -> Iterator[bytes]:
    """Yield bytes in pieces of one size, so that small files do not take a frame each."""
    waiting = bytearray()
    for part in parts:
        waiting += part
        while len(waiting) >= _STEP:
            yield bytes(waiting[:_STEP])
            del waiting[:_STEP]
    if waiting:
        yield bytes(waiting)


class Packer:
    """The archive of the tree `root`, in depth-first order: a directory, then what is in it."""

    def __init__(self, root: Path) -> None:
        refuse_mounts(root)
        self._root = root
        self._path: list[bytes] = []
        self._links: dict[int, bytes] = {}

    def parts(self) -> Iterator[Bytes]:
        """Yield the archive, part by part."""
        with treecopy.Cursor(self._root) as here:
            names = self._names(here.fd)
            yield from self._entered(here.fd, names)
            pending = [names]
            while True:
                while pending[-1]:
                    name = pending[-1].pop()
                    status = os.stat(name, dir_fd=here.fd, follow_symlinks=False)
                    self._path.append(name)
                    if stat.S_ISDIR(status.st_mode):
                        here.enter(os.fsdecode(name))
                        names = self._names(here.fd)
                        yield from self._entered(here.fd, names)
                        pending.append(names)
                    else:
                        yield from self._file(name, status, here.fd)
                        self._path.pop()
                pending.pop()
                if here.at_root:
                    break
                here.leave()
                self._left()
                self._path.pop()
        yield bytes(2 * pax.BLOCK)

    def _entered(self, fd: int, names: Sequence[bytes]) -> Iterator[Bytes]:
        """Yield what the archive has of a directory, which has `names`, before what is in it."""
        yield pax.header(self._directory(fd))

    def _left(self) -> None:
        """Note that all in the current directory was yielded."""

    @staticmethod
    def _names(fd: int) -> list[bytes]:
        return sorted(map(os.fsencode, os.listdir(fd)), reverse=True)

    @property
    def _name(self) -> bytes:
        path = b"/".join((b".", *self._path))
        if len(path) > pax.LONGEST_PATH:
            raise StreamError(f"{path[:60]!r}...: a path of over {pax.LONGEST_PATH} bytes")
        return path

    def _directory(self, fd: int) -> pax.Entry:
        entry = self._entry(os.fstat(fd), fd)
        return dataclasses.replace(entry, path=entry.path + b"/")

    def _file(self, name: bytes, status: os.stat_result, here: int) -> Iterator[Bytes]:
        if status.st_nlink > 1:
            first = self._links.setdefault(status.st_ino, self._name)
            if first != self._name:
                entry = pax.Entry(path=self._name, type=pax.FileType.LINK, link=first)
                yield pax.header(entry)
                return
        if stat.S_ISREG(status.st_mode):
            with opened(os.fsdecode(name), treecopy.FILE, at=here) as fd:
                yield from self._regular(fd)
            return
        yield pax.header(self._special(name, status, here))

    def _special(self, name: bytes, status: os.stat_result, here: int) -> pax.Entry:
        # Such files cannot be opened, so this path names one in its open directory.
        entry = self._entry(status, f"/proc/self/fd/{here}/{os.fsdecode(name)}")
        if stat.S_ISLNK(status.st_mode):
            return dataclasses.replace(entry, link=os.readlink(name, dir_fd=here))
        if stat.S_ISSOCK(status.st_mode):
            return dataclasses.replace(entry, records={**entry.records, pax.TYPE: pax.SOCKET})
        return entry

    def _regular(self, fd: int) -> Iterator[Bytes]:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise treecopy.TreeChangedError(f"{self._name!r} was replaced")
        entry = self._entry(status, fd)
        ranges = list(filecopy.data_ranges(fd, status.st_size))
        shown, extent_map = None, b""
        if ranges != [(0, status.st_size)] and status.st_size:
            entry, shown, extent_map = _sparse(entry, status.st_size, ranges)
        size = len(extent_map) + sum(end - start for start, end in ranges)
        yield pax.header(dataclasses.replace(entry, size=size), shown)
        yield extent_map
        for start, end in ranges:
            for at in range(start, end, _STEP):
                want = min(_STEP, end - at)
                yield pread(fd, want, at)
        yield bytes(-size % pax.BLOCK)

    def _entry(self, status: os.stat_result, file: int | str) -> pax.Entry:
        is_device = stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)
        return pax.Entry(
            path=self._name,
            type=pax.OF_MODE[stat.S_IFMT(status.st_mode)],
            mode=status.st_mode,
            uid=status.st_uid,
            gid=status.st_gid,
            mtime=status.st_mtime_ns,
            device=(os.major(status.st_rdev), os.minor(status.st_rdev)) if is_device else (0, 0),
            records=dict(self._attributes(file)),
        )

    def _attributes(self, file: int | str) -> Iterator[tuple[bytes, bytes]]:
        follow = isinstance(file, int)
        for name in sorted(os.listxattr(file, follow_symlinks=follow)):
            if name.startswith(treecopy.NOT_KEPT):
                continue
            try:
                value = os.getxattr(file, name, follow_symlinks=follow)
            except OSError as error:
                if error.errno != errno.ENODATA:  # removed since the listing
                    raise
                continue
            if name in _ACLS:
                yield _ACLS[name], self._acl(value)
            else:
                key = os.fsencode(name).replace(b"%", b"%25").replace(b"=", b"%3D")
                yield pax.XATTR + key, value

    def _acl(self, value: bytes) -> bytes:
        try:
            return acl.to_text(value).encode()
        except ValueError as error:
            raise StreamError(f"{self._name!r} has {error}") from None


def _sparse(entry: pax.Entry, size: int, ranges: list[Range]) -> tuple[pax.Entry, bytes, bytes]:
    """Return the entry of a file with holes, its name for others, and the map of its extents.

    That is GNU tar's sparse format 1.0, whose map precedes the data.
    """
    folder, _, name = entry.path.rpartition(b"/")
    # An empty last extent tells where the file ends, for programs that look no further.
    extents = ranges if ranges and ranges[-1][1] == size else [*ranges, (size, size)]
    numbers = [len(extents), *(number for start, end in extents for number in (start, end - start))]
    records = {
        b"GNU.sparse.major": b"1",
        b"GNU.sparse.minor": b"0",
        b"GNU.sparse.name": entry.path,
        b"GNU.sparse.realsize": b"%d" % size,
    }
    sparse = dataclasses.replace(entry, records={**records, **entry.records})
    shown = b"/".join((folder, b"GNUSparseFile.0", name))
    extent_map = pax.padded(b"".join(b"%d\n" % number for number in numbers))
    if len(extent_map) > pax.LARGEST_MAP:
        raise StreamError(f"{entry.shown} has more holes than an export can hold")
    return sparse, shown, extent_map
