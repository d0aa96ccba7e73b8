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

SERVICES = {"identity", "controller", "node", "group", "snapshot_metadata"}
SPEAK_GRPC = SERVICES | {"controller_snapshots", "server", "rpc", "errors"}
SPEAK_PROTOBUF = SPEAK_GRPC | {
    "request",
    "node_request",
    "inline",
    "reply",
    "capabilities",
    "topology",
    "redaction",
}
FLOCK = {"claim", "store"}
"""What locks a pool's directory, or a record: flock(2) is in the standard library."""


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


@pytest.mark.parametrize("name", [name for name in MODULES if within(name, "linux")])
def test_kernel_modules_know_nothing_of_the_driver(name: str) -> None:
    """What talks to the kernel imports nothing that lies above it."""
    inside = {full for full in imports(MODULES[name]) if within(full, "pycsi")}
    assert {full for full in inside if not within(full, "pycsi.linux")} == set()


@pytest.mark.parametrize("name", MODULES)
def test_libraries_stay_in_their_place(name: str) -> None:
    """Only the outermost modules speak gRPC and protobuf, only the innermost to the kernel."""
    demo = within(name, "demo")  # a client of a driver that it starts, not a part of one
    for full in imports(MODULES[name]):
        if within(full, "grpc"):
            assert demo or name in SPEAK_GRPC
        if within(full, "pycsi.proto"):
            assert demo or name in SPEAK_PROTOBUF
        if within(full, "subprocess"):
            assert within(name, "linux") or name == "demo.process"
        if within(full, "ctypes"):
            assert within(name, "linux")
        if within(full, "fcntl"):
            assert within(name, "linux") or name in FLOCK


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
def test_services_are_the_top(name: str) -> None:
    """Nothing but the server knows the services, nothing but the commands the server."""
    if name != "server":
        assert not needs(name) & {*SERVICES, "rpc"}
    if name != "cli":
        assert "server" not in needs(name)
    if name != "__main__":
        assert "cli" not in needs(name)


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
