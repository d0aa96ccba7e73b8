"""Requests made from the protocol's own description: right, nearly right, and anything but."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from pycsi.proto import csi_pb2 as csi

MIB = 1024 * 1024
LARGEST_MESSAGE = 4 * MIB
HUGE = 40_000

_NUMBERS = (0, 1, -1, 511, 512, 4095, 4096, 4097, MIB, 2**31 - 1, -(2**31))
_LONG_NUMBERS = (2**31, 2**40, 2**53 + 1, 2**62, 2**63 - 1, -(2**63), -(2**63) + 1)
_TEXTS = (
    "", " ", ".", "..", "/", "//", "@", "@node-1", "v@", "v@node-1", "v@node-2", "v@@node-1",
    "../../../etc", "volumes", "x" * 128, "x" * 129, "x" * 4097, "x" * HUGE, "\0", "a\0b",
    "\x1b[31m", "a\nb", "a\r\nb", "\x7f", "\u0085", "e\u0301" * 60, "\u202eabc\u202c", "\ufeff",
    "\U0001f600" * 32, "\U0001f600" * 33, "\U0010ffff", "\ud7ff\ue000", "%s%n{}", "$(id)", "-rf",
    "--help", "null", "true", "0", "-1", "9" * 400, "{", '{"schema": 2}', "ephemeral-x@node-1",
    "member-x@node-1", "sha256-x@node-1", ">", ">v@node-1", "*", "\u00e9", "\uff0e\uff0e\uff0f",
)  # fmt: skip
_PARAMETERS: Sequence[dict[str, str]] = (
    {"type": "directory", "quota": "none"},
    {"quota": "none"},
    {"type": "image"},
    {"type": "image", "allocation": "thick"},
    {"type": "image", "mkfsOptions": "-N 64"},
    {"onDelete": "retain", "quota": "none"},
    {"pool": "default", "quota": "none"},
    {},
)
_CONTEXTS: Sequence[dict[str, str]] = (
    {},
    {},
    {"csi.storage.k8s.io/ephemeral": "true", "size": "4Mi"},
    {"csi.storage.k8s.io/ephemeral": "true", "size": "16Mi", "type": "image"},
    {"poolUUID": "00000000-0000-0000-0000-000000000000"},
)


class World:
    """What there is in a driver now, from which good values are taken; `places` are its paths."""

    def __init__(self, chance: random.Random, places: Sequence[Path], bad: Sequence[str]) -> None:
        self.chance = chance
        self._places = [str(place) for place in places]
        self._bad_paths = bad
        self.volumes: list[str] = []
        self.snapshots: list[str] = []
        self.groups: list[str] = []
        self._good: dict[str, Callable[[], object]] = {
            "name": lambda: f"n{chance.randrange(24)}",
            "node_id": lambda: "node-1",
            "volume_id": lambda: self._one(self.volumes, "v@node-1"),
            "source_volume_id": lambda: self._one(self.volumes, "v@node-1"),
            "source_volume_ids": lambda: self._one(self.volumes, "v@node-1"),
            "snapshot_id": lambda: self._one(self.snapshots, "s@node-1"),
            "snapshot_ids": lambda: self._one(self.snapshots, "s@node-1"),
            "base_snapshot_id": lambda: self._one(self.snapshots, "s@node-1"),
            "target_snapshot_id": lambda: self._one(self.snapshots, "s@node-1"),
            "group_snapshot_id": lambda: self._one(self.groups, "g@node-1"),
            "starting_token": lambda: chance.choice(["", f">{self._good['volume_id']()}"]),
            "fs_type": lambda: chance.choice(["", "", "ext4", "xfs", "btrfs"]),
            "mount_flags": lambda: chance.choice(["noatime", "nodev", "nosuid,noexec"]),
            "volume_mount_group": lambda: "",
            "mode": lambda: chance.choice([1, 6, 7, 7, 7, 7, 7, 2]),
            "required_bytes": lambda: chance.choice([0, 4, 16, 16, 16, 32, 64, 300]) * MIB,
            "limit_bytes": lambda: chance.choice([0, 0, 0, 0, 1024]) * MIB,
            "max_entries": lambda: chance.choice([0, 1, 100]),
            "max_results": lambda: chance.choice([0, 1, 100]),
            "starting_offset": lambda: chance.choice([0, 4096, MIB]),
            "parameters": lambda: chance.choice(_PARAMETERS),
            "mutable_parameters": lambda: {"onDelete": chance.choice(["retain", "delete"])},
            "volume_context": lambda: chance.choice(_CONTEXTS),
            "segments": lambda: {"topology.pycsi.storage/node": "node-1"},
        }

    def _one(self, values: Sequence[str], otherwise: str) -> str:
        return self.chance.choice(values) if values else otherwise

    def message(self, kind: type[Message]) -> Message:
        """Return a request: right in half of all cases, wrong in one thing, or all over."""
        made = kind()
        self._fill(made, self.chance.choice([0, 0, 0, 0.05, 0.15, 0.6]), 0)
        return made

    def _fill(self, message: Any, wildness: float, depth: int) -> None:
        chosen = {self.chance.choice(group.fields).name for group in message.DESCRIPTOR.oneofs}
        for field in message.DESCRIPTOR.fields:
            if field.containing_oneof and field.name not in chosen:
                continue
            wild = self.chance.random() < wildness
            if self._absent(field, wild=wild):
                continue
            if field.message_type and field.message_type.GetOptions().map_entry:
                getattr(message, field.name).update(self._map(field, wild=wild))
            elif field.message_type and depth < 6:
                value = getattr(message, field.name)
                for _ in range(self._count(wild=wild) if field.is_repeated else 1):
                    part = value.add() if field.is_repeated else value
                    part.SetInParent()
                    self._fill(part, wildness, depth + 1)
            elif field.is_repeated:
                values = [self._scalar(field, wild=wild) for _ in range(self._count(wild=wild))]
                getattr(message, field.name).extend(values + values[:1] * wild)
            elif not field.message_type:
                setattr(message, field.name, self._scalar(field, wild=wild))

    def _absent(self, field: FieldDescriptor, *, wild: bool) -> bool:
        optional = field.name in {
            "accessibility_requirements", "volume_content_source", "readonly", "secrets",
            "volume_context", "publish_context", "mount_flags", "mutable_parameters",
            "snapshot_id", "source_volume_id",
        }  # fmt: skip
        of = field.full_name.split(".")[-2]
        if of in {"DeleteSnapshotRequest", "CreateSnapshotRequest", "GetSnapshotRequest"}:
            optional = field.name in {"secrets", "parameters"}
        alone = of.startswith("List") or optional
        return self.chance.random() < (0.3 if wild else 0.7 if alone else 0.02)

    def _count(self, *, wild: bool) -> int:
        return self.chance.choice([0, 2, 3, 30, 300]) if wild else 1

    def _map(self, field: FieldDescriptor, *, wild: bool) -> dict[str, str]:
        good: Any = self._good.get(field.name, dict)()
        if field.name == "parameters" and "Snapshot" in field.full_name:
            good = self.chance.choice([{}, {}, {"consistency": "files"}])
        if not wild:
            return dict(good)
        given = dict(good)
        for _ in range(self._count(wild=True)):
            key = self.chance.choice([*_TEXTS, "type", "size", "pool", "mkfsOptions", "quota"])
            given[key] = self.chance.choice(_TEXTS)
        return given

    def _scalar(self, field: FieldDescriptor, *, wild: bool) -> Any:
        if field.name.endswith("_path"):
            return self.chance.choice(self._bad_paths if wild else self._places)
        good = self._good.get(field.name)
        if good and not wild:
            return good()
        if field.type == FieldDescriptor.TYPE_STRING:
            return self._text(str(good()) if good else "")
        if field.type == FieldDescriptor.TYPE_BOOL:
            return self.chance.random() < 0.5
        if field.type in {FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_UINT64}:
            return self.chance.choice(_NUMBERS + _LONG_NUMBERS)
        return self.chance.choice(_NUMBERS)

    def _text(self, good: str) -> str:
        """Return any text, or one that is nearly right."""
        if not good or self.chance.random() < 0.5:
            return self.chance.choice(_TEXTS)
        at = self.chance.randrange(len(good))
        inserted = self.chance.choice(["", "\u200b", "\0", "/", " ", "\u0430", good[at:] * 3])
        return good[:at] + inserted + good[at + self.chance.randrange(2) :]

    def bytes_of(self, message: Message) -> bytes:
        """Return a message as bytes that may be damaged, or hold fields that nobody knows."""
        for field in message.DESCRIPTOR.fields:
            if field.name.endswith("_path"):  # damaged, it could lead anywhere
                setattr(message, field.name, "relative")
        data = message.SerializeToString()
        match self.chance.randrange(5):
            case 0:
                return data + b"\xfa\xff\x07" + bytes([100]) + self.chance.randbytes(100)
            case 1:
                return data[: self.chance.randrange(len(data) + 1)]
            case 2:
                return self.chance.randbytes(self.chance.choice([1, 10, 1000, 100_000]))
            case 3 if data:
                at = self.chance.randrange(len(data))
                return data[:at] + self.chance.randbytes(1) + data[at + 1 :]
        return b"\n\x04\xff\xfe\xfd\xfc" + data  # a first field that is no UTF-8


def methods() -> list[tuple[str, type[Message], type[Message], bool]]:
    """Return each RPC's path, the types of its request and response, and whether it streams."""
    found = []
    for service in csi.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            request, response = (
                getattr(csi, kind.name) for kind in (method.input_type, method.output_type)
            )
            path = f"/{service.full_name}/{method.name}"
            found.append((path, request, response, bool(method.server_streaming)))
    return found
