"""Redaction of requests for the log: secrets, mount flags and tokens are replaced.

Secrets are the fields that csi.proto marks with the option `csi_secret`.
"""

from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from pycsi.proto import csi_pb2 as csi

STRIPPED = "***"

_MOUNT_FLAGS = "csi.v1.VolumeCapability.MountVolume.mount_flags"
_SENSITIVE_KEYS = frozenset({"csi.storage.k8s.io/serviceAccount.tokens"})


def _secret_fields() -> frozenset[str]:
    def walk(kinds: list[Descriptor]) -> list[FieldDescriptor]:
        fields = [field for kind in kinds for field in kind.fields]
        nested = [inner for kind in kinds for inner in kind.nested_types]
        return fields + (walk(nested) if nested else [])

    fields = walk(list(csi.DESCRIPTOR.message_types_by_name.values()))
    # The stubs do not type extensions.
    options = [(field.full_name, field.GetOptions().Extensions) for field in fields]
    return frozenset(name for name, marks in options if marks[csi.csi_secret])  # type: ignore[index,redundant-expr]


SECRET_FIELDS = _secret_fields()
"""The full names of all fields with the option `csi_secret`."""


def redacted(message: Message) -> dict[str, Any]:
    """Return a message as JSON data with its sensitive values replaced by `STRIPPED`."""
    copy = type(message)()
    copy.CopyFrom(message)
    _strip(copy)
    return MessageToDict(copy, preserving_proto_field_name=True)


def _strip(message: Message) -> None:
    for field, value in message.ListFields():
        is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
        if field.full_name in SECRET_FIELDS or (is_map and not _SENSITIVE_KEYS.isdisjoint(value)):
            for key in list(value):  # a map must not change during iteration
                if field.full_name in SECRET_FIELDS or key in _SENSITIVE_KEYS:
                    value[key] = STRIPPED
        elif field.full_name == _MOUNT_FLAGS:
            value[:] = [STRIPPED] * len(value)
        elif field.message_type is not None and not is_map:
            for part in value if field.is_repeated else [value]:
                _strip(part)
