"""One look at a pool that can be read, for all checks."""

import dataclasses
import functools
import time
from collections.abc import Iterator

from pycsi.backends import Backend
from pycsi.cli.doctor import commands
from pycsi.cli.doctor.codes import Code
from pycsi.cli.doctor.finding import Finding, Mend
from pycsi.cli.inspection import InspectedPool
from pycsi.linux.kernel import IndexedKernelView, KernelView
from pycsi.model.config import PoolConfig
from pycsi.model.records import Snapshot, Volume

SETTLED = 600.0
"""Seconds after which what a running driver may be doing is no longer taken for that."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Look:
    """A look at the pool `seen`, which was `given` so; a driver has it open if it is `served`."""

    seen: InspectedPool
    given: PoolConfig
    served: bool
    kernel: KernelView = dataclasses.field(default_factory=IndexedKernelView)
    now: float = dataclasses.field(default_factory=time.time)

    @property
    def name(self) -> str:
        return self.given.name

    @functools.cached_property
    def volumes(self) -> dict[str, Volume]:
        """The volumes whose records can be read, by id."""
        return {volume.id: volume for volume in self.seen.volumes}

    def backends(self) -> Iterator[Backend]:
        """Yield the backends of the volumes whose records can be read."""
        for volume in self.volumes.values():
            yield self.seen.backend(volume, self.kernel)

    def snapshots(self) -> list[Snapshot]:
        """Return the snapshots whose records can be read, also those of prepared groups."""
        return [*self.seen.snapshots, *self.seen.snapshots.hidden()]

    def is_settled(self, since: float) -> bool:
        """Tell whether what is so `since` then, in seconds since the epoch, is left for good.

        While a driver serves the pool it may be at work on it, unless that began long ago.
        """
        return not self.served or self.now - since > SETTLED

    def pycsi(self, *words: str) -> str:
        """Return a command of pycsi about this pool."""
        return commands.pycsi(self.given, *words)

    def finding(
        self, code: Code, subject: object, message: str, command: str, mend: Mend | None = None
    ) -> Finding:
        """Return a finding about something in this pool."""
        return Finding(
            code=code,
            subject=str(subject),
            pool=self.name,
            message=message,
            command=command,
            mend=mend,
        )
