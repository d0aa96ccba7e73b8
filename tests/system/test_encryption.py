"""Encryption where there is none: what is refused, with the reason, and never made without it.

`tests/vm/test_encryption.py` has the others, for kernels with a device mapper.
"""

import json
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from driver import Driver, block_capability, mount_capability, refused
from terminal import piped

from pycsi.linux import luks
from pycsi.proto import csi_pb2 as csi

Code = grpc.StatusCode
SECRETS = {"encryptionPassphrase": "correct horse battery staple"}


@pytest.mark.parametrize("value", ["", "luks", "LUKS2", "luks1", "true", "aes"])
def test_impossible_value(driver: Driver, value: str) -> None:
    with refused(Code.INVALID_ARGUMENT, "encryption", "none or luks2"):
        driver.create("v", parameters={"type": "image", "encryption": value}, secrets=SECRETS)
    assert driver.volume_ids() == []


def test_directories_are_not_encrypted(driver: Driver) -> None:
    for quota in ({"quota": "none"}, {"type": "directory", "quota": "none"}):
        with refused(Code.INVALID_ARGUMENT, "encryption", "director"):
            driver.create("v", parameters=quota | {"encryption": "luks2"}, secrets=SECRETS)
    made = driver.create("v", parameters={**quota, "encryption": "none"}).volume_id
    driver.delete(made)


def test_inline_volumes_are_not_encrypted(driver: Driver, tmp_path: Path) -> None:
    context = {"csi.storage.k8s.io/ephemeral": "true", "encryption": "luks2"}
    with refused(Code.INVALID_ARGUMENT, "encryption"):
        driver.publish("csi-x", None, tmp_path / "target", mount_capability(), context=context)


def test_no_change_of_encryption(driver: Driver, root: None) -> None:
    """Neither is it mutable, nor has a copy another than its source."""
    plain = driver.create("plain", parameters={"type": "image"}).volume_id
    with refused(Code.INVALID_ARGUMENT, "encryption"):
        driver.modify(plain, encryption="luks2")
    kind = csi.VolumeContentSource
    source = kind(volume=kind.VolumeSource(volume_id=plain))
    copy = driver.create("copy", None, source=source, encryption="none", secrets=SECRETS)
    assert copy.volume_id == "copy@node-1"
    record = json.loads((driver.folders[0] / "volumes/copy@node-1/volume.json").read_text())
    assert "encryption" not in record, "older versions do not know the key"


@pytest.mark.parametrize("lacking", ["module", "program"])
def test_node_that_cannot_encrypt(
    serve: Callable[..., Driver], pool: Path, tmp_path: Path, root: None, lacking: str
) -> None:
    """The reason is told, and another node is chosen; plain volumes are made as ever."""
    more = {}
    if lacking == "program":
        (tmp_path / "bin").mkdir()
        for name in ("mkfs.ext4", "e2fsck", "resize2fs", "e2undo"):
            found = next(
                Path(place, name) for place in ("/sbin", "/usr/sbin") if Path(place, name).exists()
            )
            (tmp_path / "bin" / name).symlink_to(found)
        more["PATH"] = str(tmp_path / "bin")
    elif luks.refusal() is None:
        pytest.skip("this kernel has a device mapper")
    driver = serve(pool, **more)
    reason = "cryptsetup is not installed" if lacking == "program" else "cannot encrypt"
    for number, capability in enumerate((mount_capability("ext4"), block_capability())):
        with refused(Code.FAILED_PRECONDITION, reason, "leave the parameter encryption out"):
            driver.create("v", capability=capability, encryption="luks2", secrets=SECRETS)
        driver.create(f"plain-{number}", capability=capability, parameters={}, secrets=SECRETS)
    assert len(driver.volume_ids()) == 2
    assert driver.capacity(type="image", encryption="luks2").available_capacity == 0
    assert driver.capacity(type="image").available_capacity > 0
    listed = piped("get", "volumes", f"--pool=default={pool}", "-o", "json").stdout
    assert '"encryption": null' in listed
