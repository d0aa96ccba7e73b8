"""Exporting a snapshot, or a volume that is not in use, whether the driver runs or not.

The data is read from the pool itself. A snapshot never changes; whether a volume has, is looked at
when all was read, and then the export has no end.
"""

import contextlib
import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator

from pycsi import __version__
from pycsi.backends import Backend
from pycsi.cli.errors import CommandError, InspectionError, UnknownNameError
from pycsi.cli.inspection import InspectedPool, inspect
from pycsi.cli.progress import progress_bar
from pycsi.cli.streams import sink_of, source_of, written
from pycsi.linux import treecopy
from pycsi.linux.descriptor import opened
from pycsi.model import ids, parameters
from pycsi.model.config import PoolConfig
from pycsi.model.records import Snapshot, Volume, VolumeType
from pycsi.pool.pool import backend_for
from pycsi.transfer import compression, image, pack, treechanges
from pycsi.transfer.format import Position, StreamError
from pycsi.transfer.manifest import Manifest, VolumeKind
from pycsi.transfer.pacing import paced
from pycsi.transfer.pipeline import behind
from pycsi.transfer.reader import StreamReader
from pycsi.transfer.writer import StreamWriter
from pycsi.volumes import blocks


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is exported: a volume of a pool, or the snapshot of one."""

    pool: InspectedPool
    volume: Volume
    snapshot: Snapshot | None

    @functools.cached_property
    def backend(self) -> Backend:
        """The data."""
        if self.snapshot is None:
            return self.pool.backend(self.volume)
        place = os.fspath(self.pool.layout.snapshots / self.snapshot.id)
        return backend_for(place, self.volume, self.pool.limiter, self.pool.location)

    @property
    def id(self) -> str:
        """The id of the snapshot, or of the volume."""
        return self.snapshot.id if self.snapshot else self.volume.id

    @property
    def point(self) -> str:
        """The name of the content; "" if it is a volume's, which may change."""
        if self.snapshot is None:
            return ""
        origin = f"{self.pool.uuid}\n{self.snapshot.id}\n{self.snapshot.created!r}"
        return hashlib.sha256(origin.encode()).hexdigest()

    def manifest(self, base: "Subject | None") -> Manifest:
        """Return the manifest of a full export, or of an increment on the snapshot `base`."""
        volume = self.volume
        kind = VolumeKind.BLOCK if volume.filesystem is None else VolumeKind.IMAGE
        given = parameters.without_orchestrator_keys(volume.request.parameters)
        return Manifest(
            kind=VolumeKind.DIRECTORY if volume.type is VolumeType.DIRECTORY else kind,
            size=volume.capacity,
            filesystem=volume.filesystem or "",
            thick=volume.thick,
            mkfs_options=volume.mkfs_options,
            parameters={**given, **volume.settings},
            volume=volume.id,
            snapshot=self.snapshot.id if self.snapshot else "",
            pool=self.pool.uuid,
            created=self.snapshot.created if self.snapshot else volume.created,
            point=self.point,
            base=base.point if base else "",
            base_snapshot=base.id if base else "",
            program=f"pycsi {__version__}",
        )

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """Raise `CommandError` if it was deleted, used or changed when the `with` block has ended.

        A volume has to be out of use from the beginning.
        """
        begin = self._state()
        since = treecopy.fence()
        try:
            yield
            if self.snapshot is None and self.volume.type is VolumeType.DIRECTORY:
                treecopy.refuse_changed(self.backend.content, since)
        except treecopy.TreeChangedError as change:
            raise CommandError(
                f"{self.id} was changed while it was exported ({change}); {_ADVICE}"
            ) from None
        except FileNotFoundError:
            raise CommandError(
                f"{self.id} was deleted or changed while it was exported; {_ADVICE}"
            ) from None
        if self._state() != begin:
            raise CommandError(f"{self.id} was written to while it was exported; {_ADVICE}")

    def _state(self) -> tuple[int, ...]:
        """Return what another value of tells that the data may have changed."""
        try:
            status = self.backend.content.stat()
        except FileNotFoundError:
            raise CommandError(f"{self.id} has been deleted; see: pycsi get snapshots") from None
        if self.snapshot:
            return status.st_dev, status.st_ino
        self.backend.kernel.invalidate()
        if where := self.backend.written_at():
            raise CommandError(f"{self.id} is in use at {where}; {_ADVICE}")
        return status.st_dev, status.st_ino, status.st_ctime_ns, status.st_size


_ADVICE = "take a snapshot of it, and export that"


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
            yield Subject(pool, snapshot.volume, snapshot)
    for volume in pool.volumes:
        if name in {volume.id, volume.name, _key(volume.id)}:
            yield Subject(pool, volume, None)


def _key(object_id: str) -> str:
    return object_id.rpartition("@")[0] if ids.node_of(object_id) else object_id


def find_base(configs: Iterable[PoolConfig], name: str, subject: Subject) -> Subject:
    """Return the snapshot on which an increment builds; `CommandError` if it cannot be one."""
    if subject.snapshot is None:
        raise CommandError(
            f"{subject.id} is a volume, and an increment is from one snapshot to another; {_ADVICE}"
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
        raise CommandError(f"{subject.id} is a volume, which may have changed; {_ADVICE}")
    with (
        written(file, resume=how.resume) as out,
        _writer(subject.manifest(base), out, file, how) as writer,
        contextlib.ExitStack() as held,
    ):
        for item in (base, subject):
            if item:
                held.enter_context(item.unchanged())
        if subject.volume.type is VolumeType.DIRECTORY:
            size = _send_tree(subject, base, writer, how.rate)
        else:
            size = _send_image(subject, base, writer, how.rate)
        held.close()
        writer.end(size)


@contextlib.contextmanager
def _writer(manifest: Manifest, out: int, file: str, how: How) -> Iterator[StreamWriter]:
    """Yield the writer of an export, which has a manifest already: a new one, or an old one's."""
    after = _found(manifest, out, file) if how.resume else None
    if how.resume:
        os.ftruncate(out, after.length if after else 0)
        os.lseek(out, 0, os.SEEK_END)
    with behind(sink_of(out, file)) as sink:
        writer = StreamWriter(sink, compress=how.compress, after=after)
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


def _send_image(
    subject: Subject, base: Subject | None, writer: StreamWriter, rate: int | None
) -> int:
    size = subject.volume.capacity
    with opened(subject.backend.content) as fd, contextlib.ExitStack() as files:
        if (found_size := os.fstat(fd).st_size) < size:
            raise CommandError(
                f"{subject.id} is damaged: its image has {found_size} of {size} bytes; use "
                "another snapshot"
            )
        if base:
            old = files.enter_context(opened(base.backend.content))
            by_extents = _share_blocks(base, subject)
            found = blocks.changed(old, fd, 0, size, lambda: None, by_extents=by_extents)
            spans = list(image.changes(fd, found))
        else:
            spans = [image.Span(*part) for part in blocks.allocated(fd, 0, size)]
        total = sum(span.end - span.start for span in spans if not span.hole)
        with progress_bar(f"export {subject.volume.name}", total) as done:
            image.send(fd, spans, writer, paced(rate, done))
    return size


def _send_tree(
    subject: Subject, base: Subject | None, writer: StreamWriter, rate: int | None
) -> int:
    root = subject.backend.content
    try:
        with progress_bar(f"export {subject.volume.name}", None) as done:
            if base is None:
                return pack.send(root, writer, paced(rate, done))
            same = _same_data(by_extents=_share_blocks(base, subject))
            return treechanges.send(root, base.backend.content, same, writer, paced(rate, done))
    except StreamError as error:
        raise CommandError(f"{subject.id} cannot be exported: {error}") from None


def _share_blocks(base: Subject, subject: Subject) -> bool:
    return base.pool.uuid == subject.pool.uuid and subject.pool.shares_blocks


def _same_data(*, by_extents: bool) -> Callable[[int, int], bool]:
    """Return what tells whether two open files of the same size have the same data."""

    def is_same(old: int, new: int) -> bool:
        size = os.fstat(new).st_size
        # Extents show what is the same in a moment. What they do not show is read.
        for by in (True, False) if by_extents else (False,):
            if not any(blocks.changed(old, new, 0, size, lambda: None, by_extents=by)):
                return True
        return False

    return is_same
