"""The content of an export, filled into the empty data of a new volume."""

import os
from collections.abc import Callable
from pathlib import Path

from pycsi.linux.descriptor import opened
from pycsi.model.size import LARGEST
from pycsi.transfer import image, unpack
from pycsi.transfer.manifest import VolumeKind
from pycsi.transfer.reader import StreamReader


def fill(
    reader: StreamReader,
    data: Path,
    progress: Callable[[int], None],
    *,
    limit: int,
    privileged: bool,
    again: bool = False,
) -> None:
    """Fill the image or directory `data` with what an export holds, or changes.

    The files of a directory may have `limit` bytes; `privileged` is as for `unpack.receive`.
    `progress` is told how many bytes were done. `again`: some of the changes of this very export
    may be there already. `StreamError` for what is no whole export.
    """
    if reader.manifest.kind is VolumeKind.DIRECTORY:
        unpack.receive(
            reader.pieces(LARGEST),
            data,
            progress,
            limit=limit,
            privileged=privileged,
            changes=bool(reader.manifest.base),
            again=again,
        )
        return
    with opened(data, os.O_WRONLY | os.O_NOFOLLOW) as fd:
        image.receive(reader.pieces(reader.manifest.size), fd, progress)
