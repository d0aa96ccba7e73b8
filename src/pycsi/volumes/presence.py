"""Opening the configured pools, at start or when they appear, and watching them.

A disk may be missing when the driver starts, and it may fail later. The other pools are served all
the same: a thread looks for missing pools, opens those that have appeared, and logs each change.
"""

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import PurePath

import structlog

from pycsi.backends.throttle import Throttle
from pycsi.linux.waiting import NoAnswerError, NotAskedError, call
from pycsi.model.config import PoolConfig
from pycsi.model.errors import ConfigError, CsiError
from pycsi.pool import opening
from pycsi.pool.directory import MissingPoolError, opening_error
from pycsi.pool.pool import Pool
from pycsi.volumes import admission
from pycsi.volumes.enforcement import Enforcement
from pycsi.volumes.iolimits import IoEnforcement
from pycsi.volumes.locks import Locks
from pycsi.volumes.reaper import Reaper
from pycsi.volumes.trimmer import Trimmer

log = structlog.get_logger()

_INTERVAL = 2.0
"""Seconds between two looks at the pools."""


class Presence:
    """The configured pools: those that are `open`, and why the others are `missing`, by name.

    Iterating yields those that are open.
    """

    def __init__(self, configs: Iterable[PoolConfig], locks: Locks, throttle: Throttle) -> None:
        self.configs: Mapping[str, PoolConfig] = {config.name: config for config in configs}
        self.open: Mapping[str, Pool] = {}
        self.missing: Mapping[str, str] = {}
        self.froze: Callable[[float, bool], None] = lambda _seconds, _overran: None
        """Called after each freeze, with its seconds, and whether its limit has ended it."""
        self.removed: Callable[[str, float | None], None] = lambda _pool, _seconds: None
        """Called with a pool's name for each entry of its trash; see `Trash.removed`."""
        self._locks = locks
        self._throttle = throttle
        self._seeking = threading.Lock()
        self._told: dict[str, str] = {}
        self._workers: list[Reaper | Trimmer] = []
        self._enforcements: dict[str, tuple[Enforcement, IoEnforcement]] = {}
        self._stopping = threading.Event()
        self._watch = threading.Thread(target=self._run, name="presence", daemon=True)

    def __iter__(self) -> Iterator[Pool]:
        return iter(self.open.values())

    def claim(self) -> None:
        """Open and lock the pools that are there.

        A pool whose path holds something else counts as missing too: another disk may be mounted
        there. `ConfigError` if that is so for all pools, if two pools are one directory or nested,
        or if a required pool is not there.
        """
        refused: dict[str, ConfigError] = {}
        try:
            for config in self.configs.values():
                self._refuse_same(config)
                try:
                    self._attempt(config, functools.partial(self._open_first, config))
                except ConfigError as error:
                    if config.require_pool:
                        raise
                    refused[config.name] = error
            if refused and refused.keys() == self.configs.keys():
                raise next(iter(refused.values()))
            for name, refusal in refused.items():
                self._miss(name, str(refusal))
            for pool in self:
                _refuse_nested(pool, self)
        except BaseException:
            self.close()
            raise

    def _open_first(self, config: PoolConfig) -> None:
        self._put(self._opened(config, create=True))

    def _opened(self, config: PoolConfig, *, create: bool) -> Pool:
        pool = Pool(config, create=create)
        pool.throttle = self._throttle
        pool.missing = lambda: self.missing
        pool.trash.removed = lambda seconds: self.removed(config.name, seconds)
        return pool

    def recover(self) -> None:
        """Load the pools, and clean up after a crash. Call once, after `claim`."""
        self._load()
        for pool in list(self):
            self._attempt(pool.config, functools.partial(opening.recover, pool))
        admission.admit_first(self)

    def _load(self) -> None:
        """Load the volumes of the open pools, and thaw those that a crash has left frozen.

        A `ConfigError` is raised only after all pools were tried, so that all are thawed.
        """
        refusals = []
        for pool in list(self):
            try:
                self._attempt(pool.config, functools.partial(opening.load, pool))
            except ConfigError as error:
                refusals.append(str(error))
        if refusals:
            raise ConfigError("; ".join(refusals))

    def start(self) -> None:
        """Start the background work, and looking for missing pools; call it after `recover`."""
        for pool in self:
            self._tend(pool)
        self._watch.start()

    def close(self) -> None:
        """Stop the background work, and close the pools, which releases them."""
        self._stopping.set()
        if self._watch.is_alive():
            self._watch.join()
        for worker in self._workers:
            worker.stop()
        for name in list(self.open):
            self._remove(name)

    def seek(self, name: str | None = None) -> None:
        """Try to open the pool called `name` if it is missing, or with None all missing pools.

        This returns once they are open; reading a pool's records may take a while.
        """
        if not (self.missing if name is None else name in self.missing):
            return
        with self._seeking:
            for config in self.configs.values():
                if config.name in self.missing and name in {None, config.name}:
                    self._open_late(config)

    def _attempt(self, config: PoolConfig, act: Callable[[], None]) -> None:
        """Run a step of the start that needs a pool's disk; if that is away the pool is missing."""
        try:
            try:
                act()
            except OSError as error:
                raise opening_error(config, error) from None
        except MissingPoolError as error:
            self._remove(config.name)
            if config.require_pool:
                raise ConfigError(f"{error} (require-pool)") from None
            self._miss(config.name, str(error))

    def _open_late(self, config: PoolConfig) -> None:
        try:
            pool = self._opened(config, create=False)
            try:
                _refuse_nested(pool, self)
                opening.load(pool)
                opening.recover(pool)
                admission.admit_late(pool, self)
            except BaseException:
                pool.close()
                raise
        except OSError as error:
            self._miss(config.name, str(opening_error(config, error)))
        except (ConfigError, CsiError) as error:
            self._miss(config.name, str(error))
        else:
            self._put(pool)
            self._told.pop(config.name, None)
            self._tend(pool)

    def _refuse_same(self, config: PoolConfig) -> None:
        for other in self:
            with contextlib.suppress(OSError):
                if config.path.samefile(other.config.path):
                    raise ConfigError(
                        f"pools {other.name} and {config.name} are one directory, "
                        f"{other.config.path} and {config.path}; give each its own"
                    )

    def _put(self, pool: Pool) -> None:
        # Other threads read these mappings without a lock: they are replaced, never changed.
        opened = {**self.open, pool.name: pool}
        self.open = {name: opened[name] for name in self.configs if name in opened}
        self.missing = {name: why for name, why in self.missing.items() if name != pool.name}

    def _miss(self, name: str, why: str) -> None:
        self.missing = {**self.missing, name: why}
        self._tell(name, why)

    def _remove(self, name: str) -> None:
        if pool := self.open.get(name):
            self.open = {key: item for key, item in self.open.items() if key != name}
            pool.close()

    def _tend(self, pool: Pool) -> None:
        for worker in (Reaper(pool, self._locks), Trimmer(pool, self._locks)):
            self._workers.append(worker)
            worker.start()
        self._enforcements[pool.name] = (
            Enforcement(pool, self._locks),
            IoEnforcement(pool, self._locks),
        )
        self._enforce(pool)

    def _enforce(self, pool: Pool) -> None:
        for enforcement in self._enforcements[pool.name]:
            enforcement.look()

    def _tell(self, name: str, why: str) -> None:
        if self._told.get(name) != why:
            self._told[name] = why
            log.warning("a pool is missing; the others are served", pool=name, error=why)

    def _run(self) -> None:
        os.nice(1)  # on Linux it applies to this thread alone: RPCs have priority
        while not self._stopping.wait(_INTERVAL):
            try:
                self.seek()
                self._look()
            except Exception:
                log.exception("cannot look for the pools")

    def _look(self) -> None:
        """Log which of the open pools have been lost, or are back."""
        for pool in self:
            try:
                call(str(pool.config.path), pool.check)
            except CsiError as error:
                self._tell(pool.name, str(error))
            except NoAnswerError:
                self._tell(pool.name, f"pool {pool.name}: its disk does not answer")
            except NotAskedError:
                continue
            else:
                if self._told.pop(pool.name, None):
                    log.info("the pool is there again", pool=pool.name)
                self._enforce(pool)


def _refuse_nested(pool: Pool, others: Iterable[Pool]) -> None:
    """Raise `ConfigError` if a pool lies in another, or that in it, by any path or bind mount."""
    for other in others:
        for inner, outer in ((pool, other), (other, pool)):
            if inner is not outer and _lies_in(inner, outer):
                raise ConfigError(
                    f"pool {inner.name} lies in pool {outer.name}; use another directory"
                )


def _lies_in(pool: Pool, other: Pool) -> bool:
    here, there = pool.location, other.location
    return here.device == there.device and PurePath(here.root).is_relative_to(there.root)
