"""What an orchestrator is told, where it is cut to what it can take."""

import itertools
from collections.abc import Iterator

import pytest

from pycsi.proto import csi_pb2 as csi
from pycsi.services import reply
from pycsi.services.request import token

Reply = csi.ListVolumesResponse
LONGEST_MESSAGE = 4 * 1024 * 1024


def entries(length: int = 1) -> Iterator[tuple[str, bytes]]:
    """Yield entries without end, encoded, with their ids, of about so many bytes."""
    for number in itertools.count():
        name = f"{number:0{length}}"
        entry = Reply.Entry(volume=csi.Volume(volume_id=name))
        yield name, Reply(entries=[entry]).SerializeToString()


def ids(page: csi.ListVolumesResponse) -> list[str]:
    return [entry.volume.volume_id for entry in page.entries]


@pytest.mark.parametrize(
    ("size", "shown", "last"), [(2, 2, "1"), (4, 4, "3"), (5, 5, ""), (9, 5, ""), (0, 5, "")]
)
def test_page(size: int, shown: int, last: str) -> None:
    """A page is as long as it was asked for, and says after which entry there are more."""
    page = reply.page(Reply, itertools.islice(entries(), 5), size)
    assert ids(page) == ["0", "1", "2", "3", "4"][:shown]
    assert page.next_token == token(last)


@pytest.mark.parametrize("size", [0, 1_000_000])
@pytest.mark.parametrize("length", [8, 300, 5000])
def test_longest_page(size: int, length: int) -> None:
    """However much is asked for, a page fills the message that a client takes, and no more."""
    page = reply.page(Reply, entries(length), size)
    assert page.next_token == token(ids(page)[-1])
    page.next_token = "x" * 200
    assert LONGEST_MESSAGE * 0.6 < page.ByteSize() < LONGEST_MESSAGE


def test_huge_entry_is_shown() -> None:
    """An entry too large for any page is in one of its own: a listing goes on."""
    page = reply.page(Reply, entries(LONGEST_MESSAGE), 0)
    (shown,) = ids(page)
    assert page.next_token == token(shown)
