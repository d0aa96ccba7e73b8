"""The options with which a pool is served, kept in it.

Commands that look at a pool are given its path alone, and still know its reserve, its overcommit,
and how long its trash is kept. The driver itself never reads them: it is always given all of them.
"""

import contextlib
from pathlib import Path

from pycsi.linux.descriptor import NO_ROOM
from pycsi.linux.record import RecordError, read_record, write_record
from pycsi.model.config import PoolConfig
from pycsi.model.errors import ConfigError

_KEPT = ("reserve", "overcommit", "freeze-limit", "retain-for", "allow-volatile")


def keep(place: Path, config: PoolConfig) -> None:
    """Record a pool's options at `place`, unless they are there, or the disk has no room."""
    data = {"options": {key: text for key, text in config.options.items() if key in _KEPT}}
    with contextlib.suppress(FileNotFoundError, RecordError):
        if {"options": read_record(place).get("options")} == data:
            return
    try:
        write_record(place, data)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise


def recalled(place: Path, config: PoolConfig) -> PoolConfig:
    """Return a pool's configuration with the recorded options, where it does not set others."""
    try:
        options = read_record(place)["options"]
        return config.filled({key: str(options[key]) for key in _KEPT if key in options})
    except (OSError, RecordError, ConfigError, KeyError, TypeError):
        return config  # nobody has served it yet, or a newer version has
