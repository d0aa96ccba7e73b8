"""What is wrong with a volume or a pool: the faults, by their reasons, and their order."""

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

_LONGEST_MESSAGE = 128
"""Bytes of UTF-8 in a message (CSI specification, "Size Limits")."""

_MOST = 16
"""Faults that are told at once: Kubernetes takes no more of a volume."""


class Status(enum.IntEnum):
    """What a fault means for who uses the volume, the least first (CSI specification).

    DATA_LOSS is permanent: it is for what has been lost, never for what is out of reach.
    """

    DEGRADED = 1
    INACCESSIBLE = 2
    DATA_LOSS = 3


class Reason(enum.StrEnum):
    """Why a volume or a pool is not well: a stable name, for programs, with its status."""

    status: Status

    def __new__(cls, name: str, status: Status) -> Self:
        self = str.__new__(cls, name)
        self._value_ = name
        self.status = status
        return self

    # The data
    DATA_MISSING = "DataMissing", Status.DATA_LOSS
    IMAGE_TRUNCATED = "ImageTruncated", Status.DATA_LOSS
    FOREIGN_DATA = "ForeignData", Status.DATA_LOSS
    HEADER_MISSING = "HeaderMissing", Status.DATA_LOSS
    UNREADABLE = "Unreadable", Status.INACCESSIBLE
    NOT_RESPONDING = "NotResponding", Status.INACCESSIBLE
    FILESYSTEM_SHUT_DOWN = "FilesystemShutDown", Status.INACCESSIBLE
    FILESYSTEM_READ_ONLY = "FilesystemReadOnly", Status.DEGRADED
    FILESYSTEM_ERRORS = "FilesystemErrors", Status.DEGRADED

    # What was promised of it
    MOUNT_REPLACED = "MountReplaced", Status.INACCESSIBLE
    LIMIT_NOT_ENFORCED = "LimitNotEnforced", Status.DEGRADED
    LIMIT_DIFFERS = "LimitDiffers", Status.DEGRADED
    IO_NOT_LIMITED = "IoNotLimited", Status.DEGRADED
    GROWTH_FAILED = "GrowthFailed", Status.DEGRADED
    DISCARDS_ACCEPTED = "DiscardsAccepted", Status.DEGRADED
    COPIED_ON_WRITE = "CopiedOnWrite", Status.DEGRADED
    ORPHANED = "Orphaned", Status.DEGRADED
    NEARLY_FULL = "NearlyFull", Status.DEGRADED
    FEW_INODES = "FewInodes", Status.DEGRADED

    # The pool
    POOL_MISSING = "PoolMissing", Status.INACCESSIBLE
    POOL_UNREADABLE = "PoolUnreadable", Status.INACCESSIBLE
    POOL_NOT_RESPONDING = "PoolNotResponding", Status.INACCESSIBLE
    POOL_READ_ONLY = "PoolReadOnly", Status.DEGRADED
    POOL_ERRORS = "PoolErrors", Status.DEGRADED
    POOL_NEARLY_FULL = "PoolNearlyFull", Status.DEGRADED
    POOL_FEW_INODES = "PoolFewInodes", Status.DEGRADED


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong; `message` is for people, and cut to 128 bytes of UTF-8."""

    reason: Reason
    message: str

    def __post_init__(self) -> None:
        cut = self.message.encode(errors="replace")[:_LONGEST_MESSAGE].decode(errors="ignore")
        object.__setattr__(self, "message", cut)

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"

    @property
    def status(self) -> Status:
        return self.reason.status


def ranked(faults: Iterable[Fault]) -> tuple[Fault, ...]:
    """Return the faults as they are told: the worst first, one a reason, and at most 16.

    Of one reason, and of one status, what was found first comes first. Two with the same status and
    reason must not be told of one volume (CSI specification, VolumeHealth).
    """
    first: dict[Reason, Fault] = {}
    for fault in faults:
        first.setdefault(fault.reason, fault)
    return tuple(sorted(first.values(), key=lambda fault: -fault.status)[:_MOST])
