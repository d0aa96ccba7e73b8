"""The trace of an RPC: who is told what it is about, of its phases, and of what it sends to nodes.

The layers below the server name their phases, and do not know whether anybody listens. The trace
travels with the thread or task that answers the RPC (contextvars). Nothing listens unless the
driver is started with `--tracing`.
"""

import contextlib
import contextvars
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

Metadata = Sequence[tuple[str, str | bytes]]
"""The metadata of an RPC: keys, which may repeat, with their values."""


class Sending(Protocol):
    """An RPC that is sent to a node, with `metadata`."""

    metadata: Metadata

    def ended(self, failure: BaseException | None = None) -> None:
        """Tell that it has ended, and with which error."""


class Trace(Protocol):
    """Is told of an RPC, while that is answered. `ids` are those that lines of the log get."""

    ids: dict[str, str]

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Time the `with` block as the phase `name`; names are few."""

    def about(self, **facts: str) -> None:
        """Tell what the RPC, or its phase, is about; never anything that may be secret."""

    def sending(self, path: str, node: str, metadata: Metadata) -> Sending:
        """Begin an RPC that is sent to a node, whose caller has sent `metadata`."""


class RpcTrace(Trace, Protocol):
    """The trace of an RPC that the server answers."""

    def ended(
        self, code: str, about: Mapping[str, str], failure: BaseException | None, message: str
    ) -> None:
        """Tell that it has ended: the name of its status code, the facts that its log line has."""


class Tracer(Protocol):
    """Begins the traces of RPCs, and sends them somewhere."""

    def began(self, path: str, context: Any) -> RpcTrace | None:
        """Begin the trace of an RPC; None if it is not worth one. `context` is gRPC's."""

    def close(self) -> None:
        """Send what was not sent yet, within a bounded time."""


class _Untold:
    """An RPC that is sent without anybody being told."""

    def __init__(self, metadata: Metadata) -> None:
        self.metadata = metadata

    def ended(self, failure: BaseException | None = None) -> None: ...


class Untraced:
    """The trace where there is none."""

    ids: dict[str, str] = {}  # noqa: RUF012  (nobody changes it)
    _nothing = contextlib.nullcontext()

    def phase(self, name: str) -> AbstractContextManager[None]:
        return self._nothing

    def about(self, **facts: str) -> None: ...

    def sending(self, path: str, node: str, metadata: Metadata) -> Sending:
        return _Untold(metadata)


UNTRACED: Trace = Untraced()

_current = contextvars.ContextVar("trace", default=UNTRACED)


def current() -> Trace:
    """Return the trace of the RPC that this thread or task answers."""
    return _current.get()


def follow(trace: Trace) -> None:
    """Have this thread or task tell `trace` from here on."""
    # Set, and never reset by a token: the end of a stream may come from another thread.
    _current.set(trace)


def phase(name: str) -> AbstractContextManager[None]:
    """Time the `with` block as a phase of the RPC that this thread answers."""
    return _current.get().phase(name)


def about(**facts: str) -> None:
    """Tell what the RPC that this thread answers is about, or its phase."""
    _current.get().about(**facts)
