"""Exports: what a snapshot holds, or a volume that is not in use, in the format of `transfer/`.

A snapshot never changes; whether a volume has, is looked at when all was read, and then the export
has no end.
"""

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator

from pycsi import __version__
from pycsi.backends import Backend
from pycsi.linux import treecopy
from pycsi.linux.descriptor import opened
from pycsi.model import parameters
from pycsi.model.errors import FailedPrecondition, NotFound
from pycsi.model.records import Snapshot, Volume, VolumeType
from pycsi.model.request import Source, SourceKind
from pycsi.pool.pool import Pool
from pycsi.transfer import image, pack, treechanges
from pycsi.transfer.format import StreamError
from pycsi.transfer.manifest import Manifest, VolumeKind
from pycsi.transfer.pipeline import produced
from pycsi.transfer.writer import StreamWriter
from pycsi.volumes import blocks
from pycsi.volumes.locks import Locks, snapshot_key
from pycsi.volumes.pools import Pools

_PIECE = 1024 * 1024
ADVICE = "take a snapshot of it, and export that"
"""What to do about a volume that is in use."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is exported: a volume of the pool with a UUID, or the snapshot of one.

    `backend` is its data. `shares_blocks` tells whether files in the pool can share their blocks.
    `fixed` is the point of a volume that does not change any more, as it moves to another node.
    """

    pool: str
    shares_blocks: bool
    volume: Volume
    snapshot: Snapshot | None
    backend: Backend
    fixed: str = ""

    @property
    def id(self) -> str:
        """The id of the snapshot, or of the volume."""
        return self.snapshot.id if self.snapshot else self.volume.id

    @property
    def point(self) -> str:
        """The name of the content; "" if it is a volume's, which may change."""
        if self.snapshot is None:
            return self.fixed
        origin = f"{self.pool}\n{self.snapshot.id}\n{self.snapshot.created!r}"
        return hashlib.sha256(origin.encode()).hexdigest()

    def manifest(self, base: "Subject | None" = None) -> Manifest:
        """Return the manifest of a full export, or of an increment on the snapshot `base`.

        `FailedPrecondition` if it cannot be exported.
        """
        volume = self.volume
        if volume.encryption:
            raise FailedPrecondition(
                f"{self.id} is encrypted, and nothing but its own image can hold its key: mount "
                "it, and copy its files"
            )
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
            pool=self.pool,
            created=self.snapshot.created if self.snapshot else volume.created,
            point=self.point,
            base=base.point if base else "",
            base_snapshot=base.id if base else "",
            program=f"pycsi {__version__}",
        )

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """Raise an error if it was deleted, used or changed when the `with` block has ended.

        A volume has to be out of use from the beginning. The errors are `NotFound` and
        `FailedPrecondition`.
        """
        begin = self._state()
        since = treecopy.fence()
        try:
            yield
            if self.snapshot is None and self.volume.type is VolumeType.DIRECTORY:
                treecopy.refuse_changed(self.backend.content, since)
        except treecopy.TreeChangedError as change:
            raise FailedPrecondition(
                f"{self.id} was changed while it was exported ({change}); {ADVICE}"
            ) from None
        except FileNotFoundError:
            raise FailedPrecondition(
                f"{self.id} was deleted or changed while it was exported; {ADVICE}"
            ) from None
        if self._state() != begin:
            raise FailedPrecondition(f"{self.id} was written to while it was exported; {ADVICE}")

    def _state(self) -> tuple[int, ...]:
        """Return what another value of tells that the data may have changed."""
        try:
            status = self.backend.content.stat()
        except FileNotFoundError:
            raise NotFound(f"{self.id} has been deleted; see: pycsi get snapshots") from None
        if self.snapshot:
            return status.st_dev, status.st_ino
        self.backend.kernel.invalidate()
        if where := self.backend.written_at():
            raise FailedPrecondition(f"{self.id} is in use at {where}; {ADVICE}")
        return status.st_dev, status.st_ino, status.st_ctime_ns, status.st_size


# What is written


Told = Callable[[int], None]
"""Is told how many bytes were done."""

Follow = Callable[[int | None], contextlib.AbstractContextManager[Told]]
"""Returns what follows the export; it gets the bytes that there are to do, None if not known."""


def send(
    subject: Subject,
    base: Subject | None,
    writer: StreamWriter,
    follow: Follow,
) -> int:
    """Write what is exported, without manifest and end; return its bytes.

    With `base` it is an increment. `FailedPrecondition` if it cannot be exported.
    """
    if subject.volume.type is VolumeType.DIRECTORY:
        return _send_tree(subject, base, writer, follow)
    return _send_image(subject, base, writer, follow)


def _send_image(
    subject: Subject, base: Subject | None, writer: StreamWriter, follow: Follow
) -> int:
    size = subject.volume.capacity
    with opened(subject.backend.content) as fd, contextlib.ExitStack() as files:
        if (found_size := os.fstat(fd).st_size) < size:
            raise FailedPrecondition(
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
        with follow(total) as done:
            image.send(fd, spans, writer, done)
    return size


def _send_tree(subject: Subject, base: Subject | None, writer: StreamWriter, follow: Follow) -> int:
    root = subject.backend.content
    try:
        with follow(None) as done:
            if base is None:
                return pack.send(root, writer, done)
            same = _same_data(by_extents=_share_blocks(base, subject))
            return treechanges.send(root, base.backend.content, same, writer, done)
    except StreamError as error:
        raise FailedPrecondition(f"{subject.id} cannot be exported: {error}") from None


def _share_blocks(base: Subject, subject: Subject) -> bool:
    return base.pool == subject.pool and subject.shares_blocks


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


# What the driver itself exports


class Exporter:
    """Exports the snapshots and volumes of the driver's pools."""

    def __init__(self, pools: Pools, locks: Locks) -> None:
        self._pools = pools
        self._locks = locks

    def exported(self, source: Source, progress: Callable[[], None]) -> Iterator[bytes]:
        """Yield an export of a snapshot, or of a volume that is not in use, in pieces.

        Meanwhile it is kept from being deleted, and a volume from being used. `progress` is called
        again and again; an error that it raises ends the export.
        """
        is_volume = source.kind is SourceKind.VOLUME
        with self._locks.share(source.id if is_volume else snapshot_key(source.id)):
            subject = self._volume(source.id) if is_volume else self._snapshot(source.id)
            yield from exported(subject, None, progress)

    def _snapshot(self, snapshot_id: str) -> Subject:
        pool, snapshot = self._pools.need_snapshot(snapshot_id)
        pool.check(writable=False)
        return snapshot_subject(pool, snapshot)

    def _volume(self, volume_id: str) -> Subject:
        pool, volume = self._pools.need(volume_id)
        pool.check()
        backend = pool.backend(volume)
        if where := backend.written_at():
            raise FailedPrecondition(
                f"volume {volume_id} is in use at {where}, and is copied to another node only "
                "while it is not; take a snapshot of it, and restore that"
            )
        return volume_subject(pool, volume)


def snapshot_subject(pool: Pool, snapshot: Snapshot) -> Subject:
    """Return a snapshot as what is exported."""
    return _subject(pool, snapshot.volume, snapshot, pool.backend_of(snapshot))


def volume_subject(pool: Pool, volume: Volume, fixed: str = "") -> Subject:
    """Return a volume that is not in use as what is exported; `fixed` as in `Subject`."""
    backend = pool.backend(volume)
    backend.prepare_copy()
    return dataclasses.replace(_subject(pool, volume, None, backend), fixed=fixed)


def _subject(pool: Pool, volume: Volume, snapshot: Snapshot | None, backend: Backend) -> Subject:
    return Subject(
        pool=pool.uuid,
        shares_blocks=pool.reflinks,
        volume=volume,
        snapshot=snapshot,
        backend=backend,
    )


def exported(
    subject: Subject, base: Subject | None, progress: Callable[[], None]
) -> Iterator[bytes]:
    """Yield an export of `subject`, or the increment on `base`, in pieces; see `Exporter`."""

    def produce(give: Callable[[bytes], None]) -> None:
        _write(subject, base, give, progress)

    yield from produced(produce)


def _write(
    subject: Subject,
    base: Subject | None,
    give: Callable[[bytes], None],
    progress: Callable[[], None],
) -> None:
    """Write an export, in pieces of at least a certain size but for the last."""
    waiting: list[bytes | memoryview] = []

    def sink(data: bytes | memoryview) -> None:
        waiting.append(data)
        if sum(map(len, waiting)) >= _PIECE:
            flush()

    def flush() -> None:
        give(b"".join(waiting))
        waiting.clear()

    writer = StreamWriter(sink)
    writer.manifest(subject.manifest(base))
    with contextlib.ExitStack() as held:
        for item in (base, subject):
            if item:
                held.enter_context(item.unchanged())
        told: Told = lambda _: progress()  # noqa: E731
        size = send(subject, base, writer, lambda _: contextlib.nullcontext(told))
    writer.end(size)
    flush()
