"""The parameters uid, gid, mode and lostAndFound: what they can be, and how they compare."""

import grpc
import pytest
from driver import Driver
from rpc.conftest import OK, code_of, request, unchanged

from pycsi.proto import csi_pb2 as csi

INVALID, EXISTS = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.ALREADY_EXISTS
IDS = ["", " ", "-1", "+1", " 1", "1 ", "1\n", "01", "1.0", "1e3", "0x10", "root", "4294967295"]
IDS += ["9" * 40, "1_000", "\u0661", "1,2", "$(id)", "nobody:nobody"]
MODES = ["", "-1", " 0770", "0770 ", "0770\n", "77", "7", "0o770", "778", "0888", "4777", "6755"]
MODES += ["07770", "00770000", "1e3", "rwxr-x---", "u=rwx", "\u0667\u0667\u0667", "7" * 40]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("uid", item) for item in IDS),
        *(("gid", item) for item in IDS),
        *(("mode", item) for item in MODES),
        *(("lostAndFound", item) for item in ("", "no", "False", "0", "false ")),
        ("Uid", "1"),
        ("lostandfound", "false"),
    ],
)
def test_refused(shared: Driver, key: str, value: str) -> None:
    """It is INVALID_ARGUMENT, in GetCapacity too, and nothing is made."""
    given = {"quota": "none", key: value}
    wanted = request("refused", parameters=given)
    with unchanged(shared), pytest.raises(grpc.RpcError, match=key) as caught:
        shared.controller.CreateVolume(wanted)
    assert caught.value.code() is INVALID
    capacity = csi.GetCapacityRequest(parameters=given)
    assert code_of(lambda: shared.controller.GetCapacity(capacity)) is INVALID


@pytest.mark.parametrize(
    "given",
    [
        {"uid": "0", "gid": "0"},
        {"mode": "0000"},
        {"mode": "755"},
        {"mode": "0755"},
        {"mode": "1777"},
        {"mode": "02775"},
        {"lostAndFound": "true"},
        {"lostAndFound": "false"},
    ],
)
def test_accepted(shared: Driver, given: dict[str, str]) -> None:
    """It can be made, asked about, and confirmed."""
    parameters = {"quota": "none"} | given
    volume_id = shared.controller.CreateVolume(
        request("ok", parameters=parameters)
    ).volume.volume_id
    shared.controller.GetCapacity(csi.GetCapacityRequest(parameters=parameters))
    answer = shared.controller.ValidateVolumeCapabilities(
        csi.ValidateVolumeCapabilitiesRequest(
            volume_id=volume_id,
            volume_capabilities=request("ok").volume_capabilities,
            parameters=parameters,
        )
    )
    assert answer.HasField("confirmed")
    shared.delete(volume_id)


def test_idempotency(shared: Driver) -> None:
    """They are parameters: the same again is the volume, others are another one."""
    parameters = {"quota": "none", "mode": "0770"}
    created = request("same", parameters=parameters)
    assert code_of(lambda: shared.controller.CreateVolume(created)) is OK
    assert code_of(lambda: shared.controller.CreateVolume(created)) is OK
    for others in ({"mode": "0777"}, {"uid": "0"}, {"lostAndFound": "false"}):
        wanted = request("same", parameters=parameters | others)
        assert code_of(lambda: shared.controller.CreateVolume(wanted)) is EXISTS  # noqa: B023
    shared.delete("same@node-1")
