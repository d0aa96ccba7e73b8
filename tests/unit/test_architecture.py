"""The rules of the code base, checked: who imports whom, how long things get, what is not there."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "pycsi"
FILES = sorted(path for path in SOURCE.rglob("*.py") if "proto" not in path.parts)

LONGEST_FILE = 400
LONGEST_FUNCTION = 60

LAYERS = (
    "proto",
    "linux",
    "model",
    "transfer",
    "backends",
    "pool",
    "volumes",
    "services",
    "routing",
    "server",
    "cli",
)
"""The packages, the lowest first: each imports from itself and from those before it."""

SPEAK_GRPC = ("services", "routing", "server", "cli.demo", "cli.standalone", "model.errors")
"""Who knows gRPC; of the errors these are the status codes."""

SPEAK_PROTOBUF = (
    "services",
    "routing",
    "server.process",
    "server.controller",
    "server.rpc",
    "server.redaction",
    "cli.demo",
    "cli.standalone",
)
RUN_PROGRAMS = ("linux", "cli.demo.process", "cli.standalone.process")
FLOCK = ("linux", "pool.directory", "cli.streams")
"""Who calls what fcntl(2) and flock(2) do: what locks a pool's directory is above the kernel's."""


def module(path: Path) -> str:
    """Return a file's name below the package, such as `linux.mount`."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module(path): path for path in FILES}


def imports(path: Path) -> Iterator[str]:
    """Yield the full names of what a file imports, also inside its functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def needs(name: str) -> set[str]:
    """Return the modules of the package that a module imports."""
    found = set()
    for full in imports(MODULES[name]):
        if within(full, "pycsi"):
            inner = full.removeprefix("pycsi").lstrip(".")
            while inner and inner not in MODULES:
                inner = inner.rpartition(".")[0]
            if inner:
                found.add(inner)
    return found - {name}


@pytest.mark.parametrize("name", MODULES)
def test_packages_import_downwards(name: str) -> None:
    """A module lies in a package, and imports from its own and from lower ones only."""
    if name in {"", "__main__"}:
        return
    layer = LAYERS.index(name.partition(".")[0])
    above = {other for other in needs(name) if LAYERS.index(other.partition(".")[0]) > layer}
    assert not above


def lies_in(name: str, places: tuple[str, ...]) -> bool:
    return any(within(name, place) for place in places)


@pytest.mark.parametrize("name", MODULES)
def test_libraries_stay_in_their_place(name: str) -> None:
    """Only the outermost packages speak gRPC and protobuf, only the innermost to the kernel."""
    for full in imports(MODULES[name]):
        if within(full, "grpc"):
            assert lies_in(name, SPEAK_GRPC)
        if within(full, "pycsi.proto"):
            assert lies_in(name, SPEAK_PROTOBUF)
        if within(full, "subprocess"):
            assert lies_in(name, RUN_PROGRAMS)
        if within(full, "ctypes"):
            assert within(name, "linux")
        if within(full, "fcntl"):
            assert lies_in(name, FLOCK)


def test_imports_point_down() -> None:
    """No module imports, by whatever way, a module that imports it."""
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for other in sorted(needs(name)):
                visit(other, (*path, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


@pytest.mark.parametrize("name", MODULES)
def test_length_of_a_file(name: str) -> None:
    """A module fits a few screens."""
    assert len(MODULES[name].read_text().splitlines()) <= LONGEST_FILE


@pytest.mark.parametrize("name", MODULES)
def test_length_of_a_function(name: str) -> None:
    """A function fits one screen."""
    long = {
        node.name: length
        for node in ast.walk(ast.parse(MODULES[name].read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > LONGEST_FUNCTION
    }
    assert not long


@pytest.mark.parametrize("word", ["shell=True", "TODO", "FIXME", "XXX", "os.system", "os.popen"])
def test_word_that_is_nowhere(word: str) -> None:
    """The sources hold neither a shell nor a promise."""
    assert [str(path) for path in FILES if word in path.read_text()] == []


@pytest.mark.parametrize(
    "command",
    [["ruff", "check"], ["ruff", "format", "--check"], ["mypy"]],
    ids=["ruff check", "ruff format", "mypy"],
)
def test_lint(command: list[str]) -> None:
    """The linters and the type checker have nothing to say."""
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
