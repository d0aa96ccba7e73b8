"""A volume's notes: the arguments of its stage and publish calls, in a file beside its data.

The kernel knows what is mounted, but not the arguments of the call that mounted it. The notes keep
them, so that a call with other arguments can be told from a repeated one. A note is written before
its mount, and means nothing without it.

The driver also works without notes. On a full disk they cannot be written, but volumes still have
to be staged, if only to delete files from them; on a failed disk they cannot be read, but volumes
still have to be unmounted.
"""

import contextlib
import dataclasses
import errno
from pathlib import Path
from typing import Any, Self

import structlog

from pycsi.linux.descriptor import DISK_FAULTS, NO_ROOM
from pycsi.linux.record import RecordError, read_rewritten, rewrite_record
from pycsi.model.request import Mode
from pycsi.pool.layout import NO_NOTES, NOTES_RECORD

log = structlog.get_logger()

_UNWRITABLE = DISK_FAULTS | NO_ROOM | {errno.EROFS}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """The arguments of the call that staged or published a volume at a path; "": not known.

    `options` are the mount options of the filesystem (`mountflags.of_filesystem`); None: not known.
    """

    arguments: str
    mode: Mode
    options: str | None = None

    def agrees(self, arguments: str) -> bool:
        """Tell whether the noted call may have had these arguments."""
        return self.arguments in {"", arguments}

    def mounts_as(self, options: str) -> bool:
        """Tell whether the noted call may have mounted the filesystem with these options."""
        return self.options in {None, options}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        return cls(
            arguments=data["arguments"], mode=Mode(data["mode"]), options=data.get("options")
        )


UNKNOWN = Note(arguments="", mode=Mode.SINGLE_NODE_MULTI_WRITER)
"""The note for a path whose call is not known: any call agrees with it."""


class Notes:
    """The notes of one volume: by path, where it was `staged` and where it was `published`.

    `lost` means that they cannot be read: then every mount may be a staged or a published one;
    `failure` is the disk's error, if that is why. If the pool is `away` they are not read, for
    another directory is at the pool's path.
    """

    def __init__(self, where: str, *, away: bool = False) -> None:
        self._file = f"{where}/{NOTES_RECORD}"
        self.lost = away
        self.failure: OSError | None = None
        data = NO_NOTES
        try:
            if not away:
                data = read_rewritten(self._file)
        except (FileNotFoundError, NotADirectoryError, RecordError):
            self.lost = True
        except OSError as error:
            if error.errno not in DISK_FAULTS:
                raise
            self.lost, self.failure = True, error
        self.staged = {path: Note.from_json(note) for path, note in data["staged"].items()}
        self.published = {path: Note.from_json(note) for path, note in data["published"].items()}

    def save_if_possible(self) -> None:
        """Save after a stage or publish call was undone; errors are ignored.

        On a full or read-only pool a note may stay, which means nothing without its mount. Lost
        notes stay lost: it is still not known where a raw volume is staged.
        """
        if not self.lost:
            with contextlib.suppress(OSError):
                rewrite_record(self._file, {"staged": self.staged, "published": self.published})

    def save(self) -> None:
        """Save before the volume is mounted.

        If the disk does not take the notes, the file is deleted, which needs no space: the older
        notes in it would be taken for complete.
        """
        try:
            rewrite_record(self._file, {"staged": self.staged, "published": self.published})
        except OSError as error:
            if error.errno not in _UNWRITABLE:
                raise
            self.lost = True
            log.warning("goes on without notes", path=self._file, error=str(error))
            Path(self._file).unlink(missing_ok=True)
