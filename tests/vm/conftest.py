"""A pool whose filesystem enforces project quota; and which tests are left out."""

from pathlib import Path

import pytest
from conftest import IN_VM, FilesystemFactory
from driver import GIB

OPTIONS = {
    "ext4": ("-O", "quota,project", "-E", "quotatype=prjquota"),
    "xfs": (),
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without --thorough leave out what is marked so."""
    if config.getoption("--thorough"):
        return
    left_out = [item for item in items if item.get_closest_marker("thorough")]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


def limiting_pool(filesystem: FilesystemFactory, kind: str) -> Path:
    """Return a pool on a filesystem that enforces project limits."""
    try:
        path = filesystem(kind, 2 * GIB, *OPTIONS[kind], options="prjquota")
    except AssertionError as refusal:
        if IN_VM:
            raise
        pytest.skip(f"this kernel has no project quota; make test-vm has: {refusal}")
    path.chmod(0o755)
    return path


@pytest.fixture(params=OPTIONS)
def pool(request: pytest.FixtureRequest, filesystem: FilesystemFactory) -> Path:
    """Return a pool on each kind of filesystem that enforces project limits."""
    return limiting_pool(filesystem, request.param)
