"""`pycsi get` and `pycsi describe`: what is shown, on terminals, in pipes, and for programs."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from driver import MIB, Driver
from terminal import on_terminal, piped

CLAIM = "csi.storage.k8s.io/pvc/"
LONG = "pvc-0b9c2f2e-4c1e-4f5f-9d54-8f0e6a3d9c11"
SEEN = {"volumes": 3, "snapshots": 1, "pools": 1, "trash": 1}


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Return the option of a pool with volumes, a snapshot, and something in the trash."""
    folder = tmp_path_factory.mktemp("stocked")
    (folder / "pool").mkdir()
    with Driver(folder, [f"default={folder}/pool"]) as driver:
        claim = {f"{CLAIM}namespace": "shop", f"{CLAIM}name": "orders"}
        driver.create(LONG, 3 * MIB, quota="none", parameters=claim)
        driver.create("a", 64 * MIB, quota="none")
        driver.create("b", 8 * MIB, quota="none")
        driver.snapshot("before", "a@node-1", consistency="files")
        driver.delete(driver.create("gone", MIB, quota="none", onDelete="retain").volume_id)
        driver.reaped()
    return f"--pool=default={folder}/pool", folder / "pool"


def rows(words: str, option: str) -> list[dict[str, Any]]:
    done = piped("get", *words.split(), option, "-o", "json")
    assert (done.returncode, done.stderr) == (0, "")
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("kind", SEEN)
def test_pipe(stocked: tuple[str, Path], kind: str) -> None:
    """In a pipe there is a heading, and rows, with cells that have no spaces but at the end."""
    done = piped("get", kind, stocked[0])
    heading, *lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr, len(lines)) == (0, "", SEEN[kind])
    assert heading == heading.upper()
    assert "\x1b" not in done.stdout
    assert [line for line in (heading, *lines) if line != line.rstrip()] == []
    bare = piped("get", kind, stocked[0], "--no-headers")
    assert len(bare.stdout.splitlines()) == SEEN[kind]
    wide = piped("get", kind, stocked[0], "-o", "wide")
    assert len(wide.stdout.splitlines()[0].split()) >= len(heading.split())


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("kind", SEEN)
def test_terminal(stocked: tuple[str, Path], kind: str, columns: int) -> None:
    """No line is wider than the terminal; ids are whole, and what does not fit is left out."""
    status, lines = on_terminal(columns, "get", kind, stocked[0], NO_COLOR="1")
    assert (status, len(lines)) == (0, 1 + SEEN[kind])
    assert max(map(len, lines)) <= columns
    ids = piped("get", kind, stocked[0], "-o", "name").stdout.split()
    assert [line.split()[0] for line in lines[1:]] == ids
    if kind == "volumes":
        assert f"{LONG}@node-1" in ids
        assert ("NAMESPACE" in lines[0].split()) == (columns == 120)
        assert "CONDITION" in lines[0]


def test_narrow_terminal(stocked: tuple[str, Path]) -> None:
    """On a terminal that is narrower than an id, the id is whole all the same."""
    status, lines = on_terminal(30, "get", "volumes", stocked[0], NO_COLOR="1")
    assert (status, lines[1:]) == (0, sorted([f"{LONG}@node-1", "a@node-1", "b@node-1"]))


def test_colours(stocked: tuple[str, Path]) -> None:
    """A terminal has colours, unless somebody does not want them, or it has none."""
    assert "\x1b[1m" in "".join(on_terminal(120, "get", "volumes", stocked[0])[1])
    for setting in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert "\x1b" not in "".join(on_terminal(120, "get", "volumes", stocked[0], **setting)[1])


def test_formats(stocked: tuple[str, Path]) -> None:
    """JSON and YAML have the same, with exact sizes."""
    found = rows("volumes", stocked[0])
    assert yaml.safe_load(piped("get", "volumes", stocked[0], "-o", "yaml").stdout) == found
    claimed = next(row for row in found if row["pvc"])
    assert (claimed["namespace"], claimed["pvc"]) == ("shop", "orders")
    assert claimed["capacity"] == 3 * MIB
    assert [row["volume"] for row in rows("snapshots", stocked[0])] == ["a@node-1"]


def test_sizes(stocked: tuple[str, Path]) -> None:
    assert " 64Mi " in piped("get", "volumes", stocked[0]).stdout
    assert f" {64 * MIB} " in piped("get", "volumes", stocked[0], "--bytes").stdout


def test_order(stocked: tuple[str, Path]) -> None:
    """Rows are in the order of the column that was asked for, numbers as numbers."""
    done = piped("get", "volumes", stocked[0], "--sort-by", "CAPACITY", "-o", "name")
    assert done.stdout.split() == [f"{LONG}@node-1", "b@node-1", "a@node-1"]
    done = piped("get", "volumes", stocked[0], "--sort-by", "nothing")
    assert done.returncode == 2
    assert "capacity" in done.stderr


def test_names(stocked: tuple[str, Path]) -> None:
    """Things are chosen by id or by name, and one that is not there is missed."""
    assert [row["id"] for row in rows("volume a b@node-1", stocked[0])] == ["a@node-1", "b@node-1"]
    done = piped("get", "volumes", "a", "z", stocked[0], "-o", "name")
    assert (done.returncode, done.stdout) == (3, "a@node-1\n")
    assert done.stderr == "pycsi: there is no volume z; see: pycsi get volumes\n"


def test_nothing_there(stocked: tuple[str, Path], tmp_path: Path) -> None:
    """Where there is nothing, a pipe gets nothing, and a person is told so."""
    (tmp_path / "pool").mkdir()
    with Driver(tmp_path, [f"default={tmp_path}/pool"]):
        done = piped("get", "volumes", f"--pool=default={tmp_path}/pool")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "pycsi: there are no volumes in default\n"


def test_strange_name(stocked: tuple[str, Path], tmp_path: Path) -> None:
    """What a claim is called moves no cursor, and is no line of its own."""
    (tmp_path / "pool").mkdir()
    strange = {f"{CLAIM}name": "a\n\x1b[31mb"}
    with Driver(tmp_path, [f"default={tmp_path}/pool"]) as driver:
        driver.create("x", MIB, quota="none", parameters=strange)
    option = f"--pool=default={tmp_path}/pool"
    assert len(piped("get", "volumes", option).stdout.splitlines()) == 2
    for words in (("get", "volumes"), ("describe", "volume", "x")):
        assert "\x1b[31m" not in piped(*words, option).stdout
    assert rows("volumes", option)[0]["pvc"] == "a\n\x1b[31mb"
    ascii_only = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    assert on_terminal(40, "get", "volumes", option, **ascii_only)[0] == 0


def test_describe_volume(stocked: tuple[str, Path]) -> None:
    """A volume is described with its claim, its snapshots, and what happened to it."""
    text = piped("describe", "volume", LONG, stocked[0]).stdout
    assert "orders" in text
    assert "3Mi (3145728 bytes)" in text
    done = piped("describe", "volume", "a@node-1", stocked[0], "-o", "json")
    (described,) = json.loads(done.stdout)
    assert [item["id"] for item in described["snapshots"]] == ["before@node-1"]
    assert [item["event"] for item in described["history"]][:2] == [
        "CreateVolume",
        "CreateSnapshot",
    ]
    assert described["condition"] == "healthy"
    assert described["mounts"] == []
    again = piped("describe", "volume", "a", stocked[0], "-o", "yaml").stdout
    assert yaml.safe_load(again) == [described]


def test_describe_others(stocked: tuple[str, Path]) -> None:
    (snapshot,) = json.loads(
        piped("describe", "snapshot", "before", stocked[0], "-o", "json").stdout
    )
    assert (snapshot["volume"], snapshot["volume_exists"]) == ("a@node-1", True)
    text = piped("describe", "pool", "default", stocked[0]).stdout
    assert str(stocked[1]) in text
    done = piped("describe", "snapshot", "z", stocked[0])
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "pycsi: there is no snapshot z; see: pycsi get snapshots\n"


def test_described_while_in_use(driver: Driver, tmp_path: Path, root: None) -> None:
    """A description says where a volume is staged and published, and how."""
    made = driver.create("v", 64 * MIB, type="image").volume_id
    with driver.published(made, tmp_path, readonly=True) as target:
        done = piped("describe", "volume", "v", f"--pool={driver.pools[0]}", "-o", "json")
        (described,) = json.loads(done.stdout)
    mounts = {item["by"]: item for item in described["mounts"]}
    assert mounts["NodePublishVolume"]["path"] == str(target)
    assert "ro" in mounts["NodePublishVolume"]["options"].split(",")
    assert mounts["NodeStageVolume"]["path"] == str(tmp_path / f"staging-{made}")
    assert 0 < described["used"] < 64 * MIB
    assert described["loop_devices"][0].startswith("/dev/loop")


def test_confirmation(stocked: tuple[str, Path]) -> None:
    """Nothing is deleted for good unless somebody has said so."""
    option, pool = stocked
    done = piped("trash", "empty", "gone@node-1", option)
    assert done.returncode == 2
    assert "add --yes" in done.stderr
    status, lines = on_terminal(80, "trash", "empty", "--all", option, answer="n\n")
    assert status == 1
    assert lines[-1].endswith("pycsi: it was not confirmed; nothing was deleted")
    assert len(list((pool / "trash").iterdir())) == 1
    status, lines = on_terminal(80, "trash", "empty", "--all", option, answer="y\n")
    assert status == 0
    assert list((pool / "trash").iterdir()) == []


def test_restored_by_id(driver: Driver) -> None:
    """A volume in the trash is named by its id, as long as that is not ambiguous."""
    option = f"--pool={driver.pools[0]}"
    for _ in range(2):
        driver.delete(driver.create("v", MIB, quota="none", onDelete="retain").volume_id)
    done = piped("trash", "restore", "v@node-1", option)
    assert done.returncode == 1
    entries = piped("get", "trash", option, "-o", "name").stdout.split()
    assert all(entry in done.stderr for entry in entries)
    assert piped("trash", "empty", "--yes", entries[0], option).stdout == f"{entries[0]}\n"
    assert piped("trash", "restore", "v@node-1", option).stdout == "v@node-1\n"
    assert driver.volume_ids() == ["v@node-1"]


def test_what_cannot_be_restored(driver: Driver, pool: Path) -> None:
    """What is no whole volume any more stays in the trash, and that is said."""
    option = f"--pool={driver.pools[0]}"
    driver.delete(driver.create("v", MIB, quota="none", onDelete="retain").volume_id)
    (entry,) = (pool / "trash").iterdir()
    (entry / "volume.json").unlink()
    done = piped("trash", "restore", entry.name, option)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no complete volume; see: pycsi get trash" in done.stderr
    assert piped("trash", "restore", "v@node-1", option).returncode == 3
    assert list((pool / "trash").iterdir()) == [entry]
