"""Moving volumes between pools by the driver's own service, and how that is told."""

import click

from pycsi.cli.standalone.client import Client
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
