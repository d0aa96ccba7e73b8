"""Measure the driver against the least time that its work can take, and print a table.

    sudo make bench
    sudo .venv/bin/python benchmarks/bench.py [--filesystem xfs]... [--volumes 10000]
        [--nodes 200] [--only PART]... [--peer unix:///path/csi.sock] [--plots DIRECTORY]
        [--markdown FILE]

That least time, the floor, is measured in the same run, in turns with the driver. So the ratios are
comparable between machines, while the times are not. Each driver runs as a process, on a filesystem
of its own in a sparse file; all changes are durable, as in production.
"""

import datetime as dt
import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import controller
import copies
import fleet
import floors
import growth
import peers
import plot
import rpcs
import scrapes
import streams
from ground import Location, ground
from rows import Row, Series

SHARING = ("xfs", "btrfs")
"""The filesystems on which files can share blocks."""


class Report:
    """The results so far, and the parameters of the measurements."""

    def __init__(self, volumes: int, nodes: int, peer: str | None) -> None:
        self.volumes = volumes
        self.nodes = nodes
        self.peer = peer
        self.rows: list[Row] = []
        self.growth: dict[str, Series] = {}
        self.copies: dict[str, Series] = {}

    def add(self, row: Row) -> None:
        self.rows.append(row)
        click.echo(f"{row.ground:6}{row.what}: {row.value:.2f} {row.unit}  {row.seen}", err=True)

    def cells(self) -> Iterator[tuple[str, ...]]:
        for row in self.rows:
            judged = ("yes" if row.holds else "NO") if row.target else ""
            yield row.ground, row.what, f"{row.value:.2f} {row.unit}", row.target, judged, row.seen

    def plots(self, folder: Path) -> None:
        """Write the charts to `folder`, as SVG files."""
        for name, title, across, every in (
            ("performance-volumes", "Cost of an operation", "volumes in the pool", self.growth),
            ("performance-copies", "Copies of an image in use", "MiB of data", self.copies),
        ):
            for kind, series in every.items():
                chart = plot.chart(f"{title}, {kind}", across, series)
                (folder / f"{name}-{kind}.svg").write_text(chart)


HEAD = ("pool", "what", "value", "target", "holds", "measured")


def machine() -> str:
    """Return today's date (UTC) and a description of this machine, for the table's title."""
    return (
        f"{dt.datetime.now(dt.UTC):%Y-%m-%d}: {os.cpu_count()} cores, Linux {platform.release()}, "
        f"Python {platform.python_version()}"
    )


def _rpcs(where: Location, to: Report) -> None:
    with floors.bare_server(where.disk) as bare, where.driver() as driver:
        for measured in (rpcs.probes, rpcs.creation, rpcs.cycles, rpcs.stats):
            for row in measured(driver, where, bare):
                to.add(row)
        to.add(rpcs.image_creation(driver, where))
        if where.kind not in SHARING:
            to.add(rpcs.busy(driver, where))


def _growth(where: Location, to: Report) -> None:
    with where.driver("few") as few, where.driver("many") as many:
        found, to.growth[where.kind] = growth.growing(few, many, where, to.volumes)
    for row in found:
        to.add(row)


def _copies(where: Location, to: Report) -> None:
    with where.driver("copies") as driver:
        found, to.copies[where.kind] = copies.copies(driver, where)
        for row in (*found, copies.changes(driver, where)):
            to.add(row)


def _exports(where: Location, to: Report) -> None:
    with where.driver("exports") as driver:
        for row in streams.exports(driver, where):
            to.add(row)


def _controller(where: Location, to: Report) -> None:
    with fleet.fleet(where, "few", 3) as few:
        for measured in (controller.single, controller.shared, controller.faults):
            for row in measured(few, where):
                to.add(row)
    with (
        fleet.fleet(where, "two", 2, controller.VOLUMES) as two,
        fleet.fleet(where, "many", to.nodes, controller.VOLUMES) as many,
    ):
        for row in controller.growing(two, many, where):
            to.add(row)


def _scrapes(where: Location, to: Report) -> None:
    with where.driver("scraped", f"--metrics-address=127.0.0.1:{scrapes.PORT}") as driver:
        for row in scrapes.scrapes(driver, where, to.volumes):
            to.add(row)


def _peer(where: Location, to: Report) -> None:
    if to.peer:
        with where.driver("beside") as driver:
            for row in peers.compared(driver, where, to.peer, to.volumes):
                to.add(row)


PARTS: dict[str, tuple[Callable[[Location, Report], None], tuple[str, ...]]] = {
    "rpcs": (_rpcs, ("xfs", "ext4")),
    "growth": (_growth, ("xfs", "ext4")),
    "copies": (_copies, SHARING),
    "exports": (_exports, SHARING),
    "controller": (_controller, ("xfs",)),
    "scrapes": (_scrapes, ("xfs",)),
    "peer": (_peer, ("xfs",)),
}
"""The parts of the benchmark: a function, and the filesystems for which it is meaningful."""


@click.command(help=__doc__)
@click.option("--filesystem", "kinds", multiple=True, default=("xfs", "ext4", "btrfs"))
@click.option("--volumes", default=10_000, help="How many volumes there are in the end.")
@click.option("--nodes", default=200, help="How many nodes the larger cluster has.")
@click.option("--only", "parts", multiple=True, type=click.Choice(list(PARTS)), default=list(PARTS))
@click.option("--peer", help="The endpoint of another CSI driver, to measure beside this one.")
@click.option("--plots", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the table there too.")
def main(
    kinds: tuple[str, ...], parts: tuple[str, ...], *, volumes: int, nodes: int,
    peer: str | None, plots: Path | None, markdown: Path | None,
) -> None:  # fmt: skip
    report = Report(volumes, nodes, peer)
    report.add(rpcs.help_text())
    for kind in kinds:
        for part, where in (PARTS[name] for name in parts):
            if kind in where:
                with ground(kind) as made:
                    part(made, report)
    table = Table(*HEAD, box=box.SIMPLE, title=machine())
    for cells in report.cells():
        table.add_row(*cells)
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    if plots:
        report.plots(plots)
    if markdown:
        lines = [HEAD, ("---",) * len(HEAD), *report.cells()]
        text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        markdown.write_text(f"{machine()}\n\n{text}\n")


if __name__ == "__main__":
    main()
