"""Limits on I/O, on a kernel whose cgroups of version 2 have the controller `io`.

`make test-vm` runs these in a virtual machine. The test is the kubelet: it makes the cgroups of the
pods, and publishes at the paths at which the kubelet does.
"""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from conftest import IN_VM, FilesystemFactory, needs, run
from driver import MIB, Driver, block_capability, mount_capability, refused
from metrics import scrape
from rpc.conftest import free_port, wait_for
from terminal import piped
from vm.load import EXTENT, WORKERS

from pycsi.linux.cgroup import UNLIMITED, IoLimits, io_limits, set_io_limits
from pycsi.proto import csi_pb2 as csi

Code = grpc.StatusCode
ROOT = Path("/sys/fs/cgroup")
KINDS = {"ext4": 300 * MIB, "xfs": 400 * MIB, "btrfs": 400 * MIB, "raw": 200 * MIB}
LIMITS = {"readBandwidth": "4Mi", "writeBandwidth": "2Mi"}
OPTION = f"--cgroup-root={ROOT}"
SECRETS = {"encryptionPassphrase": "correct horse battery staple"}
AT_LIMITS = IoLimits(rbps=4 * MIB, wbps=2 * MIB)


@dataclass
class Pod:
    """A pod: its uid, its cgroup, and the directory that the kubelet has for it."""

    uid: str
    cgroup: Path
    folder: Path

    def target(self, name: str) -> Path:
        """Return the path at which a volume with a filesystem is published for the pod."""
        path = self.folder / "pods" / self.uid / "volumes" / "kubernetes.io~csi" / name
        path.mkdir(parents=True, exist_ok=True)
        return path / "mount"

    def device_target(self, name: str) -> Path:
        """Return the path at which a raw block volume is published for the pod."""
        path = self.folder / "plugins/kubernetes.io/csi/volumeDevices/publish" / name
        path.mkdir(parents=True, exist_ok=True)
        return path / self.uid

    def make(self) -> None:
        """Make the pod's cgroup, and in it one for a container."""
        delegate(self.cgroup)
        (self.cgroup / "container").mkdir(parents=True)

    def end(self) -> None:
        """Remove the pod's cgroup, which holds no process any more."""
        if self.cgroup.exists():
            for path in (self.cgroup / "container", self.cgroup):
                wait_for(functools.partial(removed, path))

    def limits(self, device: int) -> IoLimits:
        return io_limits(str(self.cgroup), device)

    def moved(self, device: int) -> tuple[int, int]:
        """Return the bytes that the pod has read and written on a block device."""
        name = f"{os.major(device)}:{os.minor(device)} "
        for line in (self.cgroup / "io.stat").read_text().splitlines():
            if line.startswith(name):
                found = dict(word.split("=") for word in line.split()[1:])
                return int(found["rbytes"]), int(found["wbytes"])
        return 0, 0


def removed(path: Path) -> bool:
    with contextlib.suppress(OSError):
        path.rmdir()
    return not path.exists()


def delegate(path: Path) -> None:
    """Make the cgroups above `path`, which pass on the controllers, and that one itself."""
    path.mkdir(parents=True, exist_ok=True)
    for above in (*reversed(path.relative_to(ROOT).parents), path.relative_to(ROOT)):
        (ROOT / above / "cgroup.subtree_control").write_text("+io +memory")


@pytest.fixture
def controller() -> None:
    """Require the controller `io`."""
    controllers = ROOT / "cgroup.controllers"
    there = controllers.exists() and "io" in controllers.read_text().split()
    if not there and not IN_VM:
        pytest.skip("this kernel's cgroups have no io controller in use; make test-vm has")
    needs("the controller io", met=there)


@pytest.fixture
def pods(controller: None, tmp_path: Path) -> Iterator[Callable[..., Pod]]:
    """Return a function that makes a pod; all pods end with the test."""
    made: list[Pod] = []

    def make(layout: str = "kubepods/burstable/pod{uid}", *, now: bool = True) -> Pod:
        uid = str(uuid.uuid4())
        path = ROOT / layout.format(uid=uid, escaped=uid.replace("-", "_"))
        pod = Pod(uid, path, tmp_path)
        made.append(pod)
        if now:
            pod.make()
        else:
            delegate(path.parent)
        return pod

    yield make
    for pod in made:
        pod.end()
        for above in pod.cgroup.parents:
            if above == ROOT or not removed(above):
                break


@pytest.fixture
def pool(filesystem: FilesystemFactory) -> Path:
    """Return a pool on a filesystem that shares blocks."""
    return filesystem("xfs", 3 << 30)


@dataclass
class Used:
    """A volume in use by a pod: where it is staged and published, and its device."""

    driver: Driver
    volume_id: str
    pod: Pod
    staging: Path
    target: Path
    capability: csi.VolumeCapability

    @property
    def device(self) -> int:
        if self.target.is_block_device():
            return self.target.stat().st_rdev
        number = self.target.stat().st_dev
        if os.major(number):  # as of all filesystems but btrfs
            return number
        source = run("findmnt", "-n", "-o", "SOURCE", self.target).strip()
        return Path(source).stat().st_rdev

    def publish(self, pod: Pod | None = None) -> None:
        target = self.place(pod) if pod else self.target
        self.driver.publish(self.volume_id, self.staging, target, self.capability)

    def place(self, pod: Pod) -> Path:
        raw = self.capability.HasField("block")
        return pod.device_target(self.volume_id) if raw else pod.target(self.volume_id)

    def unpublish(self) -> None:
        self.driver.unpublish(self.volume_id, self.target)

    def limits(self) -> IoLimits:
        return self.pod.limits(self.device)

    def rates(self, seconds: float) -> tuple[float, float]:
        """Return the MiB that the pod reads and writes per second, from now on."""
        return measured({"": self}, seconds)[""]


def measured(those: dict[str, Used], seconds: float) -> dict[str, tuple[float, float]]:
    """Return the MiB that each pod reads and writes per second, from now on, by the same names."""
    devices = {name: used.device for name, used in those.items()}

    def look() -> dict[str, tuple[float, int, int]]:
        return {
            name: (time.monotonic(), *used.pod.moved(devices[name])) for name, used in those.items()
        }

    before = look()
    time.sleep(seconds)
    rates = {}
    for name, (then, read, written) in look().items():
        begin, read_before, written_before = before[name]
        passed = (then - begin) * MIB
        rates[name] = (read - read_before) / passed, (written - written_before) / passed
    return rates


@contextlib.contextmanager
def use(driver: Driver, folder: Path, pod: Pod, kind: str = "ext4", **given: str) -> Iterator[Used]:
    """Publish a new volume with the parameters `given` for a pod, and undo all at the end."""
    name = f"{kind}-{pod.uid[:8]}"
    capability = block_capability() if kind == "raw" else mount_capability(kind)
    parameters = given if kind == "raw" else {"type": "image", **given}
    secrets = SECRETS if "encryption" in given else {}
    volume_id = driver.create(
        name, KINDS[kind], capability=capability, parameters=parameters, secrets=secrets
    ).volume_id
    used = Used(driver, volume_id, pod, folder / f"staging-{name}", Path(), capability)
    used.target = used.place(pod)
    driver.stage(volume_id, used.staging, capability, secrets=secrets)
    used.publish()
    try:
        if kind != "raw":
            for number in range(WORKERS):
                (used.target / f"read-{number}").write_bytes(bytes(EXTENT))
            os.sync()
        yield used
    finally:
        used.unpublish()
        driver.unstage(volume_id, used.staging)
        driver.delete(volume_id)


@contextlib.contextmanager
def loaded(used: Used, mode: str) -> Iterator[int]:
    """Have the readers and writers of `load` work in the pod's container; yield their group."""
    script = Path(__file__).with_name("load.py")
    with subprocess.Popen(
        [sys.executable, script, used.pod.cgroup / "container", mode, used.target],
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"ready\n"
            yield process.pid
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    procs = used.pod.cgroup / "container" / "cgroup.procs"
    # Who is killed in a buffered write ends when that is written back, at the limited speed.
    wait_for(lambda: not procs.read_text(), 120)


@pytest.fixture
def written_back_soon() -> Iterator[None]:
    """Have the kernel write back what is dirty all the time, and not after 30 seconds."""
    knobs = {"dirty_background_bytes": 8 * MIB, "dirty_bytes": 512 * MIB}
    ratios = {
        name.replace("bytes", "ratio"): Path(f"/proc/sys/vm/{name.replace('bytes', 'ratio')}")
        for name in knobs
    }
    before = {name: path.read_text() for name, path in ratios.items()}
    for name, value in knobs.items():
        Path(f"/proc/sys/vm/{name}").write_text(str(value))
    yield
    for name, path in ratios.items():
        path.write_text(before[name])


def held(rate: float, limit: float) -> bool:
    """Tell whether a rate is one of a pod at its limit, in a machine that may be held up."""
    return 0.6 * limit <= rate <= 1.1 * limit


@pytest.mark.parametrize("mode", ["direct", "buffered"])
def test_pods_stay_within_limits(
    pool: Path,
    serve: Callable[..., Driver],
    pods: Callable[..., Pod],
    tmp_path: Path,
    written_back_soon: None,
    record_property: Callable[[str, object], None],
    mode: str,
) -> None:
    """Four readers and four writers on each kind of volume at once.

    That no pod ever has more is judged strictly, and that it would have more without limits is
    seen. That it has as much is judged leniently, for the kernel does not make up for the time in
    which an emulated machine was held up. The limits are low, so that a slow machine reaches them,
    and the time is long, since a request of writeback may have 1 MiB.
    """
    driver = serve(pool, options=(OPTION,))
    low = {"readBandwidth": "2Mi", "writeBandwidth": "1Mi"}
    seen: list[dict[str, tuple[float, float]]] = []

    def reached(share: float) -> bool:
        """Tell whether each pod has had this share of its limits, at one time or another."""
        return all(
            max(rates[kind][way] for rates in seen) >= share * limit
            for kind in KINDS
            for way, limit in enumerate((2, 1))
        )

    with contextlib.ExitStack() as stack:
        limited = {
            kind: stack.enter_context(use(driver, tmp_path, pods(), kind, **low)) for kind in KINDS
        }
        for used in limited.values():
            assert used.limits() == IoLimits(rbps=2 * MIB, wbps=MIB)
            stack.enter_context(loaded(used, mode))
        time.sleep(5)
        for _ in range(4):
            seen.append(measured(limited, 16))
            if reached(0.9):
                break
        told = f"{mode}: {seen} MiB/s"
        record_property("rates", told)
        for read, written in (pair for rates in seen for pair in rates.values()):
            assert read <= 1.1 * 2, told
            assert written <= 1.1 * 1, told
        assert reached(0.5), told

        for used in limited.values():
            driver.modify(used.volume_id, **dict.fromkeys(low, "none"))

        def more() -> bool:
            return all(
                read > 1.3 * 2 and written > 1.3 * 1
                for read, written in measured(limited, 4).values()
            )

        wait_for(more, 60)


def test_neighbour(
    pool: Path,
    serve: Callable[..., Driver],
    pods: Callable[..., Pod],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """A volume without limits has its speed beside a limited one, and not beside another."""
    driver = serve(pool, options=(OPTION,))
    slow = {"readBandwidth": "1Mi", "writeBandwidth": "1Mi"}
    none = dict.fromkeys(slow, "none")
    with (
        use(driver, tmp_path, pods(), **slow) as noisy,
        use(driver, tmp_path, pods()) as neighbour,
        loaded(noisy, "direct") as group,
        loaded(neighbour, "direct"),
    ):
        time.sleep(2)
        limited = unlimited = alone = 0.0
        for _ in range(10):  # in turns, for the machine on which this runs is not always as fast
            limited += sum(neighbour.rates(0.5))
            driver.modify(noisy.volume_id, **none)
            time.sleep(0.2)
            unlimited += sum(neighbour.rates(0.5))
            driver.modify(noisy.volume_id, **slow)
            os.killpg(group, signal.SIGSTOP)
            time.sleep(0.3)
            alone += sum(neighbour.rates(0.5))
            os.killpg(group, signal.SIGCONT)
            time.sleep(0.2)
    kept, left = limited / alone, unlimited / alone
    told = f"of its speed alone it has {kept:.2f} beside a limited one, {left:.2f} beside another"
    record_property("shares", told)
    assert kept > 0.7, told
    assert kept > 1.2 * left, told


def test_change_of_class(
    pool: Path, serve: Callable[..., Driver], pods: Callable[..., Pod], tmp_path: Path
) -> None:
    """It holds within a second, in the middle of the work: other limits, then none, then some."""
    driver = serve(pool, options=(OPTION,))
    with use(driver, tmp_path, pods(), **LIMITS) as used, loaded(used, "direct"):
        time.sleep(2)
        assert held(used.rates(2)[0], 4)
        driver.modify(used.volume_id, readBandwidth="2Mi", writeBandwidth="1Mi")
        time.sleep(1)
        read, written = used.rates(2)
        assert held(read, 2)
        assert held(written, 1)
        driver.modify(used.volume_id, readBandwidth="none", writeIops="50")
        time.sleep(1)
        read, written = used.rates(2)
        assert read > 6
        assert held(written, 1)
        assert used.limits() == IoLimits(wbps=MIB, wiops=50)
        driver.modify(used.volume_id, writeBandwidth="none", writeIops="none")
        assert used.limits() == UNLIMITED
        assert used.rates(2)[1] > 6


@pytest.mark.parametrize("kind", ["ext4", "raw"])
def test_encrypted(
    pool: Path, serve: Callable[..., Driver], pods: Callable[..., Pod], tmp_path: Path, kind: str
) -> None:
    """What is encrypted is limited on its mapping, whose device the pod uses."""
    driver = serve(pool, options=(OPTION,))
    with use(driver, tmp_path, pods(), kind, encryption="luks2", **LIMITS) as used:
        assert Path(f"/sys/dev/block/{os.major(used.device)}:{os.minor(used.device)}/dm").exists()
        assert used.limits() == AT_LIMITS
        with loaded(used, "direct"):
            time.sleep(2)
            read, written = used.rates(4)
        assert held(read, 4)
        assert held(written, 2)


def test_requests(
    pool: Path, serve: Callable[..., Driver], pods: Callable[..., Pod], tmp_path: Path
) -> None:
    """Each of them is of 128 KiB here. The kernel rounds down to tens."""
    driver = serve(pool, options=(OPTION,))
    given = {"readIops": "24", "writeIops": "10"}
    with use(driver, tmp_path, pods(), "raw", **given) as used, loaded(used, "direct"):
        time.sleep(2)
        read, written = used.rates(4)
        assert held(read, 20 / 8)
        assert held(written, 10 / 8)


def test_restart_and_end(
    pool: Path, serve: Callable[..., Driver], pods: Callable[..., Pod], tmp_path: Path
) -> None:
    """Limits hold while the driver is dead, come back where they were lost, and end with use."""
    driver = serve(pool, options=(OPTION,))
    pod, other = pods(), pods("kubepods/pod{uid}")
    with use(driver, tmp_path, pod, **LIMITS) as used:
        device = used.device
        driver.stop(signal.SIGKILL)
        with loaded(used, "direct"):
            time.sleep(2)
            assert held(used.rates(3)[0], 4)
        driver.start()
        assert used.limits() == AT_LIMITS
        driver.stop(signal.SIGKILL)
        set_io_limits(str(pod.cgroup), device, UNLIMITED)
        for command in (("describe", "volume", used.volume_id), ("doctor",)):
            words = *command, OPTION, f"--pool={driver.pools[0]}"
            told = piped(*words, "-o", "json").stdout
            assert "IoNotLimited" in told, "it is told while the driver is dead"
            assert pod.uid in told
        driver.start()
        wait_for(lambda: used.limits() == AT_LIMITS)
        wait_for(lambda: "limits on I/O were lost" in driver.log)
        set_io_limits(str(pod.cgroup), device, IoLimits(riops=10))
        wait_for(lambda: used.limits() == AT_LIMITS)
        assert "IoNotLimited" not in piped(*words).stdout

        used.publish(other)
        assert other.limits(device) == AT_LIMITS
        driver.unpublish(used.volume_id, used.place(other))
        assert other.limits(device) == UNLIMITED, "taken away at unpublish"
        assert used.limits() == AT_LIMITS, "that of the pod that goes on"
        used.publish(other)
        other.end()
        driver.unpublish(used.volume_id, used.place(other))
    assert pod.limits(device) == UNLIMITED


@pytest.mark.parametrize(
    ("root", "layouts"),
    [
        (
            "",
            [
                "kubepods/pod{uid}",
                "kubepods/besteffort/pod{uid}",
                "kubepods.slice/kubepods-pod{escaped}.slice",
                "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{escaped}.slice",
            ],
        ),
        ("kubelet", ["kubepods/burstable/pod{uid}"]),
        (
            "a.slice/a-b.slice",
            [
                "a-b-kubepods.slice/a-b-kubepods-pod{escaped}.slice",
                "a-b-kubepods.slice/a-b-kubepods-burstable.slice/a-b-kubepods-burstable-pod{escaped}.slice",
            ],
        ),
    ],
    ids=["plain", "cgroupfs below another", "systemd below another"],
)
def test_cgroups_of_the_kubelet(
    pool: Path,
    serve: Callable[..., Driver],
    pods: Callable[..., Pod],
    tmp_path: Path,
    root: str,
    layouts: list[str],
) -> None:
    """Both of its cgroup drivers, each quality of service, and a cgroup root of its own."""
    first, *others = [pods(str(Path(root, layout))) for layout in layouts]
    driver = serve(pool, options=(f"--cgroup-root={ROOT / root}",))
    with use(driver, tmp_path, first, "raw", **LIMITS) as used:
        assert used.limits() == AT_LIMITS
        for pod in others:
            used.publish(pod)
            assert pod.limits(used.device) == AT_LIMITS
            driver.unpublish(used.volume_id, used.place(pod))


def test_cgroup_that_comes_late(
    pool: Path, serve: Callable[..., Driver], pods: Callable[..., Pod], tmp_path: Path
) -> None:
    """Nothing is published for a pod that cannot be limited; one that soon can be is waited for."""
    driver = serve(pool, options=(OPTION,))
    with use(driver, tmp_path, pods(), "raw", **LIMITS) as used:
        late = pods(now=False)
        with refused(Code.FAILED_PRECONDITION, late.uid, "has no cgroup"):
            used.publish(late)
        assert not used.place(late).exists()
        making = threading.Timer(1, late.make)
        making.start()
        used.publish(late)
        assert late.limits(used.device) == AT_LIMITS
        making.join()

        late.end()
        assert not driver.condition(used.volume_id).abnormal, "nothing of that pod runs"
        late.make()
        wait_for(lambda: late.limits(used.device) == AT_LIMITS)
        driver.unpublish(used.volume_id, used.place(late))

        with refused(Code.FAILED_PRECONDITION, "only pods", "no limits"):
            driver.publish(used.volume_id, used.staging, tmp_path / "elsewhere", used.capability)


def test_controller_that_is_switched_off(
    pool: Path, serve: Callable[..., Driver], pods: Callable[..., Pod], tmp_path: Path
) -> None:
    """The volume's health says so; nothing new is promised; and all is well when it is back."""
    driver = serve(pool, options=(OPTION,))
    pod = pods()
    control = pod.cgroup.parent / "cgroup.subtree_control"
    with use(driver, tmp_path, pod, **LIMITS) as used:
        assert not driver.condition(used.volume_id).abnormal
        for path in (pod.cgroup / "cgroup.subtree_control", control):
            path.write_text("-io")
        fault = driver.health(used.volume_id).health_statuses[0]
        assert fault.reason == "IoNotLimited"
        assert pod.uid in fault.message
        with refused(Code.FAILED_PRECONDITION, "io.max", "pass on io"):
            driver.modify(used.volume_id, readBandwidth="5Mi")
        unlimited = driver.create("other", parameters={"type": "image"}).volume_id
        with (
            driver.published(unlimited, tmp_path),
            refused(Code.FAILED_PRECONDITION, "only pods"),
        ):
            driver.modify(unlimited, readBandwidth="5Mi")
        driver.modify(unlimited, readBandwidth="5Mi")
        driver.delete(unlimited)
        control.write_text("+io")
        wait_for(lambda: not driver.condition(used.volume_id).abnormal)
        assert used.limits() == AT_LIMITS


def test_snapshot_of_a_slow_volume(
    pool: Path,
    serve: Callable[..., Driver],
    pods: Callable[..., Pod],
    tmp_path: Path,
) -> None:
    """What the pod has written to the page cache does not have to go the slow way first."""
    driver = serve(pool, options=(OPTION,))
    with use(driver, tmp_path, pods(), **LIMITS) as used, loaded(used, "buffered"):
        time.sleep(3)
        lifted: list[bool] = []
        done = threading.Event()

        def watch() -> None:
            while not (done.is_set() or lifted):
                if used.pod.limits(device) == UNLIMITED:
                    lifted.append(True)

        device = used.device
        watcher = threading.Thread(target=watch)
        watcher.start()
        snapshot = driver.snapshot("busy", used.volume_id)
        done.set()
        watcher.join()
        assert lifted, "the limits held while the filesystem waited"
        assert used.limits() == AT_LIMITS
    driver.delete_snapshot(snapshot.snapshot_id)


def test_inline_volume(
    pool: Path, serve: Callable[..., Driver], pods: Callable[..., Pod], tmp_path: Path
) -> None:
    """A pod may limit itself."""
    driver = serve(pool, options=(OPTION,))
    pod, capability = pods(), mount_capability()
    target = pod.target("scratch")
    context = {"csi.storage.k8s.io/ephemeral": "true", "size": "64Mi", **LIMITS}
    driver.publish("csi-inline", None, target, capability, context=context)
    source = Path(run("findmnt", "-n", "-o", "SOURCE", target).strip())
    device = source.stat().st_rdev
    assert pod.limits(device) == AT_LIMITS
    driver.unpublish("csi-inline", target)
    assert pod.limits(device) == UNLIMITED
    late = pods(now=False)
    with refused(Code.FAILED_PRECONDITION, "has no cgroup"):
        driver.publish("csi-late", None, late.target("scratch"), capability, context=context)
    driver.reaped()
    assert not list((pool / "volumes").iterdir())


def test_told(
    pool: Path, serve: Callable[..., Driver], pods: Callable[..., Pod], tmp_path: Path
) -> None:
    """By the metrics, for those volumes that have limits, and by the commands."""
    port = free_port()
    driver = serve(pool, options=(OPTION, f"--metrics-address=127.0.0.1:{port}"))
    with use(driver, tmp_path, pods(), "raw", writeIops="100", **LIMITS) as used:
        plain = driver.create("plain", parameters={"type": "image"}).volume_id
        wait_for(lambda: scrape(port)("pycsi_volume_info", volume=plain) == 1, 30)
        seen = scrape(port)
        bandwidth = "pycsi_volume_io_limit_bytes_per_second"
        requests = "pycsi_volume_io_limit_requests_per_second"
        assert seen(bandwidth, volume=used.volume_id, direction="read") == 4 * MIB
        assert seen(bandwidth, volume=used.volume_id, direction="write") == 2 * MIB
        assert len(seen.all(bandwidth)) == 2
        assert seen.all(requests) == [
            ({"pool": "default", "volume": used.volume_id, "direction": "write"}, 100)
        ]
        command = [sys.executable, "-m", "pycsi", "get", "volumes", f"--pool=default={pool}"]
        listed = run(*command, "-o", "wide")
        assert "readBandwidth=4Mi writeBandwidth=2Mi writeIops=100" in listed
        command[3:5] = ["describe", "volume", used.volume_id]
        assert "readBandwidth=4Mi" in run(*command)
        driver.delete(plain)
