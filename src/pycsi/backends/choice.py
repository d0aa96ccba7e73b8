"""Which backend a volume has."""

from pathlib import Path

from pycsi.backends import Backend
from pycsi.backends.directory import Directory
from pycsi.backends.filesystem import FilesystemImage
from pycsi.backends.raw import RawImage
from pycsi.limits import Limiter
from pycsi.linux.mount import Mount
from pycsi.model import Access, Volume, VolumeType


def backend_for(place: Path, volume: Volume, limiter: Limiter, ground: Mount) -> Backend:
    """Return the data of `volume` in the directory `place` as a backend."""
    if volume.type is VolumeType.DIRECTORY:
        return Directory(place, volume, limiter, ground)
    if volume.access is Access.BLOCK:
        return RawImage(place, volume, limiter, ground)
    return FilesystemImage(place, volume, limiter, ground)
