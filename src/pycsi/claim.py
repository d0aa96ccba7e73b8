"""A process's hold on a pool's directory: it is there, ours alone, writable, and the one it was."""

import fcntl
import os
import threading

from pycsi.config import ConfigError, PoolConfig
from pycsi.errors import FailedPrecondition
from pycsi.layout import Layout
from pycsi.linux.btrfs import is_subvolume
from pycsi.linux.descriptor import closing
from pycsi.linux.ground import Ground
from pycsi.linux.mounttable import Mount
from pycsi.store import RecordError

_VOLATILE = frozenset({"tmpfs", "ramfs"})


class Claim:
    """An open pool directory, locked with flock(2).

    `ground` is where it lies, `uuid` the pool's own; an empty directory becomes a pool.
    """

    def __init__(self, config: PoolConfig) -> None:
        self._config = config
        self._record = str(Layout(config.path).record)
        self._reopening = threading.Lock()
        self._read: tuple[int, ...] = ()
        self._fd = _open(config)
        try:
            _lock(self._fd, config)
            self._look()
            self._refuse_unfit()
            self.uuid = Layout(config.path).read_or_make_uuid()
        except (RecordError, OSError) as error:
            os.close(self._fd)
            raise ConfigError(f"pool {config.name}: {error}") from None
        except BaseException:
            os.close(self._fd)
            raise

    def _look(self) -> None:
        """Find out where the directory lies that is held, which is the one at the pool's path."""
        with closing(_open(self._config)) as fd:
            ground = Ground.of(self._config.path, fd)
        directory, named = _identity(self._fd), self._name_of_held()
        # Only now, when nothing can fail any more, and in this order: then it is in place.
        self.ground = ground
        self._directory, self._named = directory, named

    def _name_of_held(self) -> str:
        """Return where the kernel sees the directory that is held."""
        return os.readlink(f"/proc/self/fd/{self._fd}")  # noqa: PTH115  (Path costs more)

    def _refuse_unfit(self) -> None:
        name, path = self._config.name, self._config.path
        if self.mount.fstype in _VOLATILE and not self._config.allow_volatile:
            raise ConfigError(
                f"pool {name}: {path} is on {self.mount.fstype}, which a reboot empties; use a "
                "disk, or accept that with allow-volatile"
            )
        if self._config.uuid and self._config.uuid != self._found():
            raise ConfigError(
                f"pool {name}: {path} is not the pool {self._config.uuid}; mount its disk"
            )
        if self._config.require_mount and not self._is_disk():
            raise ConfigError(
                f"pool {name}: no filesystem of its own is mounted at {path}; mount its disk"
            )
        if self._readonly():
            raise ConfigError(f"pool {name}: {path} is mounted read-only")

    def _is_disk(self) -> bool:
        """Tell whether a whole filesystem is mounted at the pool's path, or a btrfs subvolume.

        A container has something mounted there in any case: its part of the host's disk.
        """
        path = self.ground.real_path
        whole = self.mount.root == "/" or (self.mount.fstype == "btrfs" and is_subvolume(path))
        return whole and self.mount.target == str(path)

    def _found(self) -> str | None:
        try:
            return Layout(self._config.path).read_uuid()
        except FileNotFoundError:
            return None

    @property
    def mount(self) -> Mount:
        """The filesystem that the pool lies on."""
        return self.ground.mount

    def close(self) -> None:
        """Leave the pool to another process."""
        os.close(self._fd)

    def check(self, *, writable: bool) -> None:
        """Raise `FailedPrecondition` unless the pool is there and the one we opened."""
        name, path = self._config.name, self._config.path
        try:
            if not self._in_place():
                with self._reopening:
                    if not self._in_place():
                        self._reopen()
        except (OSError, RecordError, ConfigError) as error:
            raise FailedPrecondition(
                f"pool {name}: {path} does not hold the pool any more ({error}); mount its disk"
            ) from None
        if writable and self._readonly():
            raise FailedPrecondition(
                f"pool {name}: {path} is read-only; look at the kernel's log for the disk's "
                "errors, then mount it read-write"
            )

    def _in_place(self) -> bool:
        # Every RPC asks. A record that nobody has changed or moved since it was read is not read
        # again, and lies in the directory in which it lay then: the one that is still held; but for
        # one that has other names, which may be in other directories.
        record, held = os.stat(self._record), self._directory  # noqa: PTH116  (Path costs more)
        version = *held, record.st_dev, record.st_ino, record.st_ctime_ns
        if version != self._read or record.st_nlink > 1:
            now = self._config.path.stat()
            if (now.st_dev, now.st_ino) != held:
                return False
            if Layout(self._config.path).read_uuid() != self.uuid:
                return False
            self._read = version
        # Renamed, and found through a link or another mount: it lies elsewhere in its filesystem.
        return self._name_of_held() == self._named

    def _readonly(self) -> bool:
        return bool(os.fstatvfs(self._fd).f_flag & os.ST_RDONLY)

    def _reopen(self) -> None:
        """Follow the pool to where it is mounted now, if it is the same one."""
        path = self._config.path
        found = Layout(path).read_uuid()
        if found != self.uuid:
            raise FailedPrecondition(
                f"pool {self._config.name}: {path} holds pool {found}, not {self.uuid}; mount the "
                "right disk"
            )
        with closing(_open(self._config)) as fd:
            if _identity(fd) != _identity(self._fd):
                _lock(fd, self._config)
                # One call: who asks about the descriptor just now finds the old one or the new.
                os.dup2(fd, self._fd, inheritable=False)
        self._look()


def _open(config: PoolConfig) -> int:
    try:
        return os.open(config.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(
            f"pool {config.name}: {config.path}: {error.strerror}; make the directory or mount "
            "its disk"
        ) from None


def _lock(fd: int, config: PoolConfig) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"pool {config.name}: {config.path} is in use by another driver"
        ) from None


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino
