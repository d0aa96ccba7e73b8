"""The lives of volumes: the RPCs from creation to deletion, and the claims proved on the way."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

from pycsi.cli.demo import claims
from pycsi.cli.demo.screen import Screen
from pycsi.cli.demo.volume import Volume
from pycsi.model.size import MIB

P = ParamSpec("P")


class Proofs:
    """Shows each proved claim, and collects the names of the claims for the summary."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._names: dict[str, None] = {}

    def say(self, text: str) -> None:
        self._screen.answer(text)

    def run(self, command: str) -> None:
        self._screen.command(command)

    def prove(self, claim: Callable[P, str], *args: P.args, **kwargs: P.kwargs) -> None:
        self._screen.proved(claim(*args, **kwargs))
        self._names[claim.__name__.replace("_", " ")] = None

    def __str__(self) -> str:
        return ", ".join(self._names) or "nothing"


def mounted(volume: Volume, proofs: Proofs) -> None:
    """Show the life of a mounted volume."""
    _born(volume, proofs)
    volume.stage()
    target = volume.publish("pod-1")
    proofs.prove(claims.keeps_files, target)
    _sized(volume, proofs, target, volume.plan.size)
    _shared(volume, proofs)
    if volume.plan.online:
        _expanded(volume, proofs, volume.expand(), target)
    volume.withdraw(target)
    offline = None if volume.plan.online else volume.expand()
    volume.stage()
    target = volume.publish("pod-4")
    proofs.prove(claims.data_survives, target)
    if offline is not None:
        _expanded(volume, proofs, offline, target)
    _dead(volume, proofs, target)


def raw_block(volume: Volume, proofs: Proofs) -> None:
    """Show the life of a raw block volume."""
    size, larger = volume.plan.size, volume.plan.larger
    _born(volume, proofs)
    volume.stage()
    target = volume.publish("pod-1")
    proofs.prove(claims.device_size, target, size)
    proofs.prove(claims.keeps_blocks, target, size)
    proofs.prove(claims.stats_agree, target, volume.stats(target), size)
    other = volume.publish("pod-2")
    proofs.prove(claims.same_device, target, other)
    readonly = volume.publish("pod-3", readonly=True)
    proofs.prove(claims.read_only_device, readonly, size)
    volume.unpublish(readonly)
    volume.unpublish(other)
    proofs.prove(claims.expanded, volume.expand(), volume.grow(target), larger)
    proofs.prove(claims.device_size, target, larger)
    proofs.prove(claims.blocks_survive, target, size)
    proofs.prove(claims.keeps_blocks, target, larger)
    volume.withdraw(target)
    volume.stage()
    target = volume.publish("pod-4")
    proofs.prove(claims.blocks_survive, target, larger)
    _dead(volume, proofs, target)


def inline(volume: Volume, proofs: Proofs) -> None:
    """Show the life of an inline volume, which comes and goes with its pod; kubelet names it."""
    handle = f"csi-{hashlib.sha256(volume.plan.name.encode()).hexdigest()}"
    target = volume.publish_inline(handle, f"{volume.plan.size // MIB}Mi")
    proofs.prove(claims.keeps_files, target)
    _sized(volume, proofs, target, volume.plan.size)
    volume.unpublish(target)
    proofs.prove(claims.nothing_left, volume.plan.pool.path, volume.folder)


def _born(volume: Volume, proofs: Proofs) -> None:
    before = volume.settled_capacity()
    first = volume.create()
    proofs.prove(claims.capacity_counted, before, volume.capacity(), volume.plan.size)
    proofs.prove(claims.creation_idempotent, first, volume.create("the same again"))
    proofs.prove(claims.no_other_size, volume.create_with_other_size())


def _sized(volume: Volume, proofs: Proofs, target: Path, size: int) -> None:
    """Prove that statvfs(3), a write until full, and NodeGetVolumeStats all show `size` bytes."""
    plan = volume.plan
    if plan.filesystem:
        proofs.prove(claims.statvfs_size, target, size)
    if plan.enforced:
        proofs.prove(claims.size_enforced, target, size)
    # For a directory statvfs(3) may show the pool's filesystem, so compare with the limit itself.
    limit = size if plan.enforced and not plan.filesystem else None
    proofs.prove(claims.stats_agree, target, volume.stats(target), limit)


def _expanded(volume: Volume, proofs: Proofs, controller: int, target: Path) -> None:
    """Expand the volume on the node, and prove that it is larger.

    `controller` is the capacity in bytes that ControllerExpandVolume has returned.
    """
    proofs.prove(claims.expanded, controller, volume.grow(target), volume.plan.larger)
    _sized(volume, proofs, target, volume.plan.larger)


def _shared(volume: Volume, proofs: Proofs) -> None:
    other = volume.publish("pod-2")
    proofs.prove(claims.shared, other)
    readonly = volume.publish("pod-3", readonly=True)
    proofs.prove(claims.read_only, readonly)
    volume.unpublish(readonly)
    volume.unpublish(other)


def _dead(volume: Volume, proofs: Proofs, target: Path) -> None:
    volume.withdraw(target)
    volume.delete()
    proofs.prove(claims.nothing_left, volume.plan.pool.path, volume.folder)
