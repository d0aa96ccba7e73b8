"""What the cluster says of its volumes: the output of `kubectl get pv,pvc,pod -A -o json`.

Claims and pods may be missing from it: then they are described as far as the volumes tell.
"""

import contextlib
import dataclasses
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from pycsi.cli.adoption.candidates import Candidate, Claim, PersistentVolume
from pycsi.cli.adoption.layouts import csi_hostpath, directpv, local_path, openebs_hostpath, rawfile
from pycsi.cli.adoption.layouts.naming import is_name
from pycsi.cli.errors import MistakesError

Object = Mapping[str, Any]

_HOST = "kubernetes.io/hostname"
_QUANTITY = re.compile(r"(\d{1,19}(?:\.\d{1,9})?)(?:(Ki|Mi|Gi|Ti|Pi|Ei|k|M|G|T|P|E)|e(\d{1,2}))?")
_NAME = re.compile("[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_UNITS = "KMGTPE"
_PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"
_LAYOUTS = {
    "rancher.io/local-path": local_path.NAME,
    "openebs.io/local": openebs_hostpath.NAME,
}
_NOT_KUBECTL = "standard input is not what kubectl get pv,pvc,pod -A -o json writes"


def read(text: str) -> list[Candidate]:
    """Return the volumes in a list of the cluster whose data may be on this node.

    `MistakesError` if it is no such list. A volume of a kind that is not known is left out.
    """
    with _understood():
        found = [_candidate(item, known) for item, known in _volumes(text)]
        return [item for item in found if item]


def volume_with_handle(text: str, driver: str, handle: str) -> PersistentVolume:
    """Return the volume of a CSI driver with this handle, which is in a list of the cluster.

    `MistakesError` if it is no such list, or has no such volume.
    """
    with _understood():
        for item, known in _volumes(text):
            source = item["spec"].get("csi") or {}
            if (source.get("driver"), source.get("volumeHandle")) == (driver, handle):
                return known
    raise MistakesError(f"the list of the cluster has no volume of {driver} with handle {handle}")


@contextlib.contextmanager
def _understood() -> Iterator[None]:
    """Raise `MistakesError` for what is no list of objects."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise MistakesError(_NOT_KUBECTL) from None


def _volumes(text: str) -> Iterator[tuple[Object, PersistentVolume]]:
    """Yield the PersistentVolumes in a list, and what it tells of them."""
    data = json.loads(text)
    objects = data["items"] if str(data["kind"]).endswith("List") else [data]
    of_kind: dict[str, list[Object]] = {}
    for item in objects:
        of_kind.setdefault(item["kind"], []).append(item)
    claims = {_key(item["metadata"]): item for item in of_kind.get("PersistentVolumeClaim", [])}
    pods = _pods(of_kind.get("Pod", []))
    for item in of_kind.get("PersistentVolume", []):
        yield item, _known(item, claims, pods)


def _key(named: Object) -> tuple[str, str]:
    return _plain(named["namespace"]), _plain(named["name"])


def _plain(text: object) -> str:
    """Return the name of an object; `ValueError` if none can have it."""
    if not _NAME.fullmatch(str(text)):
        raise ValueError(text)
    return str(text)


def _pods(objects: Iterable[Object]) -> dict[tuple[str, str], list[str]]:
    """Return descriptions of the pods that use each claim."""
    found: dict[tuple[str, str], list[str]] = {}
    for item in objects:
        meta = item["metadata"]
        owners = [_owner(one, meta) for one in meta.get("ownerReferences", [])]
        by = f" ({', '.join(owners)})" if owners else ""
        for volume in item["spec"].get("volumes", []):
            if name := volume.get("persistentVolumeClaim", {}).get("claimName"):
                pod = f"{_plain(meta['name'])}{by}"
                found.setdefault((_plain(meta["namespace"]), _plain(name)), []).append(pod)
    return found


def _owner(reference: Object, meta: Object) -> str:
    """Return what is to be scaled down so that a pod ends.

    That of a ReplicaSet which a Deployment has made is the Deployment, whose name it has, and a
    hash that its pods have as a label.
    """
    kind, name = _plain(reference["kind"]), _plain(reference["name"])
    suffix = f"-{meta.get('labels', {}).get('pod-template-hash', '')}"
    if kind == "ReplicaSet" and suffix != "-" and name.endswith(suffix):
        return f"Deployment {name.removesuffix(suffix)}"
    return f"{kind} {name}"


def _known(
    item: Object,
    claims: Mapping[tuple[str, str], Object],
    pods: Mapping[tuple[str, str], list[str]],
) -> PersistentVolume:
    spec = item["spec"]
    claim = None
    reference = spec.get("claimRef")
    if reference and item.get("status", {}).get("phase") != "Released":
        key = _key(reference)
        claim = Claim(
            namespace=key[0], name=key[1], manifest=claims.get(key), pods=tuple(pods.get(key, ()))
        )
    return PersistentVolume(
        name=_plain(item["metadata"]["name"]),
        capacity=quantity(spec.get("capacity", {}).get("storage")),
        access_modes=tuple(map(str, spec.get("accessModes") or ["ReadWriteOnce"])),
        mode=str(spec.get("volumeMode") or "Filesystem"),
        policy=str(spec.get("persistentVolumeReclaimPolicy") or "Retain"),
        storage_class=spec.get("storageClassName") or None,
        hosts=tuple(_hosts(spec)),
        claim=claim,
    )


def _hosts(spec: Object) -> Iterator[str]:
    required = (spec.get("nodeAffinity") or {}).get("required") or {}
    for term in required.get("nodeSelectorTerms", []):
        for rule in term.get("matchExpressions", []):
            if rule["key"] == _HOST and rule["operator"] == "In":
                yield from map(str, rule["values"])


def _candidate(item: Object, known: PersistentVolume) -> Candidate | None:
    found = _place(item)
    if found is None:
        return None
    path, layout = found
    return Candidate(
        path=path,
        name=known.name,
        layout=layout,
        limit=known.capacity,
        block=known.mode == "Block",
        claim=known.claim,
        known=known,
    )


def _place(item: Object) -> tuple[str, str] | None:
    """Return the path at which a volume's data lies, and the layout; None if that is not known."""
    spec = item["spec"]
    for kind in ("hostPath", "local"):
        if source := spec.get(kind):
            notes = item["metadata"].get("annotations") or {}
            return str(source["path"]), _LAYOUTS.get(str(notes.get(_PROVISIONED_BY)), kind)
    source = spec.get("csi") or {}
    handle = str(source.get("volumeHandle", ""))
    if not is_name(handle):
        return None
    match source.get("driver"):
        case "hostpath.csi.k8s.io":
            return f"/var/lib/csi-hostpath-data/{handle}", csi_hostpath.NAME
        case "rawfile.csi.openebs.io":
            return f"/var/csi/rawfile/{handle}/disk.img", rawfile.NAME
        case "directpv-min-io":
            return _on_a_drive(handle), directpv.NAME
    return None


def _on_a_drive(name: str) -> str:
    """Return the path of a volume of DirectPV: on the drive that has it, or on none."""
    mounts = Path("/var/lib/directpv/mnt")
    there = [place / name for place in mounts.glob("*") if os.path.lexists(place / name)]
    return str(there[0] if there else mounts / name)


def quantity(text: object) -> int | None:
    """Return the bytes of a quantity of Kubernetes, such as 1Gi, rounded up; None if it is none."""
    match = _QUANTITY.fullmatch(str(text))
    if match is None:
        return None
    number, unit, exponent = match.groups()
    factor = Fraction(10) ** int(exponent or 0)
    if unit:
        step = 1024 if unit.endswith("i") else 1000
        factor = Fraction(step) ** (_UNITS.index(unit[0].upper()) + 1)
    return math.ceil(Fraction(number) * factor)


def enriched(found: Iterable[Candidate], volumes: Iterable[Candidate]) -> list[Candidate]:
    """Return the volumes of a layout with what the cluster knows of them, by path or by name.

    Those that the cluster does not know are left as they are.
    """
    by_path = {os.path.normpath(item.path): item for item in volumes}
    by_name = {item.name: item for item in by_path.values()}
    merged = []
    for item in found:
        known = by_path.get(os.path.normpath(item.path)) or by_name.get(item.name)
        merged.append(
            dataclasses.replace(
                item,
                name=known.name,
                limit=known.limit or item.limit,
                block=known.block,
                claim=known.claim or item.claim,
                known=known.known,
            )
            if known
            else item
        )
    return merged
