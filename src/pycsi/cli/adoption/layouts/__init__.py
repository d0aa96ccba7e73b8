"""The layouts of other drivers for local storage, and of none: where their volumes lie in a path.

Each module has `recognises`, which tells whether a directory has the layout, and `read`, which
yields the volumes in it. Nothing is changed, and nothing that is found is trusted.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from pycsi.cli.adoption.candidates import Candidate
from pycsi.cli.adoption.layouts import (
    bare,
    csi_hostpath,
    directpv,
    local_path,
    openebs_hostpath,
    rawfile,
)
from pycsi.cli.errors import CommandError


class Layout(NamedTuple):
    """A layout: see this package."""

    recognises: Callable[[Path], bool]
    read: Callable[[Path], Iterator[Candidate]]


LAYOUTS: Mapping[str, Layout] = {
    module.NAME: Layout(module.recognises, module.read)
    for module in (csi_hostpath, directpv, rawfile, local_path, openebs_hostpath, bare)
}
"""The layouts by name, in the order in which they are tried."""


def read(path: Path, name: str | None) -> list[Candidate]:
    """Return the volumes in a path, which has the layout `name`, or else the first that fits.

    None does if there is nothing in it that looks like a volume. `CommandError` if the path cannot
    be read.
    """
    try:
        if name:
            return list(LAYOUTS[name].read(path))
        return next(
            (list(item.read(path)) for item in LAYOUTS.values() if item.recognises(path)), []
        )
    except OSError as error:
        raise CommandError(f"{error.filename or path}: {error.strerror}") from None
