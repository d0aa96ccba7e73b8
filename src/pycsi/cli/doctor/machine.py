"""What the machine lacks for the volumes of its pools."""

import errno
from collections.abc import Collection, Iterator
from pathlib import Path

from pycsi.cli.doctor import commands
from pycsi.cli.doctor.codes import Code
from pycsi.cli.doctor.finding import Finding
from pycsi.linux import mkfs, mount
from pycsi.model.parameters import DEFAULT_FILESYSTEM

_LOOP_CONTROL = "/dev/loop-control"


def check(filesystems: Collection[str]) -> Iterator[Finding]:
    """Yield which programs and kernel features are missing.

    `filesystems` are those of images in the pools; that of new images is always needed.
    """
    for kind in sorted({*filesystems, DEFAULT_FILESYSTEM} & mkfs.KINDS.keys()):
        yield from _programs(kind)
        yield from _filesystem(kind)
    if not Path(_LOOP_CONTROL).exists():
        yield _lacks("loop", f"there are no loop devices here, for {_LOOP_CONTROL} is missing")


def _programs(kind: str) -> Iterator[Finding]:
    package = mkfs.PACKAGES[kind]
    for program in mkfs.missing_programs(kind):
        yield Finding(
            code=Code.PROGRAM_MISSING,
            subject=program,
            pool=None,
            message=f"{program} is not installed, and images with {kind} need it",
            command=commands.install(package),
        )


def _filesystem(kind: str) -> Iterator[Finding]:
    try:
        mount.require(kind)
    except OSError as error:
        if error.errno == errno.ENODEV:
            yield _lacks(kind, f"the kernel has no {kind}, and images need it")


def _lacks(module: str, message: str) -> Finding:
    return Finding(
        code=Code.KERNEL_FEATURE_MISSING,
        subject=module,
        pool=None,
        message=f"{message}; load the module, or use a kernel that has it",
        command=commands.typed("modprobe", module),
    )
