"""The page on one machine: its program and its commands work as they are typed."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from conftest import FilesystemFactory
from driver import GIB, Driver
from terminal import piped

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "standalone.md").read_text()


def shown(language: str) -> list[str]:
    """Return the page's blocks in a language."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return [block for name, block in blocks if name == language]


def test_page(filesystem: FilesystemFactory, serve: Callable[..., Driver], tmp_path: Path) -> None:
    pool = filesystem("btrfs", 4 * GIB)
    driver = serve(f"default={pool},reserve=10%")
    (program,) = shown("python")
    assert program.count("unix:///run/pycsi/csi.sock") == 1
    file = tmp_path / "volumes.py"
    file.write_text(program.replace("/run/pycsi/csi.sock", str(driver.socket)))
    made = subprocess.run([sys.executable, file], capture_output=True, text=True, check=True)
    assert made.stdout.split() == ["files@node-1", "files-1@node-1", "raw@node-1", "raw-1@node-1"]
    (session,) = shown("")
    for command, table in re.findall(r"^# (pycsi .+)\n((?:.+\n)+)", session, re.MULTILINE):
        words = command.replace("/var/lib/pycsi", str(pool)).split()
        done = subprocess.run(
            [sys.executable, "-m", *words],
            env=os.environ | {"COLUMNS": "200"},
            capture_output=True,
            text=True,
            check=True,
        )
        expected = re.findall(r"[A-Z]{4,}|\S+@node-1|btrfs", table)
        assert expected
        assert [word for word in expected if word not in done.stdout] == []


def test_two_commands(filesystem: FilesystemFactory, tmp_path: Path) -> None:
    """What the page does with a volume, without a driver that runs, ends with nothing left."""
    pool, there = filesystem("btrfs", 128 * GIB), tmp_path / "data"
    blocks = [block for block in shown("sh") if "serve" not in block]
    found = re.findall(r"^(?:sudo \S*/)?pycsi ([^#\n]+)", "".join(blocks), re.MULTILINE)
    assert [line.split()[0] for line in found][:2] == ["create", "mount"]
    assert len(found) >= 10
    for line in found:
        words = line.replace("/var/lib/pycsi", str(pool)).replace("/mnt/data", str(there)).split()
        done = piped(
            *words,
            *(["--yes"] if words[0] == "delete" else []),
            PYCSI_POOL=f"default={pool}",
            PYCSI_ENDPOINT=f"{tmp_path}/nobody.sock",
            PYCSI_RUN_DIRECTORY=f"{tmp_path}/run",
        )
        assert done.returncode == 0, (line, done.stderr)
        assert there.is_mount() == (words[0] not in {"create", "unmount", "delete"})
    assert list((pool / "volumes").iterdir()) == list((pool / "snapshots").iterdir()) == []
