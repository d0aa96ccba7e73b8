"""Who is told of each RPC, to count and time it."""

from typing import Protocol


class Observer(Protocol):
    """Counts RPCs by what they are `of`: their method, as a path, or the node that answers them.

    Each that has `began` has `ended` once, with the name of its status code and its seconds.
    """

    def began(self, of: str) -> None: ...

    def ended(self, of: str, code: str, seconds: float) -> None: ...


class Unobserved:
    """Counts nothing: the observer where there are no metrics."""

    def began(self, of: str) -> None: ...

    def ended(self, of: str, code: str, seconds: float) -> None: ...
