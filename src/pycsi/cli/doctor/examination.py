"""Looking at everything, and again at what was found, so that only what stays is told."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from pycsi.backends.throttle import Throttle
from pycsi.cli.doctor import (
    adoptions,
    crashes,
    faults,
    leftovers,
    machine,
    moves,
    records,
    room,
)
from pycsi.cli.doctor.cluster import Cluster, Comparison
from pycsi.cli.doctor.codes import Code
from pycsi.cli.doctor.commands import KERNEL_LOG
from pycsi.cli.doctor.finding import Finding
from pycsi.cli.doctor.look import Look
from pycsi.cli.doctor.refusals import refusal
from pycsi.cli.errors import InspectionError
from pycsi.cli.inspection import InspectedPool
from pycsi.linux.waiting import PATIENCE, NoAnswerError, NotAskedError, call, collect
from pycsi.model.config import PoolConfig
from pycsi.model.errors import CsiError
from pycsi.pool.directory import is_in_use

_PAUSES = (0.3, 0.7)
"""Seconds before each further look. What is found every time is told."""

_CHECKS: Sequence[Callable[[Look], Iterable[Finding | None]]] = (
    records.check,
    faults.of_pool,
    faults.of_volumes,
    leftovers.check,
    crashes.check,
    adoptions.check,
)
"""The checks of a pool that may hang with its disk; each yields something now and then."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is examined: the pools of this node, which ids call `node`, and a cluster's objects."""

    pools: Sequence[PoolConfig]
    cluster: Cluster | None = None
    node: str | None = None
    ignored: frozenset[Code] = frozenset()
    throttle: Throttle | None = None


@dataclasses.dataclass(slots=True)
class Diagnosis:
    """What is wrong, and messages on what could not be looked at.

    `volumes` and `snapshots` are how many were looked at.
    """

    findings: list[Finding] = dataclasses.field(default_factory=list)
    unseen: list[str] = dataclasses.field(default_factory=list)
    volumes: int = 0
    snapshots: int = 0


def examine(subject: Subject) -> Diagnosis:
    """Return what is wrong, the worst first, and what could not be looked at."""
    found = _look(subject)
    for pause in _PAUSES:
        if not found.findings:
            break
        time.sleep(pause)
        before = {finding.key for finding in found.findings}
        found = _look(subject)
        found.findings = [finding for finding in found.findings if finding.key in before]
    found.findings.sort(key=lambda finding: finding.code.severity)
    return found


def _look(subject: Subject) -> Diagnosis:
    """Look at everything once."""
    seen = Diagnosis()
    looks: list[Look] = []
    for config in subject.pools:
        try:
            look = _look_into(config, subject.throttle, seen.findings)
        except NoAnswerError:
            seen.findings.append(_silent(config))
        except NotAskedError as error:
            seen.unseen.append(f"pool {config.name}: {error}; try again")
        else:
            looks += [look] if look else []
    seen.volumes = sum(len(look.volumes) for look in looks)
    seen.snapshots = sum(len(look.snapshots()) for look in looks)
    seen.findings += records.in_two_pools(looks)
    seen.findings += moves.check(looks)
    seen.findings += machine.check(
        {kind for look in looks for kind in look.seen.volumes.filesystems}
    )
    if subject.cluster:
        partly = len(looks) < len(subject.pools)
        compared = Comparison(subject.cluster, looks, subject.node, partly=partly)
        seen.findings += compared.findings()
        seen.unseen += compared.unseen()
    seen.findings = [item for item in seen.findings if item.code not in subject.ignored]
    return seen


def _look_into(
    config: PoolConfig, throttle: Throttle | None, findings: list[Finding]
) -> Look | None:
    """Look at a pool, and add to `findings` what is wrong there; None if it cannot be looked at.

    `NoAnswerError` and `NotAskedError` if its disk hangs.
    """
    key = str(config.path)
    try:
        if refused := call(key, functools.partial(refusal, config)):
            findings.append(refused)
            return None
        # Its disk has just answered. How long it takes to read many records nobody can tell.
        look = Look(seen=InspectedPool(config, throttle), given=config, served=is_in_use(config))
    except OSError as error:
        place = error.filename if isinstance(error.filename, str) else config.path
        findings.append(_unreadable(config, f"{place}: {error.strerror}"))
        return None
    except InspectionError as error:
        findings.append(_unreadable(config, str(error).removeprefix(f"pool {config.name}: ")))
        return None
    for check in _CHECKS:
        findings += filter(None, collect(key, _guarded(config, functools.partial(check, look))))
    findings += filter(None, _guarded(config, functools.partial(room.check, look)))
    return look


def _guarded(
    config: PoolConfig, check: Callable[[], Iterable[Finding | None]]
) -> Iterator[Finding | None]:
    """Yield what a check finds; that it cannot look is a finding too, and stops no other check."""
    try:
        yield from check()
    except OSError as error:
        place = error.filename if isinstance(error.filename, str) else config.path
        yield _unreadable(config, f"{place}: {error.strerror}")
    except CsiError as error:
        yield _unreadable(config, str(error))


def _unreadable(config: PoolConfig, what: str) -> Finding:
    return _at_pool(Code.POOL_UNREADABLE, config, f"{what}; look at the kernel's log")


def _silent(config: PoolConfig) -> Finding:
    return _at_pool(
        Code.POOL_NOT_RESPONDING,
        config,
        f"its disk has not answered for {PATIENCE:.0f} seconds; look for what hangs: a disk, a "
        "FUSE, an NFS",
    )


def _at_pool(code: Code, config: PoolConfig, what: str) -> Finding:
    return Finding(
        code=code,
        subject=str(config.path),
        pool=config.name,
        message=f"pool {config.name}: {what}",
        command=KERNEL_LOG,
    )
