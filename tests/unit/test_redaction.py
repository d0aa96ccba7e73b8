"""Nothing sensitive survives redaction, in whatever message it is."""

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from pycsi.proto import csi_pb2 as csi
from pycsi.server.redaction import SECRET_FIELDS, STRIPPED, redacted

MARKER = "hunter2"
SECRET_KEYS = ["user", "password", "token", *(f"key-{number}" for number in range(20))]
TOKENS = "csi.storage.k8s.io/serviceAccount.tokens"


def kinds(of: list[Any]) -> Iterator[Any]:
    for kind in of:
        if not kind.GetOptions().map_entry:
            yield kind
            yield from kinds(list(kind.nested_types))


KINDS = {
    kind.full_name: kind for kind in kinds(list(csi.DESCRIPTOR.message_types_by_name.values()))
}


def is_map(field: Any) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def is_secret(field: Any) -> bool:
    return bool(field.GetOptions().Extensions[csi.csi_secret])


def fill(message: Message, depth: int = 4) -> None:
    """Set the marker in all that is sensitive, and something harmless in every other string."""
    field: Any
    for field in message.DESCRIPTOR.fields:
        value: Any = getattr(message, field.name)
        if is_secret(field):
            for key in SECRET_KEYS:
                value[key] = MARKER
        elif is_map(field):
            if field.message_type.fields_by_name["value"].type == FieldDescriptor.TYPE_STRING:
                value["harmless"] = "shown"
                value[TOKENS] = MARKER
        elif field.name == "mount_flags":
            value.extend([MARKER, f"a={MARKER}"])
        elif field.message_type is not None and depth:
            part = value.add() if field.is_repeated else value
            part.SetInParent()
            fill(part, depth - 1)
        elif field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated:
            setattr(message, field.name, "shown")


HOLDERS = [name for name, kind in KINDS.items() if any(is_secret(field) for field in kind.fields)]


def test_every_secret_field_is_known() -> None:
    """The 22 fields that the specification marks are the ones that are stripped."""
    marked = {
        field.full_name for kind in KINDS.values() for field in kind.fields if is_secret(field)
    }
    assert len(marked) >= 22
    assert marked == SECRET_FIELDS
    assert {name.rpartition(".")[2] for name in marked} == {"secrets"}


@pytest.mark.parametrize("name", KINDS)
def test_nothing_sensitive_is_left(name: str) -> None:
    """In every message, secrets, mount flags and tokens are gone at any depth."""
    message = GetMessageClass(KINDS[name])()
    fill(message)
    before = message.SerializeToString(deterministic=True)
    assert MARKER not in str(redacted(message))
    assert message.SerializeToString(deterministic=True) == before, "the request itself changed"


@pytest.mark.parametrize("name", HOLDERS)
def test_keys_of_secrets_stay(name: str) -> None:
    """It can be seen that there were secrets, and under which keys."""
    message = GetMessageClass(KINDS[name])()
    fill(message)
    assert redacted(message)["secrets"] == dict.fromkeys(SECRET_KEYS, STRIPPED)


def test_the_rest_stays() -> None:
    """What is not sensitive is shown as it is."""
    request = csi.NodePublishVolumeRequest(
        volume_id="a@n", target_path="/t", readonly=True, volume_context={"pool": "p", TOKENS: "x"}
    )
    request.volume_capability.mount.mount_flags.append("ro")
    request.volume_capability.mount.fs_type = "xfs"
    assert redacted(request) == {
        "volume_id": "a@n",
        "target_path": "/t",
        "readonly": True,
        "volume_context": {"pool": "p", TOKENS: STRIPPED},
        "volume_capability": {"mount": {"fs_type": "xfs", "mount_flags": [STRIPPED]}},
    }
