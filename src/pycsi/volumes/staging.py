"""Staging and publishing one volume: check, compare with what the kernel has mounted, then act.

What is mounted is always read from the kernel. The arguments of a call, which the kernel does not
keep, are in the volume's notes; if they are not known, any call may be a repeated one.
"""

import contextlib
import os
from collections.abc import Iterator

from pycsi.backends import Backend
from pycsi.linux.kernel import Mount
from pycsi.model import mountflags
from pycsi.model.encryption import Passphrase
from pycsi.model.errors import AlreadyExists, CsiError, FailedPrecondition, InvalidArgument
from pycsi.model.records import Volume, VolumeType
from pycsi.model.request import Capability, Mode
from pycsi.model.spec import requested_filesystems
from pycsi.model.trace import phase
from pycsi.pool.pool import Pool
from pycsi.volumes import paths
from pycsi.volumes.notes import UNKNOWN, Note, Notes
from pycsi.volumes.unmounting import unmount


class Staging:
    """Stages and publishes one volume, and undoes both. Callers hold the volume's lock.

    If the volume's pool is `away`, only the kernel's mounts are known, which is enough to undo.
    """

    def __init__(self, backend: Backend, *, away: bool = False) -> None:
        self.backend = backend
        self.kernel = backend.kernel
        self.away = away
        self.notes = Notes(backend.where, away=away)
        if self.notes.lost:
            # Every mount may be a staged or a published one, with any arguments.
            self.notes.published = {item.target: UNKNOWN for item in backend.mounts()}
            if not backend.target_is_file:  # a raw volume is not mounted where it is staged
                self.notes.staged = dict(self.notes.published)
        self._id = backend.volume.id

    # Queries

    def published(self) -> set[str]:
        """Return the targets at which the volume is published now."""
        return {item.target for item in self.backend.mounts()} & self.notes.published.keys()

    def in_use(self) -> str | None:
        """Return where or by what the volume is in use, or None if it may be deleted."""
        # Noted paths are looked at only if they matter: a disk on the way there may hang.
        places = [item.target for item in self.backend.mounts()] or self._staged()
        if not places and self.notes.lost and self.backend.is_staged(""):
            return "a staging path that is not known"
        return places[0] if places else self.backend.holder()

    def holds(self, path: str) -> bool:
        """Tell whether the volume is staged or published at `path`."""
        if self.backend.is_seen(path):
            return True
        return path in self.notes.staged and self.backend.is_staged(path)

    def has_lost(self, path: str, *, known: bool) -> bool:
        """Tell whether another mount is at `path`, where the volume was staged or published.

        If that is not `known`, because the notes are away, assume that it was.
        """
        noted = path in self.notes.staged or path in self.notes.published
        return (noted or not known) and self.kernel.mounts.topmost(path) is not None

    def _staged(self) -> list[str]:
        """Return the noted paths at which the volume is staged now, without those that are gone."""
        there = filter(os.path.lexists, self.notes.staged)
        return [path for path in there if self.backend.is_staged(path)]

    # Changes

    def ensure_staged(self, path: str, capability: Capability, arguments: str) -> None:
        """Stage the volume at the empty directory `path`; a repeated call does nothing.

        `AlreadyExists` if it is staged there with other arguments.
        """
        note = self.notes.staged.get(path)
        if note and self.backend.is_staged(path):
            if not note.agrees(arguments):
                raise AlreadyExists(
                    f"volume {self._id} is staged at {path} with another capability or context; "
                    "unstage it first"
                )
            return
        self._refuse_mounted(path)
        if not paths.is_empty_directory(path):
            raise FailedPrecondition(
                f"staging_target_path {path} is not an empty directory; create one"
            )
        # After a reboot, or an unmount by another process, the notes are outdated. They must go:
        # the loop device of a raw volume does not tell at which noted path it is staged.
        staged = self._staged()
        if not staged:
            self.notes.staged.clear()
        note = _note(capability, arguments)
        self._refuse_other_options(note, [self.notes.staged[other] for other in staged])
        self.notes.staged[path] = note
        self.notes.save()
        try:
            with phase("mount"):
                self.backend.stage(path, capability)
        except CsiError:
            # A raw volume that is staged elsewhere would count as staged at every noted path.
            if not self.backend.is_seen(path):
                del self.notes.staged[path]
                self.notes.save_if_possible()
            raise

    def ensure_unstaged(self, path: str) -> None:
        """Unstage the volume from `path`; not staged there is fine.

        `FailedPrecondition` if the volume is still published, or in use.
        """
        if targets := self.published() - {path}:
            raise FailedPrecondition(
                f"volume {self._id} is still published at {min(targets)}; unpublish it first"
            )
        self._unmount(path)
        noted = self.notes.staged.pop(path, None)
        if not self._staged():
            with phase("detach"):
                self.backend.release()
        if noted:
            self.notes.save_if_possible()

    def ensure_published(
        self,
        target: str,
        capability: Capability,
        arguments: str,
        *,
        readonly: bool,
        source: str | None,
    ) -> None:
        """Publish the volume at `target`; a repeated call does nothing.

        `source` is its staging path; None for an inline volume, which is mounted at its target.
        `AlreadyExists` if it is published there with other arguments.
        """
        if source and self.notes.lost:
            # The request tells that this is a staging path, and not a published target.
            self.notes.staged[source] = UNKNOWN
            self.notes.published.pop(source, None)
        published = self.published()
        if self._is_repeated(target, capability.mode, arguments, published):
            return
        if source and not (source in self.notes.staged and self.backend.is_staged(source)):
            raise FailedPrecondition(
                f"volume {self._id} is not staged at {source}; call NodeStageVolume first"
            )
        note = _note(capability, arguments)
        if note.options or not source:
            there = [self.notes.published[path] for path in published]
            self._refuse_other_options(note, [self.notes.staged[source]] if source else there)
        self._refuse_mounted(target)
        paths.refuse_unfit(target, is_file=self.backend.target_is_file)
        # Notes of targets that are gone, after a reboot or an unmount by hand, are outdated.
        for path in self.notes.published.keys() - published:
            if not os.path.lexists(path):
                del self.notes.published[path]
        self.notes.published[target] = note
        self.notes.save()
        with self._target(target), phase("mount"):
            if source:
                self.backend.publish(source, target, capability, readonly=readonly)
            else:
                self.backend.stage(target, capability, readonly=readonly)

    def _refuse_other_options(self, note: Note, mounted: list[Note]) -> None:
        """Refuse mount options that would have no effect: the filesystem is mounted already."""
        if not all(other.mounts_as(note.options or "") for other in mounted):
            raise FailedPrecondition(
                f"volume {self._id}: its filesystem is mounted with other mount flags, which count "
                "where it is staged first; stage it with these"
            )

    def _is_repeated(self, target: str, mode: Mode, arguments: str, published: set[str]) -> bool:
        """Tell whether a call repeats an earlier one (CSI specification, NodePublishVolume).

        `AlreadyExists` or `FailedPrecondition` as the specification's table of second calls says.
        """
        if target in published:
            if not self.notes.published[target].agrees(arguments):
                raise AlreadyExists(
                    f"volume {self._id} is published at {target} with another capability, "
                    "readonly flag or context; unpublish it first"
                )
            if not self.backend.is_seen(target):
                self._refuse_mounted(target)
            return True
        if published and (
            mode.one_target or any(self.notes.published[path].mode.one_target for path in published)
        ):
            raise FailedPrecondition(
                f"volume {self._id} is published at {min(published)}, and {mode} allows one "
                "target only; unpublish it there first"
            )
        return False

    def ensure_unpublished(self, target: str) -> None:
        """Unpublish the volume from `target`, and remove the target; not published is fine."""
        self._unmount(target)
        self.backend.withdraw()
        if target in self.notes.published:
            paths.remove_target(target)
            del self.notes.published[target]
            self.notes.save_if_possible()
        elif self.notes.lost:
            with contextlib.suppress(FailedPrecondition):  # not empty, so not made by the driver
                paths.remove_target(target)

    @contextlib.contextmanager
    def _target(self, target: str) -> Iterator[None]:
        """Make the target for the `with` block; if that fails, remove the target and its note."""
        made = False
        try:
            made = paths.make_target(target, is_file=self.backend.target_is_file)
            yield
        except BaseException:
            self.backend.withdraw()
            if made:
                paths.remove_target(target)
            del self.notes.published[target]
            self.notes.save_if_possible()
            raise

    def _unmount(self, path: str) -> None:
        while found := self.kernel.mounts.at(path):
            ours = found[-1].id in {item.id for item in self.backend.mounts()}
            if not ours and not self._is_relic(found[-1]):
                raise _foreign_error(found[-1])
            with phase("unmount"):
                unmount(self._id, found[-1], self.kernel, self.backend.unmount)
            if len(found) == 1:
                return

    def _is_relic(self, mounted: Mount) -> bool:
        """Tell whether a mount is left of this volume: of a lost disk, or of a device it lost."""
        if self.backend.is_relic(mounted):
            return True
        return mounted.target in self.notes.published and self.backend.may_have_shown(mounted)

    def _refuse_mounted(self, path: str) -> None:
        """Refuse a path where another filesystem is mounted; unmount relics of a lost disk."""
        mounted = self.kernel.mounts.topmost(path)
        if mounted and mounted not in self.backend.mounts() and self._is_relic(mounted):
            self._unmount(path)
            mounted = self.kernel.mounts.topmost(path)
        if mounted:
            raise _foreign_error(mounted)


def _note(capability: Capability, arguments: str) -> Note:
    flags = capability.mount_flags
    options = mountflags.of_filesystem(flags) if flags else ""
    return Note(arguments=arguments, mode=capability.mode, options=options)


def _foreign_error(mounted: Mount) -> FailedPrecondition:
    return FailedPrecondition(
        f"{mounted.target}: something else is mounted there ({mounted.fstype} {mounted.source}); "
        "unmount it"
    )


def undoing(pool: Pool, volume: Volume) -> Staging:
    """Return a volume's staging for undoing a stage or publish call, also if its pool is away.

    Unmounting does not need the pool's disk.
    """
    try:
        pool.check(writable=False)
    except FailedPrecondition:
        return Staging(pool.backend(volume), away=True)
    return Staging(pool.backend(volume))


@contextlib.contextmanager
def using(
    pool: Pool,
    volume: Volume,
    wanted: Capability,
    path: str,
    passphrase: Passphrase | None = None,
) -> Iterator[Staging]:
    """Yield the staging of a volume that is to be staged or published at `path`.

    The `passphrase` is that of the request; publishing what is staged needs none.
    `FailedPrecondition` if it cannot be used with the capability that is `wanted`; `AlreadyExists`
    if it is at `path` already, which is with another one. Cached results are dropped afterwards.
    """
    try:
        check_fits(pool, volume, wanted, FailedPrecondition)
    except FailedPrecondition as refusal:
        if Staging(pool.backend(volume)).holds(path):
            raise AlreadyExists(f"{refusal}; it is at {path} with another capability") from None
        raise
    try:
        yield Staging(pool.backend(volume, passphrase=passphrase))
    finally:
        pool.volumes.touch(volume.id)


def check_fits(
    pool: Pool,
    volume: Volume,
    wanted: Capability,
    refusal: type[InvalidArgument | FailedPrecondition],
) -> None:
    """Raise `refusal` if a volume cannot be used with a capability."""
    if wanted.access is not volume.access:
        raise refusal(f"volume {volume.id} is a {volume.access} volume, not {wanted.access}")
    if wanted.filesystem and wanted.filesystem != volume.filesystem:
        if volume.type is VolumeType.IMAGE:
            raise refusal(
                f"volume {volume.id} has {volume.filesystem}, not {wanted.filesystem}; change "
                "fs_type"
            )
        pool_filesystem = pool.location.mount.fstype
        if wanted.filesystem not in {pool_filesystem, *requested_filesystems(volume.request)}:
            raise refusal(
                f"volume {volume.id} is a directory on {pool_filesystem}, not {wanted.filesystem}; "
                "leave the fs_type out"
            )
    if wanted.mount_flags:
        try:
            mountflags.check(wanted.mount_flags, volume.type, volume.filesystem, thick=volume.thick)
        except InvalidArgument as error:
            raise refusal(str(error)) from None
