"""OpenEBS Local PV Rawfile: a directory for each volume, with an image `disk.img` in it.

As of 0.8 (`rawfile_util.py`) and 0.15 (`rawfile/utils/volume_manager.py`), by default in
/var/csi/rawfile, or in the directory of each of its pools. Up to 0.8 `disk.meta` lies beside the
image, with the size, and later in a directory of its own; the image's own size is as good.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pycsi.cli.adoption.candidates import Candidate
from pycsi.cli.adoption.layouts.naming import directories

NAME = "rawfile"

_IMAGE = "disk.img"
_METADATA = "disk.meta"


def recognises(path: Path) -> bool:
    files = (_IMAGE, _METADATA)
    return any((folder / name).is_file() for folder in directories(path) for name in files)


def read(path: Path) -> Iterator[Candidate]:
    for folder in directories(path):
        image = folder / _IMAGE
        if not image.is_file() or image.is_symlink():
            continue
        yield Candidate(
            path=str(image),
            name=folder.name,
            layout=NAME,
            limit=image.stat().st_size,
            fault=_fault(folder),
        )


def _fault(folder: Path) -> str | None:
    known = _metadata(folder)
    if known.get("deleted_at") is not None:
        return "its driver has deleted it, and only waits to free it"
    if known.get("ready") is False:
        return "its driver has not finished making it"
    if any((folder / "snapshots").glob("*.img")):
        return "its driver has snapshots of it, which would stay behind; delete them first"
    return None


def _metadata(folder: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((folder / _METADATA).read_text())
        return found if isinstance(found, dict) else {}
    return {}
