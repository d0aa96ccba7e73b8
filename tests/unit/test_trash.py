"""Deleting for good what is in the trash."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

from pycsi.backends.limits import NoLimiter
from pycsi.pool.trash import destroy

ROUNDS = 200


def test_destroyed_by_two(tmp_path: Path) -> None:
    """Of a driver and a person who delete an entry at the same time neither fails."""
    start = Barrier(2)

    def delete(place: Path) -> None:
        start.wait(10)
        destroy(place, NoLimiter())

    with ThreadPoolExecutor(2) as both:
        for number in range(ROUNDS):
            place = tmp_path / f".v{number}@node-1.1.gone.01234567"
            (place / "data").mkdir(parents=True)
            (place / "data" / "file").touch()
            list(both.map(delete, [place, place]))
            assert not place.exists()
