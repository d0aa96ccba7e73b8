"""The content of a directory: an archive, which may be hostile, unpacked into an empty directory.

Each entry is made in its open directory, which was made by this archive, and never replaces
anything: so no name and no link leads out. What could give rights on the node that the volume's
users do not have is refused unless it is wanted: device nodes, setuid files, security attributes.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pycsi.linux import acl, treecopy
from pycsi.linux.descriptor import NO_ROOM, opened
from pycsi.linux.tree import remove
from pycsi.transfer import pax
from pycsi.transfer.archive import Archive, Member
from pycsi.transfer.format import StreamError
from pycsi.transfer.reader import Piece

_ACLS = {pax.ACL_ACCESS: acl.ACCESS, pax.ACL_DEFAULT: acl.DEFAULT}
_SECURITY = pax.XATTR + b"security."
_LONGEST_NAME = 255
_SPECIAL = {
    pax.FileType.FIFO: stat.S_IFIFO,
    pax.FileType.CHARACTER: stat.S_IFCHR,
    pax.FileType.BLOCK: stat.S_IFBLK,
}
_PERMISSIONS = 0o7777
_SETID = stat.S_ISUID | stat.S_ISGID


class TooLargeError(StreamError):
    """The files of a directory have more data than the volume may hold."""

    def __init__(self) -> None:
        super().__init__("it holds more than the volume's size; give a larger --size")


def receive(
    pieces: Iterable[Piece],
    root: Path,
    progress: Callable[[int], None],
    *,
    limit: int,
    privileged: bool,
    changes: bool = False,
    again: bool = False,
) -> None:
    """Unpack the archive in `pieces` into the empty directory `root`.

    With `changes` it is an increment, and `root` has what was unpacked before; if that is done
    `again`, some of the changes may be there already. The files may have
    `limit` bytes of data. `progress` is told how many bytes of the archive were done. With
    `privileged` device nodes, setuid and setgid files and security attributes are kept.
    `StreamError` for what is refused, `TooLargeError` for more data than that.
    """
    unpacker: _Unpacker
    if changes:
        unpacker = _Changer(root, limit, privileged=privileged, again=again)
    else:
        unpacker = _Unpacker(root, limit, privileged=privileged)
    with unpacker:
        for member in Archive(_counted(pieces, progress)).members():
            unpacker.add(member)
        unpacker.end()


def _counted(pieces: Iterable[Piece], progress: Callable[[int], None]) -> Iterator[Piece]:
    for piece in pieces:
        yield piece
        progress(piece.size)


class _Unpacker(contextlib.ExitStack):
    """A tree that is being made, in depth-first order, below the directory `root`."""

    def __init__(self, root: Path, limit: int, *, privileged: bool) -> None:
        super().__init__()
        self._privileged = privileged
        self._place = root
        self._limit = limit
        self._here = self.enter_context(treecopy.Cursor(root))
        self._open: list[Member] = []
        """The directories from the root to here; their attributes are set when they are left."""
        self._path: list[bytes] = []

    def add(self, member: Member) -> None:
        """Make an entry."""
        path = _parts(member.entry.path)
        self._refuse(member.entry)
        if not self._open:
            if path or member.entry.type is not pax.FileType.DIRECTORY:
                raise StreamError("its tar does not begin with the directory itself")
            self._prepare()
            self._open.append(member)
            return
        if not path:
            raise StreamError("its tar has the directory itself twice")
        while self._path != path[:-1]:
            self._leave(member)
        name = os.fsdecode(path[-1])
        try:
            self._put(name, member)
        except OSError as error:
            raise self._explained(member, error) from None
        if member.entry.type is pax.FileType.DIRECTORY:
            self._here.enter(name)
            self._prepare()
            self._open.append(member)
            self._path.append(path[-1])

    def _prepare(self) -> None:
        """Make the directory that was just entered ready to be filled."""

    def _put(self, name: str, member: Member) -> None:
        """Make an entry in the current directory, where none of that name may be."""
        if member.entry.records.get(pax.TYPE) == pax.REMOVED:
            raise StreamError(f"its tar removes {member.entry.shown}, and it is no increment")
        self._make(name, member)

    def end(self) -> None:
        """Set the attributes of the directories that are still open."""
        if not self._open:
            raise StreamError("its tar is empty")
        while self._open:
            self._leave(None)

    def _leave(self, wanted: Member | None) -> None:
        """Go up one directory, and give it its attributes."""
        if wanted and not self._path:
            raise StreamError(f"its tar has {wanted.entry.shown}, and no such directory before it")
        left = self._open.pop()
        try:
            self._keep(self._here.fd, left.entry)
        except OSError as error:
            raise self._explained(left, error) from None
        if self._path:
            self._path.pop()
            self._here.leave()

    def _refuse(self, entry: pax.Entry) -> None:
        if self._privileged:
            return
        what = None
        if entry.type in {pax.FileType.CHARACTER, pax.FileType.BLOCK}:
            what = "is a device node"
        elif entry.type is pax.FileType.REGULAR and entry.mode & _SETID:
            what = "is setuid or setgid"
        elif any(key.startswith(_SECURITY) for key in entry.records):
            what = "has attributes such as file capabilities"
        if what:
            raise StreamError(
                f"{entry.shown} {what}: with that, whoever can write such an export gets rights "
                "on this node; if you trust it, add --privileged-nodes"
            )

    def _make(self, name: str, member: Member) -> None:
        entry, here = member.entry, self._here.fd
        if entry.type is pax.FileType.REGULAR:
            self._make_file(name, member)
            return
        if member.size:
            raise StreamError(f"its tar has data where none belongs: {entry.shown}")
        if entry.type is pax.FileType.DIRECTORY:
            os.mkdir(name, 0o700, dir_fd=here)
        elif entry.type is pax.FileType.LINK:
            self._link(name, entry)
        elif entry.type is pax.FileType.SYMLINK:
            if b"\0" in entry.link:
                raise StreamError(f"its tar has a link that cannot be: {entry.shown}")
            os.symlink(entry.link, name, dir_fd=here)
            self._keep_special(name, entry)
        else:
            kind = (
                stat.S_IFSOCK if entry.records.get(pax.TYPE) == pax.SOCKET else _SPECIAL[entry.type]
            )
            device = os.makedev(*entry.device)
            os.mknod(name, kind | stat.S_IRUSR, device, dir_fd=here)
            self._keep_special(name, entry)

    def _make_file(self, name: str, member: Member) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with opened(name, flags, at=self._here.fd) as fd:
            os.ftruncate(fd, member.size)
            for offset, data in member.data:
                self._limit -= len(data)
                if self._limit < 0:
                    raise TooLargeError
                left, at = data, offset
                while left:
                    count = os.pwrite(fd, left, at)
                    left, at = left[count:], at + count
            self._keep(fd, member.entry)

    def _link(self, name: str, entry: pax.Entry) -> None:
        parts = _parts(entry.link)
        with treecopy.Cursor(self._place) as there:
            for folder in parts[:-1]:
                there.enter(os.fsdecode(folder))
            target = os.fsdecode(parts[-1] if parts else b".")
            if stat.S_ISDIR(os.stat(target, dir_fd=there.fd, follow_symlinks=False).st_mode):
                raise StreamError(f"its tar has a hard link to a directory: {entry.shown}")
            os.link(
                target, name, src_dir_fd=there.fd, dst_dir_fd=self._here.fd, follow_symlinks=False
            )

    def _keep(self, fd: int, entry: pax.Entry) -> None:
        """Give an open file or directory its owner, mode, extended attributes and times."""
        os.fchown(fd, entry.uid, entry.gid)
        os.fchmod(fd, entry.mode & _PERMISSIONS)
        _keep_attributes(fd, entry)
        os.utime(fd, ns=(entry.mtime, entry.mtime))

    def _keep_special(self, name: str, entry: pax.Entry) -> None:
        here = self._here.fd
        os.chown(name, entry.uid, entry.gid, dir_fd=here, follow_symlinks=False)
        if entry.type is not pax.FileType.SYMLINK:
            os.chmod(name, entry.mode & _PERMISSIONS, dir_fd=here)  # made just now
        # Such files cannot be opened, so this path names one in its open directory.
        _keep_attributes(f"/proc/self/fd/{here}/{name}", entry)
        os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=here, follow_symlinks=False)

    def _explained(self, member: Member, error: OSError) -> Exception:
        path = member.entry.shown
        if error.errno == errno.EEXIST:
            return StreamError(f"its tar has {path} twice")
        if error.errno in NO_ROOM:
            return OSError(error.errno, os.strerror(error.errno))
        return StreamError(f"{path} cannot be made: {error.strerror}")


class _Changer(_Unpacker):
    """A tree that was unpacked before, and is changed; `limit` is that of all its data."""

    def __init__(self, root: Path, limit: int, *, privileged: bool, again: bool) -> None:
        super().__init__(root, limit, privileged=privileged)
        self._most = limit
        self._again = again

    def _prepare(self) -> None:
        # The archive has all attributes; and what an access control list says of new files is for
        # those of the directory's users.
        treecopy.drop_xattrs(self._here.fd)

    def _put(self, name: str, member: Member) -> None:
        entry, here = member.entry, self._here.fd
        before = None
        with contextlib.suppress(FileNotFoundError):
            before = os.stat(name, dir_fd=here, follow_symlinks=False)
        removed = entry.records.get(pax.TYPE) == pax.REMOVED
        if removed and before is None and self._again:
            return
        if removed and (before is None or member.size):
            raise StreamError(f"its tar removes {entry.shown}, which is not there")
        if before is not None:
            is_directory = stat.S_ISDIR(before.st_mode)
            if is_directory and entry.type is pax.FileType.DIRECTORY:
                return
            if is_directory:
                remove(Path(f"/proc/self/fd/{here}/{name}"))
            else:
                os.unlink(name, dir_fd=here)
        if not removed:
            self._make(name, member)

    def end(self) -> None:
        super().end()
        if _data_in(self._place) > self._most:
            raise TooLargeError


def _data_in(root: Path) -> int:
    """Return how many bytes of data the files of a tree have, holes left out."""
    sizes: dict[int, int] = {}

    def note(_: str, status: os.stat_result | None, __: int) -> None:
        if status and stat.S_ISREG(status.st_mode):
            sizes[status.st_ino] = min(status.st_size, status.st_blocks * 512)

    treecopy.walk(root, note)
    return sum(sizes.values())


def _parts(path: bytes) -> list[bytes]:
    """Return the names in a path that has to lie in the tree; `StreamError` otherwise."""
    if path.startswith(b"/"):
        raise StreamError(f"its tar has a name that leads out of it: {path[:80]!r}")
    if len(path) > pax.LONGEST_PATH or not path or b"\0" in path:
        raise StreamError(f"its tar has a name that cannot be: {path[:80]!r}")
    names = [name for name in path.split(b"/") if name not in {b"", b"."}]
    if b".." in names:
        raise StreamError(f"its tar has a name that leads out of it: {path[:80]!r}")
    if any(len(name) > _LONGEST_NAME for name in names):
        raise StreamError(f"its tar has a name that cannot be: {path[:80]!r}")
    return names


def _keep_attributes(file: int | str, entry: pax.Entry) -> None:
    follow = isinstance(file, int)
    for key, value in entry.records.items():
        if key in _ACLS:
            name, value = _ACLS[key], _acl(entry, value)  # noqa: PLW2901
        elif key.startswith(pax.XATTR):
            raw = key.removeprefix(pax.XATTR)
            name = os.fsdecode(raw.replace(b"%3D", b"=").replace(b"%25", b"%"))
        else:
            continue
        if name.startswith(treecopy.NOT_KEPT) or "\0" in name:
            raise StreamError(f"{entry.shown} has the attribute {name!r}, which none can have")
        try:
            os.setxattr(file, name, value, follow_symlinks=follow)
        except OSError as error:
            if error.errno in NO_ROOM:
                raise
            raise StreamError(
                f"{entry.shown}: its attribute {name[:80]!r} cannot be set ({error.strerror}); "
                "use a pool on a filesystem that takes it"
            ) from None


def _acl(entry: pax.Entry, value: bytes) -> bytes:
    try:
        return acl.from_text(value.decode())
    except ValueError:
        raise StreamError(f"{entry.shown} has an ACL that cannot be read") from None
