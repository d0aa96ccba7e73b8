"""Carrying adoptions out. Callers hold the pool's lock of `Adoptions`.

Each step is durable before the next, and each can be repeated. What uses the data is looked for
before it gets another name, and again afterwards: then nobody can begin to use it any more.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

from pycsi.backends.limits import Former, Progress
from pycsi.cli.adoption.plan import Plan
from pycsi.cli.adoption.sources import Unfit, Uses, examine, look_into
from pycsi.cli.errors import CommandError
from pycsi.cli.inspection import InspectedPool
from pycsi.linux import filecopy, mount, nocow, treecopy
from pycsi.linux.descriptor import NO_ROOM, opened
from pycsi.linux.kernel import mount_of
from pycsi.linux.record import rename_durably
from pycsi.model.errors import CsiError
from pycsi.model.records import Volume, VolumeType
from pycsi.model.size import show
from pycsi.pool.adoptions import (
    Adoption,
    Adoptions,
    Begun,
    Way,
    write_adoption,
)
from pycsi.pool.layout import write_volume


class Carrier:
    """Carries out what is planned for the pool `seen`."""

    def __init__(self, seen: InspectedPool) -> None:
        self.seen = seen
        self.adoptions = Adoptions(seen.layout)

    # Adopting

    def adopt(self, plan: Plan, progress: Progress) -> str:
        """Make a volume of what is planned, or go on where an attempt was cut off; return its id.

        `CommandError` if something speaks against it; then it is in its old place, as it was.
        """
        if plan.against:
            raise CommandError(f"{plan.candidate.path}: {'; '.join(plan.against)}")
        if plan.adopted:
            return plan.volume_id
        begun = self.adoptions.get(plan.volume_id)
        with explained(plan.candidate.path):
            if begun is None or not begun.has_data:
                begun = self._begin(plan, begun)
                if begun.adoption.way is Way.MOVE:
                    self._move(begun)
                else:
                    self._copy(begun, progress)
            self.complete(begun)
        return plan.volume_id

    def _begin(self, plan: Plan, before: Begun | None) -> Begun:
        """Record what is about to be done; the data is still in its old place."""
        if plan.volume is None or plan.source is None or plan.way is None:
            raise CommandError(f"{plan.candidate.path}: nothing is planned for it")
        if before and _goes_on(plan, before):
            return before
        if before:
            self.clear(before)
        source, volume, limiter = plan.source, plan.volume, self.seen.limiter
        former = Former()
        if plan.way is Way.MOVE and source.is_directory and volume.enforced:
            former = limiter.former(source.path)
            volume = dataclasses.replace(volume, project=limiter.claim())
        self.seen.layout.adoptions.mkdir(mode=0o700, exist_ok=True)
        adoption = Adoption(
            source=str(source.path),
            inode=source.status.st_ino,
            layout=plan.candidate.layout,
            way=plan.way,
            size=None if source.is_directory else source.status.st_size,
            former=former,
        )
        return self.adoptions.begin(volume, adoption)

    def _move(self, begun: Begun) -> None:
        """Give the old directory or file its name in the adoption, durably, or leave it alone."""
        source = Path(begun.adoption.source)
        try:
            if begun.volume.project:
                self._take_over(begun, source)
            rename_durably(source, begun.content)
        except BaseException:
            self._give_up(begun)
            raise
        try:
            refuse_users(begun.content, called=source)
        except CommandError:
            self._retreat(begun, source)
            raise

    def _take_over(self, begun: Begun, source: Path) -> None:
        limiter, volume = self.seen.limiter, begun.volume
        limiter.take_over(source, volume.project, volume.capacity)
        used = limiter.usage(source, volume.project, volume.capacity).used or 0
        if used > volume.capacity:
            raise CommandError(
                f"{source} holds {show(used)}, more than {show(volume.capacity)}; give a --size "
                "that is larger"
            )

    def clear(self, begun: Begun) -> None:
        """Undo what was begun while the data was in its old place: there it is as it was."""
        if begun.adoption.way is Way.COPY:
            self.remove(begun, begun.part)
        else:
            source = Path(begun.adoption.source)
            self.seen.limiter.give_back(source, begun.volume.project, begun.adoption.former)
        self.adoptions.drop(begun)

    def _retreat(self, begun: Begun, source: Path) -> None:
        """Give what turned out to be in use its old name again."""
        if not begun.has_data:  # a driver that has just started has completed the adoption
            begun = self.adoptions.withdraw(begun.volume, begun.adoption)
        rename_durably(begun.content, source)
        self.clear(begun)

    def _copy(self, begun: Begun, progress: Progress) -> None:
        """Make a complete copy, durably, or none; the old directory or file stays as it was."""
        copy = self._copy_tree if begun.volume.type is VolumeType.DIRECTORY else self._copy_image
        try:
            copy(begun, progress)
            refuse_users(Path(begun.adoption.source))
            rename_durably(begun.part, begun.content)
            self._sync(begun.volume)
        except BaseException:
            self._give_up(begun)
            raise

    def _give_up(self, begun: Begun) -> None:
        """Clear what has failed; what cannot be cleared now is when the command is repeated."""
        with contextlib.suppress(OSError, CsiError):
            if not begun.has_data:
                self.clear(begun)

    def _copy_tree(self, begun: Begun, progress: Progress) -> None:
        source, volume = Path(begun.adoption.source), begun.volume
        since = treecopy.fence()
        if not begun.adoption.part:
            size = volume.capacity if volume.enforced else None
            project = self.seen.limiter.make(begun.part, size)
            if project:
                write_volume(begun.place, dataclasses.replace(volume, project=project))
            self._sync(volume)
            _note_part(begun)
        try:
            treecopy.copy(source, begun.part, progress)
            treecopy.refuse_changed(source, since)
        except treecopy.TreeChangedError as change:
            raise CommandError(f"{source} is in use: {change} while it was copied") from None
        mount.syncfs(begun.part)

    def _copy_image(self, begun: Begun, progress: Progress) -> None:
        source = Path(begun.adoption.source)
        with (
            opened(source, os.O_RDONLY | os.O_NOFOLLOW) as old,
            opened(begun.part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW) as new,
        ):
            before = os.fstat(old)
            if not begun.adoption.part:
                if self.seen.location.mount.fstype == "btrfs":
                    near = mount_of(old).device == self.seen.location.device
                    # Files of which only one is written in place could share no blocks.
                    nocow.set_nocow(new, nocow=nocow.is_nocow(old) if near else True)
                os.fsync(new)
                _note_part(begun)
            filecopy.bring(old, new, progress)
            after = os.fstat(old)
            if (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
                raise CommandError(f"{source} is in use: it was changed while it was copied")
            os.fsync(new)

    def remove(self, begun: Begun, copy: Path) -> None:
        """Delete a copy, complete or not, which nobody has used yet."""
        if begun.volume.type is VolumeType.DIRECTORY:
            self.seen.limiter.remove(copy, begun.volume.project)
        else:
            copy.unlink(missing_ok=True)

    def complete(self, begun: Begun) -> None:
        self.adoptions.complete(begun)
        self._sync(begun.volume)

    def _sync(self, volume: Volume) -> None:
        """Make a new subvolume durable: on btrfs fsync(2) does not."""
        if self.seen.location.mount.fstype == "btrfs" and volume.type is VolumeType.DIRECTORY:
            mount.syncfs(self.seen.layout.root)


def _goes_on(plan: Plan, before: Begun) -> bool:
    """Tell whether a copy that was cut off is one for this plan, and can be gone on with."""
    there, source, volume = before.adoption, plan.source, plan.volume
    return (
        source is not None
        and volume is not None
        and plan.way is there.way is Way.COPY
        and there.part
        and not there.undoing
        and (there.source, there.inode) == (str(source.path), source.status.st_ino)
        and before.volume
        == dataclasses.replace(volume, created=before.volume.created, project=before.volume.project)
    )


def _note_part(begun: Begun) -> None:
    """Record, durably, that the place of a copy is as it has to be, so that it can go on."""
    write_adoption(begun.place, dataclasses.replace(begun.adoption, part=True))


def _users(path: Path) -> list[str]:
    """Return what uses a directory or an image now, or why that cannot be said."""
    try:
        source = examine(path)
        return look_into(path, source.location.root, Uses.of(source.location.device)).users
    except Unfit as reason:
        return [str(reason)]


def refuse_users(path: Path, called: Path | None = None) -> None:
    """Raise `CommandError` if something uses a directory or an image, which is `called` so."""
    if users := _users(path):
        raise CommandError(f"{called or path} is in use: {', '.join(users)}; stop that")


@contextlib.contextmanager
def explained(path: str) -> Iterator[None]:
    """Raise a `CommandError` for what the kernel or the driver's parts refuse."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise CommandError(
                f"{path}: there is no room for it in the pool, or it is larger than its limit "
                f"({error.strerror}); give a larger --size, or free space"
            ) from None
        raise CommandError(f"{error.filename or path}: {error.strerror}") from None
    except CsiError as error:
        raise CommandError(str(error)) from None
