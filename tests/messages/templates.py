"""Every place in the source where a message for whoever typed or configured something is made."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "src" / "pycsi"

_ERRORS = frozenset({"CommandError", "ConfigError", "CannotWork", "UsageError", "BadParameter"})
"""Errors whose message is shown as it is; so are those that derive from them."""

_TELLERS = frozenset({"note", "_failed"})
"""Functions of `cli/` that are given a message."""

_PARSERS = ("cli/", "model/addresses.py", "model/config.py", "model/size.py")
"""Where `ValueError` has a message, which an option's name is put before."""

ANY = "…"
"""Stands in a template for what differs from case to case."""


def templates() -> dict[str, str]:
    """Return each message, with `ANY` for what differs, and the place where it is made."""
    trees = {
        str(path.relative_to(SOURCE)): ast.parse(path.read_text()) for path in SOURCE.rglob("*.py")
    }
    errors = _derived(list(trees.values()))
    return {
        text: f"src/pycsi/{path}:{node.lineno}"
        for path, tree in sorted(trees.items())
        for node in ast.walk(tree)
        if isinstance(node, ast.expr | ast.FunctionDef)
        for text in _told(node, path, errors)
        if re.search("[a-z]", text)
    }


def _derived(trees: list[ast.Module]) -> set[str]:
    """Return the names of `_ERRORS`, and of all that derive from one of them."""
    bases = {
        node.name: {ast.unparse(base).rpartition(".")[2] for base in node.bases}
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    found = set(_ERRORS)
    while more := {name for name, those in bases.items() if those & found} - found:
        found |= more
    return found


def _told(node: ast.expr | ast.FunctionDef, path: str, errors: set[str]) -> Iterator[str]:
    """Yield the messages that are handed on at a node, if it is of those that do that."""
    if isinstance(node, ast.Call) and _tells(node, path, errors):
        for argument in node.args:
            yield from (text.removeprefix("pycsi: ").strip() for text in _texts(argument))
    elif isinstance(node, ast.FunctionDef) and node.name.endswith("mistakes"):
        for inner in ast.walk(node):
            if isinstance(inner, ast.Yield) and inner.value:
                yield from _texts(inner.value)


def _tells(call: ast.Call, path: str, errors: set[str]) -> bool:
    name = ast.unparse(call.func).rpartition(".")[2]
    return (
        name in errors
        or (name in _TELLERS and path.startswith("cli/"))
        or (name == "ValueError" and path.startswith(_PARSERS))
        or (name in {"echo", "secho"} and any(keyword.arg == "err" for keyword in call.keywords))
        or "stderr.write" in ast.unparse(call.func)
    )


def _texts(node: ast.AST) -> Iterator[str]:
    """Yield the texts that an expression can be."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr(values=parts):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else ANY for part in parts
            )
        case ast.IfExp(body=first, orelse=second):
            yield from _texts(first)
            yield from _texts(second)
        case ast.BoolOp(values=items) | ast.List(elts=items):
            for item in items:
                yield from _texts(item)


def shows(message: str, template: str) -> bool:
    """Tell whether a message, or a part of it, was made from a template."""
    pattern = ".*".join(map(re.escape, template.split(ANY)))
    return re.search(pattern, message) is not None
