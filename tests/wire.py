"""CSI as the specification has it: the tables of its versions, and clients that are made from them.

A table lists what travels: services with their methods, messages with their fields, and enums with
their values, by name and number. `tests/proto/` has one for each version.
"""

import re
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    timestamp_pb2,
    wrappers_pb2,
)
from google.protobuf.message import Message

VERSIONS = ("1.12", "1.13")
PACKAGE = "csi.v1"

_RPC = re.compile(r"  rpc (\w+)\((\w+)\) -> (stream )?(\w+)")
_FIELD = re.compile(r"  (\d+) (\w+): (repeated )?(map<string,string>|[\w.]+)(?: oneof (\w+))?")
_VALUE = re.compile(r"  (\d+) (\w+)")

Field = descriptor_pb2.FieldDescriptorProto


def table(version: str) -> str:
    """Return the table of a version, as `tests/proto/test_proto.py` renders csi.proto."""
    return (Path(__file__).parent / "proto" / f"v{version}.txt").read_text(encoding="utf-8")


class _Reader:
    """Reads a table as the description of a file of protobuf."""

    def __init__(self, text: str) -> None:
        self.file = descriptor_pb2.FileDescriptorProto(
            name="csi.proto",
            package=PACKAGE,
            syntax="proto3",
            dependency=[timestamp_pb2.DESCRIPTOR.name, wrappers_pb2.DESCRIPTOR.name],
        )
        self._messages: dict[str, descriptor_pb2.DescriptorProto] = {}
        self._enums = set(re.findall(r"^enum ([\w.]+)", text, re.MULTILINE))
        header: Any = None
        for line in text.splitlines():
            if line.startswith(" "):
                self._read(header, line)
            else:
                header = self._begun(*line.split()[:2])

    def _begun(self, kind: str, name: str) -> Any:
        outer, _, last = name.rpartition(".")
        place: Any = self._messages.get(outer, self.file)
        match kind:
            case "service":
                return self.file.service.add(name=name)
            case "enum":
                return place.enum_type.add(name=last)
            case "message":
                nested = place.nested_type if outer else place.message_type
                self._messages[name] = nested.add(name=last)
                return self._messages[name]
        return None  # the package, its imports and its options

    def _read(self, header: Any, line: str) -> None:
        if rpc := _RPC.match(line):
            name, takes, streams, gives = rpc.groups()
            types = {"input_type": f".{PACKAGE}.{takes}", "output_type": f".{PACKAGE}.{gives}"}
            header.method.add(name=name, server_streaming=bool(streams), **types)
        elif found := _FIELD.match(line):
            self._add_field(header, *found.groups())
        elif value := _VALUE.match(line):
            header.value.add(number=int(value[1]), name=value[2])

    def _add_field(
        self, message: Any, number: str, name: str, repeated: str, kind: str, oneof: str
    ) -> None:
        field = message.field.add(name=name, number=int(number))
        field.label = Field.LABEL_REPEATED if repeated else Field.LABEL_OPTIONAL
        if oneof:
            if oneof not in [item.name for item in message.oneof_decl]:
                message.oneof_decl.add(name=oneof)
            field.oneof_index = [item.name for item in message.oneof_decl].index(oneof)
        if kind.startswith("map<"):
            entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
            entry.options.map_entry = True
            for at, part in enumerate(("key", "value"), start=1):
                entry.field.add(
                    name=part, number=at, type=Field.TYPE_STRING, label=Field.LABEL_OPTIONAL
                )
            owner = next(name for name, item in self._messages.items() if item is message)
            field.label, kind = Field.LABEL_REPEATED, f"{owner}.{entry.name}"
        scalar = f"TYPE_{kind.upper()}"
        if scalar in Field.Type.keys():  # noqa: SIM118  (an enum's wrapper is no dict)
            field.type = Field.Type.Value(scalar)
        else:
            field.type = Field.TYPE_ENUM if kind in self._enums else Field.TYPE_MESSAGE
            field.type_name = f".{kind}" if kind.startswith("google.") else f".{PACKAGE}.{kind}"


class Client:
    """An orchestrator that knows one version of CSI, and nothing of any other."""

    def __init__(self, version: str, channel: grpc.Channel) -> None:
        self._channel = channel
        self._pool = descriptor_pool.DescriptorPool()
        for known in (timestamp_pb2, wrappers_pb2):
            self._pool.AddSerializedFile(known.DESCRIPTOR.serialized_pb)
        self._file = _Reader(table(version)).file
        self._pool.Add(self._file)

    def message(self, name: str) -> type[Message]:
        """Return the type of a message."""
        return message_factory.GetMessageClass(
            self._pool.FindMessageTypeByName(f"{PACKAGE}.{name}")
        )

    def call(self, method: str, **fields: Any) -> Any:
        """Call a unary method, and return its answer."""
        service = next(
            item.name for item in self._file.service for rpc in item.method if rpc.name == method
        )
        answer = self.message(f"{method}Response")
        rpc: Any = self._channel.unary_unary(
            f"/{PACKAGE}.{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        return rpc(self.message(f"{method}Request")(**fields))
