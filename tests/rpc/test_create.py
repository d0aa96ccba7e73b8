"""CreateVolume: every field, every name, every size; what is refused leaves nothing."""

from typing import Any

import grpc
import pytest
from driver import GIB, MIB, Driver, Mode, block_capability, mount_capability, refused
from rpc.conftest import OK, code_of, on_disk, on_node, pool_of, request, unchanged

from pycsi.proto import csi_pb2 as csi

Code = grpc.StatusCode
INVALID, RANGE, FULL = Code.INVALID_ARGUMENT, Code.OUT_OF_RANGE, Code.RESOURCE_EXHAUSTED
HERE = Mode.SINGLE_NODE_WRITER


def size(required: int = 0, limit: int = 0) -> csi.CapacityRange:
    return csi.CapacityRange(required_bytes=required, limit_bytes=limit)


def image(**parameters: str) -> dict[str, str]:
    return {"type": "image"} | parameters


MISSING_ACCESS = csi.VolumeCapability(access_mode=Mode(mode=HERE))
MISSING_MODE = csi.VolumeCapability(mount=csi.VolumeCapability.MountVolume())
UNKNOWN_MODE = csi.VolumeCapability(
    mount=csi.VolumeCapability.MountVolume(), access_mode=csi.VolumeCapability.AccessMode()
)
NODE_GROUP = csi.VolumeCapability(
    mount=csi.VolumeCapability.MountVolume(volume_mount_group="1000"), access_mode=Mode(mode=HERE)
)
SOURCE = csi.VolumeContentSource(
    snapshot=csi.VolumeContentSource.SnapshotSource(snapshot_id="none@node-1")
)


@pytest.mark.parametrize(
    ("fields", "codes"),
    [
        ({"name": ""}, {INVALID}),
        ({"volume_capabilities": []}, {INVALID}),
        ({"volume_capabilities": [MISSING_ACCESS]}, {INVALID}),
        ({"volume_capabilities": [MISSING_MODE]}, {INVALID}),
        ({"volume_capabilities": [UNKNOWN_MODE]}, {INVALID}),
        ({"volume_capabilities": [mount_capability(), MISSING_ACCESS]}, {INVALID}),
        ({"volume_capabilities": [NODE_GROUP]}, {INVALID}),
        ({"volume_capabilities": [mount_capability(), block_capability()]}, {INVALID}),
        ({"volume_capabilities": [mount_capability(flags=["x" * 4097])]}, {INVALID}),
        ({"volume_capabilities": [mount_capability(flags=["a\0b"])]}, {INVALID}),
        ({"volume_capabilities": [mount_capability(flags=["remount"])]}, {INVALID}),
        ({"volume_capabilities": [mount_capability("ntfs")], "parameters": image()}, {INVALID}),
        (
            {
                "volume_capabilities": [mount_capability("xfs"), mount_capability("ext4")],
                "parameters": image(),
            },
            {INVALID},
        ),
        ({"capacity_range": size()}, {INVALID}),
        ({"capacity_range": size(-1)}, {INVALID}),
        ({"capacity_range": size(0, -1)}, {INVALID}),
        ({"capacity_range": size(-(2**63))}, {INVALID}),
        ({"capacity_range": size(2 * GIB, GIB)}, {INVALID, RANGE}),
        ({"capacity_range": size(0, 1)}, {RANGE}),
        ({"capacity_range": size(MIB + 1, MIB + 4095)}, {RANGE}),
        ({"capacity_range": size(2**63 - 1)}, {RANGE}),
        ({"capacity_range": size(2**63 - 1, 2**63 - 1)}, {RANGE}),
        ({"capacity_range": size(2**62)}, {FULL}),
        ({"capacity_range": size(0, 15 * MIB), "parameters": image()}, {RANGE}),
        ({"parameters": {"color": "red"}}, {INVALID}),
        ({"parameters": {"pool": "none"}}, {INVALID}),
        ({"parameters": {"pool": ""}}, {INVALID}),
        ({"parameters": {"pool": "\U0001f600" * 1000}}, {INVALID}),
        ({"parameters": {"type": "lvm"}}, {INVALID}),
        ({"parameters": {"\n" * 100: "x" * 3900}}, {INVALID}),
        ({"parameters": {"pool": "x" * 4097}}, {INVALID}),
        ({"parameters": image(mkfsOptions="-d /etc")}, {INVALID}),
        ({"parameters": image(mkfsOptions="'")}, {INVALID}),
        ({"parameters": image(quota="none")}, {INVALID}),
        ({"parameters": {"type": "directory"}}, {INVALID}),
        ({"mutable_parameters": {"color": "red"}}, {INVALID}),
        ({"volume_content_source": csi.VolumeContentSource()}, {INVALID}),
        ({"volume_content_source": SOURCE}, {INVALID, Code.NOT_FOUND}),
        ({"accessibility_requirements": on_node("node-2")}, {FULL}),
        ({"accessibility_requirements": on_node("node-2", "node-3")}, {FULL}),
        (
            {
                "accessibility_requirements": csi.TopologyRequirement(
                    requisite=on_node("node-2").requisite, preferred=on_node("node-2").requisite
                )
            },
            {FULL},
        ),
    ],
)
def test_refused(shared: Driver, fields: dict[str, Any], codes: set[grpc.StatusCode]) -> None:
    """A wrong field is refused with the specification's code, and nothing is left of the volume."""
    wanted = request(**{"name": "refused"} | fields)
    with unchanged(shared):
        assert code_of(lambda: shared.controller.CreateVolume(wanted)) in codes


@pytest.mark.parametrize("mode", [Mode.UNKNOWN, 99])
def test_mode_that_is_none(shared: Driver, mode: Any) -> None:
    """What the specification does not name is refused."""
    with unchanged(shared):
        for capability in (mount_capability(mode=mode), block_capability(mode)):
            assert code_of(lambda: shared.create("m", capability=capability)) is INVALID  # noqa: B023


@pytest.mark.parametrize("mode", [item for item in Mode.Mode.values() if item != Mode.UNKNOWN])
def test_mode(shared: Driver, mode: Any) -> None:
    """Every access mode can be had where one node is all there is."""
    volume = shared.create(f"mode-{mode}", quota="none", capability=mount_capability(mode=mode))
    shared.delete(volume.volume_id)


NAMES = [
    "../../x",
    "..",
    ".",
    "/",
    "/etc/passwd",
    "a\nb",
    "a\tb",
    "a\rb",
    " ",
    "  a  ",
    "\U0001f600",
    "\u202eabc",
    "\u00a0",
    "é",
    "e\u0301",
    "É",
    "a@node-2",
    "a@node-1@node-1",
    "sha256-0000",
    "ephemeral-0000",
    "-rf",
    "$(reboot)",
    "x" * 63,
    "x" * 64,
    "x" * 128,
    "é" * 64,
    "\U0001f600" * 32,
    "volume.json",
    "A",
    "a",
]


def test_names(shared: Driver) -> None:
    """Any legal name makes a volume of its own, inside the pool, with an id that works."""
    before = on_disk(shared)
    made = {name: shared.create(name, 4 * MIB, quota="none").volume_id for name in NAMES}
    assert len(set(made.values())) == len(NAMES)
    assert on_disk(shared) - before == {f"volumes/{volume_id}" for volume_id in made.values()}
    for name, volume_id in made.items():
        assert len(volume_id.encode()) <= 128
        assert shared.create(name, 4 * MIB, quota="none").volume_id == volume_id
    shared.restart()
    for name, volume_id in made.items():
        assert shared.create(name, 4 * MIB, quota="none").volume_id == volume_id
        shared.delete(volume_id)
    assert on_disk(shared) == before


@pytest.mark.parametrize("name", ["x" * 129, "é" * 65, "\U0001f600" * 33, "x" * 100_000])
def test_name_that_is_too_long(shared: Driver, name: str) -> None:
    """A name of more than 128 bytes is refused, and not repeated."""
    with unchanged(shared), refused(INVALID, "128"):
        shared.create(name, quota="none")


@pytest.mark.parametrize(
    "code", [0, 1, 8, 0xB, 0xC, 0xE, 0x1B, 0x1F, 0x7F, 0x80, 0x85, 0x9F], ids=hex
)
def test_name_with_a_control_character(shared: Driver, code: int) -> None:
    """A name with a banned control character is refused."""
    with unchanged(shared), refused(INVALID, f"U+{code:04X}"):
        shared.create(f"a{chr(code)}b", quota="none")


@pytest.mark.parametrize(
    ("wanted", "parameters", "made"),
    [
        (size(4 * MIB), {}, 4 * MIB),
        (size(1), {}, MIB),
        (size(4 * MIB + 1), {}, 4 * MIB + 4096),
        (size(0, 4 * MIB + 4095), {}, 4 * MIB),
        (size(0, 5 * GIB), {}, GIB),
        (size(4 * MIB, 4 * MIB), {}, 4 * MIB),
        (size(1, 2**63 - 1), {}, MIB),
        (None, {}, GIB),
        (size(1), {"type": "image", "quota": ""}, 16 * MIB),
        (size(33 * MIB + 5), {"type": "image", "quota": ""}, 33 * MIB + 4096),
    ],
)
def test_size(
    shared: Driver, wanted: csi.CapacityRange | None, parameters: dict[str, str], made: int
) -> None:
    """A size lies in the range, is whole blocks, and is what the answer says."""
    given = {key: value for key, value in ({"quota": "none"} | parameters).items() if value}
    volume = shared.controller.CreateVolume(
        request("size", capacity_range=wanted, parameters=given)
    ).volume
    assert volume.capacity_bytes == made
    shared.delete(volume.volume_id)


def test_answer(shared: Driver) -> None:
    """The answer says where the volume can be used, and all its strings are short."""
    volume = shared.create("answer", 4 * MIB, quota="none")
    assert volume.accessible_topology == on_node("node-1").requisite
    assert volume.volume_context["pool"] == "default"
    for key, value in volume.volume_context.items():
        assert len(key.encode()) <= 128
        assert len(value.encode()) <= 128
    shared.delete(volume.volume_id)


@pytest.mark.parametrize(
    "requirement",
    [
        csi.TopologyRequirement(),
        on_node("node-1"),
        on_node("node-2", "node-1"),
        csi.TopologyRequirement(preferred=on_node("node-1").requisite),
        csi.TopologyRequirement(
            requisite=[csi.Topology(segments={"TOPOLOGY.PYCSI.storage/NODE": "node-1"})]
        ),
        csi.TopologyRequirement(
            requisite=on_node("node-2", "node-1").requisite, preferred=on_node("node-2").requisite
        ),
    ],
)
def test_topology(shared: Driver, requirement: csi.TopologyRequirement) -> None:
    """A volume is made where one of the requisite topologies, or a preferred one, is this node."""
    wanted = request("topology", accessibility_requirements=requirement)
    shared.delete(shared.controller.CreateVolume(wanted).volume.volume_id)


@pytest.mark.parametrize("options", ["-b 1000", "-m 200", "-I 7", "-O nonsense"])
def test_mkfs_that_fails(shared: Driver, options: str) -> None:
    """An option whose value mkfs refuses is the request's fault, and leaves nothing."""
    wanted = request(f"mkfs {options}", parameters=image(mkfsOptions=options))
    wanted.capacity_range.required_bytes = 64 * MIB
    with unchanged(shared), refused(INVALID, "mkfs"):
        shared.controller.CreateVolume(wanted)


@pytest.mark.parametrize(
    "options", [{}, {"mkfsOptions": "-E stride=4"}, {"mkfsOptions": "-E discard"}]
)
def test_thick_stays_thick(shared: Driver, options: dict[str, str]) -> None:
    """A thick image has all its blocks, whatever mkfs was told."""
    wanted = request("thick", parameters=image(allocation="thick", **options))
    wanted.capacity_range.required_bytes = 64 * MIB
    volume_id = shared.controller.CreateVolume(wanted).volume.volume_id
    status = (pool_of(shared) / "volumes" / volume_id / "disk.img").stat()
    shared.delete(volume_id)
    assert status.st_blocks * 512 >= 64 * MIB


def test_secrets_are_ignored(shared: Driver) -> None:
    """The driver needs no secrets, and takes no offence at them."""
    wanted = request("secrets", secrets={"user": "x"})
    assert code_of(lambda: shared.controller.CreateVolume(wanted)) is OK
    shared.delete("secrets@node-1")
