"""Options in a file, help, completion, and the version: what is the same for all commands."""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from commandtree import COMMANDS, GROUPS, examples
from driver import MIB, Driver
from terminal import PYCSI, environment, piped

import pycsi

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def test_file(driver: Driver, file: Path, pool: Path, tmp_path: Path) -> None:
    """A file has options; a variable comes before it, and the command line before both."""
    driver.create("v", MIB, quota="none")
    file.write_text(f'pool = ["filed={pool}"]\nnode-id = "n"\nno-headers = true\n')

    def pools(*words: str, **variables: str) -> str:
        done = piped("get", "pools", f"--config={file}", "-o", "name", *words, **variables)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert pools() == "filed"
    assert pools(PYCSI_POOL=f"variable={pool}") == "variable"
    assert pools(f"--pool=given={pool}", PYCSI_POOL=f"variable={pool}") == "given"
    done = piped("get", "volumes", PYCSI_CONFIG=str(file))
    assert len(done.stdout.splitlines()) == 1


def test_file_of_the_driver(file: Path, pool: Path, tmp_path: Path) -> None:
    """The driver can be started with the file alone."""
    socket = tmp_path / "driver" / "csi.sock"
    file.write_text(
        f'endpoint = "unix://{socket}"\nnode-id = "filed"\npool = "default={pool}"\n'
        'one-cpu = false\nmax-volumes-per-node = 3\nlog-level = "WARNING"\n'
    )
    command = (*PYCSI, "serve", f"--config={file}", "--log-level=Info")
    socket.parent.mkdir()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stderr
        assert any('"serving"' in line for line in process.stderr)
        process.terminate()
        assert '"level": "error"' not in process.stderr.read()
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pool 3", "is no TOML (line 1, column 6)"),
        ("pool = [", "is no TOML"),
        ("\xff", "is no TOML"),
        ("pools = []", "no option 'pools'; there are cgroup-root"),
        ("pool = 3", "pool = 3: give a list of texts"),
        ("pool = [3]", "give a list of texts"),
        ("pool = ['x']", "write NAME=PATH"),
        ("node-id = true", "node-id = True: give a text"),
        ("one-cpu = 'yes'", "one-cpu = 'yes': give true or false"),
        ("mode = 'many'", "--mode 'many': give one of single-node, node, controller"),
        ("log-level = 'loud'", "--log-level 'loud': give one of debug"),
        ("max-volumes-per-node = 'x'", "is no whole number"),
        ("yes = true", "no option 'yes'"),
    ],
)
def test_mistakes_in_the_file(file: Path, text: str, says: str) -> None:
    """What is wrong in a file is said with its name and what to write."""
    file.write_bytes(text.encode("latin-1"))
    done = piped("serve", f"--config={file}", f"--endpoint={file}.sock")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("pycsi: ")
    assert says in line


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    for place, says in ((tmp_path / "none", "there is no such file"), (tmp_path, "cannot be read")):
        done = piped("get", "pools", f"--config={place}", "--pool=a=/x")
        assert done.returncode == 2
        assert says in done.stderr


def parsed(line: str) -> None:
    """Fail unless a command line of pycsi could be run: its words, options and values exist."""
    words = shlex.split(line.replace("/etc/pycsi/config.toml", "/dev/null"), comments=True)[1:]
    path: tuple[str, ...] = ()
    while words and (*path, words[0]) in COMMANDS:
        path = (*path, words.pop(0))
    assert path, line
    if path not in GROUPS and not {"--help", "-h"}.intersection(words):
        ctx = COMMANDS[path].make_context(path[-1], words)
        assert "pycsi.mistakes" not in ctx.meta, ctx.meta


def own(line: str) -> Iterator[str]:
    """Yield the commands of pycsi in a line for a shell, on whatever machine they are run."""
    for part in re.split(r" && | \| ", line):
        if match := re.search(r"(?:^|\s)(pycsi .*)", part):
            yield match[1]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help(words: tuple[str, ...]) -> None:
    """Every command has help with examples, which could be run, and names its variables."""
    done = piped(*words, "-h")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == piped(*words, "--help").stdout
    assert examples(words)
    for line in examples(words):
        assert line.partition("  ")[0] in done.stdout
        for command in own(line):
            parsed(command)
    for option in COMMANDS[words].params:
        if isinstance(option, click.Option) and option.envvar:
            assert option.show_envvar, option.name


def shown(page: Path) -> list[str]:
    """Return the command lines of pycsi that a page shows, without what is before `pycsi`."""
    blocks = re.findall(r"^```(?:sh)?\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    found = (re.match(r"(?:# |sudo )?(?:\S*/)?(pycsi (?!-).*)", line) for line in lines)
    return [match[1].removesuffix("&") for match in found if match]


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_commands_of_the_docs(page: Path) -> None:
    """What the documents show could be run."""
    for line in shown(page):
        for command in own(line):
            parsed(command)
    for text in re.findall(r"`(pycsi [a-z][^`]*)`", page.read_text()):
        words = text.split()[1:]
        known = {word for path in COMMANDS for word in path}
        assert words[0] in known, text


def test_version() -> None:
    """The version is shown with the commit of the clone."""
    clone = DOCS.parent
    head = subprocess.run(
        ["git", "-C", clone, "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    described = json.loads(piped("version", "-o", "json").stdout)
    assert described["version"] == pycsi.__version__
    assert described["commit"] == (head.stdout.strip() or None)
    assert pycsi.__version__ in piped("version").stdout
    assert piped("--version").stdout == f"pycsi {pycsi.__version__}\n"


@pytest.mark.parametrize("words", [(), ("get",), ("trash",), ("delete",)])
def test_group_alone(words: tuple[str, ...]) -> None:
    """A group without a command shows its help, as the mistake that it is."""
    done = piped(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Examples:" in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("got",), "no such command 'got'"),
        (("get", "volumes", "--pol=x"), "--pool"),
        (("describe", "volume"), "missing argument"),
        (("trash", "restore", "a", "b", "--pool=a=/x"), "unexpected extra argument"),
        (("get", "volumes", "-o", "xml"), "give one of table, wide, name, json, yaml"),
        (("serve", "--enable-attach=maybe"), "--enable-attach"),
    ],
)
def test_mistyped(words: tuple[str, ...], says: str) -> None:
    """What was mistyped is said in one line, with where to look."""
    done = piped(*words)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("pycsi: ")
    assert says in line


def test_completion() -> None:
    """A shell gets what completes a command."""
    done = piped(_PYCSI_COMPLETE="bash_source")
    assert (done.returncode, done.stderr) == (0, "")
    assert "complete" in done.stdout
    words = {"COMP_WORDS": "pycsi get vo", "COMP_CWORD": "2", "_PYCSI_COMPLETE": "bash_complete"}
    assert piped(**words).stdout == "plain,volumes\n"
