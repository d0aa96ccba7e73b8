"""The steps that the caller of a stream asks for, one after the other."""

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

import grpc

from pycsi.model.errors import Cancelled, InvalidArgument
from pycsi.proto import groups_pb2 as groups
from pycsi.proto import transfers_pb2 as transfers

Request = TypeVar("Request", groups.TakePartRequest, transfers.ImportRequest)


class Steps(Generic[Request]):
    """The steps of a stream, which are read in a thread, so that waiting can end."""

    def __init__(self, requests: Iterator[Request]) -> None:
        self._requests: Iterator[Request] = requests
        self._arrived: queue.SimpleQueue[Request | Exception] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="steps", daemon=True).start()

    def _read(self) -> None:
        gone = Cancelled("the caller of a stream has hung up")
        try:
            for request in self._requests:
                self._arrived.put(request)
        except grpc.RpcError:
            self._arrived.put(gone)
        except Exception as error:  # noqa: BLE001  (it belongs to whoever waits)
            self._arrived.put(error)
        self._arrived.put(gone)

    def take(self, name: str, patience: float | None = None) -> Request:
        """Return the next message, which has to ask for the step called `name`.

        `TimeoutError` if none comes within `patience` seconds, `Cancelled` at the stream's end.
        """
        try:
            arrived = self._arrived.get(timeout=patience)
        except queue.Empty:
            raise TimeoutError from None
        if isinstance(arrived, Exception):
            raise arrived
        asked = arrived.WhichOneof("step")
        if asked != name:
            raise InvalidArgument(f"the step {asked or 'is missing'} where {name} is next")
        return arrived
