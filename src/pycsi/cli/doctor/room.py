"""What a pool has promised, against what its disk has."""

from collections.abc import Iterator

from pycsi.cli.doctor.codes import Code
from pycsi.cli.doctor.faults import make_room
from pycsi.cli.doctor.finding import Finding
from pycsi.cli.doctor.look import Look
from pycsi.cli.tables import brief


def check(look: Look) -> Iterator[Finding]:
    """Yield a finding if a pool's volumes may still write more than its disk has room for."""
    capacity = look.seen.room.capacity()
    if capacity.lacking:
        command, which = make_room(look)
        yield look.finding(
            Code.POOL_OVERCOMMITTED,
            look.given.path,
            f"pool {look.name}: its volumes may still write {brief(capacity.unwritten)}, and its "
            f"disk has {brief(max(0, capacity.free - capacity.reserve))} for that, with an "
            f"overcommit of {capacity.overcommit:g}: make the disk larger, or free space{which}",
            command,
        )
