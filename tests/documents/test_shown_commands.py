"""Every command that a document shows is run: pycsi for real, what others would do is checked.

Each document gets a machine of its own (`machine.sh`), on which its blocks are run one after the
other. kubectl, helm, docker, nomad and make only write down how they were called.
"""

import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import needs
from documents.checks import CHECKS
from sandbox import scripted

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / ".github").glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "deploy").rglob("*.md")),
]
OTHER_LANGUAGES = {"", "hcl", "ini", "json", "promql", "python", "toml", "yaml"}
"""Of blocks that hold no commands; "" is what commands write."""

WORDS = {
    "ID": "data@node-1",
    "ENTRY": "lost@node-1",
    "SIZE": "2Gi",
    "/dev/nvme1n1": "$DISK",
}
"""What stands for what the reader puts in."""

DISK = """
truncate --size 200G /srv/disk.img
DISK=$(losetup --find --show /srv/disk.img)
trap 'losetup --detach $DISK' EXIT
"""
MOUNT = """
truncate --size 200G /srv/disk.img
mkfs.btrfs --quiet /srv/disk.img
mount -o loop /srv/disk.img /var/lib/pycsi
"""
USUAL = f"""
{MOUNT}
mkdir /run/pycsi
export PYCSI_NODE_ID=node-1
for name in data lost; do
    "$PYTHON" -m pycsi create $name -p onDelete=retain --pool default=/var/lib/pycsi
done
"$PYTHON" -m pycsi delete volume lost --yes
"""
OLD = f"""
{MOUNT}
export PYCSI_NODE_ID=node-1
"$PYTHON" -m pycsi create first --pool default=/var/lib/pycsi
for name in data logs; do
    mkdir /srv/$name
    "$PYTHON" -m pycsi adopt --from /srv/$name --layout bare --size 1Gi --yes
done
mkdir /srv/opt /srv/opt-work
mount -t overlay overlay -o lowerdir=/opt,upperdir=/srv/opt,workdir=/srv/opt-work /opt
volume=pvc-00000000-0000-4000-8000-00000000000
mkdir -p /opt/local-path-provisioner/${{volume}}1_default_data /mnt/rawfile/${{volume}}2
meta='{{"schema_version": 3, "volume_id": "%s", "size": 33554432}}'
printf "$meta" ${{volume}}2 >/mnt/rawfile/${{volume}}2/disk.meta
truncate --size 32M /mnt/rawfile/${{volume}}2/disk.img
mkfs.ext4 -q /mnt/rawfile/${{volume}}2/disk.img
"""
MOUNTED = f"""
{USUAL}
"$PYTHON" -m pycsi mount data PATH --pool default=/var/lib/pycsi
"""
SNAPSHOT = f"""
{USUAL}
"$PYTHON" -m pycsi snapshot data SNAPSHOT --pool default=/var/lib/pycsi
"""
ORPHANED = f"""
{USUAL}
"$PYTHON" -m pycsi create NAME --pool default=/var/lib/pycsi
"$PYTHON" - <<'END'
import json
from pathlib import Path

record = Path("/var/lib/pycsi/volumes/NAME@node-1/volume.json")
record.write_text(json.dumps(json.loads(record.read_text()) | {{"handle": "NAME"}}))
END
"""
TWO_POOLS = f"""
{MOUNT}
mkdir /run/pycsi /srv/fast
export PYCSI_NODE_ID=node-1 PYCSI_POOL="default=/var/lib/pycsi fast=/srv/fast"
"$PYTHON" -m pycsi create data --type image --size 320Mi
"""
SCENES = {
    "README.md": MOUNT,
    "docs/adopt.md": OLD,
    "docs/backup.md": f"""
{USUAL}
pycsi serve --endpoint unix:///run/pycsi/csi.sock --pool default=/var/lib/pycsi
mkdir /mnt/backup /mnt/data-copy
export RESTIC_CACHE_DIR=/srv/cache
echo secret >/etc/restic-password
""",
    "docs/findings/AdoptionUnfinished.md": OLD,
    "docs/findings/DataMissing.md": SNAPSHOT,
    "docs/findings/DiscardsAccepted.md": MOUNTED,
    "docs/findings/FilesystemReadOnly.md": MOUNTED,
    "docs/findings/FilesystemShutDown.md": MOUNTED,
    "docs/findings/GrowthFailed.md": MOUNTED,
    "docs/findings/Orphaned.md": ORPHANED,
    "docs/findings/SnapshotWithoutObject.md": SNAPSHOT,
    "docs/export.md": f"""
{MOUNT}
mkdir /run/pycsi /mnt/backup
export PYCSI_NODE_ID=node-1
"$PYTHON" -m pycsi create data --type block --size 32Mi --pool default=/var/lib/pycsi
""",
    "docs/findings/MoveUnfinished.md": TWO_POOLS,
    "docs/move.md": f'{TWO_POOLS}"$PYTHON" -m pycsi mount data /mnt/data',
    "docs/pools.md": DISK,
    "docs/standalone.md": MOUNT,
    "docs/trash.md": USUAL.replace("lost", "logs") + '"$PYTHON" -m pycsi delete volume data --yes',
}
SEPARATE = {"docs/operations.md", "docs/pools.md"}
"""Documents whose blocks are for different cases, so that each is run on a machine of its own."""


def blocks(place: Path) -> list[tuple[str, str]]:
    """Return the language and the text of each fenced block of a document."""
    found = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", place.read_text(), re.MULTILINE | re.DOTALL)
    return [(language, text) for language, text in found]


def shown(place: Path) -> list[str]:
    return [text for language, text in blocks(place) if language == "sh"]


def name_of(place: Path) -> str:
    return str(place.relative_to(ROOT))


@pytest.mark.parametrize("place", DOCUMENTS, ids=name_of)
def test_languages(place: Path) -> None:
    """Commands are in blocks of `sh`, and nowhere else."""
    for language, text in blocks(place):
        assert language == "sh" or language in OTHER_LANGUAGES
        if language == "":
            assert not re.search(r"^(?:\$ |sudo |pycsi |kubectl |helm )", text, re.MULTILINE)


PARTS = [
    (name_of(place), part)
    for place in DOCUMENTS
    for part in (shown(place) if name_of(place) in SEPARATE else ["\n".join(shown(place))])
    if part
]


@pytest.mark.parametrize(("name", "commands"), PARTS, ids=[name for name, _ in PARTS])
def test_commands(name: str, commands: str, tmp_path: Path) -> None:
    """Each command exists, does what the document says or is well formed, and ends well."""
    for program in ("mkfs.btrfs", "mkfs.xfs", "mkfs.ext4", "openssl"):
        needs(program, met=shutil.which(program) is not None)
    if "restic " in commands:
        needs("restic", met=shutil.which("restic") is not None)
    for word, meant in WORDS.items():
        commands = re.sub(rf"(?<![\w-]){word}\b", meant, commands)
    scene = SCENES.get(name, USUAL if re.search(r"(?<!/)pycsi ", commands) else "")
    script = [(HERE / "machine.sh").read_text(), f"{{ :\n{scene}\n}} >/srv/scene 2>&1", commands]
    done = scripted(tmp_path, "\n".join([*script, "wait"]), CLONE=str(ROOT))
    assert "syntax error" not in done.stderr, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    if "prjquota" in commands and "wrong fs type, bad option" in done.stderr:
        pytest.skip("this kernel has no project quota; make test-vm has")
    called = [json.loads(line) for line in (tmp_path / "srv" / "called").read_text().splitlines()]
    for program, words in called:
        known, _, status = program.partition(":")
        CHECKS[known](words, status)
