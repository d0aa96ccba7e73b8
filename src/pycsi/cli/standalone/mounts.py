"""What this machine's commands have mounted: a record for each, which goes with the next reboot.

Below the run directory, which lies in memory as /run does:

    staging/ID/           where the volume ID is staged, as long as it is mounted anywhere
    mounts/DIGEST.json    that a volume is mounted at a target, or about to be
    lock                  held while a volume is mounted or unmounted

The record is written before the mount and removed after it, so whatever is mounted can be
unmounted, also when a command was killed.
"""

import contextlib
import dataclasses
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from pycsi.cli.errors import CommandError
from pycsi.linux.kernel import topmost
from pycsi.linux.lockfile import locked
from pycsi.linux.record import RecordError, read_record, write_record

USUAL = Path("/run/pycsi")
"""The usual run directory."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Mounted:
    """That a volume is mounted at the path `target`.

    `options` are those with which its filesystem is staged, for all its targets. `mount_point` are
    the mode and the owner of what was there before; None if nothing was.
    """

    volume_id: str
    target: str
    options: tuple[str, ...]
    mount_point: tuple[int, int, int] | None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        point = data["mount_point"]
        return cls(
            volume_id=data["volume_id"],
            target=data["target"],
            options=tuple(data["options"]),
            mount_point=None if point is None else (point[0], point[1], point[2]),
        )

    def restore_mount_point(self) -> None:
        """Make what was at the target before; the driver removes what it has mounted on."""
        place = Path(self.target)
        if self.mount_point is None or topmost(place) or not place.parent.is_dir():
            return
        mode, owner, group = self.mount_point
        if not os.path.lexists(place):
            if stat.S_ISDIR(mode):
                place.mkdir(0o700)
            else:
                place.touch(0o600, exist_ok=False)
        if stat.S_IFMT(place.lstat().st_mode) != stat.S_IFMT(mode) or stat.S_ISLNK(mode):
            return  # somebody else has made that
        # Also if it was there: a command that was killed may have made it, and no more.
        os.chown(place, owner, group, follow_symlinks=False)
        place.chmod(stat.S_IMODE(mode))


class Mounts:
    """The records below a run directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._records = directory / "mounts"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let no other command mount or unmount anything during the `with` block."""
        try:
            self._records.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = self._directory / "lock"
            with locked(lock):
                yield
        except (PermissionError, FileExistsError, NotADirectoryError) as error:
            if not str(error.filename).startswith(str(self._directory)):
                raise
            raise CommandError(
                f"{error.filename}: {error.strerror}; run this as root, or give another "
                "--run-directory"
            ) from None

    def staging(self, volume_id: str) -> Path:
        """Return the path at which a volume is staged."""
        return Path(os.path.realpath(self._directory)) / "staging" / volume_id

    def put(self, mounted: Mounted) -> None:
        write_record(self._place(mounted.target), dataclasses.asdict(mounted))

    def drop(self, mounted: Mounted) -> None:
        self._place(mounted.target).unlink(missing_ok=True)

    def at(self, target: str) -> Mounted | None:
        """Return what is recorded for a target, or None."""
        return _read(self._place(target))

    def of_volume(self, volume_id: str) -> list[Mounted]:
        """Return where a volume is mounted, as far as it is recorded."""
        found = map(_read, sorted(self._records.glob("*.json")))
        return [item for item in found if item and item.volume_id == volume_id]

    def _place(self, target: str) -> Path:
        return self._records / f"{hashlib.sha256(os.fsencode(target)).hexdigest()[:32]}.json"


def _read(place: Path) -> Mounted | None:
    with contextlib.suppress(FileNotFoundError, RecordError, KeyError, TypeError, IndexError):
        return Mounted.from_json(read_record(place))
    return None
