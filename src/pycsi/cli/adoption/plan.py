"""What would become of each candidate: the volume, the way to it, and what speaks against it."""

import dataclasses
import functools
import os
import time
from collections.abc import Sequence
from pathlib import Path

from pycsi.cli.adoption.candidates import Candidate
from pycsi.cli.adoption.sources import Source, Unfit, Uses, examine, look_into, resolved
from pycsi.cli.inspection import InspectedPool
from pycsi.linux import filecopy, filesystem
from pycsi.linux.descriptor import opened
from pycsi.linux.location import Location
from pycsi.linux.survey import Survey
from pycsi.model import parameters
from pycsi.model.config import PoolConfig
from pycsi.model.errors import CsiError
from pycsi.model.ids import NodeInfo, object_id
from pycsi.model.records import Volume
from pycsi.model.request import Access, Capability, CapacityRange, Mode, RecordedRequest
from pycsi.model.size import MIB, round_up, show
from pycsi.model.spec import choose
from pycsi.pool.adoptions import Adoptions, Begun, Way, adoption_of
from pycsi.pool.layout import Layout

_MODES = {
    "ReadWriteOnce": Mode.SINGLE_NODE_MULTI_WRITER,
    "ReadWriteOncePod": Mode.SINGLE_NODE_SINGLE_WRITER,
    "ReadOnlyMany": Mode.MULTI_NODE_READER_ONLY,
    "ReadWriteMany": Mode.MULTI_NODE_MULTI_WRITER,
}
"""The access modes of Kubernetes, as its provisioner asks for them."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the operator asks for besides: `size` is in bytes, for those that have less or none.

    `unlimited` accepts that directories have no limit where the pool cannot enforce one.
    """

    size: int | None = None
    unlimited: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What would become of a candidate.

    `volume` is the record that it would have, None if that is not known; `way` how it would come
    there. `occupied` are its bytes on the disk. `against` are the reasons not to do it, `remarks`
    what is worth knowing. `busy`: only its being in use speaks against it. `adopted`: it has been
    done already.
    """

    candidate: Candidate
    volume_id: str
    volume: Volume | None = None
    source: Source | None = None
    way: Way | None = None
    occupied: int = 0
    steps: int = 0
    against: tuple[str, ...] = ()
    busy: bool = False
    remarks: tuple[str, ...] = ()
    adopted: bool = False


class Planner:
    """Plans the adoption of candidates into the pool `seen`; `pools` are all that are known."""

    def __init__(
        self, seen: InspectedPool, pools: Sequence[PoolConfig], node: NodeInfo, wish: Wish
    ) -> None:
        self.seen = seen
        self.node = node
        self._pools = pools
        self.wish = wish
        self._uses: dict[int, Uses] = {}
        self._promised: dict[str, int] = {}

    @functools.cached_property
    def _left(self) -> int:
        return self.seen.room.capacity().available(thick=False)

    def plan(self, candidate: Candidate) -> Plan:
        """Return what would become of a candidate."""
        volume_id = object_id(candidate.name, self.node.id)
        plan = Plan(candidate=candidate, volume_id=volume_id)
        try:
            path = resolved(candidate.path)
            if done := self._done(volume_id, path):
                return dataclasses.replace(plan, volume=done, adopted=True)
            if begun := self._cut_off(volume_id, path):
                return dataclasses.replace(
                    plan, volume=begun.volume, way=begun.adoption.way, source=None
                )
            if candidate.fault:
                raise Unfit(candidate.fault)
            source = examine(path)
            self._refuse_pools(source)
            return self._examined(plan, source)
        except (Unfit, CsiError) as reason:
            return dataclasses.replace(plan, against=(*plan.against, str(reason)))

    def _done(self, volume_id: str, path: Path) -> Volume | None:
        """Return the volume of this id if it was adopted from a path; `Unfit` if it was not."""
        place = self.seen.layout.volumes / volume_id
        if volume_id in self.seen.volumes:
            adoption = adoption_of(place)
            if adoption and adoption.source == str(path):
                return self.seen.volumes.get(volume_id)
        for config in self._pools:
            if os.path.lexists(Layout(config.path).volumes / volume_id):
                raise Unfit(f"pool {config.name} has a volume {volume_id} already")
        if volume_id in self._promised:
            raise Unfit(f"another would be called {volume_id} too; adopt it alone, with --name")
        return None

    def _cut_off(self, volume_id: str, path: Path) -> Begun | None:
        """Return the adoption that was cut off when the data was no longer in its old place."""
        begun = Adoptions(self.seen.layout).get(volume_id)
        if begun is None:
            return None
        if begun.adoption.source != str(path):
            raise Unfit(
                f"{volume_id} is being made of {begun.adoption.source}; first: pycsi adopt --undo "
                f"{volume_id}"
            )
        if begun.adoption.undoing:
            raise Unfit(f"its undoing was cut off; first: pycsi adopt --undo {volume_id}")
        return begun if begun.has_data else None

    def _refuse_pools(self, source: Source) -> None:
        """Raise `Unfit` if the source lies in a pool, or a pool in it."""
        for config in self._pools:
            if not config.path.is_dir():
                continue
            with opened(config.path, os.O_DIRECTORY) as fd:
                pool = Location.of(config.path, fd)
            if source.lies_in(pool):
                raise Unfit(f"it lies in pool {config.name}")
            if source.contains(pool):
                raise Unfit(f"pool {config.name} lies in it; give a directory in it")

    def _examined(self, plan: Plan, source: Source) -> Plan:
        way = self._way(source)
        found = look_into(source.path, source.location.root, self.uses(source.location.device))
        against = [f"it is in use: {', '.join(found.users[:4])}; stop that"] if found.users else []
        volume = None
        try:
            volume = self._volume(plan, source, found)
            self._promise(volume, found, way)
        except (Unfit, CsiError) as reason:
            against.append(str(reason))
        return dataclasses.replace(
            plan,
            volume=volume,
            source=source,
            way=way,
            occupied=found.occupied,
            steps=found.entries + found.occupied // MIB,
            against=tuple(against),
            busy=bool(found.users) and len(against) == 1,
            remarks=tuple(self._remarks(plan, found, source, way)),
        )

    def uses(self, device: int) -> Uses:
        """Return what uses a filesystem, looked at once."""
        if device not in self._uses:
            self._uses[device] = Uses.of(device)
        return self._uses[device]

    # The way

    def _way(self, source: Source) -> Way:
        """Return how the source can come into the pool; `Unfit` if only by a needless copy."""
        pool = self.seen.location
        if source.location.device != pool.device:
            return Way.COPY
        parent, inside = source.path.parent.stat(), self.seen.layout.root.stat()
        if pool.mount.fstype == "btrfs":
            one = source.location.mount.id == pool.mount.id and parent.st_dev == inside.st_dev
            return Way.COPY if source.is_directory or not one else Way.MOVE
        if source.location.mount.id == pool.mount.id:
            return Way.MOVE
        if filecopy.can_reflink(self.seen.layout.record):
            return Way.COPY
        raise Unfit(
            f"it is on the pool's filesystem, but seen through another mount, "
            f"{source.location.mount.target}, from which the kernel moves nothing; give its path "
            f"below {pool.mount.target}"
        )

    # The volume

    def _volume(self, plan: Plan, source: Source, found: Survey) -> Volume:
        candidate, known = plan.candidate, plan.candidate.known
        if not source.is_directory:
            _refuse_odd(source)
        kind = None if source.is_directory or candidate.block else _kind(source)
        unlimited = source.is_directory and self._is_unlimited()
        wanted = {
            "pool": self.seen.config.name,
            "type": "directory" if source.is_directory else "image",
            **({"quota": "none"} if unlimited else {}),
        }
        access = Access.BLOCK if candidate.block else Access.MOUNT
        if candidate.block and source.is_directory:
            raise Unfit("it is a directory, and its users expect a block device")
        modes = known.access_modes if known else ("ReadWriteOnce",)
        capabilities = tuple(
            Capability(access=access, mode=_MODES[mode], filesystem=kind)
            for mode in modes
            if mode in _MODES
        )
        given = parameters.parse(wanted)
        spec = choose(
            given,
            capabilities,
            limiter=self.seen.limiter.name,
            directories={self.seen.location.mount.fstype},
        )
        size = self._size(candidate, source, found, enforced=spec.enforced)
        return Volume(
            id=plan.volume_id,
            name=candidate.name,
            pool=self.seen.config.name,
            pool_uuid=self.seen.uuid,
            type=spec.type,
            reason="adopted",
            access=spec.access,
            filesystem=spec.filesystem,
            capacity=size,
            enforced=spec.enforced,
            thick=False,
            mkfs_options=(),
            request=RecordedRequest(
                capabilities=capabilities,
                capacity=CapacityRange(required=size),
                parameters=wanted | _named(candidate),
            ),
            settings=given.settings,
            created=time.time(),
        )

    def _is_unlimited(self) -> bool:
        """Tell whether a directory will have no limit; `Unfit` if that was not accepted."""
        why = self.seen.limiter.fault()
        if why and not self.wish.unlimited:
            raise Unfit(f"nothing would limit its size: {why}; or accept that with --no-limit")
        return bool(why)

    def _size(self, candidate: Candidate, source: Source, found: Survey, *, enforced: bool) -> int:
        """Return the capacity in bytes; `Unfit` if none is known, or it holds more."""
        if not source.is_directory:
            size = max(source.status.st_size, candidate.limit or 0, self.wish.size or 0)
            return round_up(size)
        wanted = max(candidate.limit or 0, self.wish.size or 0)
        if enforced and not wanted:
            raise Unfit("its size is not known; give --size")
        if enforced and found.occupied > wanted:
            raise Unfit(
                f"it holds {show(found.occupied)}, and its limit is {show(wanted)}; give a --size "
                "that is larger"
            )
        return round_up(max(wanted or found.occupied, MIB))

    def _promise(self, volume: Volume, found: Survey, way: Way) -> None:
        """Count what a volume needs of the pool's room; `Unfit` if there is not so much."""
        written = found.occupied if way is Way.MOVE else 0
        needed = max(0, volume.capacity - written)
        begun = Adoptions(self.seen.layout).get(volume.id)
        promised = begun.volume.capacity if begun else 0  # by an attempt that was cut off
        left = self._left + promised - sum(self._promised.values())
        if needed > left:
            raise Unfit(
                f"pool {self.seen.config.name} has no room: {show(needed)} more would be promised, "
                f"and {show(max(0, left))} are left; raise its overcommit, or free space"
            )
        self._promised[volume.id] = needed

    def _remarks(self, plan: Plan, found: Survey, source: Source, way: Way) -> list[str]:
        same = source.location.device == self.seen.location.device
        counted = (
            (found.privileged, "files with setuid or setgid"),
            (found.devices, "device nodes"),
            (found.shared, "files that have names elsewhere too (hard links), and stay shared"),
        )
        remarks = [f"it holds {number} {what}" for number, what in counted if number]
        if way is Way.COPY and not same:
            remarks.append("it lies on another filesystem, and is copied; the old one stays")
        elif way is Way.COPY:
            remarks.append("it is copied by reflinks, which takes no space; the old one stays")
        if plan.candidate.known is None:
            remarks.append("no PersistentVolume of it is known: its manifest is made from defaults")
        if source.is_directory and self.seen.limiter.fault():
            remarks.append("nothing limits its size")
        return remarks


def _named(candidate: Candidate) -> dict[str, str]:
    """Return what the provisioner would tell of the claim, for display."""
    if candidate.claim is None:
        return {}
    return {
        parameters.CLAIM_NAMESPACE: candidate.claim.namespace,
        parameters.CLAIM_NAME: candidate.claim.name,
    }


def _refuse_odd(source: Source) -> None:
    """Raise `Unfit` for a file that is no image, or that is not only here."""
    if not source.status.st_size:
        raise Unfit("the file is empty")
    if source.status.st_nlink > 1:
        raise Unfit(
            "the file has another name (hard link), by which others could write to it; remove that"
        )


def _kind(source: Source) -> str:
    """Return the filesystem in an image; `Unfit` if there is none, or not all of it."""
    found = filesystem.identify(source.path)
    if found is None:
        raise Unfit(
            "there is no ext4, XFS or btrfs in it: it was never used, or has partitions, or is a "
            "block volume; as that it is adopted with --block"
        )
    if found.size > round_up(source.status.st_size):
        raise Unfit(
            f"its {found.kind} has {show(found.size)}, and the file only "
            f"{show(source.status.st_size)}: it was cut off"
        )
    return found.kind
