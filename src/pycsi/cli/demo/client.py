"""The demo's CSI client: every call is timed and shown, and must end with the expected status."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from pycsi.cli.demo.claims import Disproved
from pycsi.cli.demo.process import Process
from pycsi.cli.demo.screen import Screen
from pycsi.proto import csi_pb2 as csi
from pycsi.proto import csi_pb2_grpc

_DEADLINE = 60.0


def _consumed(stream: Any) -> Callable[..., list[Any]]:
    """Return the streaming RPC `stream` as a function that returns all its messages as a list."""
    return lambda request, timeout: list(stream(request, timeout=timeout))


class Client:
    """Calls the CSI services of the driver at `socket`."""

    def __init__(self, socket: Path, screen: Screen) -> None:
        self._screen = screen
        self._channel = grpc.insecure_channel(
            f"unix://{socket}", options=[("grpc.default_authority", "localhost")]
        )
        stubs = (
            csi_pb2_grpc.IdentityStub,
            csi_pb2_grpc.ControllerStub,
            csi_pb2_grpc.GroupControllerStub,
            csi_pb2_grpc.NodeStub,
            csi_pb2_grpc.SnapshotMetadataStub,
        )
        self._methods: dict[str, Any] = {}
        for stub in stubs:
            for name, method in vars(stub(self._channel)).items():
                streams = isinstance(method, grpc.UnaryStreamMultiCallable)
                self._methods[name] = _consumed(method) if streams else method

    def close(self) -> None:
        self._channel.close()

    def wait_until_served(self, driver: Process) -> None:
        """Wait until the driver has recovered its pools.

        `Disproved` if it ends instead, or is not ready after a minute.
        """
        deadline = time.monotonic() + _DEADLINE
        while driver.running and time.monotonic() < deadline:
            try:
                answer = self._methods["Probe"](csi.ProbeRequest(), timeout=1, wait_for_ready=True)
            except grpc.RpcError as error:
                if _status(error) is grpc.StatusCode.FAILED_PRECONDITION:
                    return  # it serves, though with a complaint, such as a missing program
            else:
                if answer.ready.value:
                    return
            time.sleep(0.02)
        raise Disproved(expected="a driver that is ready", found=driver.last_words)

    def call(self, method: str, request: object, detail: str = "", *, quiet: bool = False) -> Any:
        """Call an RPC that must succeed; return its response, or the list of a stream's messages.

        `detail` is shown beside the call; a `quiet` call is not shown. Any status but OK raises
        `Disproved`.
        """
        response, _ = self._timed(method, request, detail, grpc.StatusCode.OK, quiet=quiet)
        return response

    def refused(self, method: str, request: object, status: str, detail: str = "") -> str:
        """Call an RPC that must be refused with `status`, and return the error message."""
        _, reason = self._timed(method, request, detail, grpc.StatusCode[status])
        return reason

    def _timed(
        self,
        method: str,
        request: object,
        detail: str,
        expected: grpc.StatusCode,
        *,
        quiet: bool = False,
    ) -> tuple[Any, str]:
        response, status, reason = None, grpc.StatusCode.OK, ""
        begin = time.perf_counter()
        try:
            response = self._methods[method](request, timeout=_DEADLINE)
        except grpc.RpcError as error:
            status, reason = _status(error), _reason(error)
        if not quiet:
            self._screen.call(method, status.name, time.perf_counter() - begin, detail)
        if status is not expected:
            raise Disproved(
                expected=f"{method} answers {expected.name}", found=f"{status.name}: {reason}"
            )
        return response, reason


def _status(error: Any) -> grpc.StatusCode:
    code: grpc.StatusCode = error.code()
    return code


def _reason(error: Any) -> str:
    details: str = error.details()
    return details
