"""Which backend a volume has."""

from pycsi.backends import Backend
from pycsi.backends.directory import Directory
from pycsi.backends.filesystem import FilesystemImage
from pycsi.backends.raw import RawImage
from pycsi.limits import Limiter
from pycsi.linux.ground import Ground
from pycsi.linux.kernel import Kernel
from pycsi.model import Access, Volume, VolumeType


def backend_for(
    where: str, volume: Volume, limiter: Limiter, ground: Ground, kernel: Kernel | None = None
) -> Backend:
    """Return the data of `volume` in the directory `where` as a backend."""
    kind: type[Backend] = FilesystemImage
    if volume.type is VolumeType.DIRECTORY:
        kind = Directory
    elif volume.access is Access.BLOCK:
        kind = RawImage
    return kind(where, volume, limiter, ground, kernel or Kernel())
