"""What other drivers have left becomes volumes, with all that is in it, and can be given back."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import FilesystemFactory, holding, mounted, run
from driver import GIB, MIB, NODE, Driver, block_capability
from kubernetes_validate import validate
from leftovers import LAYOUTS, claim_id, content, fill, on_host, persistent_volume
from terminal import PYCSI, environment, piped

KINDS = ("ext4", "xfs", "btrfs")
UNLIMITED = ("--no-limit", "--size", "96Mi", f"--node-id={NODE}")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def adopt(pool: Path, *words: str | Path, ok: bool = True) -> subprocess.CompletedProcess[str]:
    done = piped("adopt", *words, f"--pool=default={pool}")
    assert not ok or done.returncode == 0, done.stderr
    return done


def plans(pool: Path, *words: str | Path) -> dict[str, dict[str, Any]]:
    """Return what is planned for each path; nothing is changed by that."""
    done = piped("adopt", *words, "-o", "json", f"--pool=default={pool}", f"--node-id={NODE}")
    assert not done.stderr
    return {item["path"]: item for item in json.loads(done.stdout)}


def listed(pool: Path, objects: list[dict[str, Any]], *words: str, against: str = "") -> str:
    """Give the command a list of the cluster on its standard input; return what it prints.

    `against` is what has to be said against adopting.
    """
    done = subprocess.run(
        [*PYCSI, "adopt", "--from", "-", *words, f"--pool=default={pool}", f"--node-id={NODE}"],
        input=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}),
        capture_output=True, text=True, check=False, env=environment(),
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert done.returncode == bool(against), done.stderr
    assert against in done.stderr
    return done.stdout


def test_each_layout(
    kind: str, filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """Each is adopted while the driver runs, used by it, undone, and adopted again."""
    pool = filesystem(kind, 3 * GIB)
    driver = serve(pool)
    sources, words = {}, []
    for name, make in LAYOUTS.items():
        base = pool.parent / name
        base.mkdir()
        sources[name] = make(base)
        words += ["--from", str(base)]
    before = {name: _looked_into(source, tmp_path) for name, source in sources.items()}
    ids = [f"{claim_id(number)}@{NODE}" for number in range(1, 7)]
    assert sorted(item["id"] for item in plans(pool, *words, *UNLIMITED).values()) == ids
    assert driver.volume_ids() == []
    done = adopt(pool, *words, *UNLIMITED, "--yes")
    assert sorted(done.stdout.split()) == ids == driver.volume_ids()
    again = adopt(pool, *words, *UNLIMITED, "--yes")
    assert sorted(again.stdout.split()) == ids
    for number, name in enumerate(LAYOUTS, start=1):
        with driver.published(ids[number - 1], tmp_path) as target:
            assert content(target) == before[name], name
            refused = adopt(pool, "--undo", ids[number - 1], ok=False)
            assert "is in use at" in refused.stderr
    with driver.published(ids[5], tmp_path, block_capability()) as device:
        assert device.read_bytes()[:3] == b"raw"
    assert [driver.condition(item).abnormal for item in ids] == [False] * 6
    undone = adopt(pool, "--undo", *ids).stdout.split()
    assert set(map(str, sources.values())) < set(undone)
    assert driver.volume_ids() == []
    assert {name: _looked_into(source, tmp_path) for name, source in sources.items()} == before
    adopt(pool, *words, *UNLIMITED, "--yes")
    assert driver.volume_ids() == ids
    assert adopt(pool, "--finish", *ids, "--yes").stdout.split() == ids
    assert not any(source.exists() for source in sources.values())
    assert "finished" in adopt(pool, "--undo", ids[0], ok=False).stderr
    with driver.published(ids[0], tmp_path) as target:
        assert content(target) == before["local-path"]
    for item in ids:
        driver.delete(item)


def _looked_into(source: Path, folder: Path) -> dict[str, object]:
    """Return what is in a directory, or in the filesystem of an image."""
    if source.is_dir():
        return content(source)
    mount = folder / "look"
    mount.mkdir(exist_ok=True)
    with mounted("-o", "loop,ro", source, mount):
        return content(mount)


@pytest.fixture
def ext4(filesystem: FilesystemFactory) -> Path:
    """Return a pool on ext4, which nothing serves."""
    pool = filesystem("ext4", GIB)
    run(sys.executable, "-m", "pycsi", "create", "first", "--size=16Mi", "-p", "type=image",
        f"--node-id={NODE}", f"--pool=default={pool}")  # fmt: skip
    return pool


@pytest.fixture
def images(ext4: Path) -> Iterator[dict[str, Path]]:
    """Return image files with something wrong, by what that is."""
    base = ext4.parent / "images"
    base.mkdir()
    found = {}
    for what in ("hard link", "loop device", "cut", "good", "mounted file"):
        found[what] = base / f"{what.replace(' ', '-')}.img"
        run("truncate", "-s", "32M", found[what])
        run("mkfs.ext4", "-q", found[what])
    for what in ("empty", "nothing"):
        found[what] = base / f"{what}.img"
        run("truncate", "-s", "32M" if what == "nothing" else "0", found[what])
    os.link(found["hard link"], base / "other")
    os.truncate(found["cut"], 16 * MIB)
    found["link"] = base / "link.img"
    found["link"].symlink_to(found["good"])
    found["device"] = base / "device"
    run("mknod", found["device"], "b", "7", "200")
    device = run("losetup", "-f", "--show", found["loop device"]).strip()
    with mounted("--bind", found["good"], found["mounted file"]):
        yield found
    run("losetup", "-d", device)


def test_what_speaks_against_an_image(ext4: Path, images: dict[str, Path]) -> None:
    """Each mistake is told before anything is done."""
    wrong = {
        "hard link": "has another name (hard link)",
        "loop device": "a loop device on it",
        "cut": "it was cut off",
        "mounted file": "is mounted there",
        "empty": "the file is empty",
        "nothing": "no ext4, XFS or btrfs",
        "link": "is a symbolic link",
    }
    words = [word for what in wrong for word in ("--from", images[what])]
    found = plans(ext4, *words)
    for what, says in wrong.items():
        assert says in found[str(images[what])]["against"][0], what
    done = adopt(ext4, "--from", images["device"], "--layout", "bare", ok=False)
    assert done.returncode == 1
    assert "neither a directory nor an image file" in done.stdout
    before = images["good"].read_bytes()
    assert "is in use" in adopt(ext4, "--from", images["good"], "--yes", ok=False).stderr
    assert images["good"].read_bytes() == before
    assert list((ext4 / "adoptions").glob("*@*")) == []


def test_what_speaks_against_a_directory(ext4: Path, tmp_path: Path) -> None:
    """What is in use, mounted, linked, or entangled with the pool is told, and left alone."""
    base = ext4.parent
    sources = {name: base / name for name in ("busy", "nested", "point", "named")}
    for place in sources.values():
        place.mkdir()
        (place / "file").write_text("x")
    (base / "link").symlink_to("named")
    (sources["nested"] / "inner").mkdir()
    wrong = {
        "busy": "process",
        "nested": "something is mounted there",
        "point": "is mounted there",
        "link": "is a symbolic link to named",
        "pool": "lies in pool default",
        "pool/volumes": "lies in pool default",
        "absent": "",
    }
    words = [word for name in wrong if name != "absent" for word in ("--from", base / name)]
    bare = ("--layout", "bare", "--size", "64Mi", "--no-limit")
    with (
        holding(sources["busy"], "file"),
        mounted("--bind", sources["named"], sources["nested"] / "inner"),
        mounted("--bind", sources["named"], sources["point"]),
    ):
        found = plans(ext4, *words, *bare)
        for name, says in wrong.items():
            if says:
                assert says in found[str(base / name)]["against"][0], name
        # It is mounted elsewhere, as in a pod.
        assert "a mount at" in plans(ext4, "--from", sources["named"], *bare)[
            str(sources["named"])
        ]["against"][0]  # fmt: skip
        done = adopt(ext4, "--from", sources["busy"], *bare, "--yes", ok=False)
        assert done.returncode == 1
        assert "is in use: process" in done.stderr
    assert (sources["busy"] / "file").read_text() == "x"
    assert "give --size" in str(plans(ext4, "--from", sources["named"], "--layout", "bare")) or (
        "--no-limit" in str(plans(ext4, "--from", sources["named"], "--layout", "bare"))
    )
    for path, status in (("/", 2), (f"{base}/../x", 2), (f"{base}/absent", 1)):
        done = adopt(ext4, "--from", path, *bare, ok=False)
        assert (done.returncode, done.stdout) == (status, ""), path
    above = adopt(ext4, "--from", base, *bare, ok=False)
    assert "is mounted there" in above.stdout or "pool default lies in it" in above.stdout
    done = adopt(ext4, "--from", base, ok=False)
    assert "--layout bare" in done.stderr
    assert sorted(path.name for path in (ext4 / "volumes").iterdir()) == [f"first@{NODE}"]


def test_size_and_room(filesystem: FilesystemFactory) -> None:
    """What holds more than its limit, or for which the pool has no room, is left alone."""
    pool = filesystem("btrfs", GIB)
    run(sys.executable, "-m", "pycsi", "create", "first", "--size=16Mi", f"--node-id={NODE}",
        f"--pool=default={pool}")  # fmt: skip
    folder = pool.parent / "data"
    folder.mkdir()
    (folder / "large").write_bytes(os.urandom(8 * MIB))
    words = ("--from", folder, "--layout", "bare")
    (unsized,) = plans(pool, *words).values()
    (small,) = plans(pool, *words, "--size", "4Mi").values()
    (large,) = plans(pool, *words, "--size", "900Gi").values()
    assert "give --size" in unsized["against"][0]
    assert "it holds 8" in small["against"][0]
    assert "has no room" in large["against"][0]
    done = adopt(pool, *words, "--size", "4Mi", "--yes", ok=False)
    assert done.returncode == 1
    adopt(pool, *words, "--size", "16Mi", "--yes")
    again = adopt(pool, "--undo", f"data@{NODE}")
    assert again.stdout.split() == [str(folder)]
    assert [path.name for path in (pool / "trash").glob(f"data@{NODE}.*.kept.*")]


def test_from_another_filesystem(
    filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """It is copied, and the old one stays as it was until the adoption is finished."""
    other, pool = filesystem("ext4", GIB), filesystem("xfs", GIB)
    driver = serve(pool)
    folder, image = other / "folder", other / "image.img"
    folder.mkdir()
    fill(folder)
    before = content(folder)
    run("truncate", "-s", "33000000", image)
    run("mkfs.ext4", "-q", image)
    words: list[str | Path] = ["--from", folder, "--from", image, "--no-limit", "--layout", "bare"]
    words += ["--size", "64Mi", f"--node-id={NODE}"]
    adopt(pool, *words, "--yes")
    assert content(folder) == before
    with driver.published(f"folder@{NODE}", tmp_path) as target:
        assert content(target) == before
        (target / "new").write_text("since")
    with driver.published(f"image.img@{NODE}", tmp_path) as target:
        assert os.statvfs(target).f_blocks * os.statvfs(target).f_frsize > 40_000_000
    adopt(pool, "--undo", f"folder@{NODE}")
    assert content(folder) == before
    (entry,) = (pool / "trash").glob(f"folder@{NODE}.*.kept.*")
    assert (entry / "data/new").read_text() == "since"
    adopt(pool, *words, "--yes")
    refused = adopt(pool, "--finish", f"folder@{NODE}", ok=False)
    assert refused.returncode == 2
    assert f"delete {folder}" in refused.stderr
    adopt(pool, "--finish", f"folder@{NODE}", f"image.img@{NODE}", "--yes")
    assert not folder.exists()
    assert not image.exists()
    with driver.published(f"folder@{NODE}", tmp_path) as target:
        assert content(target) == before


def test_image_gets_its_size_again(ext4: Path) -> None:
    """An image that was made longer for its claim is given back byte for byte."""
    image = ext4.parent / "odd.img"
    image.write_bytes(os.urandom(MIB + 123))
    before = image.read_bytes()
    words = ("--from", image, "--block", "--size", "8Mi", f"--node-id={NODE}")
    adopt(ext4, *words, "--yes")
    place = ext4 / "volumes" / f"odd.img@{NODE}" / "disk.img"
    assert place.stat().st_size == 8 * MIB
    image.write_text("somebody else's")
    done = adopt(ext4, "--undo", f"odd.img@{NODE}", ok=False)
    assert done.returncode == 1
    assert "is there again" in done.stderr
    image.unlink()
    adopt(ext4, "--undo", f"odd.img@{NODE}")
    assert image.read_bytes() == before
    assert list((ext4 / "adoptions").glob("*@*")) == []


def test_grown_image_is_given_back_whole(
    ext4: Path, serve: Callable[..., Driver], tmp_path: Path
) -> None:
    """A filesystem that has grown to its claim's size has all of it when it is given back."""
    driver = serve(ext4)
    image = ext4.parent / "small.img"
    run("truncate", "-s", "32M", image)
    run("mkfs.ext4", "-q", image)
    adopt(ext4, "--from", image, "--size", "96Mi", f"--node-id={NODE}", "--yes")
    with driver.published(f"small.img@{NODE}", tmp_path) as target:
        (target / "file").write_text("kept")
        assert os.statvfs(target).f_blocks * os.statvfs(target).f_frsize > 64 * MIB
    adopt(ext4, "--undo", f"small.img@{NODE}")
    assert image.stat().st_size == 96 * MIB
    (tmp_path / "look").mkdir()
    with mounted("-o", "loop", image, tmp_path / "look"):
        assert (tmp_path / "look/file").read_text() == "kept"


def test_list_of_the_cluster(ext4: Path) -> None:
    """The volumes of this node are found, and get manifests that the API server would take."""
    folder = ext4.parent / "claimed"
    folder.mkdir()
    fill(folder)
    here = persistent_volume(
        claim_id(7), hostPath={"path": str(folder)}, nodeAffinity=on_host(NODE)
    )
    there = persistent_volume(claim_id(8), local={"path": "/data"}, nodeAffinity=on_host("other"))
    foreign = persistent_volume(claim_id(9), csi={"driver": "ebs", "volumeHandle": "vol-1"})
    claim = {
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "namespace": "shop",
            "name": "data",
            "labels": {"app": "shop"},
            "annotations": {"pv.kubernetes.io/bind-completed": "yes", "own": "kept"},
        },
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "256Mi"}},
            "volumeName": claim_id(7),
        },
    }
    pod = {
        "kind": "Pod",
        "metadata": {
            "namespace": "shop",
            "name": "shop-0",
            "ownerReferences": [{"kind": "StatefulSet", "name": "shop"}],
        },
        "spec": {"volumes": [{"persistentVolumeClaim": {"claimName": "data"}}]},
    }
    hashed = {
        "kind": "Pod",
        "metadata": {
            "namespace": "shop",
            "name": "web-5d4f8c7b9-x2x4z",
            "labels": {"pod-template-hash": "5d4f8c7b9"},
            "ownerReferences": [{"kind": "ReplicaSet", "name": "web-5d4f8c7b9"}],
        },
        "spec": pod["spec"],
    }
    objects = [here, there, foreign, claim, pod, hashed]
    words = ("-o", "manifests", "--no-limit", "--storage-class", "pycsi")
    text = listed(ext4, objects, *words)
    with holding(folder, "file"):
        # The steps say what to stop, so they are printed before that, too.
        assert listed(ext4, objects, *words, against="is in use") == text
    volume, bound = [item for item in yaml.safe_load_all(text) if item]
    for manifest in (volume, bound):
        validate(manifest, "1.34", strict=True)
    assert volume["spec"]["csi"]["volumeHandle"] == f"{claim_id(7)}@{NODE}"
    assert volume["spec"]["claimRef"]["name"] == bound["metadata"]["name"] == "data"
    assert volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete"
    assert volume["spec"]["capacity"] == {"storage": "256Mi"}
    assert bound["spec"]["volumeName"] == volume["metadata"]["name"] != claim_id(7)
    assert bound["metadata"]["labels"] == {"app": "shop"}
    assert bound["metadata"]["annotations"] == {"own": "kept"}
    (term,) = volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"]
    assert term["matchExpressions"][0]["values"] == [NODE]
    steps = [
        f"kubectl patch pv {claim_id(7)}",
        "-n shop shop-0 (StatefulSet shop)",
        "web-5d4f8c7b9-x2x4z (Deployment web)",
        "pycsi adopt --from -",
        "kubectl -n shop delete pvc data",
        "kubectl apply",
        "pycsi adopt --finish",
        "pycsi adopt --undo",
    ]
    places = [text.index(step) for step in steps]
    assert places == sorted(places)
    done = listed(ext4, objects, "--no-limit", "--yes")
    assert done.split() == [f"{claim_id(7)}@{NODE}"]
    record = json.loads((ext4 / "volumes" / done.strip() / "volume.json").read_text())
    context = {"pool": "default", "poolUUID": record["pool_uuid"], "type": "directory"}
    assert context.items() <= volume["spec"]["csi"]["volumeAttributes"].items()
    again = listed(ext4, objects, *words)
    assert again == text


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"kind": "List"}', '{"items": [{"kind": 1}]}'])
def test_list_that_is_none(ext4: Path, text: str) -> None:
    done = subprocess.run(
        [*PYCSI, "adopt", "--from", "-", f"--pool=default={ext4}"],
        input=text, capture_output=True, text=True, check=False, env=environment(),
    )  # fmt: skip
    assert done.returncode == 2
    assert "kubectl get pv,pvc,pod" in done.stderr
    assert len(done.stderr.splitlines()) == 1
