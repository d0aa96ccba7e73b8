"""The pools that a command is about."""

import contextlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from pycsi.cli.errors import MistakesError
from pycsi.model import config, ids
from pycsi.model.config import PoolConfig
from pycsi.model.errors import ConfigError
from pycsi.pool.layout import Layout
from pycsi.server import logs

USUAL = PoolConfig(name=config.DEFAULT_POOL, path=Path("/var/lib/pycsi"))
"""The pool that is meant if none is given, provided that it is there."""


def chosen(given: Sequence[PoolConfig]) -> list[PoolConfig]:
    """Return the pools that were given, or the usual one.

    `MistakesError` if there is none, or two are the same.
    """
    logs.configure("text", "error")  # the command itself tells of records that cannot be read
    if not given and _is_usual():
        return [USUAL]
    if not given:
        raise MistakesError(
            f"no pool is given, and {USUAL.path} is none; give --pool NAME=PATH, or set PYCSI_POOL"
        )
    try:
        config.refuse_entangled(given)
    except ConfigError as error:
        raise MistakesError(str(error)) from None
    return list(given)


def _is_usual() -> bool:
    """Tell whether the usual pool is there; who may not look into the directory has to be told."""
    hidden = USUAL.path.is_dir() and not os.access(USUAL.path, os.X_OK)
    return hidden or os.path.lexists(Layout(USUAL.path).record)


def node_of(configs: Iterable[PoolConfig]) -> str | None:
    """Return the node that the pools' volumes name; None if there are none, or several do."""
    found = set()
    for item in configs:
        with contextlib.suppress(OSError):
            found |= {ids.node_of(place.name) for place in Layout(item.path).volumes.iterdir()}
    named = found - {None}
    return next(iter(named)) if len(named) == 1 else None
