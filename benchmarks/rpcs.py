"""The cost of single RPCs, against their floors."""

import concurrent.futures
import functools
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import floors
import load
from copies import fill
from driver import GIB, MIB, Driver, from_volume
from ground import Location, endpoint
from rows import DIRECTORY, IMAGE, SEVERAL, SHORT, Row, here, median, ms

from pycsi.proto import csi_pb2 as csi

_RATE = 2000
"""The number of calls of which a rate is measured."""


def probes(driver: Driver, ground: Location, bare: str) -> Iterator[Row]:
    """Compare the rate of Probe with that of the bare server, in turns."""
    wanted = load.Wanted(folder=ground.folder)
    for clients in (1, 16):
        ours: list[float] = []
        theirs: list[float] = []
        taken: list[float] = []
        for _ in range(3):
            for rates, where in ((theirs, bare), (ours, endpoint(driver))):
                result = load.run(where, wanted, "probe", clients=clients, count=_RATE)
                rates.append(result.rate)
                taken.append(result.busy)
        yield Row(
            what=f"Probe, {clients} client{'s' if clients > 1 else ''}",
            ground=ground.kind,
            seen=f"{median(ours):.0f}/s; bare server {median(theirs):.0f}/s; the clients took "
            f"{median(taken):.1f} cores",
            value=median(ours) / median(theirs),
            least=0.9,
        )


def creation(driver: Driver, ground: Location, bare: str) -> Iterator[Row]:
    """Compare CreateVolume with a bare RPC and the system calls that it cannot do without.

    A server that only makes these calls takes longer than the two together: after each wait for the
    disk, its code has to be fetched into the processor's caches again.
    """
    wanted = load.Wanted(folder=ground.folder, parameters=DIRECTORY)
    client, server = load.Client(endpoint(driver), wanted), load.Client(bare, wanted)
    bare_calls = floors.Floor(ground.disk / "floor")
    created, probed, made, served = [], [], [], []
    for number in range(5):
        first = number * SHORT
        probed.append(here(server, "probe", SHORT))
        made.append(median(load.timed(bare_calls.make, range(first, first + SHORT))))
        served.append(here(server, "create", SHORT, first))
        created.append(here(client, "create", SHORT, first))
    floor = median(probed) + median(made)
    yield Row(
        what="CreateVolume, directory, 1 client",
        ground=ground.kind,
        seen=f"{ms(median(created))}; bare RPC {ms(median(probed))} + floor {ms(median(made))}; "
        f"a bare server that makes the floor {ms(median(served))}: {median(served) / floor:.2f}x",
        value=median(created) / floor,
        most=1.3,
    )
    yield _sharing(driver, wanted, ground, bare)
    # Only at the end, because the filesystem continues a deletion in the background.
    shutil.rmtree(ground.disk / "floor")


def _sharing(driver: Driver, wanted: load.Wanted, ground: Location, bare: str) -> Row:
    """Measure how much faster 16 clients are served than one, by the driver and the bare server."""
    places = {"driver": endpoint(driver), "bare": bare}
    rates: dict[tuple[str, int], list[float]] = {
        (who, clients): [] for who in places for clients in (1, 16)
    }
    for number in range(3):
        for (who, clients), found in rates.items():
            first = 100_000 * clients + 10_000 * number
            result = load.run(
                places[who], wanted, "create", clients=clients, count=800, first=first
            )
            found.append(result.rate)
    one, many = median(rates["driver", 1]), median(rates["driver", 16])
    least, most = median(rates["bare", 1]), median(rates["bare", 16])
    return Row(
        what="CreateVolume, 16 clients against 1",
        ground=ground.kind,
        seen=f"{many:.0f}/s; 1 client {one:.0f}/s; a bare server that makes the floor "
        f"{most:.0f}/s and {least:.0f}/s: {most / least:.2f}x",
        value=many / one,
        least=2,
    )


def image_creation(driver: Driver, ground: Location) -> Row:
    """Compare CreateVolume of an ext4 image with mkfs alone and CreateVolume of a directory."""
    images = load.Client(
        endpoint(driver),
        load.Wanted(folder=ground.folder, parameters=IMAGE, size=GIB, prefix="image"),
    )
    directories = load.Client(
        endpoint(driver),
        load.Wanted(folder=ground.folder, parameters=DIRECTORY, prefix="beside"),
    )
    created, made, beside = [], [], []
    for number in range(5):
        first = number * SEVERAL
        made.append(median(floors.mkfs(ground.disk / "mkfs", GIB, SEVERAL)))
        beside.append(here(directories, "create", SEVERAL, first))
        created.append(here(images, "create", SEVERAL, first))
    return Row(
        what="CreateVolume, ext4 image of 1 GiB",
        ground=ground.kind,
        seen=f"{ms(median(created))}; mkfs {ms(median(made))} + directory {ms(median(beside))}",
        value=median(created) / (median(made) + median(beside)),
        most=1.2,
    )


def cycles(driver: Driver, ground: Location, bare: str) -> Iterator[Row]:
    """Compare staging, publishing, and undoing both, with four bare RPCs and the system calls."""
    for what, parameters, calls, count in (
        ("directory", DIRECTORY, floors.bind_cycle, SHORT),
        ("image", IMAGE, floors.image_cycle, SEVERAL),
    ):
        wanted = load.Wanted(folder=ground.folder, parameters=parameters, prefix=f"cycle-{what}")
        client = load.Client(endpoint(driver), wanted)
        server = load.Client(bare, wanted)
        for one in (client, server):
            one.create("000000")
        done: list[float] = []
        served: list[float] = []
        probed, called = [], []
        for _ in range(5):
            probed.append(here(server, "probe", SHORT))
            called.append(median(calls(ground.folder / "cycle", ground.disk, count)))
            for times, one in ((served, server), (done, client)):
                times.append(median(load.repeated(functools.partial(one.cycle, "000000"), count)))
        floor = 4 * median(probed) + median(called)
        yield Row(
            what=f"stage, publish, unpublish, unstage: {what}",
            ground=ground.kind,
            seen=f"{ms(median(done))}; 4 bare RPCs {ms(4 * median(probed))} + system calls "
            f"{ms(median(called))}; a bare server that makes them {ms(median(served))}: "
            f"{median(served) / floor:.2f}x",
            value=median(done) / floor,
            most=2,
        )


def stats(driver: Driver, ground: Location, bare: str) -> Iterator[Row]:
    """Compare NodeGetVolumeStats of a directory with one file and of one with 20,000."""
    server = load.Client(bare, load.Wanted(folder=ground.folder))
    probed = here(server, "probe", SHORT)
    clients: dict[int, load.Client] = {}
    times: dict[int, list[float]] = {1: [], 20_000: []}
    for files in times:
        wanted = load.Wanted(folder=ground.folder, parameters=DIRECTORY, prefix=f"stats-{files}")
        clients[files] = load.Client(endpoint(driver), wanted)
        name = f"{files:06}"
        clients[files].create(name)
        clients[files].stage(name)
        clients[files].publish(name)
        for number in range(files):
            (ground.folder / f"target-{name}" / f"{number}").touch()
    for _ in range(5):
        for files, found in times.items():
            call = functools.partial(clients[files].stats, f"{files:06}")
            found.append(median(load.repeated(call, SHORT)))
    for files, client in clients.items():
        client.unpublish(f"{files:06}")
        client.unstage(f"{files:06}")
    took = {files: median(found) for files, found in times.items()}
    yield Row(
        what="NodeGetVolumeStats, 20,000 files against 1",
        ground=ground.kind,
        seen=f"{ms(took[20_000])}; 1 file {ms(took[1])}; bare RPC {ms(probed)}",
        value=took[20_000] / took[1],
        most=1.2,
    )


def busy(driver: Driver, ground: Location) -> Row:
    """Measure the slowest Probe while 16 copies run, each of which occupies a worker thread."""
    size = 64 * MIB

    def create(name: str, source: csi.VolumeContentSource | None = None) -> str:
        return driver.create(name, 2 * size, parameters=IMAGE, source=source).volume_id

    volumes = [create(f"busy-{number}") for number in range(16)]
    for volume_id in volumes:
        with driver.published(volume_id, ground.folder) as target:
            fill(target / "data", size)
    wanted = load.Wanted(folder=ground.folder)
    client = load.Client(endpoint(driver), wanted)
    alone = here(client, "probe", SHORT)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        jobs = [
            pool.submit(create, f"copy-{number}", from_volume(volume_id))
            for number, volume_id in enumerate(volumes)
        ]
        times = []
        while not all(job.done() for job in jobs):
            times += load.timed(client.probe, range(1))
            time.sleep(0.005)
        for job in jobs:
            job.result()
    return Row(
        what="Probe while 16 copies run, slowest",
        ground=ground.kind,
        seen=f"median {ms(median(times))} of {len(times)}; alone {ms(alone)}",
        value=max(times),
        unit="s",
        most=1,
    )


def help_text() -> Row:
    """Measure `pycsi --help`, which should appear at once."""
    command = [Path(sys.executable).with_name("pycsi"), "--help"]
    ask = functools.partial(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)
    times = load.repeated(ask, 10)
    return Row(what="pycsi --help", ground="", seen="", value=median(times), unit="s", most=0.2)
