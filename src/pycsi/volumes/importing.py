"""Volumes that are filled with an export: reserved first, committed when all of it was checked.

Either another process fills the data in, or the driver does, with what another node sends.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from pycsi.backends import Backend
from pycsi.linux import filesystem
from pycsi.model import parameters
from pycsi.model.errors import (
    AlreadyExists,
    FailedPrecondition,
    OutOfRange,
    PoolMissing,
    ResourceExhausted,
)
from pycsi.model.ids import NodeInfo
from pycsi.model.records import Volume, VolumeType
from pycsi.model.request import Access, RecordedRequest, VolumeRequest
from pycsi.model.size import LARGEST, show
from pycsi.model.trace import phase
from pycsi.pool.pool import Build, Pool
from pycsi.transfer.content import fill
from pycsi.transfer.format import StreamError
from pycsi.transfer.manifest import Manifest, VolumeKind
from pycsi.transfer.reader import Source, StreamReader
from pycsi.transfer.unpack import TooLargeError
from pycsi.volumes.pools import Pools
from pycsi.volumes.provisioning import requested_volume


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What is to be filled in: the data of a volume of this kind, which had `capacity` bytes."""

    type: VolumeType
    filesystem: str | None
    capacity: int
    thick: bool
    mkfs_options: tuple[str, ...]

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """Return what an export with this manifest holds."""
        is_directory = manifest.kind is VolumeKind.DIRECTORY
        return cls(
            type=VolumeType.DIRECTORY if is_directory else VolumeType.IMAGE,
            filesystem=manifest.filesystem or None,
            capacity=manifest.size,
            thick=manifest.thick,
            mkfs_options=manifest.mkfs_options,
        )

    def as_volume(self, pool: Pool) -> Volume:
        """Return a volume in `pool` that would have this content, as a source of the new one."""
        raw = self.type is VolumeType.IMAGE and self.filesystem is None
        return Volume(
            id="",
            name="",
            pool=pool.name,
            pool_uuid=pool.uuid,
            type=self.type,
            reason="",
            access=Access.BLOCK if raw else Access.MOUNT,
            filesystem=self.filesystem,
            capacity=self.capacity,
            enforced=True,
            thick=self.thick,
            mkfs_options=self.mkfs_options,
            request=RecordedRequest(capabilities=()),
            settings={},
            created=0,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Filling:
    """A volume that is being filled; `data` is where, and does not exist for anybody else."""

    pool: Pool
    build: Build
    backend: Backend
    source: Volume
    project: int | None

    @property
    def data(self) -> Path:
        """The path of the data, relative to that of the pool."""
        return self.backend.content.relative_to(self.pool.layout.root)


class Importer:
    """Makes volumes of exports."""

    def __init__(self, pools: Pools, node: NodeInfo) -> None:
        self._pools = pools
        self._node = node

    @contextlib.contextmanager
    def filling(self, volume_id: str, wanted: VolumeRequest, content: Content) -> Iterator[Filling]:
        """Reserve the room of a new volume, and make its empty data, which is then filled.

        It becomes a volume by `commit`; if the `with` block ends without that, nothing is left. The
        caller holds the volume's lock. `AlreadyExists` if there is such a volume; the other errors
        are those of a volume made from a source.
        """
        if self._pools.find(volume_id):
            raise AlreadyExists(f"a volume {wanted.name!r} exists; use another name, or delete it")
        request = wanted.request
        given = parameters.parse(request.parameters, mutable=request.mutable)
        pool = self._pools.named(given.pool)
        source = content.as_volume(pool)
        volume = requested_volume(pool, volume_id, wanted, given, node=self._node, source=source)
        with pool.building(volume) as build:
            backend = pool.backend(volume, place=build.directory)
            project = backend.create_unfilled()
            yield Filling(pool, build, backend, source, project)

    def commit(self, filled: Filling) -> Volume:
        """Check what was filled in, make the volume durable and known, and return it."""
        volume = filled.backend.volume

        def is_taken(uuid: str) -> bool:
            return uuid in taken_uuids(self._pools, volume.filesystem)

        return self._committed(filled, is_taken)

    @staticmethod
    def _committed(filled: Filling, is_taken: Callable[[str], bool]) -> Volume:
        filled.backend.finish_filled(filled.source, filled.project, is_taken)
        return filled.pool.commit(filled.build, filled.backend, filled.project)

    def receive(
        self, volume_id: str, wanted: VolumeRequest, source: Source, progress: Callable[[], None]
    ) -> Volume:
        """Make a volume of the export that another node sends of the source of a request.

        It is as if the source was on this node. `progress` is called again and again; an error that
        it raises ends this. The caller holds the volume's lock, and has found no such volume. If
        this fails nothing is left; `FailedPrecondition` if the export is not whole, or not of that
        source.
        """
        origin = wanted.request.source
        try:
            reader = StreamReader(source)
            manifest = reader.manifest
            if origin is None or origin.id != (manifest.snapshot or manifest.volume):
                raise StreamError(f"it is of {manifest.snapshot or manifest.volume}")
            if manifest.base:
                raise StreamError("it is an increment")
            with self.filling(volume_id, wanted, Content.of(manifest)) as filling:
                volume = filling.backend.volume
                with phase("copy"):
                    fill(
                        reader,
                        filling.backend.content,
                        lambda _: progress(),
                        limit=volume.capacity if volume.enforced else LARGEST,
                        privileged=True,  # it had those rights on its own node
                    )
                with phase("adapt"):
                    # Another volume of the same source may be mounted beside it, or arrive now.
                    return self._committed(filling, lambda _: True)
        except TooLargeError:
            raise OutOfRange(
                f"{origin}, whose size was not enforced, holds more than {show(volume.capacity)}; "
                "ask for more"
            ) from None
        except StreamError as error:
            raise FailedPrecondition(f"what has arrived of {origin} is refused: {error}") from None
        except PoolMissing as missing:
            if wanted.topologies is None:
                raise
            # A scheduler that sends topologies tries another node on this status.
            raise ResourceExhausted(str(missing)) from None


def taken_uuids(pools: Pools, kind: str | None) -> Iterator[str]:
    """Yield the UUIDs of the filesystems of a kind that are in the images of volumes."""
    for pool in pools:
        for volume in pool.volumes:
            if volume.filesystem == kind:
                with contextlib.suppress(OSError):  # its image is missing
                    found = filesystem.identify(pool.backend(volume).content)
                    if found:
                        yield str(found.uuid)
