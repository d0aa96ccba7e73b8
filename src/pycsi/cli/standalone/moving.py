"""Moving volumes by the driver's own service, to another pool or node, and how that is told."""

import dataclasses
from typing import Any

import click

from pycsi.cli.adoption import cluster, relocation
from pycsi.cli.standalone.client import Client
from pycsi.model.request import Access, Mode
from pycsi.proto import csi_pb2 as csi
from pycsi.proto import transfers_pb2 as transfers


def move(client: Client, volume: str, pool: str, *, prepare: bool) -> str:
    """Move a volume into a pool, or only prepare that; return what was done, for a person.

    Each step is told on standard error. `CommandError` if the volume is in use at the end.
    """
    volume_id = client.id_of(volume)
    request = transfers.MoveRequest(volume_id=volume_id, pool=pool, prepare=prepare)
    before = ""
    for news in client.news("Move", request):
        if news.step:
            click.echo(f"{volume_id}: {news.step}", err=True)
        before = news.ended.from_pool
    if not before:
        return f"{volume_id} is in pool {pool} already"
    if prepare:
        return (
            f"{volume_id} is copied to pool {pool}, and is still in pool {before}; stop what uses "
            f"it, then: pycsi move {volume_id} --to-pool {pool}"
        )
    return (
        f"{volume_id} is in pool {pool}, with the same id, so that its PersistentVolume stays as "
        f"it is; what it was is in the trash of pool {before}"
    )


def cancel(client: Client, volume: str) -> str:
    """Delete what moves of a volume have copied that have not ended; return what was done."""
    volume_id = client.id_of(volume)
    client.call("CancelMove", transfers.CancelMoveRequest(volume_id=volume_id))
    return f"{volume_id} stays where it is; nothing of it is in another pool"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Journey:
    """A move to the node `node`, into `pool` there; "" for that of its parameters.

    `objects` is what the cluster says of its volumes, None if it was not asked.
    """

    node: str
    pool: str
    objects: str | None


def move_to_node(client: Client, volume_id: str, journey: Journey, *, prepare: bool) -> str:
    """Move a volume to another node, or only prepare that; return what was done.

    Of a volume that has moved, these are the manifests with which the cluster uses it there.
    """
    driver = client.call("GetPluginInfo", csi.GetPluginInfoRequest()).name
    known = None
    if journey.objects is not None:
        known = cluster.volume_with_handle(journey.objects, driver, volume_id)
    request = transfers.MoveRequest(
        volume_id=volume_id, pool=journey.pool, prepare=prepare, to_node=journey.node
    )
    moved = transfers.Description()
    for news in client.news("Move", request):
        if news.step:
            click.echo(f"{volume_id}: {news.step}", err=True)
        moved = news.ended.moved
    if prepare:
        return (
            f"{volume_id} is copied to node {journey.node}, and is still where it was; stop what "
            f"uses it, then: pycsi move {volume_id} --to-node {journey.node}"
        )
    return relocation.text(_moved(moved), volume_id, driver, known)


def _moved(told: Any) -> relocation.Moved:
    """Return what a node has told of a volume that has moved there."""
    request = told.request
    first = request.volume_capabilities[0]
    return relocation.Moved(
        id=told.volume.volume_id,
        name=request.name,
        filesystem=told.content.fs_type or None,
        capacity=told.volume.capacity_bytes,
        access=Access(first.WhichOneof("access_type")),
        context=dict(sorted(told.volume.volume_context.items())),
        segments=dict(told.volume.accessible_topology[0].segments),
        parameters=dict(request.parameters),
        mount_options=tuple(first.mount.mount_flags),
        modes=tuple(
            Mode(csi.VolumeCapability.AccessMode.Mode.Name(item.access_mode.mode))
            for item in request.volume_capabilities
        ),
    )


def cancel_to_node(client: Client, volume_id: str, node: str) -> str:
    """Delete what a move to another node has copied that is not decided; return what was done."""
    client.call("CancelMove", transfers.CancelMoveRequest(volume_id=volume_id, to_node=node))
    return f"{volume_id} stays where it is; nothing of it is on node {node}"
