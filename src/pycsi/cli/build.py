"""What is installed: the version, the commit, and what it runs on."""

import contextlib
import importlib.metadata
import json
import platform
import re
from pathlib import Path

import pycsi
from pycsi.model.config import CsiVersion

_DISTRIBUTION = "pycsi-driver"
_COMMIT = re.compile(r"[0-9a-f]{40}(?:-dirty)?")


def described() -> dict[str, str | None]:
    """Return the version, the commit or None, and the versions of what is below."""
    return {
        "version": pycsi.__version__,
        "commit": commit(),
        "csi": max(CsiVersion),
        "python": platform.python_version(),
        "kernel": f"{platform.system()} {platform.release()}",
    }


def commit() -> str | None:
    """Return the commit from which this was built or is run; None if that is not known.

    An image has it in a file beside the package, an installation from a repository in its metadata
    (PEP 610), and a clone in `.git`.
    """
    package = Path(pycsi.__file__).parent
    for text in (_read(package / "commit"), _installed_from(), _checked_out(package.parents[1])):
        if text and _COMMIT.fullmatch(text):
            return text
    return None


def _read(path: Path) -> str | None:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text().strip()
    return None


def _installed_from() -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError, ValueError, KeyError):
        text = importlib.metadata.distribution(_DISTRIBUTION).read_text("direct_url.json")
        return str(json.loads(text or "{}")["vcs_info"]["commit_id"])
    return None


def _checked_out(clone: Path) -> str | None:
    """Return the commit that is checked out in a clone, or None (gitrepository-layout(5))."""
    git = clone / ".git"
    head = _read(git / "HEAD") or ""
    name = head.removeprefix("ref: ")
    if name == head:
        return head
    packed = (line.partition(" ") for line in (_read(git / "packed-refs") or "").splitlines())
    found = {ref: commit for commit, _, ref in packed}
    return _read(git / name) or found.get(name)
