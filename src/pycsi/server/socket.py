"""The unix socket that a driver serves on: one driver for each, and none left behind."""

import contextlib
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from pycsi.model.errors import ConfigError


def reason(error: OSError | UnicodeError) -> str:
    """Return the system's reason why an address cannot be listened on, without Python's prefix."""
    match error:
        case socket.gaierror():
            return error.strerror or str(error)
        case OSError(errno=int(number)):
            return os.strerror(number)
    return "that is no host's name"


def refuse_served(path: Path) -> None:
    """Remove a dead socket at `path`; raise `ConfigError` if another driver serves there."""
    try:
        _remove_dead(path)
    except OSError as error:
        raise ConfigError(
            f"--endpoint: {error.filename}: {error.strerror}; give another path"
        ) from None


def _remove_dead(path: Path) -> None:
    if not path.parent.is_dir():
        raise ConfigError(f"--endpoint: the directory {path.parent} does not exist; create it")
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigError(f"--endpoint: {path} exists and is no socket; remove it")
        if _answers(path):
            raise ConfigError(f"--endpoint: another driver serves on {path}; stop it first")
        path.unlink()


def _answers(path: Path) -> bool:
    """Tell whether a process may be listening: all errors but a refused connection count as yes."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(5)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
    return True


@contextlib.contextmanager
def bound(add_port: Callable[[str], int], path: Path) -> Iterator[None]:
    """Have a server listen at `path` with its `add_port`; remove the socket at the end.

    It is removed only if it is still this one. `ConfigError` if nobody can listen there.
    """
    try:
        add_port(f"unix://{path}")
        ours = _identity(path)
    except (RuntimeError, OSError):
        raise ConfigError(
            f"--endpoint: cannot listen on {path}: {_why_not_bound(path)}; use another directory"
        ) from None
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            if _identity(path) == ours:
                path.unlink()


def _why_not_bound(path: Path) -> str:
    """Return the kernel's reason why `path` cannot be listened on, which gRPC does not give."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.bind(os.fspath(path))
        except OSError as error:
            return reason(error)
    path.unlink(missing_ok=True)
    return "for an unknown reason"


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino
