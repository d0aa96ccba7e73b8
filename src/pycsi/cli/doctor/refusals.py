"""Pools that cannot be looked at, for the reasons for which the driver refuses them too."""

import contextlib
import json
import os
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pycsi.cli.doctor import commands
from pycsi.cli.doctor.codes import Code
from pycsi.cli.doctor.finding import Finding
from pycsi.linux.descriptor import opened
from pycsi.linux.kernel import Mount, MountTable
from pycsi.linux.location import Location
from pycsi.linux.mount import uncovered
from pycsi.linux.record import SCHEMA, RecordError
from pycsi.model.config import PoolConfig
from pycsi.pool.layout import SNAPSHOT_RECORD, VOLUME_RECORD, Layout


def refusal(config: PoolConfig) -> Finding | None:
    """Return why nothing in a pool can be looked at; None if that is possible.

    `OSError` if the kernel gives an error that this does not explain.
    """
    return _Refused(config).finding()


class _Refused:
    def __init__(self, config: PoolConfig) -> None:
        self._config = config
        self._path = config.path
        self._layout = Layout(config.path)
        self._disk = commands.which_disk(config.path)
        self._mount = commands.mount_disk(config.path)

    def finding(self) -> Finding | None:
        try:
            with opened(self._path, os.O_DIRECTORY) as fd:
                location = Location.of(self._path, fd)
        except FileNotFoundError:
            return self._missing(
                f"{self._path} does not exist", f"mkdir -p {self._typed} && {self._mount}"
            )
        except NotADirectoryError:
            return self._missing(
                f"{self._path} is not a directory",
                f"mv {self._typed} ELSEWHERE && mkdir {self._typed} && {self._mount}",
                f"; {commands.ELSEWHERE}",
            )
        if hidden := self._hidden():
            return hidden
        if self._config.require_mount and not location.is_disk:
            return self._missing(f"no filesystem of its own is mounted at {self._path}")
        return self._wrong_record(location)

    @property
    def _typed(self) -> str:
        return shlex.quote(str(self._path))

    def _missing(self, what: str, command: str = "", placeholder: str = "") -> Finding:
        return self._finding(
            Code.POOL_MISSING,
            f"pool {self._config.name} is missing: {what}; mount its disk{self._disk}{placeholder}",
            command or self._mount,
        )

    def _finding(self, code: Code, message: str, command: str) -> Finding:
        return Finding(
            code=code,
            subject=str(self._path),
            pool=self._config.name,
            message=message,
            command=command,
        )

    # What is mounted over a pool

    def _hidden(self) -> Finding | None:
        """Return a finding if a pool with volumes lies beneath what is mounted at the path."""
        path = os.path.realpath(self._path)
        mounts = MountTable()
        stacked = mounts.at(path)
        if not stacked or _has_volumes(self._layout):
            return None
        beneath = self._beneath(stacked[0], mounts)
        if beneath is None and len(stacked) == 1:
            return None
        what = f"the pool {beneath}" if beneath else "another mount"
        top = stacked[-1]
        return self._finding(
            Code.POOL_HIDDEN,
            f"pool {self._config.name} is hidden: {top.fstype} {top.source} is mounted at {path}, "
            f"and beneath lies {what}",
            commands.typed("umount", path),
        )

    def _beneath(self, lowest: Mount, mounts: MountTable) -> str | None:
        """Return the UUID of the pool with volumes over which a filesystem is mounted, or None."""
        parent = mounts.numbered(lowest.parent)
        if parent is None:
            return None
        inside = os.path.relpath(lowest.target, parent.target)
        with (
            contextlib.suppress(OSError, RecordError),
            uncovered(parent.target, inside) as fd,
        ):
            layout = Layout(Path(f"/proc/self/fd/{fd}"))
            return layout.read_uuid() if _has_volumes(layout) else None
        return None

    # The pool's record

    def _wrong_record(self, location: Location) -> Finding | None:
        name, path, record = self._config.name, self._path, self._layout.record
        try:
            found = self._layout.read_uuid()
        except FileNotFoundError:
            return self._no_record()
        except RecordError as error:
            if _is_newer(record):
                return self._finding(
                    Code.RECORD_NEWER,
                    f"pool {name}: {record} was written by a newer version; install that version",
                    "pip install --upgrade pycsi-driver",
                )
            return self._damaged(str(error))
        if self._config.uuid not in {None, found}:
            unmount = f"{commands.typed('umount', path)} && " if location.is_disk else ""
            return self._finding(
                Code.POOL_FOREIGN,
                f"pool {name}: {path} is the pool {found}, not {self._config.uuid}; mount the "
                f"right disk{self._disk}",
                f"{unmount}{self._mount}",
            )
        return self._unowned(found)

    def _no_record(self) -> Finding:
        if any(folder.is_dir() for folder in (self._layout.volumes, self._layout.snapshots)):
            return self._damaged(f"{self._layout.record} is not there")
        names = sorted({entry.name for entry in self._path.iterdir()} - {"lost+found"})
        if not names:
            return self._missing(
                f"{self._path} is empty, and becomes a pool only when a driver starts"
            )
        return self._finding(
            Code.POOL_FOREIGN,
            f"pool {self._config.name}: {self._path} is no pool, and holds {names[0]!r}; mount the "
            f"pool's disk over it, or correct the path{self._disk}",
            self._mount,
        )

    def _damaged(self, what: str) -> Finding:
        owners = _owners(self._layout)
        owner = owners.most_common(1)[0][0] if owners else None
        known = f"the records of {owners.total()} volumes and snapshots name its UUID, {owner}"
        return self._finding(
            Code.POOL_RECORD_DAMAGED,
            f"pool {self._config.name}: {what}; {known if owner else 'it can have a new UUID'}",
            commands.write_pool_record(self._layout.record, owner),
        )

    def _unowned(self, found: str) -> Finding | None:
        """Return a finding if all volumes and snapshots name one other pool as theirs."""
        if any(owner == found for owner in _owners_named(self._layout)):
            return None  # mostly the first one's is
        owners = _owners(self._layout)
        if len(owners) != 1:
            return None
        owner, count = next(iter(owners.items()))
        return self._finding(
            Code.POOL_RECORD_DAMAGED,
            f"pool {self._config.name}: {self._layout.record} has the UUID {found}, but all "
            f"{count} records of volumes and snapshots name {owner}; it is another pool's",
            commands.write_pool_record(self._layout.record, owner),
        )


def _has_volumes(layout: Layout) -> bool:
    try:
        return layout.record.exists() and any(layout.volumes.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return False


def _owners(layout: Layout) -> Counter[str]:
    """Return the UUIDs of pools that the records of volumes and snapshots name, counted."""
    return Counter(_owners_named(layout))


def _owners_named(layout: Layout) -> Iterator[str]:
    for folder, record in (
        (layout.volumes, VOLUME_RECORD),
        (layout.snapshots, SNAPSHOT_RECORD),
    ):
        for place in sorted(folder.iterdir()) if folder.is_dir() else ():
            data = raw(place / record)
            data = data.get("volume", data)
            owner = data.get("pool_uuid") if isinstance(data, dict) else None
            if isinstance(owner, str):
                yield owner


def raw(record: Path) -> dict[str, Any]:
    """Return what a record holds, in whatever schema; {} if it is no JSON object."""
    try:
        data = json.loads(record.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _is_newer(record: Path) -> bool:
    return is_newer(raw(record))


def is_newer(data: dict[str, Any]) -> bool:
    """Tell whether a newer version has written a record."""
    schema = data.get("schema")
    return isinstance(schema, int) and schema > SCHEMA
