"""A pool whose filesystem enforces project quota."""

from pathlib import Path

import pytest
from conftest import IN_VM, FilesystemFactory
from driver import GIB

OPTIONS = {
    "ext4": ("-O", "quota,project", "-E", "quotatype=prjquota"),
    "xfs": (),
}


@pytest.fixture(params=OPTIONS)
def pool(request: pytest.FixtureRequest, filesystem: FilesystemFactory) -> Path:
    """Return a pool on a filesystem that enforces project limits."""
    options = OPTIONS[request.param]
    try:
        path = filesystem(request.param, 2 * GIB, *options, options="prjquota")
    except AssertionError as refusal:
        if IN_VM:
            raise
        pytest.skip(f"this kernel has no project quota; make test-vm has: {refusal}")
    path.chmod(0o755)
    return path
