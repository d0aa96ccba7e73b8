"""What a plan says, for people and for programs."""

from collections.abc import Iterable, Iterator
from typing import Any

from pycsi.cli import tables
from pycsi.cli.adoption.plan import Plan
from pycsi.model.records import Volume
from pycsi.model.request import Access
from pycsi.pool.adoptions import Way

_WAYS = {Way.MOVE: "is moved", Way.COPY: "is copied", None: "is made a volume"}


def lines(plans: Iterable[Plan]) -> Iterator[str]:
    """Yield the lines that describe plans: one with the path, and what becomes of it below."""
    for plan in plans:
        yield tables.printable(plan.candidate.path)
        yield f"  {tables.printable(_outcome(plan))}"
        if plan.candidate.claim:
            yield f"  claim {tables.printable(str(plan.candidate.claim))}"
        yield from (f"  ! {tables.printable(reason)}" for reason in plan.against)
        yield from (f"  - {tables.printable(remark)}" for remark in plan.remarks)


def _outcome(plan: Plan) -> str:
    if plan.adopted:
        return f"is {plan.volume_id} already"
    volume = plan.volume
    if volume is None:
        return f"would be {plan.volume_id}"
    size = tables.brief(volume.capacity)
    limit = f"limit {size}" if volume.enforced else f"size {size}, not limited"
    return (
        f"{_WAYS[plan.way]} to {plan.volume_id}: {_kind(volume)}, holds "
        f"{tables.brief(plan.occupied)}, {limit}"
    )


def _kind(volume: Volume) -> str:
    if volume.access is Access.BLOCK:
        return "block volume"
    return f"image with {volume.filesystem}" if volume.filesystem else "directory"


def fields(plan: Plan) -> dict[str, Any]:
    """Return a plan for programs, with sizes in bytes."""
    volume, claim = plan.volume, plan.candidate.claim
    return {
        "path": plan.candidate.path,
        "layout": plan.candidate.layout,
        "id": plan.volume_id,
        "adopted": plan.adopted,
        "way": plan.way,
        "type": volume.type if volume else None,
        "access": volume.access if volume else None,
        "filesystem": volume.filesystem if volume else None,
        "occupied": plan.occupied,
        "capacity": volume.capacity if volume else None,
        "enforced": volume.enforced if volume else None,
        "namespace": claim.namespace if claim else None,
        "pvc": claim.name if claim else None,
        "against": list(plan.against),
        "remarks": list(plan.remarks),
    }
