"""What an orchestrator is told, where it is cut to what it can take."""

import itertools
from collections.abc import Iterator

import pytest

from pycsi import reply
from pycsi.proto import csi_pb2 as csi

Entry = csi.ListVolumesResponse.Entry
LONGEST_MESSAGE = 4 * 1024 * 1024


def entries(length: int = 1) -> Iterator[tuple[str, Entry]]:
    """Yield entries without end, with their ids, of about so many bytes."""
    for number in itertools.count():
        name = f"{number:0{length}}"
        yield name, Entry(volume=csi.Volume(volume_id=name))


@pytest.mark.parametrize(
    ("size", "shown", "last"), [(2, 2, "1"), (4, 4, "3"), (5, 5, ""), (9, 5, ""), (0, 5, "")]
)
def test_page(size: int, shown: int, last: str) -> None:
    """A page is as long as it was asked for, and says after which entry there are more."""
    five = list(itertools.islice(entries(), 5))
    assert reply.page(five, size) == ([entry for _, entry in five[:shown]], last)


@pytest.mark.parametrize("size", [0, 1_000_000])
@pytest.mark.parametrize("length", [8, 300, 5000])
def test_longest_page(size: int, length: int) -> None:
    """However much is asked for, a page fills the message that a client takes, and no more."""
    shown, last = reply.page(entries(length), size)
    assert last == shown[-1].volume.volume_id
    message = csi.ListVolumesResponse(entries=shown, next_token="x" * 200)
    assert LONGEST_MESSAGE * 0.6 < message.ByteSize() < LONGEST_MESSAGE


def test_huge_entry_is_shown() -> None:
    """An entry too large for any page is in one of its own: a listing goes on."""
    shown, last = reply.page(entries(LONGEST_MESSAGE), 0)
    assert len(shown) == 1
    assert last == shown[0].volume.volume_id
