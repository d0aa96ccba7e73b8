"""A pool's directory, locked by this process, and checked to be present, writable and the same."""

import errno
import fcntl
import os
import threading

from pycsi.linux.descriptor import closing
from pycsi.linux.location import Location
from pycsi.linux.record import RecordError
from pycsi.model.config import PoolConfig
from pycsi.model.errors import ConfigError, PoolMissing, PoolReadOnly
from pycsi.pool.layout import Layout

_VOLATILE = frozenset({"tmpfs", "ramfs"})

_MISTAKES = frozenset(
    {errno.EACCES, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EPERM}
)
"""Errors that the operator has to correct; all others may come and go with the disk."""


class MissingPoolError(ConfigError):
    """The pool is missing now; it can be opened once its disk is mounted, or works again."""


def opening_error(config: PoolConfig, error: OSError) -> ConfigError:
    """Return the error for a pool that `error` kept from being opened.

    It is `MissingPoolError` if the pool may come back, otherwise a plain `ConfigError`.
    """
    path = error.filename if isinstance(error.filename, str) else str(config.path)
    found = f"pool {config.name}: {path}: {error.strerror}"
    if error.errno == errno.ENOENT:
        return MissingPoolError(
            f"{found}; mount its disk, or make the directory and restart the driver for a new pool"
        )
    if error.errno == errno.ENOTDIR:
        return ConfigError(f"{found}; give the path of a directory")
    if error.errno in {errno.EACCES, errno.EPERM}:
        return ConfigError(f"{found}; {_denied()}")
    if error.errno in _MISTAKES:
        return ConfigError(f"{found}; give another directory")
    return MissingPoolError(f"{found}; look at the kernel's log for the disk's errors")


def _denied() -> str:
    if os.geteuid():
        return "run the driver as root"
    return "even root may not: look for an immutable file (lsattr) or a network filesystem"


class PoolDirectory:
    """An open pool directory, locked with flock(2), with its `location` and the pool's `uuid`.

    With `create` an empty directory becomes a new pool; otherwise only an empty filesystem does
    that is mounted at exactly this path. `MissingPoolError` if the pool is not there, another
    `ConfigError` if the configuration cannot work.
    """

    def __init__(self, config: PoolConfig, *, create: bool) -> None:
        self.config = config
        self.name = config.name
        self.layout = Layout(config.path)
        self._record = str(self.layout.record)
        self._reopening = threading.Lock()
        self._checked: tuple[int, ...] = ()
        self._fd = _open(config)
        # This link has the path by which the kernel knows the held directory.
        self._link = f"/proc/self/fd/{self._fd}"
        try:
            _lock(self._fd, config)
            self._locate()
            self._refuse_unfit()
            self.uuid = self._recorded_uuid() or self._create(create=create)
        except OSError as error:
            os.close(self._fd)
            raise opening_error(config, error) from None
        except BaseException:
            os.close(self._fd)
            raise

    def _locate(self) -> None:
        """Find the location of the held directory, which is the one at the pool's path."""
        with closing(_open(self.config)) as fd:
            location = Location.of(self.config.path, fd)
        directory, target = _identity(self._fd), os.readlink(self._link)
        # Assigned last, when nothing can fail any more, and in this order: `_in_place` compares the
        # identity, so it must not be newer than the location.
        self.location = location
        self._directory, self._link_target = directory, target

    def _refuse_unfit(self) -> None:
        name, path = self.name, self.config.path
        # Check first that this is the right disk: the properties of another one do not matter.
        if self.config.require_mount and not self.location.is_disk:
            raise MissingPoolError(
                f"pool {name}: no filesystem of its own is mounted at {path}; mount its disk"
            )
        if self.config.uuid and self.config.uuid != self._recorded_uuid():
            raise MissingPoolError(
                f"pool {name}: {path} is not the pool {self.config.uuid}; mount its disk"
            )
        filesystem = self.location.mount.fstype
        if filesystem in _VOLATILE and not self.config.allow_volatile:
            raise ConfigError(
                f"pool {name}: {path} is on {filesystem}, which a reboot empties; use a disk, or "
                "accept that with allow-volatile"
            )
        if self._readonly():
            raise MissingPoolError(f"pool {name}: {self._readonly_text()}")

    def _recorded_uuid(self) -> str | None:
        try:
            return self.layout.read_uuid()
        except FileNotFoundError:
            return None
        except RecordError as error:
            raise MissingPoolError(
                f"pool {self.name}: {error}; mount the pool's own disk, or restore the record"
            ) from None

    def _create(self, *, create: bool) -> str:
        """Make an empty directory a pool; return the new pool's UUID."""
        name, path = self.name, self.config.path
        if foreign := self.layout.foreign():
            raise ConfigError(
                f"pool {name}: {path} is neither a pool nor empty (it holds {foreign!r}); give an "
                "empty directory, or the pool's own disk"
            )
        # An empty directory that appears later is most likely a mount point about to be mounted on.
        if not (create or self.location.is_disk):
            raise MissingPoolError(
                f"pool {name}: {path} is empty; mount its disk, or restart the driver for a new "
                "pool: an empty directory becomes one only when the driver starts"
            )
        return self.layout.make_uuid()

    def close(self) -> None:
        """Close the directory, which releases the lock for another process."""
        os.close(self._fd)

    def check(self, *, writable: bool = True) -> None:
        """Raise `PoolMissing` unless the pool that was opened is still at its path.

        `PoolReadOnly` if it is, but cannot be written to, unless `writable` is False. If the kernel
        gave an error, that is the cause of the exception.
        """
        name, path = self.name, self.config.path
        try:
            if not self._in_place():
                with self._reopening:
                    if not self._in_place():
                        self._reopen()
            readonly = not self._can_open(writable=writable)
        except (OSError, RecordError, ConfigError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise PoolMissing(
                f"pool {name}: {path} does not hold the pool any more ({reason}); mount its disk"
            ) from error
        if writable and readonly:
            raise PoolReadOnly(f"pool {name}: {self._readonly_text()}")

    def _in_place(self) -> bool:
        """Tell whether the held directory is still the one at the pool's path, with its record."""
        # Every RPC calls this, so the record is read again only if it has been changed or moved. If
        # it has not, it still lies in the held directory, unless it has hard links: those may lie
        # in other directories.
        record, held = os.stat(self._record), self._directory
        version = *held, record.st_dev, record.st_ino, record.st_ctime_ns
        if version != self._checked or record.st_nlink > 1:
            now = self.config.path.stat()
            if (now.st_dev, now.st_ino) != held:
                return False
            if self.layout.read_uuid() != self.uuid:
                return False
            self._checked = version
        # A directory that was renamed, and is reached through a symbolic link or another mount, has
        # another path in its filesystem, so its location must be found again.
        return os.readlink(self._link) == self._link_target

    def _readonly(self) -> bool:
        return bool(os.fstatvfs(self._fd).f_flag & os.ST_RDONLY)

    def _readonly_text(self) -> str:
        return (
            f"{self.config.path} is read-only; look at the kernel's log for the disk's errors, "
            "then mount it read-write"
        )

    def _holds(self, directory: tuple[int, int]) -> bool:
        """Tell whether the held directory has this identity; False if its disk has failed."""
        try:
            return _identity(self._fd) == directory
        except OSError:
            return False

    def _can_open(self, *, writable: bool) -> bool:
        """Tell whether the record can be opened; False if the filesystem is read-only.

        Opening is the test because ext4 still answers stat(2) after a shutdown or an error.
        """
        try:
            flags = os.O_WRONLY if writable else os.O_RDONLY
            os.close(os.open(self._record, flags | os.O_CLOEXEC))
        except PermissionError:  # the record is immutable (chattr +i)
            return not self._readonly()
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            return False
        return True

    def _reopen(self) -> None:
        """Switch to the directory that is at the pool's path now, if it is the same pool."""
        path = self.config.path
        found = self.layout.read_uuid()
        if found != self.uuid:
            raise PoolMissing(
                f"pool {self.name}: {path} holds pool {found}, not {self.uuid}; mount the right "
                "disk"
            )
        with closing(_open(self.config)) as fd:
            if not self._holds(_identity(fd)):
                _lock(fd, self.config)
                # dup2 is atomic: other threads see the old directory or the new one.
                os.dup2(fd, self._fd, inheritable=False)
        self._locate()


def _open(config: PoolConfig) -> int:
    try:
        return os.open(config.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise opening_error(config, error) from None


def _lock(fd: int, config: PoolConfig) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"pool {config.name}: {config.path} is in use by another driver; stop that one, or use "
            "it through its --endpoint"
        ) from None


def is_in_use(config: PoolConfig) -> bool:
    """Tell whether a driver has the pool's directory open now."""
    try:
        with closing(os.open(config.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino
