"""Volumes whose data another process fills in, as an import: reserved first, committed then."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from pycsi.backends import Backend
from pycsi.linux import filesystem
from pycsi.model import parameters
from pycsi.model.errors import AlreadyExists
from pycsi.model.ids import NodeInfo
from pycsi.model.records import Volume, VolumeType
from pycsi.model.request import Access, RecordedRequest, VolumeRequest
from pycsi.pool.pool import Build, Pool
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
    """Makes volumes whose data another process fills in."""

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
            return uuid in self._uuids(volume.filesystem)

        filled.backend.finish_filled(filled.source, filled.project, is_taken)
        return filled.pool.commit(filled.build, filled.backend, filled.project)

    def _uuids(self, kind: str | None) -> Iterator[str]:
        """Yield the UUIDs of the filesystems of a kind that are in the images of volumes."""
        for pool in self._pools:
            for volume in pool.volumes:
                if volume.filesystem == kind:
                    with contextlib.suppress(OSError):  # its image is missing
                        found = filesystem.identify(pool.backend(volume).content)
                        if found:
                            yield str(found.uuid)
