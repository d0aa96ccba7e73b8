"""What every command writes, wherever that goes: to terminals of any width, pipes, full disks."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from commandtree import COMMANDS, GROUPS, examples
from conftest import needs
from sandbox import scripted
from terminal import PYCSI, environment

from pycsi.cli import main

SCENES = (Path(__file__).resolve().parents[1] / "messages" / "scenes.sh").read_text()
ESCAPE = "\x1b["
STYLE = r"\x1b\[[0-9;]*m"
COLOUR = r"\x1b\[(?:\d;)?3[0-7]m"  # bold is none
TIME = 4
"""Seconds after which a command is ended, as `pycsi serve` has to be."""


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_fits(words: tuple[str, ...], columns: int) -> None:
    """The help of a command has no line that a terminal would wrap."""
    done = CliRunner(env={"COLUMNS": str(columns)}).invoke(main, [*words, "--help"])
    assert done.exit_code == 0
    assert [line for line in done.output.splitlines() if len(line) > columns] == []


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_that_nobody_reads(words: tuple[str, ...]) -> None:
    """Help to a full disk is one line, and a failure; to a closed pipe it is nothing."""
    command = [*PYCSI, *words, "--help"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=environment()
        )
    assert done.returncode == 1
    assert done.stderr.startswith("pycsi: standard output: No space left on device")
    assert done.stderr.count("\n") == 1
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        done = subprocess.run(
            command, stdout=pipe, stderr=subprocess.PIPE, text=True, check=False, env=environment()
        )
    assert done.stderr == ""


SCENE = """
mkdir /srv/pool
export PYCSI_POOL=default=/srv/pool PYCSI_NODE_ID=node-1 PYCSI_ENDPOINT=/run/csi.sock
pycsi serve 2>/srv/log &
wait_for serving /srv/log
for name in data db disk old; do
    pycsi create $name --size 32Mi --type directory -p quota=none -p onDelete=retain
done
pycsi delete volume old --yes
pycsi snapshot data monday
"""
WAYS = {
    "80 columns": "script -qec {terminal} /dev/null </dev/null 2>&1",
    "120 columns": "script -qec {terminal} /dev/null </dev/null 2>&1",
    "no colours": "NO_COLOR=1 script -qec {terminal} /dev/null </dev/null 2>&1",
    "pipe": "{command} </dev/null 2>&1 | cat",
    "closed pipe": "{command} </dev/null 2>&1 >&7",
    "full disk": "{command} </dev/null 2>&1 >/dev/full",
}
CLOSED = """
mkfifo /run/pipe
exec 8<>/run/pipe 7>/run/pipe 8<&-
"""


@pytest.mark.parametrize("way", WAYS)
def test_examples(tmp_path: Path, way: str) -> None:
    """Every command, as the first example in its help shows it, writes what fits, or one line."""
    needs("script", met=shutil.which("script") is not None)
    columns = 120 if "120" in way else 80
    lines = [examples(words)[0] for words in COMMANDS if words not in GROUPS]
    script = [SCENES, f"{{\n{SCENE}\n}} >/dev/null 2>&1", CLOSED]
    for line in lines:
        command = line.replace("pycsi ", f"timeout --foreground {TIME} pycsi ", 1)
        terminal = shlex.quote(f"stty cols {columns}; {command}")
        script += [f"echo '<{line}>'", WAYS[way].format(command=command, terminal=terminal)]
    said = scripted(tmp_path, "\n".join(script)).stdout
    assert all(f"<{line}>\n" in said for line in lines)
    assert "Traceback" not in said
    written = [line for line in said.splitlines() if not line.startswith(("<", "pycsi: ", "{"))]
    if way in {"closed pipe", "full disk"}:
        assert written == []
        assert said.count("standard output: No space left") >= (way == "full disk")
    elif way != "pipe":
        long = [line for line in written if len(re.sub(STYLE, "", line)) > columns]
        assert long == [], long
        assert bool(re.search(COLOUR, said)) is (way != "no colours")
    else:
        assert ESCAPE not in said
