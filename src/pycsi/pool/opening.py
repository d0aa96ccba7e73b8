"""Bringing up an open pool: loading its records, and undoing what a crash has left.

`OSError` if the pool cannot be used.
"""

import contextlib

import structlog

from pycsi.backends.limiter_choice import set_up_limiter
from pycsi.linux import filecopy
from pycsi.linux.mount import syncfs
from pycsi.model.errors import FailedPrecondition
from pycsi.model.size import show
from pycsi.pool import options, trash
from pycsi.pool.freezing import thaw_after_crash
from pycsi.pool.groups import hide_prepared
from pycsi.pool.pool import Pool

log = structlog.get_logger()


def load(pool: Pool) -> None:
    """Load the volumes, and thaw those that a crash has left frozen. Call once, first.

    Adoptions that were cut off when they had the data are completed before that.
    """
    for folder in pool.layout.folders:
        if not folder.is_dir():
            folder.mkdir(mode=0o700)
    pool.adoptions.settle()
    pool.volumes.load()
    for marker in list(pool.layout.frozen.iterdir()):
        try:
            if volume := pool.volumes.get(marker.name):
                thaw_after_crash(marker, pool.backend(volume))
            else:
                marker.unlink()
        except (OSError, FailedPrecondition) as error:
            log.warning("cannot be thawed", volume=marker.name, error=str(error))


def recover(pool: Pool) -> None:
    """Clean up after a crash, and load the snapshots and groups. Call once, after `load`."""
    pool.config.path.chmod(0o700)
    options.keep(pool.layout.options, pool.config)
    # A driver that was killed may have left writes in the page cache only. A repeated call is
    # acknowledged for what is found now, so that must be durable.
    syncfs(pool.layout.root)
    filesystem = pool.location.mount.fstype
    pool.limiter = set_up_limiter(pool.location.real_path, filesystem, pool.uuid)
    pool.reflinks = filecopy.can_reflink(pool.layout.record)
    pool.snapshots.load()
    pool.groups.load()
    hide_prepared(pool.snapshots, pool.groups)
    for unfinished in list(pool.layout.tmp.iterdir()):
        unfinished.rename(trash.reaping_place(pool.layout, unfinished.name))
    log.info(
        "pool is open",
        pool=pool.name,
        path=str(pool.config.path),
        filesystem=filesystem,
        directories_limited_by=pool.limiter.name,
        shares_blocks=pool.reflinks,
        volumes=len(pool.volumes),
        snapshots=len(pool.snapshots),
    )
    with contextlib.suppress(OSError):  # the pool's disk is away
        _warn_of_promises(pool)


def _warn_of_promises(pool: Pool) -> None:
    """Log a warning if the pool cannot promise anything, or has promised more than it has."""
    capacity = pool.room.capacity()
    if not capacity.limit:
        log.warning(
            "the pool takes no volume: its reserve leaves nothing of its disk; lower it",
            pool=pool.name,
            size=show(capacity.size),
            reserve=show(capacity.reserve),
        )
    if capacity.lacking:
        log.warning(
            "the pool promises more than its disk has; free space there, or delete volumes",
            pool=pool.name,
            unwritten=show(capacity.unwritten),
            free=show(capacity.free),
            reserve=show(capacity.reserve),
            lacking=show(capacity.lacking),
        )
