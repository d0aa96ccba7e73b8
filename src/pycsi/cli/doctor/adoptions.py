"""Adoptions that were cut off, and what is in `adoptions/` besides."""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from pycsi.cli.doctor import commands
from pycsi.cli.doctor.codes import Code
from pycsi.cli.doctor.finding import Finding, Mend
from pycsi.cli.doctor.look import Look
from pycsi.linux.lockfile import is_locked, locked
from pycsi.model.ids import node_of
from pycsi.pool.adoptions import Adoptions, Begun, Way, was_never_recorded


def check(look: Look) -> Iterator[Finding | None]:
    """Yield what is left of adoptions; while a command has the pool's lock it is under way."""
    found = Adoptions(look.seen.layout)
    if is_locked(found.lock):
        return
    for begun in found:
        yield _cut_off(look, found, begun)
    for place in found.unrecorded():
        yield _unrecorded(look, found, place)


def _cut_off(look: Look, found: Adoptions, begun: Begun) -> Finding:
    volume_id, source = begun.volume.id, begun.adoption.source
    undo = look.pycsi("adopt", "--undo", volume_id)
    if begun.adoption.undoing:
        message = f"the adoption of {volume_id} was being undone, and has not ended"
        command, mend = undo, None
    elif begun.has_data:
        message = f"{volume_id} was adopted from {source}, but has not become a volume"
        command = commands.doctor(look.given)
        mend = _settled(look, found)
    else:
        copied = "; what was copied is kept" if os.path.lexists(begun.part) else ""
        message = (
            f"the adoption of {volume_id} was cut off{copied}, and the data is in {source} as it "
            "was; repeat the command that adopts it, or undo it"
        )
        command, mend = undo, None
    if begun.adoption.way is Way.COPY and begun.adoption.undoing:
        message += f"; the data is in {source}"
    return look.finding(Code.ADOPTION_UNFINISHED, volume_id, message, command, mend)


def _unrecorded(look: Look, found: Adoptions, place: Path) -> Finding | None:
    if was_never_recorded(place):
        return look.finding(
            Code.ADOPTION_UNFINISHED,
            place.name,
            f"an adoption of {place.name} was cut off before it began; nothing was moved",
            commands.doctor(look.given),
            _settled(look, found),
        )
    if not os.path.lexists(place):
        return None  # completed since
    move = f"mv {shlex.quote(str(place))} ELSEWHERE"
    if not node_of(place.name) or not place.is_dir():
        message = f"{place} is not the driver's; move it away"
        return look.finding(Code.UNKNOWN_ENTRY, place, f"{message}; {commands.ELSEWHERE}", move)
    return look.finding(
        Code.RECORD_DAMAGED,
        place,
        f"the records of the adoption in {place} cannot be read; move it away, and look into it "
        f"before you delete it: it may hold the only copy; {commands.ELSEWHERE}",
        move,
    )


def _settled(look: Look, found: Adoptions) -> Mend:
    def act() -> None:
        with locked(found.lock):
            found.settle()
            found.sweep()

    return Mend(text=f"complete or clear the adoptions of pool {look.name}", act=act)
