"""csi-driver-host-path: a directory, or an image of a block volume, for each UUID in state.json.

As of v1.18 (`pkg/state/state.go`, `pkg/hostpath/hostpath.go`), by default in
/var/lib/csi-hostpath-data.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pycsi.cli.adoption.candidates import Candidate
from pycsi.cli.adoption.layouts.naming import is_name
from pycsi.cli.errors import CommandError

NAME = "csi-hostpath"

_STATE = "state.json"
_BLOCK_ACCESS = 1


def recognises(path: Path) -> bool:
    return (path / _STATE).is_file()


def read(path: Path) -> Iterator[Candidate]:
    for item in _volumes(path / _STATE):
        yield Candidate(
            path=str(path / item["VolID"]),
            name=item["VolName"],
            layout=NAME,
            limit=item["VolSize"],
            block=item["VolAccessType"] == _BLOCK_ACCESS,
            fault="it is an inline volume, which goes with its pod" if item["Ephemeral"] else None,
        )


def _volumes(state: Path) -> Iterator[dict[str, Any]]:
    try:
        items = json.loads(state.read_text())["Volumes"] or []
        for item in items:
            if not (is_name(item["VolID"]) and is_name(item["VolName"])):
                raise CommandError(f"{state}: a volume has an id or a name that is no file name")
            yield {
                **{key: item[key] for key in ("VolID", "VolName", "VolAccessType")},
                "VolSize": int(item["VolSize"]),
                "Ephemeral": bool(item["Ephemeral"]),
            }
    except (ValueError, KeyError, TypeError):
        raise CommandError(
            f"{state} is not what csi-driver-host-path writes; give another --layout"
        ) from None
