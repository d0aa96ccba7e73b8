"""Checks at startup that this process has the privileges that a driver needs."""

import errno
import functools

import structlog

from pycsi.linux import privileges
from pycsi.model.errors import ConfigError

log = structlog.get_logger()

_FOR_FILES = ("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID")
_ROOT = "run the driver as root, and its container as privileged"


def refuse_powerless() -> None:
    """Raise `ConfigError` if this process cannot mount: no volume could ever be used."""
    try:
        privileges.try_to_mount()
    except OSError as error:
        if error.errno == errno.ENOSYS:
            raise ConfigError(
                "mounting needs open_tree(2), which this kernel does not have, or a sandbox "
                "forbids: use Linux 5.12 or later, without a seccomp profile"
            ) from None
        raise ConfigError(
            f"this process may not mount anything (it lacks CAP_SYS_ADMIN): {_ROOT}"
        ) from None


def warn() -> None:
    """Log which features do not work for want of privileges."""
    if refusal := image_refusal():
        log.warning("images and raw block volumes cannot be used", error=refusal)
    if missing := privileges.missing_capabilities(_FOR_FILES):
        log.warning(
            "volumes that hold files of other users cannot be copied or deleted",
            error=f"this process lacks {', '.join(missing)}: {_ROOT}",
        )
    if privileges.missing_capabilities(["CAP_SYS_RESOURCE"]):
        log.info(
            "an ext4 image grows only while it is not staged: this process lacks CAP_SYS_RESOURCE"
        )


@functools.cache
def image_refusal() -> str | None:
    """Return why this process cannot use images, or None; it stays the same for its lifetime."""
    try:
        privileges.try_devices()
    except PermissionError as error:
        return f"it takes a loop device ({error.filename}: {error.strerror}); {_ROOT}"
    return None
