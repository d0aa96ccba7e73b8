"""The health of volumes and pools, as examined now: nothing is remembered of it.

A fault that an operation half done may have made is looked for a second time, and told only if no
operation holds the volume meanwhile. What does not answer is a fault itself: each pool is looked at
by a thread that may hang with it (`linux/waiting.py`), and so is each mount.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

from pycsi.backends import Backend
from pycsi.linux.descriptor import is_directory
from pycsi.linux.kernel import IndexedKernelView, KernelView, Mount
from pycsi.linux.waiting import PATIENCE, NoAnswerError, NotAskedError, call, collect
from pycsi.model.errors import Aborted, NotFound
from pycsi.model.health import Fault, Reason, Status, ranked
from pycsi.model.records import Volume
from pycsi.pool.pool import Pool
from pycsi.volumes.faults import PoolCheck, mount_faults, refuse_lack, unreadable
from pycsi.volumes.locks import Locks
from pycsi.volumes.pools import Pools

_FIRST_BATCH = 8
_LARGEST_BATCH = 256
"""The numbers of volumes that a pool's thread looks at in one go."""

_LONGEST_WAIT = 2 * PATIENCE
"""Seconds that one examination waits for mounts that do not answer; it leaves out the others."""

T = TypeVar("T")
Faults = tuple[Fault, ...]
Located = tuple[Pool, Volume]

_SILENT = frozenset({Reason.NOT_RESPONDING, Reason.POOL_NOT_RESPONDING})
"""What no operation half done explains."""


class _Look(NamedTuple):
    """The faults that a pool shows of a volume; its filesystem is to be asked at `mounted`."""

    faults: list[Fault]
    backend: Backend | None = None
    mounted: Mount | None = None


_WELL = _Look([])


def examine(
    volumes: Iterable[Located], locks: Locks, kernel: KernelView | None = None
) -> Iterator[tuple[Pool, Volume, Faults | None]]:
    """Yield volumes, which come with their pools, with their faults; None if not examined.

    A volume is not examined while an operation is under way that may explain what is seen, or if
    too much hangs. Volumes that were deleted meanwhile are left out. Without `kernel` the kernel's
    mounts are read and indexed once, which pays off with many volumes.
    """
    examination = _Examination(locks, kernel or IndexedKernelView())
    coming, size = iter(volumes), _FIRST_BATCH
    while batch := list(itertools.islice(coming, size)):
        yield from examination.of(batch)
        size = min(2 * size, _LARGEST_BATCH)


def faults_of(pool: Pool, volume: Volume, locks: Locks) -> Faults:
    """Return the faults of one volume, the worst first.

    `NotFound` if it was deleted meanwhile, `Aborted` if it could not be examined.
    """
    faults = faults_if_examined(pool, volume, locks)
    if faults is None:
        raise Aborted(
            f"volume {volume.id} cannot be examined: an operation is under way, or too much hangs; "
            "try again"
        )
    return faults


def faults_if_examined(pool: Pool, volume: Volume, locks: Locks) -> Faults | None:
    """Return the faults of one volume; None if it could not be examined, `NotFound` as above."""
    for _, _, faults in examine([(pool, volume)], locks, KernelView()):
        return faults
    raise NotFound(f"volume {volume.id} was deleted just now")


def look_at(check: PoolCheck, backend: Backend) -> Faults:
    """Return the faults of a volume, looked for once; no operation may be under way."""
    look = _WELL
    try:
        look = _looked(check, backend)
        return _Examination(Locks(), check.kernel).all_faults(look)
    except Aborted as error:  # too much hangs, or the command is out of descriptors or memory
        return ranked([*look.faults, unreadable(error)])


def storage_faults(pools: Pools) -> Faults:
    """Return the faults of the pools: one for each reason, with the names of those that have it.

    `Aborted` if too much hangs to examine them.
    """
    found: dict[Reason, dict[str, Fault]] = {}
    for name in pools.configs:
        for fault in _pool_faults(pools, name):
            found.setdefault(fault.reason, {})[name] = fault
    return ranked(_merged(those) for those in found.values())


def _pool_faults(pools: Pools, name: str) -> list[Fault]:
    missing = pools.missing  # read first, since a pool may be opened meanwhile
    pool = pools.open.get(name)
    if pool is None:
        return [Fault(Reason.POOL_MISSING, missing[name])]
    try:
        return asked(_key(pool), lambda: _own_faults(pool))
    except NoAnswerError:
        return [_silent(pool)]


def _own_faults(pool: Pool) -> list[Fault]:
    check = PoolCheck.of(pool, KernelView())
    limit = check.limit_fault() if pool.limiter.name and not check.out_of_reach else None
    return [*check.faults, *([limit] if limit else [])]


def _merged(faults: dict[str, Fault]) -> Fault:
    """Return one fault for those that pools have, by name, for the same reason."""
    (name, first), *others = faults.items()
    text = first.message.removeprefix(f"pool {name}: ")
    names = ", ".join(faults)
    return Fault(first.reason, f"pool{'s' if others else ''} {names}: {text}")


def _key(pool: Pool) -> str:
    return str(pool.config.path)


def _silent(pool: Pool) -> Fault:
    return Fault(
        Reason.POOL_NOT_RESPONDING,
        f"pool {pool.name}: its disk has not answered for {PATIENCE:.0f} seconds",
    )


def asked(key: str, ask: Callable[[], T]) -> T:
    """Return what `waiting.call` does, or raise `Aborted` if too much hangs to ask."""
    try:
        return call(key, ask)
    except NotAskedError as error:
        raise Aborted(f"not examined: {error}; try again") from None


class _Examination:
    """One examination of many volumes: each pool is checked once, and faults are confirmed."""

    def __init__(self, locks: Locks, kernel: KernelView) -> None:
        self._locks = locks
        self._kernel = kernel
        self._checks: dict[str, PoolCheck] = {}
        self._waited = 0.0

    def of(self, batch: list[Located]) -> Iterator[tuple[Pool, Volume, Faults | None]]:
        """Yield the volumes of a batch with their faults, in its order."""
        looks = self._looks(batch)
        for pool, volume in batch:
            look = next(looks[pool.name])
            if look is _WELL:
                yield pool, volume, ()
                continue
            try:
                yield pool, volume, self._confirmed(pool, volume, look)
            except NotFound:
                continue
            except Aborted:
                yield pool, volume, None

    def _looks(self, batch: list[Located]) -> dict[str, Iterator[_Look | None]]:
        """Return what each pool shows of its volumes in a batch, by the pool's name.

        It is None for all volumes of a pool that was not looked at.
        """
        volumes: dict[str, list[Volume]] = {}
        pools: dict[str, Pool] = {}
        for pool, volume in batch:
            pools[pool.name] = pool
            volumes.setdefault(pool.name, []).append(volume)
        looks: dict[str, Iterator[_Look | None]] = {}
        for name, pool in pools.items():
            try:
                looks[name] = iter(collect(_key(pool), self._look(pool, volumes[name])))
            except NoAnswerError:
                looks[name] = itertools.repeat(_Look([_silent(pool)]))
            except (NotAskedError, Aborted):
                looks[name] = itertools.repeat(None)
        return looks

    def _look(self, pool: Pool, volumes: Iterable[Volume]) -> Iterator[_Look]:
        """Look at volumes of a pool; the pool's thread runs this."""
        check = self._checks.get(pool.name)
        if check is None:
            check = self._checks[pool.name] = PoolCheck.of(pool, self._kernel)
        is_well = not (check.faults or check.may_hide)
        for volume in volumes:
            if is_well and _looks_well(pool, volume):
                yield _WELL
            else:
                yield _looked(check, pool.backend(volume, self._kernel))

    def _confirmed(self, pool: Pool, volume: Volume, look: _Look | None) -> Faults:
        """Return a volume's faults, looked for twice if there are any.

        `NotFound` if it was deleted, `Aborted` if an operation was under way or too much hangs.
        """
        if look is None:
            raise Aborted("not examined: too much hangs")
        faults = self.all_faults(look)
        if not faults or any(fault.reason is Reason.POOL_NOT_RESPONDING for fault in faults):
            return faults
        with self._locks.watch(volume.id) as watch:
            try:
                look = asked(_key(pool), lambda: _look_again(pool, volume.id))
            except NoAnswerError:
                return (_silent(pool),)
            faults = self.all_faults(look)
        if faults and watch.disturbed:
            faults = tuple(fault for fault in faults if fault.reason in _SILENT)
            if not faults:
                raise Aborted(f"volume {volume.id}: an operation is under way")
        return faults

    def all_faults(self, look: _Look) -> Faults:
        """Return what the pool shows, and what the volume's own filesystem tells at its mount."""
        if look.backend and look.mounted:
            return ranked([*look.faults, *self._ask(look.backend, look.mounted)])
        return ranked(look.faults)

    def _ask(self, backend: Backend, mounted: Mount) -> list[Fault]:
        if self._waited > _LONGEST_WAIT:
            raise Aborted("not examined: too many mounts do not answer")
        begin = time.monotonic()
        try:
            return asked(mounted.target, lambda: mount_faults(backend, mounted))
        except NoAnswerError:
            self._waited += time.monotonic() - begin
            text = f"its filesystem does not answer; it is mounted at {mounted.target}"
            return [Fault(Reason.NOT_RESPONDING, text)]


def _looked(check: PoolCheck, backend: Backend) -> _Look:
    faults, mounted = check.data_faults(backend), None
    try:
        mounted = check.mount_to_ask(backend)
    except OSError as error:
        refuse_lack(error)
        faults.append(unreadable(error))
    return _Look(faults, backend, mounted) if faults or mounted else _WELL


def _look_again(pool: Pool, volume_id: str) -> _Look:
    """Look at a volume once more; `NotFound` if it was deleted.

    What is lost is told only if the pool is there afterwards too, with nothing mounted over the
    data, and if no other process has deleted the volume.
    """
    volume = pool.volumes.get(volume_id)
    if volume is None:
        raise NotFound(f"volume {volume_id} was deleted just now")
    kernel = KernelView()
    look = _looked(PoolCheck.of(pool, kernel), pool.backend(volume, kernel))
    if any(fault.status is Status.DATA_LOSS for fault in look.faults):
        afterwards = PoolCheck.of(pool, KernelView())
        if afterwards.out_of_reach or afterwards.may_hide:
            look = _looked(afterwards, pool.backend(volume, afterwards.kernel))
        pool.layout.changes.catch_up()
        if volume_id not in pool.volumes:
            raise NotFound(f"volume {volume_id} was deleted just now")
    return look


def _looks_well(pool: Pool, volume: Volume) -> bool:
    """Tell whether a single stat(2) shows that a volume is healthy; False: examine it.

    This halves the time of ListVolumes if most volumes were never staged.
    """
    try:
        healthy_path = pool.volumes.derived(volume, pool.healthy_path)
        if not healthy_path:
            return False
        if is_directory(healthy_path):
            return True
    except OSError:
        return False
    pool.volumes.touch(volume.id)  # if the directory comes back, it may be another one
    return False
