"""What could be adopted, as the layout that it lies in, or the cluster, describes it."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A PersistentVolumeClaim; `manifest` is its object, None if only its name is known."""

    namespace: str
    name: str
    manifest: Mapping[str, Any] | None = None
    pods: tuple[str, ...] = ()
    """The pods that use the claim, each with who has made it."""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PersistentVolume:
    """What the cluster knows of a volume; `capacity` is in bytes, None if it has none.

    `mode` is its volumeMode, `policy` what becomes of it without its claim, and `hosts` are the
    nodes that it can be used on, by their host names; none are named if that is empty. The
    `mount_options` are those that the driver of the new volume takes.
    """

    name: str
    capacity: int | None
    access_modes: tuple[str, ...]
    mode: str
    policy: str
    storage_class: str | None
    hosts: tuple[str, ...]
    claim: Claim | None
    mount_options: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A directory or an image file that could become a volume.

    `name` is what its volume would be called, and `layout` whose volume it is. `limit` is its size
    in bytes as far as that is known. A `block` one is no filesystem to its users. `fault` is what
    speaks against it by its layout's own records.
    """

    path: str
    name: str
    layout: str
    limit: int | None = None
    block: bool = False
    claim: Claim | None = None
    known: PersistentVolume | None = None
    fault: str | None = None
