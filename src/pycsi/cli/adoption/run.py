"""What `pycsi adopt` does: tell what there is, adopt it, undo that, or finish it."""

import contextlib
import dataclasses
import os
import shlex
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import click

from pycsi.cli import listing, tables
from pycsi.cli.adoption import cluster, layouts, manifests, show
from pycsi.cli.adoption.candidates import Candidate, Claim
from pycsi.cli.adoption.carrying import Carrier
from pycsi.cli.adoption.plan import Plan, Planner, Wish
from pycsi.cli.adoption.sources import Unfit, resolved
from pycsi.cli.adoption.undoing import Undoing
from pycsi.cli.errors import CommandError, MistakesError, UnknownNameError
from pycsi.cli.inspection import InspectedPool, inspect
from pycsi.cli.pools import chosen, node_of
from pycsi.linux.lockfile import locked
from pycsi.model.config import DEFAULT_POOL, PoolConfig
from pycsi.model.ids import NodeInfo
from pycsi.model.ids import node_of as node_of_id
from pycsi.model.parameters import CLAIM_NAME, CLAIM_NAMESPACE
from pycsi.model.request import Access
from pycsi.pool.adoptions import Adoptions, adoption_of
from pycsi.pool.layout import Layout

STANDARD_INPUT = "-"

_FEW_STEPS = 64
"""A copy of fewer files and MiB than this shows no progress."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the command was given; see its options."""

    sources: tuple[str, ...]
    layout: str | None
    name: str | None
    block: bool
    into: str | None
    node_id: str | None
    driver_name: str
    storage_class: str | None
    wish: Wish


def adopt(given: Sequence[PoolConfig], order: Order, output: str, *, yes: bool) -> int:
    """Tell what would become of the sources, or with `yes` adopt them; return the exit status."""
    configs = chosen(given)
    config = _target(configs, order.into)
    node = _node(configs, order)
    if yes:
        with _held(config):  # which completes what was cut off
            pass
    seen = _seen(config)
    candidates, elsewhere = _candidates(order, node, seen)
    planner = Planner(seen, configs, node, order.wish)
    plans = [planner.plan(candidate) for candidate in candidates]
    failures: list[str] = []
    if yes:
        for volume_id in _adopted(plans, configs, planner, failures):
            if output == "text":
                click.echo(volume_id)
        plans = [plan for plan in plans if not plan.against]
    if output != "text" or not yes:
        failures += _print(plans, output, order, node)
    if elsewhere:
        click.echo(f"pycsi: {elsewhere} volumes of other nodes are left out", err=True)
    for failure in failures:
        click.echo(f"pycsi: {tables.printable(failure)}", err=True)
    return 1 if failures or any(plan.against for plan in plans) else 0


def _print(plans: Sequence[Plan], output: str, order: Order, node: NodeInfo) -> list[str]:
    """Print the plans; return what is to be told besides."""
    if output == "json":
        click.echo(listing.structured([show.fields(plan) for plan in plans], output))
    elif output == "manifests":
        _print_manifests(plans, order, node)
        return [f"{plan.candidate.path}: {reason}" for plan in plans for reason in plan.against]
    else:
        for line in show.lines(plans):
            click.echo(line)
    return []


def _target(configs: Sequence[PoolConfig], into: str | None) -> PoolConfig:
    """Return the pool to adopt into: the one that was named, the only one, or `default`."""
    wanted = into or (configs[0].name if len(configs) == 1 else DEFAULT_POOL)
    for config in configs:
        if config.name == wanted:
            return config
    names = ", ".join(config.name for config in configs)
    raise MistakesError(f"--into {wanted}: there is no such pool; give one of {names}")


def _node(configs: Sequence[PoolConfig], order: Order) -> NodeInfo:
    name = order.node_id or node_of(configs) or socket.gethostname()
    return NodeInfo(id=name, driver_name=order.driver_name, max_volumes=0)


def _candidates(order: Order, node: NodeInfo, seen: InspectedPool) -> tuple[list[Candidate], int]:
    """Return what could be adopted, and how many volumes of the cluster are on other nodes."""
    listed: list[Candidate] = []
    if STANDARD_INPUT in order.sources:
        listed = cluster.read(sys.stdin.read())
    paths = [path for path in order.sources if path != STANDARD_INPUT]
    found = [item for path in paths for item in _in_path(path, order, seen)]
    if paths:
        return [_meant(item, order, found) for item in cluster.enriched(found, listed)], 0
    here = [item for item in listed if _is_here(item, node)]
    return [_meant(item, order, here) for item in here], len(listed) - len(here)


def _in_path(text: str, order: Order, seen: InspectedPool) -> list[Candidate]:
    """Return what could be adopted in a path, and what was adopted from there already."""
    try:
        path = resolved(str(Path.cwd() / text))
    except Unfit as reason:
        raise MistakesError(f"--from {text}: {reason}") from None
    done = [item for item in _done(seen) if Path(item.path).is_relative_to(path)]
    if not os.path.lexists(path) and not done:
        raise CommandError(f"{path} does not exist")
    found = layouts.read(path, order.layout) if os.path.lexists(path) else []
    # What an image has left, such as a directory with its metadata, may look like a volume too.
    names = {item.name for item in done}
    found = [*done, *(item for item in found if item.name not in names)]
    if not found:
        raise CommandError(
            f"{path}: there is no volume of a known layout in it; give the directory in which its "
            "driver keeps the volumes; or --layout bare, if it is one volume itself"
        )
    return found


def _done(seen: InspectedPool) -> Iterator[Candidate]:
    """Yield what has been adopted already, as it was before."""
    for volume in seen.volumes:
        if adoption := adoption_of(seen.layout.volumes / volume.id):
            given = volume.request.parameters
            name, namespace = given.get(CLAIM_NAME), given.get(CLAIM_NAMESPACE)
            yield Candidate(
                path=adoption.source,
                name=volume.name,
                layout=adoption.layout,
                limit=volume.capacity,
                block=volume.access is Access.BLOCK,
                claim=Claim(namespace=namespace, name=name) if name and namespace else None,
            )


def _meant(item: Candidate, order: Order, found: Sequence[Candidate]) -> Candidate:
    """Return a candidate with what the operator says of it."""
    if order.name and len(found) > 1:
        raise MistakesError(f"--name {order.name}: there are {len(found)} volumes; give one alone")
    return dataclasses.replace(item, name=order.name or item.name, block=order.block or item.block)


def _is_here(item: Candidate, node: NodeInfo) -> bool:
    hosts = item.known.hosts if item.known else ()
    return not hosts or bool({node.id, socket.gethostname()} & {*hosts})


def _print_manifests(plans: Iterable[Plan], order: Order, node: NodeInfo) -> None:
    # What is in use is among them: the steps say what to stop.
    items = [
        manifests.Adopted(plan.volume, plan.candidate)
        for plan in plans
        if plan.volume and (plan.busy or not plan.against)
    ]
    how = manifests.Cluster(order.driver_name, node.segments, order.storage_class)
    words = ["pycsi", "adopt", *(word for path in order.sources for word in ("--from", path))]
    words += ["--layout", order.layout] if order.layout else []
    words += ["--size", str(order.wish.size)] if order.wish.size else []
    words += ["--no-limit"] if order.wish.unlimited else []
    command = tables.printable(shlex.join([*words, "--yes"]))
    if STANDARD_INPUT in order.sources:
        command += " < THE-SAME-LIST"
    if items:
        click.echo(manifests.text(items, how, command))


# Changes


def _seen(config: PoolConfig) -> InspectedPool:
    return inspect(config, lambda pool: pool)


@contextlib.contextmanager
def _held(config: PoolConfig) -> Iterator[Carrier]:
    """Let no other command adopt or undo anything in a pool during the `with` block."""
    adoptions = Adoptions(_seen(config).layout)
    adoptions.folder.mkdir(mode=0o700, exist_ok=True)
    with locked(adoptions.lock):
        adoptions.settle()
        adoptions.sweep()
        yield Carrier(_seen(config))


def _adopted(
    plans: Iterable[Plan],
    configs: Sequence[PoolConfig],
    planner: Planner,
    failures: list[str],
) -> Iterator[str]:
    """Adopt what nothing speaks against; yield the ids, and add why others were not."""
    for plan in plans:
        try:
            with _held(planner.seen.config) as carrier:
                # As it is now: others may have been adopted or written to since.
                now = Planner(carrier.seen, configs, planner.node, planner.wish).plan(
                    plan.candidate
                )
                with _progress(now) as progress:
                    volume_id = carrier.adopt(now, progress)
                carrier.seen.layout.changes.announce()
        except CommandError as error:
            failures.append(str(error))
        else:
            yield volume_id


@contextlib.contextmanager
def _progress(plan: Plan) -> Iterator[Callable[[], None]]:
    """Show on a terminal how far a copy is."""
    if plan.steps < _FEW_STEPS or not sys.stderr.isatty():
        yield lambda: None
        return
    with click.progressbar(length=plan.steps, label=plan.volume_id, file=sys.stderr) as bar:
        yield lambda: bar.update(1)


def undo(given: Sequence[PoolConfig], volume_ids: Iterable[str]) -> None:
    """Undo the adoption of volumes; print the paths at which their data is again."""
    configs = chosen(given)
    for volume_id in volume_ids:
        with _held(_of(configs, volume_id)) as carrier:
            click.echo(Undoing(carrier).undo(volume_id))


def doomed(given: Sequence[PoolConfig], volume_ids: Iterable[str]) -> list[str]:
    """Return the paths that finishing these adoptions would delete."""
    configs = chosen(given)
    found = [Undoing(Carrier(_seen(_of(configs, item)))).doomed(item) for item in volume_ids]
    return [path for path in found if path]


def finish(given: Sequence[PoolConfig], volume_ids: Iterable[str]) -> None:
    """Finish the adoption of volumes, which cannot be undone any more; print their ids."""
    configs = chosen(given)
    for volume_id in volume_ids:
        with _held(_of(configs, volume_id)) as carrier:
            Undoing(carrier).finish(volume_id)
            click.echo(volume_id)


def _of(configs: Iterable[PoolConfig], volume_id: str) -> PoolConfig:
    """Return the pool that has a volume, or an adoption that was cut off."""
    for config in configs if node_of_id(volume_id) else ():
        layout = Layout(config.path)
        if (layout.volumes / volume_id).is_dir() or (layout.adoptions / volume_id).is_dir():
            return config
    raise UnknownNameError(f"there is no volume {volume_id}; see: pycsi get volumes")
