"""The demo itself: pools, a driver on them, the stages, and a summary."""

import time
from collections.abc import Sequence
from pathlib import Path

from pycsi.cli.demo import claims, process
from pycsi.cli.demo.claims import Disproved
from pycsi.cli.demo.client import Client
from pycsi.cli.demo.lives import Proofs
from pycsi.cli.demo.process import Process
from pycsi.cli.demo.scratch import (
    CannotWork,
    DemoPool,
    make_pools,
    scratch,
)
from pycsi.cli.demo.screen import Screen
from pycsi.cli.demo.stages import Stage, stages
from pycsi.cli.demo.volume import Volume
from pycsi.linux import mkfs
from pycsi.linux.program import ProgramError
from pycsi.model.parameters import DEFAULT_FILESYSTEM
from pycsi.model.size import show as shown
from pycsi.proto import csi_pb2 as csi

_WITH_ROOT = (
    "That is what can be shown without root: it takes root to get loop devices and to set quotas. "
    "As root (sudo) the demo adds an enforced size of a directory, images with ext4 and xfs, a raw "
    "block volume, an inline ephemeral volume, snapshots that share blocks, a group snapshot and "
    "changed blocks."
)


def show(directory: Path | None, *, as_root: bool) -> bool:
    """Show everything that this machine allows; return whether all of it was proved.

    `directory` is where the pools are made; None: in a temporary directory. `CannotWork` if this
    machine does not even allow that.
    """
    screen = Screen()
    begin = time.perf_counter()
    screen.title("pycsi demo: a real driver, real volumes, every claim proved by doing it")
    try:
        # The socket gets its own directory: its path may have 107 bytes (unix(7)), and `directory`
        # may be longer.
        with scratch(directory) as root, scratch(None) as socket_folder:
            pools = make_pools(root, as_root=as_root)
            acts = stages(pools, root, as_root=as_root)
            options = [pool.option for pool in pools]
            with Process(socket_folder / "csi.sock", root / "driver.log", options) as driver:
                performance = Performance(screen, driver, pools, root)
                proved = performance.play(acts)
    except ProgramError as error:
        raise CannotWork(f"{error}; look at the kernel's log") from None
    if not as_root:
        screen.remark(_WITH_ROOT)
    verdict = "All that was shown was proved" if proved else "NOT all was as claimed"
    screen.remark(
        f"{verdict}, in {time.perf_counter() - begin:.1f} s. The driver has ended, and its "
        f"scratch directory is removed."
    )
    return proved


class Performance:
    """Shows the stages on one driver."""

    def __init__(
        self, screen: Screen, driver: Process, pools: Sequence[DemoPool], root: Path
    ) -> None:
        self._screen = screen
        self._driver = driver
        self._pools = pools
        self._root = root
        self._client = Client(driver.socket, screen)
        self._rows: list[tuple[str, str, str, str]] = []

    def play(self, acts: Sequence[Stage]) -> bool:
        """Show the stages until a claim is disproved; return whether all claims were true."""
        proved = False
        try:
            before = self._begin()
            for act in acts:
                self._show(act)
            self._end(before)
            proved = True
        except Disproved as failure:
            self._screen.disproved(failure.expected, failure.found)
            self._screen.title("The end of the driver's log")
            self._screen.log(self._driver.last_words)
        finally:
            self._client.close()
        self._screen.summary(self._rows)
        return proved

    def _begin(self) -> list[int]:
        """Show the driver and its pools; return the available bytes of each pool."""
        self._screen.title("The driver")
        self._screen.remark(f"  pycsi serve, process {self._driver.pid}, {self._driver.socket}")
        self._screen.remark("  its mounts are in a namespace of the demo's own: none can stay")
        for pool in self._pools:
            limit = f"limited by {pool.limiter}" if pool.limiter else "not limited in size"
            self._screen.remark(f"  pool {pool.name} on {pool.fstype}: directories are {limit}")
        self._client.wait_until_served(self._driver)
        info: csi.GetPluginInfoResponse = self._client.call(
            "GetPluginInfo", csi.GetPluginInfoRequest()
        )
        self._screen.answer(f"{info.name}, version {info.vendor_version}")
        self._probe()
        return self._promises()

    def _probe(self) -> None:
        request = csi.ProbeRequest()
        # The driver needs the programs of its default filesystem, and Probe fails without them.
        if mkfs.missing_programs(DEFAULT_FILESYSTEM):
            self._screen.answer(
                self._client.refused("Probe", request, "FAILED_PRECONDITION", "as it should")
            )
        else:
            self._client.call("Probe", request)
            self._screen.answer("ready")

    def _promises(self, *, quiet: bool = False) -> list[int]:
        """Return the available bytes of each pool (GetCapacity), and show them unless `quiet`."""
        promises = []
        for pool in self._pools:
            request = csi.GetCapacityRequest(parameters={"pool": pool.name, "quota": "none"})
            response: csi.GetCapacityResponse = self._client.call(
                "GetCapacity", request, f"pool {pool.name}", quiet=quiet
            )
            if not quiet:
                self._screen.answer(f"{shown(response.available_capacity)} for volumes")
            promises.append(response.available_capacity)
        return promises

    def _show(self, act: Stage) -> None:
        """Show a stage, or what the machine lacks for it."""
        self._screen.title(act.title)
        name, made_of = act.plan.name, act.plan.made_of
        if act.remark:
            self._screen.remark(f"  {act.remark}")
        if act.lacks:
            self._screen.remark(f"  left out: {act.lacks}")
            self._rows.append((name, made_of, "left out", ""))
            return
        proofs = Proofs(self._screen)
        begin = time.perf_counter()
        outcome = "FAILED, after: "
        try:
            act.life(Volume(self._client, act.plan, self._root / "pods" / name), proofs)
            outcome = ""
        except OSError as error:
            raise Disproved(
                expected="files can be used as any others",
                found=f"{error.filename}: {error.strerror}",
            ) from None
        finally:
            taken = f"{time.perf_counter() - begin:.1f} s"
            self._rows.append((name, made_of, f"{outcome}{proofs}", taken))

    def _end(self, before: Sequence[int]) -> None:
        """Prove that all space is free again, and that the driver ends with status 0."""
        self._screen.title("The end")
        if not self._all_back(before):
            self._screen.remark("  waiting for the kernel to free what was deleted ...")
            deadline = time.monotonic() + claims.PATIENCE
            while time.monotonic() < deadline and not self._all_back(before):
                time.sleep(1)
        for promised, now in zip(before, self._promises(), strict=True):
            self._screen.proved(claims.room_returned(promised, now))
        self._look()
        self._screen.proved(claims.ended(self._driver.stop()))

    def _look(self) -> None:
        """Show what the commands for operators tell of the pools, and that nothing is wrong."""
        pools = [pool.option for pool in self._pools]
        described = self._run("describe", "pool", *(pool.name for pool in self._pools), *pools)
        self._screen.proved(claims.described(*described))
        self._screen.proved(claims.nothing_wrong(*self._run("doctor", *pools)))

    def _run(self, *words: str) -> tuple[int, str]:
        """Run a command of pycsi, and show what it prints."""
        self._screen.command(f"pycsi {' '.join(words)}")
        status, printed = process.run(*words)
        for line in printed.splitlines():
            self._screen.remark(f"  {line}")
        return status, printed

    def _all_back(self, before: Sequence[int]) -> bool:
        return all(map(claims.near, before, self._promises(quiet=True)))
