"""Faults at single system calls of a running driver, injected by strace(1).

A point is the n-th call of one name by one thread, for that is how strace counts: `fsync 2` is the
second fsync of the thread that answers RPCs, or of the reaper. Programs that the driver starts are
not traced, and gRPC's own threads neither.
"""

import collections
import contextlib
import dataclasses
import enum
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import grpc
import pytest
from conftest import needs
from driver import Driver

from pycsi.proto import csi_pb2 as csi

CHANGING = (
    "chmod,chown,copy_file_range,fallocate,fchmod,fchmodat,fchown,fchownat,fdatasync,fsetxattr,"
    "fsmount,fsopen,fsconfig,fsync,ftruncate,ioctl,lchown,link,linkat,lsetxattr,mkdir,mkdirat,"
    "mknod,mknodat,mount_setattr,move_mount,open_tree,pwrite64,quotactl_fd,rename,renameat,rmdir,"
    "setxattr,symlink,symlinkat,syncfs,truncate,umount2,unlink,unlinkat,utimensat,write"
)
"""The system calls that change something, or make it durable."""

ASKING = "fstatfs,getdents64,openat,pipe2,statfs,vfork"
"""Those that may fail as well."""

_ENOUGH = 3
_GRPCS_THREADS = ("event_engine", "grpc", "lifeguard")
_LINE = re.compile(r"(?P<thread>\d+)\s+(?P<name>\w+)\((?P<rest>.*)")
_IDLE = re.compile(r"TCGETS|eventfd|\+\+\+|unfinished")
_ONLY_ASKS = re.compile(
    r"GETFLAGS|GETXATTR|FIEMAP|GET_STATUS|GET_FREE|FS_INFO|INO_LOOKUP|TREE_SEARCH|FSGEOMETRY"
)

T = TypeVar("T")


class Worker(enum.Enum):
    """Which of the driver's threads a fault is to hit."""

    RPC = 0
    REAPER = 19
    """Its nice value tells it from the others."""


@dataclasses.dataclass(frozen=True)
class Point:
    """The `number`-th call of `name`; `text` is what strace says of it."""

    name: str
    number: int
    text: str = dataclasses.field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.name} {self.number}: {self.text[:100]}"

    def inject(self, fault: str) -> tuple[str, ...]:
        """Return the options of strace that let `fault` happen here."""
        when = f"inject={self.name}:{fault}:when={self.number}"
        return "-e", f"trace={self.name}", "-e", when


def threads(driver: Driver, worker: Worker) -> list[int]:
    """Return the threads of that kind: Python's own, besides the first and gRPC's poller."""
    assert driver.process is not None
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        waits: dict[int, str] = {}
        for task in Path(f"/proc/{driver.process.pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                name, _, rest = (task / "stat").read_text().rpartition(")")
                is_grpcs = name.partition("(")[2].startswith(_GRPCS_THREADS)
                is_ours = not is_grpcs and int(task.name) != driver.process.pid
                if is_ours and int(rest.split()[16]) == worker.value:
                    waits[int(task.name)] = (task / "wchan").read_text()
        found = [thread for thread, wait in waits.items() if "futex" in wait]
        if found and "0" not in waits.values():  # all of them are idle
            return sorted(found)
        time.sleep(0.005)
    pytest.fail(f"the driver has no idle thread of the kind {worker}")


def _is_traced(process: int, thread: int) -> bool:
    status = Path(f"/proc/{process}/task/{thread}/status").read_text()
    return "\nTracerPid:\t0\n" not in status


@contextlib.contextmanager
def traced(driver: Driver, worker: Worker, log: Path, *options: str) -> Iterator[None]:
    """Run the `with` block with strace on the threads of a kind."""
    needs("strace", met=shutil.which("strace") is not None)
    assert driver.process is not None
    if worker is Worker.RPC:  # or it may have no thread yet but those of Probe
        driver.identity.GetPluginInfo(csi.GetPluginInfoRequest())
    chosen = threads(driver, worker)
    attach = [word for thread in chosen for word in ("-p", str(thread))]
    command = ["strace", "-y", "-s", "64", "-o", str(log), *options, *attach]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        try:
            deadline = time.monotonic() + 10
            while not all(_is_traced(driver.process.pid, thread) for thread in chosen):
                assert strace.poll() is None, strace.communicate()[1]
                assert time.monotonic() < deadline, "strace does not attach"
                time.sleep(0.002)
            yield
        finally:
            strace.terminate()
            try:
                strace.communicate(timeout=10)
            except subprocess.TimeoutExpired:  # for a thread of a process that was killed
                strace.kill()
                strace.communicate()


def points(log: Path, *, asking: bool) -> list[Point]:
    """Return the points of the busiest thread of a recording, in order.

    Without `asking` those before which nothing has changed since the last one are left out.
    """
    calls: dict[str, list[tuple[str, str]]] = collections.defaultdict(list)
    for line in log.read_text().splitlines():
        # With one thread to trace strace leaves out its number.
        if match := _LINE.match(line if line[:1].isdigit() else f"0 {line}"):
            calls[match["thread"]].append((match["name"], match["rest"]))
    count: collections.Counter[str] = collections.Counter()
    alike: collections.Counter[str] = collections.Counter()
    found = []
    for name, rest in max(calls.values(), key=len, default=[]):
        count[name] += 1
        alike[name + rest] += asking
        # What is asked again and again, until something has happened, is one point.
        repeated = alike[name + rest] > _ENOUGH
        if not _IDLE.search(rest) and not repeated and (asking or not _ONLY_ASKS.search(rest)):
            found.append(Point(name, count[name], rest))
    return found


def record(
    driver: Driver, worker: Worker, log: Path, act: Callable[[], None], *, asking: bool
) -> list[Point]:
    """Let `act` happen, and return the points at which it could have gone wrong."""
    names = f"{CHANGING},{ASKING}" if asking else CHANGING
    with traced(driver, worker, log, "-e", f"trace={names}"):
        act()
    found = points(log, asking=asking)
    assert found, "no call was seen: another thread has done it"
    return found


def died(driver: Driver) -> bool:
    """Tell whether the driver has been killed: otherwise it answers."""
    assert driver.process is not None
    deadline = time.monotonic() + 30
    while driver.process.poll() is None:
        with contextlib.suppress(grpc.RpcError):
            driver.identity.Probe(csi.ProbeRequest(), timeout=5)
            return False
        assert time.monotonic() < deadline, "the driver neither answers nor ends"
        time.sleep(0.005)
    return True


def some(found: Sequence[T], share: int, turn: int) -> Sequence[T]:
    """Return every `share`-th of them, beginning with another at each `turn`.

    At least four are returned where there are as many: a single one need not be reached again,
    since the calls of one request are spread over the threads anew each time.
    """
    share = max(1, min(share, len(found) // 4))
    return found[turn % share :: share]
