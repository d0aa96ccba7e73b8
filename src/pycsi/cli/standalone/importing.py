"""Importing: the driver makes the empty data of a new volume, and this process fills it.

So what may be hostile is read here. The volume does not exist before all of it was checked.
"""

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pycsi.cli import streams
from pycsi.cli.errors import CommandError
from pycsi.cli.progress import progress_bar
from pycsi.cli.standalone.client import Client
from pycsi.cli.standalone.volumes import capability
from pycsi.linux.descriptor import NO_ROOM
from pycsi.linux.record import RecordError
from pycsi.model import parameters
from pycsi.model.size import show
from pycsi.pool.layout import Layout
from pycsi.proto import csi_pb2 as csi
from pycsi.proto import transfers_pb2 as transfers
from pycsi.transfer.content import fill
from pycsi.transfer.format import StreamError
from pycsi.transfer.manifest import Manifest, VolumeKind
from pycsi.transfer.pacing import paced
from pycsi.transfer.reader import StreamReader


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NewImport:
    """A volume to be made from an export, as it was made, but for `size` and `parameters`.

    `rate` is how many bytes may be written in a second. `privileged` keeps what gives rights on the
    node: device nodes, setuid files, file capabilities.
    """

    name: str
    size: int | None
    parameters: Mapping[str, str]
    rate: int | None
    privileged: bool


def import_volume(client: Client, files: Sequence[str], wanted: NewImport) -> str:
    """Make a volume from a full export and the increments on it, in order; return its id.

    Each is a file, a pipe, or standard input (`-`). `CommandError` if one is no whole export, or
    not the one that is next, and then there is no volume.
    """
    with contextlib.ExitStack() as opened_files:
        exports = [_Export(file, opened_files.enter_context(streams.read(file))) for file in files]
        if exports[0].manifest.base:
            raise exports[0].error(
                f"it is an increment on {exports[0].manifest.base_snapshot}; give the export of "
                "that first"
            )
        for before, after in itertools.pairwise(exports):
            _refuse_other(before, after)
        return _import(client, exports, wanted)


class _Export:
    """An export in a file; `manifest` is its manifest, which has been read."""

    def __init__(self, file: str, fd: int) -> None:
        self._file = file
        with self.explained():
            self.reader = StreamReader(streams.source_of(fd, file))
        self.manifest = self.reader.manifest

    def error(self, message: str) -> CommandError:
        """Return an error about this export."""
        name = "standard input" if self._file == streams.STANDARD else self._file
        return CommandError(f"{name}: {message}")

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Raise `CommandError`, with the name of the file, for what is wrong with its content."""
        try:
            yield
        except StreamError as error:
            raise self.error(str(error)) from None


def _refuse_other(before: _Export, after: _Export) -> None:
    """Raise `CommandError` unless an export is the increment on the one before it."""
    one, other = before.manifest, after.manifest
    if not other.base or other.base != one.point:
        has = f"builds on {other.base_snapshot}" if other.base else "is a full export"
        raise after.error(f"it {has}, and the export before it is of {one.snapshot or one.volume}")
    if (one.kind, one.filesystem) != (other.kind, other.filesystem) or one.size > other.size:
        raise after.error("it is of another kind of volume than the export before it")


def _import(client: Client, exports: Sequence[_Export], wanted: NewImport) -> str:
    last = exports[-1].manifest
    with client.conversation("Import") as ask:
        ready = ask(transfers.ImportRequest(begin=_begin(last, wanted))).ready
        data = _pool_path(client, ready) / ready.data_path
        with progress_bar(f"import {wanted.name}", None) as done:
            for export in exports:
                try:
                    with export.explained():
                        fill(
                            export.reader,
                            data,
                            paced(wanted.rate, done),
                            limit=ready.capacity_bytes,
                            privileged=wanted.privileged,
                        )
                except OSError as error:
                    raise _not_written(error, data) from None
        commit = transfers.ImportRequest(commit=transfers.ImportRequest.Commit())
        volume_id: str = ask(commit).committed.volume.volume_id
    return volume_id


def _begin(manifest: Manifest, wanted: NewImport) -> transfers.ImportRequest.Begin:
    given = {key: value for key, value in manifest.parameters.items() if key in _KEPT}
    size = manifest.size if wanted.size is None else wanted.size
    return transfers.ImportRequest.Begin(
        volume=csi.CreateVolumeRequest(
            name=wanted.name,
            volume_capabilities=[capability(block=manifest.kind is VolumeKind.BLOCK)],
            parameters={**given, **wanted.parameters},
            capacity_range=csi.CapacityRange(required_bytes=size),
        ),
        content=transfers.Content(
            directory=manifest.kind is VolumeKind.DIRECTORY,
            fs_type=manifest.filesystem,
            capacity_bytes=manifest.size,
            thick=manifest.thick,
            mkfs_options=manifest.mkfs_options,
        ),
    )


_KEPT = parameters.LASTING
"""The parameters that an import takes from its export."""


def _pool_path(client: Client, ready: Any) -> Path:
    """Return the path of the pool in which the driver has made the data, as seen from here."""
    paths = [config.path for config in client.pools] or [Path(ready.pool_path)]
    for path in paths:
        with contextlib.suppress(OSError, RecordError):
            if Layout(path).read_uuid() == ready.pool_uuid:
                return path
    raise CommandError(
        f"the driver at {client.path} has its pool at {ready.pool_path}, where this command does "
        "not find it; run it as root, and where the driver runs: in the same mount namespace"
    )


def _not_written(error: OSError, data: Path) -> Exception:
    if error.filename is not None and error.errno not in NO_ROOM:
        return error
    if error.errno not in NO_ROOM:
        return CommandError(f"{data}: {error.strerror}; look at the kernel's log")
    facts = os.statvfs(data.parent)
    return CommandError(
        f"the pool's disk is full ({error.strerror}): {show(facts.f_bavail * facts.f_frsize)} are "
        "free; nothing is left of the import. Free space there"
    )
