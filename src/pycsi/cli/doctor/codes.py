"""The codes of findings: stable names for programs, each with a page in docs/findings."""

import enum
from typing import Self

from pycsi.model.health import Reason


class Severity(enum.StrEnum):
    """What a finding means for whoever uses the volumes."""

    ERROR = "error"
    """Data is lost or out of reach, or the driver refuses to serve it."""
    WARNING = "warning"
    """All can be used, but not as promised, or not for long; or something is left over."""


_ERROR, _WARNING = Severity.ERROR, Severity.WARNING


class Code(enum.StrEnum):
    """What is wrong: a stable name, with its severity, and what it is about.

    The reasons of faults (`model/health.py`) are codes too.
    """

    severity: Severity
    about: str

    def __new__(cls, name: str, severity: Severity, about: str) -> Self:
        self = str.__new__(cls, name)
        self._value_ = name
        self.severity = severity
        self.about = about
        return self

    @classmethod
    def named(cls, text: str) -> "Code":
        """Return the code called so, in any case; `ValueError` if there is none."""
        for code in cls:
            if code.value.lower() == text.lower():
                return code
        raise ValueError(f"there is no code {text!r}; give one of {', '.join(cls)}")

    @classmethod
    def of(cls, reason: Reason) -> "Code":
        """Return the code for a fault's reason."""
        return cls._value2member_map_[reason.value]  # type: ignore[return-value]

    # Pools
    POOL_MISSING = "PoolMissing", _ERROR, "A pool is not at its path"
    POOL_HIDDEN = "PoolHidden", _ERROR, "Something is mounted over a pool"
    POOL_FOREIGN = "PoolForeign", _ERROR, "Something else is at a pool's path"
    POOL_RECORD_DAMAGED = "PoolRecordDamaged", _ERROR, "A pool's own record is damaged or wrong"
    POOL_UNREADABLE = "PoolUnreadable", _ERROR, "A pool's disk gives errors"
    POOL_NOT_RESPONDING = "PoolNotResponding", _ERROR, "A pool's disk does not answer"
    POOL_READ_ONLY = "PoolReadOnly", _ERROR, "A pool cannot be written to"
    POOL_ERRORS = "PoolErrors", _WARNING, "A pool's filesystem has counted errors"
    POOL_NEARLY_FULL = "PoolNearlyFull", _WARNING, "A pool's disk is nearly full"
    POOL_FEW_INODES = "PoolFewInodes", _WARNING, "A pool's disk is nearly out of inodes"
    POOL_OVERCOMMITTED = "PoolOvercommitted", _WARNING, "A pool has promised more than its disk has"
    LIMIT_NOT_ENFORCED = "LimitNotEnforced", _WARNING, "The sizes of directories are not enforced"

    # The data of volumes
    DATA_MISSING = "DataMissing", _ERROR, "The data of a volume or snapshot is gone"
    IMAGE_TRUNCATED = "ImageTruncated", _ERROR, "An image is shorter than its volume"
    FOREIGN_DATA = "ForeignData", _ERROR, "An image holds something else than its filesystem"
    HEADER_MISSING = "HeaderMissing", _ERROR, "An encrypted image has no header"
    UNREADABLE = "Unreadable", _ERROR, "A volume cannot be examined"
    NOT_RESPONDING = "NotResponding", _ERROR, "A volume's filesystem does not answer"
    FILESYSTEM_SHUT_DOWN = "FilesystemShutDown", _ERROR, "A volume's filesystem is shut down"
    FILESYSTEM_READ_ONLY = "FilesystemReadOnly", _WARNING, "A volume's filesystem went read-only"
    FILESYSTEM_ERRORS = "FilesystemErrors", _WARNING, "A volume's filesystem has counted errors"
    MOUNT_REPLACED = "MountReplaced", _ERROR, "Something is mounted in a volume's place"
    LIMIT_DIFFERS = "LimitDiffers", _WARNING, "A directory's limit is not its volume's size"
    GROWTH_FAILED = "GrowthFailed", _WARNING, "A filesystem is smaller than its volume"
    IO_NOT_LIMITED = "IoNotLimited", _WARNING, "A pod is not held to a volume's limits on I/O"
    DISCARDS_ACCEPTED = "DiscardsAccepted", _WARNING, "A thick volume can lose blocks"
    COPIED_ON_WRITE = "CopiedOnWrite", _WARNING, "A thick volume on btrfs is copied on write"
    ORPHANED = "Orphaned", _WARNING, "The pod of an inline volume is gone"
    NEARLY_FULL = "NearlyFull", _WARNING, "A volume is nearly full"
    FEW_INODES = "FewInodes", _WARNING, "A volume is nearly out of inodes"

    # Records
    RECORD_DAMAGED = "RecordDamaged", _ERROR, "A record cannot be read"
    RECORD_MISSING = "RecordMissing", _ERROR, "There is data without a record"
    RECORD_NEWER = "RecordNewer", _ERROR, "A newer version has written a record"
    VOLUME_OF_ANOTHER_POOL = "VolumeOfAnotherPool", _WARNING, "A volume belongs to another pool"
    VOLUME_IN_TWO_POOLS = "VolumeInTwoPools", _ERROR, "Two pools have a volume of one id"
    NOTES_LOST = "NotesLost", _WARNING, "It is not known how a volume was mounted"
    UNKNOWN_ENTRY = "UnknownEntry", _WARNING, "Something in a pool is not the driver's"

    # What is left
    LOOP_DEVICE_LEAKED = "LoopDeviceLeaked", _WARNING, "A loop device is left that nothing needs"
    LOOP_DEVICE_FOREIGN = "LoopDeviceForeign", _WARNING, "Another program has attached an image"
    MOUNT_LEFT = "MountLeft", _WARNING, "A mount is left of a volume that is gone"
    FROZEN_AFTER_CRASH = "FrozenAfterCrash", _ERROR, "A filesystem may still be frozen"
    BUILD_UNFINISHED = "BuildUnfinished", _WARNING, "A killed driver has left unfinished builds"
    ADOPTION_UNFINISHED = "AdoptionUnfinished", _WARNING, "An adoption was cut off"
    GROWTH_INTERRUPTED = "GrowthInterrupted", _WARNING, "The growth of an ext4 was interrupted"
    MOVE_UNFINISHED = "MoveUnfinished", _WARNING, "The move of a volume has not ended"
    GROUP_UNFINISHED = "GroupUnfinished", _WARNING, "A group snapshot is not whole"
    GROUP_IN_DOUBT = "GroupInDoubt", _WARNING, "A part of a group snapshot waits for a decision"
    TRASH_NOT_EMPTIED = "TrashNotEmptied", _WARNING, "What was deleted is not freed"

    # The machine
    PROGRAM_MISSING = "ProgramMissing", _ERROR, "A program is not installed"
    KERNEL_FEATURE_MISSING = "KernelFeatureMissing", _ERROR, "The kernel lacks a feature"

    # The cluster's objects
    OBJECT_WITHOUT_VOLUME = "ObjectWithoutVolume", _ERROR, "A PersistentVolume has no volume"
    VOLUME_WITHOUT_OBJECT = "VolumeWithoutObject", _WARNING, "A volume has no PersistentVolume"
    OBJECT_WITHOUT_SNAPSHOT = (
        "ObjectWithoutSnapshot",
        _ERROR,
        "A VolumeSnapshotContent has no snapshot",
    )
    SNAPSHOT_WITHOUT_OBJECT = (
        "SnapshotWithoutObject",
        _WARNING,
        "A snapshot has no VolumeSnapshotContent",
    )

    @property
    def page(self) -> str:
        """The page about it, in the project's repository."""
        return f"docs/findings/{self.value}.md"
