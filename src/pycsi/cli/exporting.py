"""Exporting a snapshot, or a volume that is not in use, whether the driver runs or not.

The data is read from the pool itself.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator

from pycsi.backends import Backend
from pycsi.cli.errors import CommandError, InspectionError, UnknownNameError
from pycsi.cli.inspection import InspectedPool, inspect
from pycsi.cli.progress import progress_bar
from pycsi.cli.streams import sink_of, source_of, written
from pycsi.model import ids
from pycsi.model.config import PoolConfig
from pycsi.model.errors import CsiError
from pycsi.model.records import Snapshot, Volume
from pycsi.pool.pool import backend_for
from pycsi.transfer import compression
from pycsi.transfer.format import Position, StreamError
from pycsi.transfer.manifest import Manifest
from pycsi.transfer.pacing import paced
from pycsi.transfer.reader import StreamReader
from pycsi.transfer.writer import StreamWriter
from pycsi.volumes.exporting import ADVICE, Subject, send


def find(configs: Iterable[PoolConfig], name: str, *, volume: bool) -> Subject:
    """Return the snapshot with an id or name, or else the volume; only that with `volume`.

    `UnknownNameError` if there is neither.
    """
    missing = []
    found: list[Subject] = []
    for config in configs:
        try:
            inspect(config, lambda pool: found.extend(_named(pool, name)))
        except InspectionError as error:
            missing.append(str(error))
    chosen = [item for item in found if item.snapshot is None or not volume]
    chosen.sort(key=lambda item: item.snapshot is None)
    if not chosen:
        what = "volume" if volume else "snapshot or volume"
        message = f"there is no {what} {name!r}; see: pycsi get volumes, pycsi get snapshots"
        if missing:
            raise InspectionError("; ".join([*missing, message]))
        raise UnknownNameError(message)
    first = [item for item in chosen if bool(item.snapshot) is bool(chosen[0].snapshot)]
    if len(first) > 1:
        raise CommandError(f"{name} is there {len(first)} times; give its id, or --pool")
    return chosen[0]


def _named(pool: InspectedPool, name: str) -> Iterator[Subject]:
    for snapshot in pool.snapshots:
        if name in {snapshot.id, snapshot.name, _key(snapshot.id)}:
            place = os.fspath(pool.layout.snapshots / snapshot.id)
            backend = backend_for(place, snapshot.volume, pool.limiter, pool.location)
            yield _subject(pool, snapshot.volume, snapshot, backend)
    for volume in pool.volumes:
        if name in {volume.id, volume.name, _key(volume.id)}:
            yield _subject(pool, volume, None, pool.backend(volume))


def _subject(
    pool: InspectedPool, volume: Volume, snapshot: Snapshot | None, backend: Backend
) -> Subject:
    return Subject(
        pool=pool.uuid,
        shares_blocks=pool.shares_blocks,
        volume=volume,
        snapshot=snapshot,
        backend=backend,
    )


def _key(object_id: str) -> str:
    return object_id.rpartition("@")[0] if ids.node_of(object_id) else object_id


def find_base(configs: Iterable[PoolConfig], name: str, subject: Subject) -> Subject:
    """Return the snapshot on which an increment builds; `CommandError` if it cannot be one."""
    if subject.snapshot is None:
        raise CommandError(
            f"{subject.id} is a volume, and an increment is from one snapshot to another; {ADVICE}"
        )
    base = find(configs, name, volume=False)
    if base.snapshot is None:
        raise UnknownNameError(f"there is no snapshot {name!r}; see: pycsi get snapshots")
    if not base.volume.is_same(subject.volume) or base.snapshot.created > subject.snapshot.created:
        raise CommandError(
            f"{base.id} is no earlier snapshot of {subject.volume.id}; give one of the same volume"
        )
    return base


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """How an export is written: `rate` is how many bytes a second, None for any number.

    With `resume` an export that was cut off is continued.
    """

    compress: bool
    rate: int | None
    resume: bool


def export(subject: Subject, base: Subject | None, file: str, how: How) -> None:
    """Write an export of `subject` to a file, a pipe, or standard output (`-`).

    With `base` it is an increment. `CommandError` if what is exported is in use.
    """
    if how.compress:
        try:
            compression.check_available()
        except compression.UncompressedError as error:
            raise CommandError(f"{error}: install it, or leave --compress out") from None
    if how.resume and subject.snapshot is None:
        raise CommandError(f"{subject.id} is a volume, which may have changed; {ADVICE}")

    @contextlib.contextmanager
    def follow(total: int | None) -> Iterator[Callable[[int], None]]:
        with progress_bar(f"export {subject.volume.name}", total) as done:
            yield paced(how.rate, done)

    with (
        _explained(),
        written(file, resume=how.resume) as out,
        _writer(subject.manifest(base), out, file, how) as writer,
        contextlib.ExitStack() as held,
    ):
        for item in (base, subject):
            if item:
                held.enter_context(item.unchanged())
        size = send(subject, base, writer, follow)
        held.close()
        writer.end(size)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Raise `CommandError` for what cannot be exported."""
    try:
        yield
    except CsiError as error:
        raise CommandError(str(error)) from None


@contextlib.contextmanager
def _writer(manifest: Manifest, out: int, file: str, how: How) -> Iterator[StreamWriter]:
    """Yield the writer of an export, which has a manifest already: a new one, or an old one's."""
    after = _found(manifest, out, file) if how.resume else None
    if how.resume:
        os.ftruncate(out, after.length if after else 0)
        os.lseek(out, 0, os.SEEK_END)
    writer = StreamWriter(sink_of(out, file), compress=how.compress, after=after)
    if after is None:
        writer.manifest(manifest)
    yield writer


def _found(manifest: Manifest, out: int, file: str) -> Position | None:
    """Return how far an export that was cut off is whole; None if there is not even a manifest."""
    try:
        there = StreamReader(source_of(out, file))
    except StreamError:
        return None
    if there.manifest != manifest:
        raise CommandError(
            f"what is there is of {there.manifest.snapshot or there.manifest.volume}, or of "
            "another kind of export; remove it, or leave --resume out"
        )
    return there.intact()
