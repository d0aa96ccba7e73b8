"""The choice of a volume's backend."""

from pycsi.backends import Backend
from pycsi.backends.directory import Directory
from pycsi.backends.filesystem import FilesystemImage
from pycsi.backends.limits import Limiter
from pycsi.backends.raw import RawImage
from pycsi.linux.kernel import KernelView
from pycsi.linux.location import Location
from pycsi.model.records import Volume, VolumeType
from pycsi.model.request import Access


def backend_for(
    where: str,
    volume: Volume,
    limiter: Limiter,
    location: Location,
    kernel: KernelView | None = None,
) -> Backend:
    """Return the backend for the data of `volume` in the directory `where`."""
    kind: type[Backend] = FilesystemImage
    if volume.type is VolumeType.DIRECTORY:
        kind = Directory
    elif volume.access is Access.BLOCK:
        kind = RawImage
    return kind(where, volume, limiter, location, kernel or KernelView())
