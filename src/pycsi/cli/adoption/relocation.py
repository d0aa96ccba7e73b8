"""The manifests of a volume that has moved to another node, and the steps around them."""

import dataclasses
from collections.abc import Iterator, Mapping

from pycsi.cli.adoption import manifests
from pycsi.cli.adoption.candidates import Candidate, Claim, PersistentVolume
from pycsi.model import ids, parameters
from pycsi.model.request import Access, Mode

_ACCESS_MODES = {
    Mode.SINGLE_NODE_SINGLE_WRITER: "ReadWriteOncePod",
    Mode.SINGLE_NODE_READER_ONLY: "ReadOnlyMany",
    Mode.MULTI_NODE_READER_ONLY: "ReadOnlyMany",
    Mode.MULTI_NODE_SINGLE_WRITER: "ReadWriteMany",
    Mode.MULTI_NODE_MULTI_WRITER: "ReadWriteMany",
}
"""The access modes of Kubernetes; those that are not here are ReadWriteOnce."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """A volume that has moved: what its new node tells of it. `capacity` is in bytes."""

    id: str
    name: str
    filesystem: str | None
    capacity: int
    access: Access
    context: Mapping[str, str]
    segments: Mapping[str, str]
    parameters: Mapping[str, str]
    mount_options: tuple[str, ...]
    modes: tuple[Mode, ...]


def text(moved: Moved, old_id: str, driver: str, known: PersistentVolume | None) -> str:
    """Return the manifests as YAML, with the steps in their order as comments.

    `known` is what the cluster knows of the old volume; without it, what the driver was told.
    """
    known = dataclasses.replace(known or _told(moved), mount_options=moved.mount_options)
    candidate = Candidate(path="", name=known.name, layout="", claim=known.claim, known=known)
    item = manifests.Adopted(moved, candidate)
    name = f"{manifests.plain(known.name)}-{manifests.plain(ids.node_of(moved.id) or '')}"
    found = manifests.documents_of(item, manifests.Cluster(driver, moved.segments, None), name)
    return manifests.stream(_before(moved, old_id, known), found, ["4. Start the pods again."])


def _told(moved: Moved) -> PersistentVolume:
    """Return the old PersistentVolume as far as the driver was told of it."""
    given = moved.parameters
    claim = None
    if given.get(parameters.CLAIM_NAME) and given.get(parameters.CLAIM_NAMESPACE):
        claim = Claim(
            namespace=given[parameters.CLAIM_NAMESPACE], name=given[parameters.CLAIM_NAME]
        )
    modes = dict.fromkeys(_ACCESS_MODES.get(mode, "ReadWriteOnce") for mode in moved.modes)
    return PersistentVolume(
        name=moved.name,
        capacity=moved.capacity,
        access_modes=tuple(modes),
        mode="",
        policy="Retain",
        storage_class=None,
        hosts=(),
        claim=claim,
    )


def _before(moved: Moved, old_id: str, known: PersistentVolume) -> Iterator[str]:
    yield f"{old_id} is {moved.id} now; what it was is in the trash of its node."
    yield "The steps, in their order; 3 is this file."
    yield ""
    yield "1. Keep the data, whatever becomes of the claim:"
    yield f"   {manifests.retain(known.name)}"
    yield ""
    yield "2. Delete the claim and the old volume; the pods that use them are stopped."
    if known.claim:
        yield from (f"   -n {known.claim.namespace} {pod}" for pod in known.claim.pods)
        yield f"   kubectl -n {known.claim.namespace} delete pvc {known.claim.name}"
    yield f"   kubectl delete pv {known.name}"
    yield ""
    yield "3. kubectl apply -f THIS-FILE, and wait until the claim is Bound."
    yield ""
