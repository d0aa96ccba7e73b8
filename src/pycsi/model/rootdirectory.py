"""The StorageClass parameters for the root directory of a new volume: owner, mode, lost+found."""

import contextlib
import dataclasses
import errno
import os
import re
import stat

from pycsi.model.errors import FailedPrecondition

KEYS = ("uid", "gid", "mode", "lostAndFound")

_LARGEST_ID = 2**32 - 2
"""The largest user or group id: to chown(2), 2**32 - 1 means "leave unchanged"."""

_ID = re.compile(r"0|[1-9][0-9]{0,9}")
_MODE = re.compile(r"0?[0-3]?[0-7]{3}")
_REFUSALS = frozenset({errno.EINVAL, errno.EPERM, errno.EOVERFLOW})
"""The kernel's errors for an owner outside the user namespace, or for a missing capability."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RootDirectory:
    """The requested attributes of a new volume's root directory; None leaves the default.

    Without `lost_and_found` the directory that mkfs makes is deleted.
    """

    uid: int | None = None
    gid: int | None = None
    mode: int | None = None
    lost_and_found: bool = True

    def differs(self, kind: str | None) -> bool:
        """Tell whether the root directory of a new volume has to be changed.

        `kind` is the filesystem of an image; None for a directory.
        """
        has_lost_and_found = kind == "ext4"
        owned = (self.uid, self.gid, self.mode) != (None, None, None)
        return owned or (has_lost_and_found and not self.lost_and_found)

    def apply(self, fd: int) -> None:
        """Give the empty root directory that is open as `fd` these attributes.

        `FailedPrecondition` if the kernel refuses the owner or the mode.
        """
        if not self.lost_and_found:
            with contextlib.suppress(FileNotFoundError):
                os.rmdir("lost+found", dir_fd=fd)
        try:
            if (self.uid, self.gid) != (None, None):
                os.fchown(fd, *(-1 if item is None else item for item in (self.uid, self.gid)))
            if self.mode is not None:
                os.fchmod(fd, self.mode)  # in this order: chown(2) may clear bits
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise
            raise FailedPrecondition(self._not_taken(error.strerror)) from None
        status = os.fstat(fd)
        if self.mode not in {None, stat.S_IMODE(status.st_mode)}:
            raise FailedPrecondition(self._not_taken(f"it is {stat.S_IMODE(status.st_mode):04o}"))

    def _not_taken(self, reason: str | None) -> str:
        asked = [f"{key} {value}" for key, value in (("uid", self.uid), ("gid", self.gid))]
        asked.append(f"mode {self.mode or 0:04o}")
        given = (self.uid, self.gid, self.mode)
        shown = [text for text, value in zip(asked, given, strict=True) if value is not None]
        return (
            f"the kernel does not let the driver make a volume's root of {', '.join(shown)} "
            f"({reason}): use what its user namespace maps, and give it CAP_CHOWN, CAP_FOWNER and "
            "CAP_FSETID"
        )


def read_id(text: str) -> int:
    """Return a user or group id; other text raises `ValueError` with the possible values."""
    if not _ID.fullmatch(text) or int(text) > _LARGEST_ID:
        raise ValueError(f"it can be a number from 0 to {_LARGEST_ID}")
    return int(text)


def read_mode(text: str) -> int:
    """Return the permission bits; other text raises `ValueError` with the possible values."""
    if not _MODE.fullmatch(text):
        raise ValueError(
            "it can be octal, from 0000 to 3777, as 0770 or 2775 (setuid means nothing for a "
            "directory)"
        )
    return int(text, 8)
