"""csi.proto is CSI v1.13 on the wire, with v1.12 beside it; the stubs are those of the sources."""

import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message
from wire import PACKAGE, VERSIONS, table

ROOT = Path(__file__).resolve().parents[2]
PROTO = "pycsi/proto/csi.proto"
SOURCES = ("csi.proto", "exchange.proto", "groups.proto", "transfers.proto")
STUBS = [
    source.replace(".proto", suffix)
    for source in SOURCES
    for suffix in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")
]
MARKS = {
    "alpha_enum": "alpha",
    "alpha_enum_value": "alpha",
    "alpha_field": "alpha",
    "alpha_message": "alpha",
    "alpha_method": "alpha",
    "alpha_service": "alpha",
    "csi_secret": "secret",
}

Field = descriptor_pb2.FieldDescriptorProto


def protoc(*arguments: str, sources: Iterable[str] = SOURCES) -> None:
    """Run the protocol compiler as `make proto` does."""
    command = [sys.executable, "-m", "grpc_tools.protoc", "-Ipycsi/proto=.", *arguments]
    done = subprocess.run(
        [*command, *sources], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def parse(data: bytes) -> descriptor_pb2.FileDescriptorProto:
    """Return the description of csi.proto with its own options understood.

    A private pool keeps it apart from the stubs, which register the same names.
    """
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(data).file:
        pool.Add(file)
    name = descriptor_pb2.FileDescriptorSet.DESCRIPTOR.full_name
    file_set = message_factory.GetMessageClass(pool.FindMessageTypeByName(name))
    message_factory.GetMessageClassesForFiles([PROTO], pool)  # makes the extensions known
    parsed = cast("descriptor_pb2.FileDescriptorSet", file_set.FromString(data))
    return next(file for file in parsed.file if file.name == PROTO)


def short(name: str) -> str:
    """Return a type's name without the leading dot and our package."""
    return name.removeprefix(".").removeprefix(f"{PACKAGE}.")


def marks(options: Message) -> str:
    """Return the options of an element; one the table has no word for shows as it is."""
    words = []
    for field, value in options.ListFields():
        known = field.is_extension and value is True
        words.append(MARKS.get(field.name, "?") if known else f"{field.name}={value}")
    return f" [{','.join(sorted(words))}]" if words else ""


def base_type(field: descriptor_pb2.FieldDescriptorProto) -> str:
    """Return the name of a field's type, without its label."""
    if field.type_name:
        return short(field.type_name)
    return Field.Type.Name(field.type).removeprefix("TYPE_").lower()


def field_type(
    field: descriptor_pb2.FieldDescriptorProto, entries: dict[str, descriptor_pb2.DescriptorProto]
) -> str:
    """Return a field's label and type, a map as map<key,value>."""
    name = base_type(field)
    if name in entries:
        return f"map<{','.join(base_type(part) for part in entries[name].field)}>"
    if field.label == Field.LABEL_REPEATED:
        return f"repeated {name}"
    return f"optional {name}" if field.proto3_optional else name


def render_enum(enum: descriptor_pb2.EnumDescriptorProto, scope: str) -> Iterator[str]:
    """Yield the lines of an enum."""
    yield f"enum {scope}{enum.name}{marks(enum.options)}"
    for value in sorted(enum.value, key=lambda value: value.number):
        yield f"  {value.number} {value.name}{marks(value.options)}"


def render_message(message: descriptor_pb2.DescriptorProto, scope: str) -> Iterator[str]:
    """Yield the lines of a message, then those of the types within it."""
    name = f"{scope}{message.name}"
    entries = {
        f"{name}.{nested.name}": nested
        for nested in message.nested_type
        if nested.options.map_entry
    }
    yield f"message {name}{marks(message.options)}"
    for field in sorted(message.field, key=lambda field: field.number):
        real = field.HasField("oneof_index") and not field.proto3_optional
        oneof = f" oneof {message.oneof_decl[field.oneof_index].name}" if real else ""
        kind = field_type(field, entries)
        yield f"  {field.number} {field.name}: {kind}{oneof}{marks(field.options)}"
    for enum in sorted(message.enum_type, key=lambda enum: enum.name):
        yield from render_enum(enum, f"{name}.")
    for nested in sorted(message.nested_type, key=lambda nested: nested.name):
        if not nested.options.map_entry:
            yield from render_message(nested, f"{name}.")


def render_service(service: descriptor_pb2.ServiceDescriptorProto) -> Iterator[str]:
    """Yield the lines of a service, its methods in the order of the file."""
    yield f"service {service.name}{marks(service.options)}"
    for method in service.method:
        takes = f"{'stream ' * method.client_streaming}{short(method.input_type)}"
        gives = f"{'stream ' * method.server_streaming}{short(method.output_type)}"
        yield f"  rpc {method.name}({takes}) -> {gives}{marks(method.options)}"


def render(file: descriptor_pb2.FileDescriptorProto) -> Iterator[str]:
    """Yield the lines of the wire table for a file."""
    yield f"package {file.package}{marks(file.options)}"
    yield f"syntax {file.syntax}"
    yield f"imports {' '.join(sorted(file.dependency))}"
    for extension in sorted(file.extension, key=lambda field: (field.extendee, field.number)):
        name = f"{extension.name}: {field_type(extension, {})}{marks(extension.options)}"
        yield f"extend {short(extension.extendee)} {extension.number} {name}"
    for service in sorted(file.service, key=lambda service: service.name):
        yield from render_service(service)
    for enum in sorted(file.enum_type, key=lambda enum: enum.name):
        yield from render_enum(enum, "")
    for message in sorted(file.message_type, key=lambda message: message.name):
        yield from render_message(message, "")


def elements(lines: Iterable[str]) -> set[tuple[str, str]]:
    """Return the lines of a table, each with the service, message or enum that it belongs to."""
    found, header = set(), ""
    for line in lines:
        header = header if line.startswith(" ") else line
        found.add((header, line.strip()))
    return found


def test_wire_contract(tmp_path: Path) -> None:
    """Every name, number, type and option of csi.proto is that of a version of CSI.

    csi.proto has both versions. v1.13 reserves the numbers of what it has no more, and the tables
    disagree nowhere, so callers of either can use it.
    """
    out = tmp_path / "csi.binpb"
    protoc("--include_imports", f"--descriptor_set_out={out}", sources=["csi.proto"])
    found = elements(render(parse(out.read_bytes())))
    wanted = set().union(*(elements(table(version).splitlines()) for version in VERSIONS))
    assert found == wanted
    numbers = [(header, line.split()[0]) for header, line in found if line[0].isdigit()]
    assert len(numbers) == len(set(numbers)), "a number has two meanings"


@pytest.fixture(scope="module")
def fresh_stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generate the stubs anew and return the directory they are in."""
    out = tmp_path_factory.mktemp("stubs")
    protoc(f"--python_out={out}", f"--pyi_out={out}", f"--grpc_python_out={out}")
    return out / "pycsi" / "proto"


def test_no_other_stubs_are_generated(fresh_stubs: Path) -> None:
    """The compiler writes exactly the stubs that are compared with the committed ones."""
    assert sorted(path.name for path in fresh_stubs.iterdir()) == sorted(STUBS)


@pytest.mark.parametrize("name", STUBS)
def test_committed_stub_is_current(fresh_stubs: Path, name: str) -> None:
    """A committed stub is byte for byte what `make proto` generates."""
    committed = ROOT / "src" / "pycsi" / "proto" / name
    same = committed.read_bytes() == (fresh_stubs / name).read_bytes()
    assert same, f"{committed.relative_to(ROOT)} is out of date: run `make proto`"
