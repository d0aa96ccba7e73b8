"""How much of its disk a pool can use is measured without waiting for who examines the pool."""

import threading
import time
from pathlib import Path

from samples import VOLUME

from pycsi.linux.waiting import PATIENCE, call
from pycsi.pool.adoptions import Adoptions
from pycsi.pool.capacity import Contents, UsableSpace, free_at
from pycsi.pool.layout import Layout, snapshot_catalog, volume_catalog
from pycsi.pool.moves import Moves
from pycsi.pool.trash import Trash


def test_examination_delays_no_measurement(tmp_path: Path) -> None:
    """An examination may wait for a measurement, so a measurement must not wait for it."""
    layout = Layout(tmp_path)
    for folder in layout.folders:
        folder.mkdir(exist_ok=True)
    contents = Contents(
        layout=layout,
        filesystem="ext4",
        volumes=volume_catalog(layout),
        snapshots=snapshot_catalog(layout),
        trash=Trash(layout, 0),
        adoptions=Adoptions(layout),
        moves=Moves(layout),
        owned=lambda *_: 4096,
        uncounted=lambda: None,
    )
    contents.volumes.put(VOLUME)
    begun, over = threading.Event(), threading.Event()

    def examine() -> bool:
        begun.set()
        return over.wait()

    examiner = threading.Thread(target=lambda: call(str(tmp_path), examine))
    examiner.start()
    try:
        assert begun.wait(PATIENCE)
        before = time.monotonic()
        assert UsableSpace(contents).usable(free_at(tmp_path), exact=True) > 0
        assert time.monotonic() - before < PATIENCE / 2
    finally:
        over.set()
        examiner.join()
