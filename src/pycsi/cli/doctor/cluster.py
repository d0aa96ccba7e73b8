"""The cluster's objects, as `kubectl get pv,volumesnapshotcontents -o json` lists them.

They are compared with what the pools of this node have. An object that is being deleted is left
out, and so is what was made a moment ago: the list is older than the look at the disk.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from pycsi.cli.doctor import commands
from pycsi.cli.doctor.codes import Code
from pycsi.cli.doctor.finding import Finding
from pycsi.cli.doctor.look import Look
from pycsi.cli.errors import MistakesError
from pycsi.model.ids import node_of
from pycsi.pool import departures

LIST = "kubectl get pv,volumesnapshotcontents -o json"
_FRESH = 300.0
"""Seconds for which something new on the disk may lack its object in the list."""

_KINDS = {
    Code.OBJECT_WITHOUT_VOLUME: ("PersistentVolume", "volume", "pv", "pvc"),
    Code.OBJECT_WITHOUT_SNAPSHOT: (
        "VolumeSnapshotContent",
        "snapshot",
        "volumesnapshotcontent",
        "volumesnapshot",
    ),
}
"""The kind of an object, what it stands for, and what kubectl calls it and what is bound to it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Object:
    """A PersistentVolume or a VolumeSnapshotContent, for the volume or snapshot `handle`.

    `claim` is the namespace and name of what is bound to it, if anything is. `pool` is the name of
    a volume's pool, as its attributes tell it.
    """

    name: str
    handle: str
    leaving: bool
    claim: tuple[str, str] | None
    pool: str | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The objects of one driver; None where the list has no object of that kind, of any driver.

    Then it is not known whether the kind was asked for.
    """

    volumes: Sequence[Object] | None
    snapshots: Sequence[Object] | None

    @classmethod
    def read(cls, place: str, driver: str) -> Self:
        """Read a list from a file, or from standard input if `place` is "-".

        `MistakesError` if it is none, or incomplete.
        """
        named = "standard input" if place == "-" else place
        try:
            text = sys.stdin.buffer.read() if place == "-" else Path(place).read_bytes()
            listed = json.loads(text)
        except OSError as error:
            raise MistakesError(f"--cluster {place}: {error.strerror}; give a file, or -") from None
        except (ValueError, RecursionError):
            raise MistakesError(
                f"--cluster: {named} is no JSON; give it the output of: {LIST}"
            ) from None
        items = listed.get("items", [listed]) if isinstance(listed, dict) else None
        if not isinstance(items, list):
            raise MistakesError(f"--cluster: {named} is no list of objects; give it: {LIST}")
        if _at(listed, "metadata", "continue"):
            raise MistakesError(f"--cluster: {named} is not the whole list; give it all of: {LIST}")
        return cls(
            volumes=_objects(items, "PersistentVolume", driver, _volume),
            snapshots=_objects(items, "VolumeSnapshotContent", driver, _snapshot),
        )


def _at(data: Any, *keys: str) -> Any:
    """Return what is in nested mappings; None where anything of it is not there."""
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data


def _text(data: Any, *keys: str) -> str | None:
    found = _at(data, *keys)
    return found if isinstance(found, str) and found else None


def _objects(
    items: Iterable[Any],
    kind: str,
    driver: str,
    read: Callable[[Any], tuple[str | None, str | None, str]],
) -> list[Object] | None:
    """Return the objects of a kind that are this driver's and have a handle; None if none is there.

    `read` returns the driver of an object, its handle, and the key of what is bound to it.
    """
    every = [item for item in items if _text(item, "kind") == kind]
    found = []
    for item in every:
        owner, handle, reference = read(item)
        if owner != driver or handle is None:
            continue
        bound = _text(item, "spec", reference, "namespace"), _text(item, "spec", reference, "name")
        found.append(
            Object(
                name=_text(item, "metadata", "name") or "",
                handle=handle,
                leaving=bool(_at(item, "metadata", "deletionTimestamp")),
                claim=(bound[0], bound[1]) if bound[0] and bound[1] else None,
                pool=_text(item, "spec", "csi", "volumeAttributes", "pool"),
            )
        )
    return found if every else None


def _volume(item: Any) -> tuple[str | None, str | None, str]:
    source = ("spec", "csi")
    return _text(item, *source, "driver"), _text(item, *source, "volumeHandle"), "claimRef"


def _snapshot(item: Any) -> tuple[str | None, str | None, str]:
    handle = _text(item, "status", "snapshotHandle")
    handle = handle or _text(item, "spec", "source", "snapshotHandle")
    return _text(item, "spec", "driver"), handle, "volumeSnapshotRef"


class Comparison:
    """Compares the objects of a cluster with the pools of this node, which are all that it has.

    `node` is how ids name this node; None: as those do that are in the pools. With `partly` some
    pool cannot be looked at, so that nothing is known to be missing.
    """

    def __init__(
        self, cluster: Cluster, looks: Sequence[Look], node: str | None, *, partly: bool
    ) -> None:
        self._cluster = cluster
        self._looks = looks
        self._partly = partly
        self._volumes = {item for look in looks for item in _ids(look, "volumes")}
        self._snapshots = {item for look in looks for item in _ids(look, "snapshots")}
        every = self._volumes | self._snapshots
        self._nodes = {node} if node else {node_of(item) for item in every}

    def findings(self) -> Iterator[Finding]:
        """Yield the objects without what they stand for, and what has no object."""
        volumes, snapshots = self._cluster.volumes, self._cluster.snapshots
        if volumes is not None:
            yield from map(self._lost_volume, self._lost(volumes, self._volumes))
            for look in self._looks:
                yield from self._unknown_volumes(look, {item.handle for item in volumes})
        if snapshots is not None:
            yield from map(self._lost_snapshot, self._lost(snapshots, self._snapshots))
            for look in self._looks:
                yield from self._unknown_snapshots(look, {item.handle for item in snapshots})

    def unseen(self) -> Iterator[str]:
        """Yield what could not be compared."""
        for what, objects, there in (
            ("PersistentVolume", self._cluster.volumes, self._volumes),
            ("VolumeSnapshotContent", self._cluster.snapshots, self._snapshots),
        ):
            if objects is None and there:
                yield (
                    f"the list has no {what}, so {len(there)} on the disk are not compared; give "
                    f"--cluster all of: {LIST}"
                )
        known = {look.name for look in self._looks}
        foreign = {item.pool for item in self._here(self._cluster.volumes or ())} - known - {None}
        if foreign and not self._partly:
            yield f"pool {', '.join(sorted(map(str, foreign)))} has volumes too; add its --pool"

    def _here(self, objects: Iterable[Object]) -> Iterator[Object]:
        return (item for item in objects if node_of(item.handle) in self._nodes)

    def _lost(self, objects: Iterable[Object], there: Collection[str]) -> Iterator[Object]:
        known = {look.name for look in self._looks}
        for item in self._here(objects):
            elsewhere = item.pool is not None and item.pool not in known
            if not (self._partly or item.leaving or elsewhere or item.handle in there):
                yield item

    def _lost_volume(self, item: Object) -> Finding:
        for look in self._looks:
            for entry in look.seen.trash:
                if entry.id == item.handle and not entry.reaping:
                    return look.finding(
                        Code.OBJECT_WITHOUT_VOLUME,
                        item.name,
                        f"the volume of PersistentVolume {item.name}, {item.handle}, is in the "
                        f"trash of pool {look.name}",
                        look.pycsi("trash", "restore", entry.path.name),
                    )
        return self._lost_object(Code.OBJECT_WITHOUT_VOLUME, item)

    def _lost_snapshot(self, item: Object) -> Finding:
        return self._lost_object(Code.OBJECT_WITHOUT_SNAPSHOT, item)

    @staticmethod
    def _lost_object(code: Code, item: Object) -> Finding:
        kind, what, own, bound = _KINDS[code]
        command, by = commands.typed("kubectl", "delete", own, item.name), ""
        if item.claim:
            namespace, name = item.claim
            command = commands.typed("kubectl", "delete", bound, name, "-n", namespace)
            by = f", bound to {namespace}/{name}"
        return Finding(
            code=code,
            subject=item.name,
            pool=None,
            message=f"{kind} {item.name}{by} stands for {what} {item.handle}, which is not on this "
            "node",
            command=command,
        )

    @staticmethod
    def _unknown_volumes(look: Look, known: Collection[str]) -> Iterator[Finding]:
        for volume in look.volumes.values():
            if volume.handle is None and not _is_known(look, volume.id, volume.created, known):
                yield look.finding(
                    Code.VOLUME_WITHOUT_OBJECT,
                    volume.id,
                    f"volume {volume.id} has no PersistentVolume: nobody in the cluster can use or "
                    "delete it",
                    look.pycsi("delete", "volume", volume.id, "--yes"),
                )

    @staticmethod
    def _unknown_snapshots(look: Look, known: Collection[str]) -> Iterator[Finding]:
        for snapshot in look.seen.snapshots:
            if departures.SNAPSHOT in snapshot.parameters:  # the cluster has no part in it
                continue
            if _is_known(look, snapshot.id, snapshot.created, known):
                continue
            command = look.pycsi("delete", "snapshot", snapshot.id, "--yes")
            member = ""
            if snapshot.group:
                command = commands.ungroup(look.given, look.seen.layout.group(snapshot.group))
                member = f"; it is of group {snapshot.group}: to delete that, stop the driver first"
            yield look.finding(
                Code.SNAPSHOT_WITHOUT_OBJECT,
                snapshot.id,
                f"snapshot {snapshot.id} has no VolumeSnapshotContent: nobody in the cluster can "
                f"use or delete it{member}",
                command,
            )


def _is_known(look: Look, object_id: str, created: float, known: Collection[str]) -> bool:
    return object_id in known or look.now - created < _FRESH


def _ids(look: Look, what: str) -> set[str]:
    """Return the ids of volumes or snapshots of a pool, readable or not."""
    if what == "volumes":
        return {*look.volumes, *look.seen.volumes.unreadable}
    return {*(item.id for item in look.snapshots()), *look.seen.snapshots.unreadable}
