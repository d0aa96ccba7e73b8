"""The manifests with which the orchestrator uses adopted and moved volumes, and the steps.

A claim's `volumeName` cannot be changed, so each claim is deleted and made again, bound to a new
PersistentVolume. The old one keeps its data if its reclaim policy is Retain by then.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import yaml

from pycsi.cli.adoption.candidates import Candidate, Claim
from pycsi.model.request import Access
from pycsi.model.size import KIB

Manifest = dict[str, Any]

_UNITS = ("Ki", "Mi", "Gi", "Ti")
_NOT_IN_A_NAME = re.compile(r"[^a-z0-9.-]+")
_LONGEST_NAME = 240
_OF_THE_CLUSTER = re.compile(
    r"(?:pv|volume|volume\.beta)\.kubernetes\.io/|kubectl\.kubernetes\.io/last-applied"
)


class Shown(Protocol):
    """What a manifest tells of a volume: the fields of its record."""

    @property
    def id(self) -> str: ...
    @property
    def filesystem(self) -> str | None: ...
    @property
    def capacity(self) -> int: ...
    @property
    def access(self) -> Access: ...
    @property
    def context(self) -> Mapping[str, str]: ...


class Adopted(NamedTuple):
    """A volume that is, or will be, and the candidate that it is made of."""

    volume: Shown
    candidate: Candidate


class Cluster(NamedTuple):
    """How the cluster calls the driver, and the node by its topology `segments`.

    `storage_class` is the class in the manifests, None for the old one.
    """

    driver: str
    segments: Mapping[str, str]
    storage_class: str | None


def text(items: Sequence[Adopted], cluster: Cluster, command: str) -> str:
    """Return the manifests as YAML, with the steps in their order as comments.

    `command` is what adopts the volumes on the node.
    """
    named = [(item, volume_name(item.candidate)) for item in items]
    documents = [found for item, name in named for found in documents_of(item, cluster, name)]
    return stream(_before(items, command), documents, _after(items))


def stream(before: Iterable[str], documents: Iterable[Manifest], after: Iterable[str]) -> str:
    """Return documents as YAML, between lines of comments."""
    parts = [
        "\n".join(f"# {line}".rstrip() for line in before),
        *(yaml.safe_dump(document, sort_keys=False).rstrip() for document in documents),
        "\n".join(f"# {line}".rstrip() for line in after),
    ]
    return "\n---\n".join(parts)


def documents_of(item: Adopted, cluster: Cluster, name: str) -> Iterator[Manifest]:
    """Yield the PersistentVolume, called `name`, and the claim of a volume, if it has one."""
    yield _volume(item, cluster, name)
    if item.candidate.claim:
        yield _claim(item, item.candidate.claim, cluster, name)


def volume_name(candidate: Candidate) -> str:
    """Return the name of the new PersistentVolume, which is not that of the old one."""
    return f"{plain(candidate.name)}-pycsi"


def plain(name: str) -> str:
    """Return a name as that of an object can begin."""
    return _NOT_IN_A_NAME.sub("-", name.lower()).strip(".-")[:_LONGEST_NAME] or "volume"


def _volume(item: Adopted, cluster: Cluster, name: str) -> Manifest:
    volume, candidate = item
    claim, known = candidate.claim, candidate.known
    source: Manifest = {"driver": cluster.driver, "volumeHandle": volume.id}
    if volume.filesystem:
        source["fsType"] = volume.filesystem
    spec: Manifest = {
        "capacity": {"storage": quantity(volume.capacity)},
        "accessModes": list(known.access_modes) if known else ["ReadWriteOnce"],
        "volumeMode": _mode(volume),
        "persistentVolumeReclaimPolicy": known.policy if known else "Retain",
        "storageClassName": _storage_class(candidate, cluster),
        "csi": {**source, "volumeAttributes": dict(volume.context)},
        "nodeAffinity": {
            "required": {"nodeSelectorTerms": [{"matchExpressions": _rules(cluster)}]}
        },
    }
    if known and known.mount_options:
        spec["mountOptions"] = list(known.mount_options)
    if claim:
        spec["claimRef"] = {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "namespace": claim.namespace,
            "name": claim.name,
        }
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {
            "name": name,
            "annotations": {"pv.kubernetes.io/provisioned-by": cluster.driver},
        },
        "spec": spec,
    }


def _rules(cluster: Cluster) -> list[Manifest]:
    return [
        {"key": key, "operator": "In", "values": [value]} for key, value in cluster.segments.items()
    ]


def _mode(volume: Shown) -> str:
    return "Block" if volume.access is Access.BLOCK else "Filesystem"


def _storage_class(candidate: Candidate, cluster: Cluster) -> str:
    known = candidate.known
    return cluster.storage_class or (known.storage_class if known else None) or ""


def _claim(item: Adopted, claim: Claim, cluster: Cluster, name: str) -> Manifest:
    volume, candidate = item
    old: Mapping[str, Any] = claim.manifest or {}
    meta, spec = old.get("metadata", {}), old.get("spec", {})
    kept = {
        key: value
        for key, value in (meta.get("annotations") or {}).items()
        if not _OF_THE_CLUSTER.match(key)
    }
    metadata: Manifest = {"name": claim.name, "namespace": claim.namespace}
    metadata |= {"labels": dict(meta["labels"])} if meta.get("labels") else {}
    metadata |= {"annotations": kept} if kept else {}
    known = candidate.known
    size = known.capacity if known and known.capacity else volume.capacity
    resources = spec.get("resources") or {"requests": {"storage": quantity(size)}}
    modes = spec.get("accessModes") or (list(known.access_modes) if known else ["ReadWriteOnce"])
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata,
        "spec": {
            "accessModes": list(modes),
            "volumeMode": _mode(volume),
            "resources": resources,
            "storageClassName": _storage_class(candidate, cluster),
            "volumeName": name,
        },
    }


def quantity(size: int) -> str:
    """Return a size in bytes as a quantity of Kubernetes, exactly."""
    unit = ""
    for larger in _UNITS:
        if not size or size % KIB:
            break
        size, unit = size // KIB, larger
    return f"{size}{unit}"


# The steps


def _before(items: Sequence[Adopted], command: str) -> Iterator[str]:
    olds = [item.candidate.known.name for item in items if item.candidate.known]
    claims = [item.candidate.claim for item in items if item.candidate.claim]
    yield "The steps, in their order; 5 is this file."
    if olds:
        yield ""
        yield "1. Keep the data, whatever becomes of the claims:"
        yield from (f"   {retain(name)}" for name in olds)
    yield ""
    yield "2. Stop the pods, by what has made them (kubectl scale ... --replicas=0):"
    yield from _pods(claims)
    yield ""
    yield "3. On this node:"
    yield f"   {command}"
    if claims:
        yield ""
        yield "4. Delete the claims. The old volumes stay, as Released, and so does the data:"
        yield from (f"   kubectl -n {claim.namespace} delete pvc {claim.name}" for claim in claims)
    yield ""
    yield "5. kubectl apply -f THIS-FILE, and wait until the claims are Bound."
    yield ""


def retain(name: str) -> str:
    """Return the command that has the cluster keep the data of a PersistentVolume."""
    patch = """'{"spec":{"persistentVolumeReclaimPolicy":"Retain"}}'"""
    return f"kubectl patch pv {name} --type merge -p {patch}"


def _pods(claims: Iterable[Claim]) -> Iterator[str]:
    for claim in claims:
        if claim.manifest is None:
            yield f"   those that use the claim {claim}"
        yield from (f"   -n {claim.namespace} {pod}" for pod in claim.pods)


def _after(items: Sequence[Adopted]) -> Iterator[str]:
    ids = " ".join(item.volume.id for item in items)
    yield "6. Start the pods again."
    yield ""
    yield "7. When all is well, give the old names up. Until then there is a way back."
    yield f"   pycsi adopt --finish {ids}"
    if olds := [item.candidate.known.name for item in items if item.candidate.known]:
        yield f"   kubectl delete pv {' '.join(olds)}"
    yield ""
    yield "The way back, with the pods stopped:"
    news = " ".join(volume_name(item.candidate) for item in items)
    yield f"   kubectl patch pv {news} --type merge \\"
    yield """     -p '{"spec":{"persistentVolumeReclaimPolicy":"Retain"}}'"""
    for claim in (item.candidate.claim for item in items if item.candidate.claim):
        yield f"   kubectl -n {claim.namespace} delete pvc {claim.name}"
    yield f"   kubectl delete pv {news}"
    yield f"   pycsi adopt --undo {ids}     # on the node"
    unbind = """'[{"op":"remove","path":"/spec/claimRef"}]'"""
    yield from (f"   kubectl patch pv {name} --type json -p {unbind}" for name in olds)
    if olds:
        yield "   and make each claim again, with the volumeName and the class of its old volume."
