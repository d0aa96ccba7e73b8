"""The same load on another CSI driver, the peer, side by side with this one."""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import load
from driver import Driver
from ground import Location, endpoint
from rows import DIRECTORY, Row, median, ms

_OPERATIONS = {"create": 10, "delete": 10, "cycle": 5}
"""The operations to compare, and how many times as fast as the peer this driver has to be."""

_LISTING = 7
_ROUNDS = 5
_EACH = 20
_LISTINGS = 3


class _Side:
    """A driver with many volumes, and the times measured, in seconds."""

    def __init__(self, where: str, wanted: load.Wanted, volumes: int) -> None:
        load.run(where, wanted, "create", clients=8, count=volumes, first=500_000)
        self.client = load.Client(where, wanted)
        self.times: dict[str, list[float]] = {name: [] for name in (*_OPERATIONS, "list")}

    def round(self) -> None:
        for name in ("create", "cycle", "delete"):
            took = load.timed(getattr(self.client, name), range(_EACH))
            self.times[name].append(median(took))
        self.times["list"].append(median(load.repeated(self.client.list, _LISTINGS)))


def compared(driver: Driver, ground: Location, peer: str, volumes: int) -> Iterator[Row]:
    """Measure this driver and the one at the endpoint `peer` in turns, with `volumes` each."""
    wanted = load.Wanted(folder=ground.folder, parameters=DIRECTORY, prefix="peer")
    ours = _Side(endpoint(driver), wanted, volumes)
    theirs = _Side(peer, dataclasses.replace(wanted, parameters={}), volumes)
    for _ in range(_ROUNDS):
        for side in (ours, theirs):
            side.round()
    for name, least in {**_OPERATIONS, "list": _LISTING}.items():
        we, they = median(ours.times[name]), median(theirs.times[name])
        yield Row(
            what=f"{name} at {volumes} volumes, against the peer",
            ground=ground.kind,
            seen=f"{ms(we)}; peer {ms(they)}" + ("; listed before" if name == "list" else ""),
            value=they / we,
            least=least,
        )
