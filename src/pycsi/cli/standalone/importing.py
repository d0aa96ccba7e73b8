"""Importing: the driver makes the empty data of a new volume, and this process fills it.

So what may be hostile is read here. The volume does not exist before all of it was checked.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pycsi.cli import streams
from pycsi.cli.errors import CommandError
from pycsi.cli.progress import progress_bar
from pycsi.cli.standalone.client import Client
from pycsi.cli.standalone.volumes import capability
from pycsi.linux.descriptor import NO_ROOM, opened
from pycsi.linux.record import RecordError
from pycsi.model import parameters
from pycsi.model.size import LARGEST, show
from pycsi.pool.layout import Layout
from pycsi.proto import csi_pb2 as csi
from pycsi.proto import transfers_pb2 as transfers
from pycsi.transfer import image, unpack
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


def import_volume(client: Client, file: str, wanted: NewImport) -> str:
    """Make a volume from the export in a file or a pipe; return its id.

    `CommandError` if that is no whole export, and then there is no volume.
    """
    with streams.read(file) as fd:
        try:
            reader = StreamReader(streams.source_of(fd))
            return _import(client, reader, wanted)
        except StreamError as error:
            raise CommandError(f"{_called(file)}: {error}") from None


def _called(file: str) -> str:
    return "standard input" if file == streams.STANDARD else file


def _import(client: Client, reader: StreamReader, wanted: NewImport) -> str:
    manifest = reader.manifest
    if manifest.base:
        raise CommandError(
            f"it is an increment on the snapshot {manifest.base_snapshot}, and no volume by itself"
        )
    with client.conversation("Import") as ask:
        ready = ask(transfers.ImportRequest(begin=_begin(manifest, wanted))).ready
        data = _pool_path(client, ready) / ready.data_path
        with progress_bar(f"import {wanted.name}", None) as done:
            try:
                _fill(reader, data, ready.capacity_bytes, wanted, paced(wanted.rate, done))
            except OSError as error:
                raise _not_written(error, data) from None
        commit = transfers.ImportRequest(commit=transfers.ImportRequest.Commit())
        volume_id: str = ask(commit).committed.volume.volume_id
    return volume_id


def _fill(
    reader: StreamReader,
    data: Path,
    capacity: int,
    wanted: NewImport,
    done: Callable[[int], None],
) -> None:
    if reader.manifest.kind is VolumeKind.DIRECTORY:
        pieces = reader.pieces(LARGEST)
        unpack.receive(pieces, data, done, limit=capacity, privileged=wanted.privileged)
        return
    with opened(data, os.O_WRONLY | os.O_NOFOLLOW) as fd:
        image.receive(reader.pieces(reader.manifest.size), fd, done)


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
    if error.errno not in NO_ROOM:
        return error
    facts = os.statvfs(data.parent)
    return CommandError(
        f"the pool's disk is full ({error.strerror}): {show(facts.f_bavail * facts.f_frsize)} are "
        "free; nothing is left of the import. Free space there"
    )
