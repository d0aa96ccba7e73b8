"""Mending what is safe to mend, each so that a kill at any moment leaves nothing worse.

What the driver does when it starts is done by the same code, with the pool locked as by a driver.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator

from pycsi.cli.doctor.finding import Finding, Mend
from pycsi.cli.errors import CommandError
from pycsi.linux.program import ProgramError
from pycsi.linux.record import RecordError
from pycsi.model.config import PoolConfig
from pycsi.model.errors import ConfigError, CsiError
from pycsi.pool import opening
from pycsi.pool.directory import PoolDirectory
from pycsi.pool.layout import Layout
from pycsi.pool.options import recalled
from pycsi.pool.pool import Pool
from pycsi.volumes import groups


def mends(findings: Iterable[Finding]) -> list[Mend]:
    """Return what can be done safely about findings, each once."""
    return list(dict.fromkeys(finding.mend for finding in findings if finding.mend))


def carry_out(found: Iterable[Mend], done: Callable[[str], None]) -> list[str]:
    """Carry out what was found; return a message for each that fails. `done` is told the others."""
    failures = []
    for mend in found:
        try:
            mend.act()
        except (ConfigError, CsiError, CommandError, ProgramError, RecordError) as error:
            failures.append(f"cannot {mend.text}: {error}")
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            failures.append(f"cannot {mend.text}: {place}{error.strerror}")
        else:
            done(mend.text)
    return failures


@contextlib.contextmanager
def locked(config: PoolConfig) -> Iterator[None]:
    """Keep drivers from opening a pool for the `with` block; `ConfigError` if one has it open."""
    directory = PoolDirectory(config, create=False)
    try:
        yield
    finally:
        directory.close()


def sweep(config: PoolConfig) -> Mend:
    """Return how to clean up what a killed driver has left, as the next one does when it starts."""
    text = f"clean up pool {config.name} as the driver does when it starts"
    return Mend(text=text, act=lambda: _sweep(config))


def settle(config: PoolConfig) -> Mend:
    """Return how to settle group snapshots that a killed driver has left unfinished."""
    text = f"settle the group snapshots of pool {config.name} as the driver does when it starts"
    return Mend(text=text, act=lambda: _settle(config))


def _sweep(config: PoolConfig) -> None:
    with _opened(config) as pool:
        pool.trash.look()
        pool.trash.reap(pool.limiter, lambda: False)


def _settle(config: PoolConfig) -> None:
    with _opened(config) as pool:
        # A group with members in other pools is left to a driver that has them all.
        if any(set(group.members.values()) - {pool.uuid} for group in pool.groups):
            pool.missing = lambda: ["another"]
        groups.settle([pool])


@contextlib.contextmanager
def _opened(config: PoolConfig) -> Iterator[Pool]:
    """Open a pool as the driver does, and recover it; `ConfigError` if a driver has it open."""
    pool = Pool(recalled(Layout(config.path).options, config), create=False)
    try:
        opening.load(pool)
        opening.recover(pool)
        yield pool
    finally:
        pool.close()
