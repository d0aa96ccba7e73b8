"""The volumes of other drivers, made by the steps in which these drivers make them.

The steps are those of local-path-provisioner 0.0.37 (its setup script), OpenEBS dynamic-localpv 4.0
(its init pod), OpenEBS rawfile-localpv 0.8 (`init_rawfile`, then mkfs and mount when it is staged),
csi-driver-host-path 1.18 (`createVolume`, `state.json`) and DirectPV 4.1 (`GetVolumeDir`).
"""

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from conftest import mounted, run
from driver import MIB

SIZE = 96 * MIB
FSUUID = "6f1c8a56-2f63-4d64-94c2-c1b5a1d0a6f3"


def claim_id(number: int) -> str:
    return f"pvc-00000000-1111-2222-3333-{number:012}"


def fill(folder: Path) -> None:
    """Write files of many kinds, as a workload may leave them."""
    (folder / "file").write_bytes(os.urandom(200_000))
    (folder / "deep/er").mkdir(parents=True)
    (folder / "deep/er/hole").write_bytes(b"begin")
    os.truncate(folder / "deep/er/hole", 4 * MIB)
    (folder / "deep/owned").write_text("of somebody")
    os.chown(folder / "deep/owned", 1234, 4321)
    (folder / "deep/owned").chmod(0o640)
    os.setxattr(folder / "deep/owned", "user.note", b"kept")
    (folder / "link").symlink_to("/etc/passwd")
    os.link(folder / "file", folder / "deep/again")
    os.mkfifo(folder / "deep/pipe")
    os.utime(folder / "deep", (1_000_000_000, 1_000_000_000))


def content(root: Path) -> dict[str, object]:
    """Return all that is in a directory, by an own walk."""
    found: dict[str, object] = {}
    for path in [root, *sorted(root.rglob("*"))]:
        status = path.lstat()
        what: object = None
        if path.is_symlink():
            what = os.readlink(path)  # noqa: PTH115  (exactly as it is)
        elif path.is_file():
            what = path.read_bytes()
        notes = {name: os.getxattr(path, name) for name in _notes(path)}
        times = status.st_mtime_ns
        links = 1 if path.is_dir() else status.st_nlink
        found[str(path.relative_to(root))] = (
            status.st_mode, status.st_uid, status.st_gid, times, links, notes, what
        )  # fmt: skip
    return found


def _notes(path: Path) -> list[str]:
    return [name for name in os.listxattr(path, follow_symlinks=False) if name.startswith("user.")]


def local_path(base: Path) -> Path:
    folder = base / f"{claim_id(1)}_shop_data"
    subprocess.run(["mkdir", "-m", "0777", "-p", folder], check=True)
    fill(folder)
    return folder


def openebs_hostpath(base: Path) -> Path:
    folder = base / claim_id(2)
    subprocess.run(["mkdir", "-m", "0777", "-p", folder], check=True)
    fill(folder)
    return folder


def directpv(base: Path) -> Path:
    drive = base / FSUUID
    (drive / ".directpv").mkdir(parents=True)
    (drive / ".directpv/meta.info").write_text("{}")
    (drive / f".FSUUID.{FSUUID}").symlink_to(".")
    folder = drive / f".FSUUID.{FSUUID}" / claim_id(3)
    folder.mkdir()
    fill(folder)
    return drive / claim_id(3)


def rawfile(base: Path) -> Path:
    folder = base / claim_id(4)
    folder.mkdir()
    image = folder / "disk.img"
    meta = {
        "schema_version": 3,
        "volume_id": claim_id(4),
        "img_file": f"/data/{claim_id(4)}/disk.img",
        "size": SIZE,
    }
    (folder / "disk.meta").write_text(json.dumps(meta))
    run("truncate", "-s", str(SIZE), image)
    run("mkfs.ext4", "-q", image)
    mount = base.parent / "rawfile-mount"
    mount.mkdir()
    with mounted("-o", "loop", image, mount):
        fill(mount)
    mount.rmdir()
    return image


def csi_hostpath(base: Path) -> Path:
    """Make a directory and a block volume; return the directory."""
    folder, block = base / "d2b0c1de-0001", base / "d2b0c1de-0002"
    folder.mkdir(mode=0o777)
    fill(folder)
    run("fallocate", "-l", "64M", block)
    block.write_bytes(b"raw" + bytes(64 * MIB - 3))
    volumes = [
        _hostpath(claim_id(5), folder, 0, SIZE),
        _hostpath(claim_id(6), block, 1, 64 * MIB),
    ]
    state = {"Volumes": volumes, "Snapshots": None, "GroupSnapshots": None}
    (base / "state.json").write_text(json.dumps(state))
    return folder


def _hostpath(name: str, path: Path, access: int, size: int) -> dict[str, Any]:
    return {
        "VolName": name, "VolID": path.name, "VolSize": size, "VolAccessType": access,
        "VolPath": f"/csi-data-dir/{path.name}", "Ephemeral": False, "Kind": "", "NodeID": "",
        "Attached": False, "Staged": None, "Published": None,
    }  # fmt: skip


LAYOUTS: Mapping[str, Callable[[Path], Path]] = {
    "local-path": local_path,
    "openebs-hostpath": openebs_hostpath,
    "directpv": directpv,
    "rawfile": rawfile,
    "csi-hostpath": csi_hostpath,
}


def persistent_volume(name: str, **more: Any) -> dict[str, Any]:
    """Return a PersistentVolume of the cluster as kubectl prints it, bound to shop/data."""
    spec = {
        "capacity": {"storage": "256Mi"},
        "accessModes": ["ReadWriteOnce"],
        "volumeMode": "Filesystem",
        "persistentVolumeReclaimPolicy": "Delete",
        "storageClassName": "local-path",
        "claimRef": {"kind": "PersistentVolumeClaim", "namespace": "shop", "name": "data"},
        **more,
    }
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": spec,
    }


def on_host(*names: str) -> dict[str, Any]:
    """Return the nodeAffinity of a volume that is on these hosts."""
    rule = {"key": "kubernetes.io/hostname", "operator": "In", "values": list(names)}
    return {"required": {"nodeSelectorTerms": [{"matchExpressions": [rule]}]}}
