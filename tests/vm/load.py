"""Readers and writers, four of each, that do what they can from within a cgroup until killed.

    python load.py CGROUP direct|buffered DEVICE         a raw block device of 128 MiB or more
    python load.py CGROUP direct|buffered DIRECTORY      with the files `read-0` to `read-3`

`direct` reads and writes past the page cache. `buffered` writes go through it, and buffered reads
too, though never from it. Buffered writers rest between requests: they could fill the cache as fast
as the processor can, and leave nothing of that to others.
"""

import mmap
import os
import sys
import time
from pathlib import Path

WORKERS = 4
EXTENT = 16 << 20
"""The bytes that each worker reads or writes, over and over."""

REQUEST = 128 << 10

REST = 0.05
"""Seconds for which a buffered writer rests, which makes 2.5 MiB per second at most."""


def work(path: str, base: int, *, direct: bool, writes: bool) -> None:
    data = mmap.mmap(-1, REQUEST)  # aligned, as O_DIRECT wants it
    data.write(os.urandom(REQUEST))
    flags = (os.O_WRONLY | os.O_CREAT) if writes else os.O_RDONLY
    fd = os.open(path, flags | (os.O_DIRECT if direct else 0))
    while True:
        for at in range(base, base + EXTENT, REQUEST):
            if writes:
                os.pwritev(fd, [data], at)
                if not direct:
                    time.sleep(REST)
                continue
            if not direct:
                os.posix_fadvise(fd, at, REQUEST, os.POSIX_FADV_DONTNEED)
            os.preadv(fd, [data], at)


def main() -> None:
    cgroup, mode, place = sys.argv[1:]
    Path(cgroup, "cgroup.procs").write_text(str(os.getpid()))
    for number in range(2 * WORKERS):
        writes, of_kind = number >= WORKERS, number % WORKERS
        name = f"{'write' if writes else 'read'}-{of_kind}"
        raw = not Path(place).is_dir()
        path, base = (place, number * EXTENT) if raw else (f"{place}/{name}", 0)
        if os.fork() == 0:
            work(path, base, direct=mode == "direct", writes=writes)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    os.wait()


if __name__ == "__main__":
    main()
