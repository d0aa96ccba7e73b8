"""Limits on I/O where nothing can be limited: their values, and that nothing is taken silently.

`tests/vm/test_io_limits.py` has the others, for kernels that can.
"""

from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from driver import MIB, Driver, block_capability, mount_capability, refused

from pycsi.proto import csi_pb2 as csi

Code = grpc.StatusCode
KEYS = ("readBandwidth", "writeBandwidth", "readIops", "writeIops")
VALUES = {
    "readBandwidth": [
        "",
        "0",
        "-1Mi",
        "1023Ki",
        "fast",
        "50Mi/s",
        "max",
        "None",
        "9223372036854775808",
    ],
    "writeIops": ["", "0", "-5", "9", "1.5", "1e3", "100k", "4294967295", "99999999999", "٣٣"],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key in VALUES for value in VALUES[key]]
)
def test_impossible_value(driver: Driver, key: str, value: str) -> None:
    """Neither a new volume nor an existing one takes it, nor anything else in the request."""
    image = driver.create("image", parameters={"type": "image"}).volume_id
    with refused(Code.INVALID_ARGUMENT, key, "none"):
        driver.create("v", parameters={"type": "image", key: value})
    with refused(Code.INVALID_ARGUMENT, key, "none"):
        driver.modify(image, **{key: value, "onDelete": "retain"})
    driver.delete(image)
    assert not list((driver.folders[0] / "trash").glob("*.kept.*")), "modified in part"


@pytest.mark.parametrize("key", KEYS)
def test_directories_are_not_limited(driver: Driver, key: str) -> None:
    """The reason is told, when a directory is created and when it is modified."""
    directory = {"type": "directory", "quota": "none"}
    with refused(Code.INVALID_ARGUMENT, key, "director"):
        driver.create("v", parameters=directory | {key: "1000Mi" if "width" in key else "100"})
    made = driver.create("v", parameters=directory | {key: "none"}).volume_id
    with refused(Code.INVALID_ARGUMENT, key, "director"):
        driver.modify(made, **{key: "1000000000"})
    driver.modify(made, **{key: "none"})


def requested(
    name: str, mutable: dict[str, str], *, block: bool = False
) -> csi.CreateVolumeRequest:
    return csi.CreateVolumeRequest(
        name=name,
        volume_capabilities=[block_capability() if block else mount_capability()],
        mutable_parameters=mutable,
    )


def test_node_that_cannot_limit(serve: Callable[..., Driver], tmp_path: Path, pool: Path) -> None:
    """Whatever is missing is said; GetCapacity sends the scheduler elsewhere; none is fine."""
    plain = tmp_path / "plain"
    plain.mkdir()
    for root, reason in (
        (None, "without --cgroup-root"),
        (tmp_path / "nowhere", "there is no"),
        (plain, "no cgroup of version 2"),
    ):
        driver = serve(pool, options=(f"--cgroup-root={root}",) if root else ())
        assert ("that limit I/O are refused" in driver.log) is (root is not None)
        for block in (False, True):
            with refused(Code.FAILED_PRECONDITION, reason, "--cgroup-root", "readIops"):
                driver.controller.CreateVolume(requested("v", {"readIops": "100"}, block=block))
        with refused(Code.FAILED_PRECONDITION, reason):
            driver.create("v", parameters={"type": "image", "writeBandwidth": "50Mi"})
        made = driver.create("v", parameters={"type": "image", "readIops": "none"}).volume_id
        with refused(Code.FAILED_PRECONDITION, reason):
            driver.modify(made, readIops="100")
        driver.modify(made, readIops="none", onDelete="retain")
        assert driver.capacity(type="image", readIops="100").available_capacity == 0
        assert driver.capacity(type="image").available_capacity > 64 * MIB
        driver.modify(made, onDelete="delete")
        driver.delete(made)
        driver.stop()


def test_relative_root(pool: Path, tmp_path: Path) -> None:
    driver = Driver(tmp_path / "driver", [f"default={pool}"], ("--cgroup-root=sys/fs/cgroup",))
    driver.launch()
    assert driver.process
    assert driver.process.wait(30)
    assert "--cgroup-root sys/fs/cgroup: give an absolute path" in driver.log
    driver.channel.close()
