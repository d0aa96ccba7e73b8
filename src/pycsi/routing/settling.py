"""Settling parts of group snapshots that are in doubt: prepared, and left so by a take that ended.

The coordinator of each is asked what it has decided. A controller does so for every node that it
connects to, for those of a take that has failed, and for all nodes now and then.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import structlog

from pycsi.model import ids
from pycsi.model.errors import Aborted, CsiError, Unavailable
from pycsi.routing.link import Call
from pycsi.routing.nodes import Nodes, running
from pycsi.routing.parts import Parts

log = structlog.get_logger()

_INTERVAL = 60.0
"""Seconds after which every node is asked again."""

_LOOK = 1.0
"""Seconds after which the controller looks again for nodes that it has connected to."""

_PATIENCE = 30.0
"""Seconds for each question."""

_INSISTENCE = 10.0
"""Seconds for which a node is asked again if it is busy or does not answer."""

_FIRST_PAUSE = 0.05
"""Seconds before the first of these questions; each pause is twice as long as the one before."""

_NO_REQUEST = object()

T = TypeVar("T")


def own_call(patience: float = _PATIENCE) -> Call:
    """Return a call that the controller makes for itself, with `patience` seconds to go."""
    deadline = asyncio.get_running_loop().time() + patience
    return Call("", _NO_REQUEST, b"", deadline, ())


async def insist(ask: Callable[[], Awaitable[T]]) -> T:
    """Return what `ask` returns; where a node is busy or does not answer, ask it again for a while.

    The last error is raised.
    """
    loop = asyncio.get_running_loop()
    deadline, pause = loop.time() + _INSISTENCE, _FIRST_PAUSE
    while True:
        try:
            return await ask()
        except CsiError as error:
            passing = error.code in {Aborted.code, Unavailable.code}
            if not passing or loop.time() > deadline:
                raise
        await asyncio.sleep(pause)
        pause *= 2


class Settling:
    """Settles parts in doubt in the background, and does what must outlast the RPC that began it.

    It keeps nothing: after a restart of the controller it finds out again.
    """

    def __init__(self, nodes: Nodes, parts: Parts) -> None:
        self._nodes = nodes
        self._parts = parts
        self._asked: dict[tuple[str, str], float] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self) -> None:
        """Look for parts in doubt, until this is cancelled."""
        while True:
            now = asyncio.get_running_loop().time()
            processes = self._nodes.processes()
            self._asked = {item: then for item, then in self._asked.items() if item in processes}
            for item in processes:
                if now > self._asked.get(item, float("-inf")) + _INTERVAL:
                    self._asked[item] = now
                    self.begin(self.settle(item[0]))
            await asyncio.sleep(_LOOK)

    def begin(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Begin work that goes on also when the RPC that it is for has been given up."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            # If somebody waits for it, that one tells it.
            log.debug("background work has failed", error=str(error))

    async def end(self) -> None:
        """Wait for the work that was begun."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def settle(self, node: str) -> None:
        """Commit or undo the parts that are in doubt on a node; what fails is tried again later."""
        try:
            for group_id, attempt in await self._parts.prepared(own_call(), node):
                await self.settle_part(node, group_id, attempt)
        except CsiError as error:
            log.debug("parts of group snapshots are not settled", node=node, error=str(error))

    async def settle_part(self, node: str, group_id: str, attempt: str) -> None:
        """Commit or undo one part, as its coordinator has decided; errors are logged."""
        coordinator = ids.node_of(group_id)
        if coordinator is None:
            return
        try:
            committed = await insist(
                lambda: self._parts.is_committed(own_call(), coordinator, group_id, attempt)
            )
            if committed:
                await self._parts.commit(own_call(), node, group_id, attempt)
            else:
                await self._parts.undo(own_call(), node, group_id, attempt)
        except CsiError as error:
            log.warning(
                "it is not known yet whether a group snapshot was taken",
                group=group_id,
                node=node,
                error=str(error),
            )
        else:
            done = "committed" if committed else "undone"
            log.info("a part of a group snapshot is settled", group=group_id, node=node, how=done)


@contextlib.asynccontextmanager
async def settling(work: Settling) -> AsyncIterator[None]:
    """Settle parts in doubt for the `with` block; then wait for what was begun."""
    try:
        async with running(work.run()):
            yield
    finally:
        await work.end()
