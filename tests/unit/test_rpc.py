"""Locks, status codes, tokens and the other small parts between the socket and the pools."""

import errno
import threading

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycsi.model import errors, ids
from pycsi.model.config import CsiVersion, DriverMode
from pycsi.proto import csi_pb2 as csi
from pycsi.server.report import status_of
from pycsi.services import request
from pycsi.services.capabilities import driver_capabilities
from pycsi.volumes.locks import Locks

Code = grpc.StatusCode
AccessMode = csi.VolumeCapability.AccessMode


def test_second_hold_is_aborted() -> None:
    """Who finds an id held is told so at once; other ids are free."""
    locks = Locks()
    with locks.hold("a"):
        with pytest.raises(errors.Aborted, match="a"), locks.hold("a"):
            pytest.fail("held twice")
        with locks.hold("b"):
            pass
    with locks.hold("a"):
        pass


def test_lock_is_released_after_an_exception() -> None:
    """An operation that fails leaves its id free."""
    locks = Locks()
    with pytest.raises(KeyError), locks.hold("a"):
        raise KeyError
    with locks.hold("a"):
        pass


def test_refused_hold_does_not_release() -> None:
    """Being refused does not end the hold of the other."""
    locks = Locks()
    with locks.hold("a"):
        for _ in range(3):
            with pytest.raises(errors.Aborted), locks.hold("a"):
                pass


def test_one_of_many_threads_holds() -> None:
    """Of all threads that come at once, one gets the id."""
    locks, interceptor, leave = Locks(), threading.Barrier(16), threading.Event()
    outcomes: list[str] = []

    def work() -> None:
        interceptor.wait()
        try:
            with locks.hold("a"):
                outcomes.append("held")
                leave.wait(10)
        except errors.Aborted:
            outcomes.append("aborted")
            if outcomes.count("aborted") == 15:
                leave.set()

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["aborted"] * 15 + ["held"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidArgument("x"), Code.INVALID_ARGUMENT),
        (errors.NotFound("x"), Code.NOT_FOUND),
        (errors.AlreadyExists("x"), Code.ALREADY_EXISTS),
        (errors.OutOfRange("x"), Code.OUT_OF_RANGE),
        (errors.ResourceExhausted("x"), Code.RESOURCE_EXHAUSTED),
        (errors.FailedPrecondition("x"), Code.FAILED_PRECONDITION),
        (errors.Aborted("x"), Code.ABORTED),
        (errors.Unavailable("x"), Code.UNAVAILABLE),
        (errors.Unimplemented("x"), Code.UNIMPLEMENTED),
        (OSError(errno.ENOSPC, "full"), Code.RESOURCE_EXHAUSTED),
        (OSError(errno.EDQUOT, "full"), Code.RESOURCE_EXHAUSTED),
        (OSError(errno.EIO, "broken"), Code.FAILED_PRECONDITION),
        (OSError(), Code.INTERNAL),
        (KeyError("x"), Code.INTERNAL),
        (RuntimeError(), Code.INTERNAL),
        (errors.CsiError(), Code.INTERNAL),
        (errors.NotFound(), Code.NOT_FOUND),
        (GeneratorExit(), Code.CANCELLED),
    ],
)
def test_status(error: BaseException, code: grpc.StatusCode) -> None:
    """Every exception has a code that is not UNKNOWN, and a message that is not empty."""
    found, message = status_of(error)
    assert found is code
    assert message.strip()


@given(st.text(max_size=5000))
def test_status_message_fits_a_header(text: str) -> None:
    """A message is at most 1 KiB of UTF-8: gRPC drops a status whose header is too long."""
    assert len(status_of(errors.NotFound(text))[1].encode(errors="surrogatepass")) <= 1024


def test_long_status_message_of_wide_characters() -> None:
    """The limit counts bytes, and cuts no character in two."""
    _, message = status_of(errors.NotFound("\U0001f600" * 2000))
    assert len(message.encode()) <= 1024
    assert set(message) <= set("\U0001f600.…")


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.integers(0, 2**31 - 1))
def test_token_names_its_place(name: str, entries: int) -> None:
    """A token that was given leads back to the id after which its page begins."""
    last = ids.object_id(name, "n")
    token = request.token(last)
    assert len(token.encode()) <= 128
    assert request.page(entries, token) == (entries, last)


@pytest.mark.parametrize(
    "token", ["invalid-token", "0", ">", ">>a@n", "a@n", ">a", ">../..@n", "\0", ">a@n\n", " >a@n"]
)
def test_token_that_is_not_ours(token: str) -> None:
    """A token that this driver never gave is ABORTED."""
    with pytest.raises(errors.Aborted):
        request.page(0, token)


def test_first_page() -> None:
    """Without a token a listing begins at its start; without a number it has no end."""
    assert request.page(0, "") == (0, "")
    with pytest.raises(errors.InvalidArgument, match="max_entries"):
        request.page(-1, "")


@pytest.mark.parametrize(
    ("required", "limit", "legal"),
    [
        (1, 0, True),
        (0, 1, True),
        (5, 5, True),
        (2**63 - 1, 0, True),
        (0, 0, False),
        (-1, 0, False),
        (0, -1, False),
        (5, 4, False),
        (-5, -4, False),
    ],
)
def test_capacity_range(*, required: int, limit: int, legal: bool) -> None:
    """A capacity range says something that is possible."""
    message = csi.CapacityRange(required_bytes=required, limit_bytes=limit)
    if legal:
        read = request.capacity_range(message)
        assert (read.required or 0, read.limit or 0) == (required, limit)
    else:
        with pytest.raises(errors.InvalidArgument, match="capacity_range"):
            request.capacity_range(message)


@pytest.mark.parametrize("mode", AccessMode.Mode.values())
def test_access_mode(mode: AccessMode.Mode) -> None:
    """Modes of one node are read, those of many nodes where they are served; none is refused."""
    message = csi.VolumeCapability(
        mount=csi.VolumeCapability.MountVolume(), access_mode=AccessMode(mode=mode)
    )
    name = AccessMode.Mode.Name(mode)
    for driver_mode, word in ((DriverMode.SINGLE_NODE, "SINGLE_NODE"), (DriverMode.NODE, "mode")):
        served = driver_capabilities(
            driver_mode, attach=False, version=CsiVersion.V1_13
        ).access_modes
        if mode and (driver_mode is DriverMode.SINGLE_NODE or name.startswith("SINGLE_NODE")):
            assert request.capability(message, served).mode == name
        else:
            with pytest.raises(errors.InvalidArgument, match=word if mode else "access_mode"):
                request.capability(message, served)


def test_map_over_4_kib() -> None:
    """A map counts keys and values, in bytes."""
    assert request.string_map({"é": "x" * 4094}, "m")
    with pytest.raises(errors.InvalidArgument, match="m holds"):
        request.string_map({"é": "x" * 4095}, "m")
