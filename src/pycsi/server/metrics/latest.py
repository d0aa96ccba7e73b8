"""Measuring what may take long, or hang, without keeping a scrape waiting."""

import os
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

import structlog

log = structlog.get_logger()

T = TypeVar("T")

_PATIENCE = 2.0
"""Seconds that a scrape waits for a new measurement; Prometheus gives up after 10 in all."""

_SHARE = 20
"""The pause after a measurement, in times its duration, so that measuring takes little of it."""

_LONGEST_PAUSE = 10.0
"""Seconds that it is at most: what waits for disks that hang takes no processor."""


class Latest(Generic[T]):
    """What `measure` has returned last. A thread called `name` calls it, when it is asked for."""

    def __init__(self, name: str, measure: Callable[[], T]) -> None:
        self._name = name
        self._measure = measure
        self._changed = threading.Condition()
        self._measuring = False
        self._due = float("-inf")
        self._value: T | None = None

    def get(self) -> T | None:
        """Return a new measurement; the last one if none is due, or a new one takes too long.

        None before the first one is complete.
        """
        with self._changed:
            if not self._measuring and time.monotonic() >= self._due:
                self._begin()
            self._changed.wait_for(lambda: not self._measuring, _PATIENCE)
            return self._value

    def _begin(self) -> None:
        try:
            threading.Thread(target=self._run, name=self._name, daemon=True).start()
        except RuntimeError as error:  # such as at the maximum of processes (pthread_create(3))
            log.warning("cannot measure now", what=self._name, error=str(error))
        else:
            self._measuring = True

    def _run(self) -> None:
        os.nice(1)  # on Linux it applies to this thread alone: RPCs have priority
        begin = time.monotonic()
        try:
            self._value = self._measure()
        except Exception:
            log.exception("cannot measure", what=self._name)
        finally:
            done = time.monotonic()
            with self._changed:
                self._due = done + min(_SHARE * (done - begin), _LONGEST_PAUSE)
                self._measuring = False
                self._changed.notify_all()
