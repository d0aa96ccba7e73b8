#!/usr/bin/env python3
"""Run a command in a virtual machine, as root on a kernel that has project quotas.

    python3 tests/vm/boot.py [--memory 4G] [--timeout SECONDS] [--kernel PATH]
                             [--env NAME=VALUE]... -- COMMAND [ARG...]

Project quotas need a kernel with XFS_QUOTA and QFMT_V2, and full root; a container or a small
cloud machine has neither. This boots the newest such kernel of /boot in QEMU. The guest sees the
host's root filesystem under the same paths, read-only below a tmpfs that takes all writes: the
repository, its virtual environment and the host's tools are there, and nothing written in the
outlives it. /tmp, /run and /dev/shm are the guest's own and begin empty; a repository that
lies below one of them is there all the same.

The command runs in the repository's root with this interpreter as python3 and PYCSI_VM=1 set.
Its output is streamed to stdout, stderr included, and its exit status becomes this program's:
124 means that the time was up, 125 that the machine did not get as far as a status.

What the machine consists of: the kernel, loaded directly; an initramfs of busybox, the script
`init` beside this file and the modules that lead to the root; a read-only 9p share of /; one
virtio serial port for the output and one for the status; an empty disk, /dev/vda.
"""

from __future__ import annotations

import argparse
import lzma
import os
import re
import select
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
INSTALL = "apt-get install qemu-system-x86 linux-image-amd64 busybox-static"
DISK_SIZE = 8 << 30

# What init needs before it has the host's /lib/modules; modules.dep adds the dependencies.
EARLY_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_console", "virtio_blk")


class BootError(Exception):
    """The machine cannot be started, or has ended without the command's status."""

    exit_status = 125


class TimeUpError(BootError):
    """The machine was still running when the time was up."""

    exit_status = 124


def find_kernel() -> Path:
    """Return the newest kernel of /boot that has both kinds of project quotas."""
    wanted = (r"^CONFIG_XFS_QUOTA=y$", r"^CONFIG_QFMT_V2=[ym]$")

    def by_version(config: Path) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", config.name)]

    for config in sorted(Path("/boot").glob("config-*"), key=by_version, reverse=True):
        kernel = config.with_name(config.name.replace("config-", "vmlinuz-", 1))
        text = config.read_text()
        if kernel.exists() and all(re.search(pattern, text, re.MULTILINE) for pattern in wanted):
            return kernel
    raise BootError(f"no kernel in /boot has XFS_QUOTA and QFMT_V2: {INSTALL}")


def kernel_version(kernel: Path) -> str:
    """Read the version from the bzImage header, whatever the file is called."""
    image = kernel.read_bytes()
    if image[0x202:0x206] != b"HdrS":
        raise BootError(f"{kernel} is not a Linux kernel image")
    start = 0x200 + struct.unpack_from("<H", image, 0x20E)[0]
    return image[start : image.index(b" ", start)].decode()


def early_modules(directory: Path) -> Iterator[Path]:
    """Yield the early modules of a kernel in the order to load them."""
    try:
        lines = (directory / "modules.dep").read_text().splitlines()
        builtin = (directory / "modules.builtin").read_text().splitlines()
    except FileNotFoundError as error:
        raise BootError(f"{error.filename} is missing: {INSTALL}") from error

    def name(path: str) -> str:
        return Path(path).name.partition(".ko")[0].replace("-", "_")

    # Each line lists all that a module needs, each one before what it needs in turn.
    needs = {path: rest.split() for path, _, rest in (line.partition(":") for line in lines)}
    paths = {name(path): path for path in needs}
    present = {name(path) for path in builtin}
    done: set[str] = set()
    for module in EARLY_MODULES:
        if module in present:
            continue
        if module not in paths:
            raise BootError(f"{directory} has no module {module}: {INSTALL}")
        for path in (*reversed(needs[paths[module]]), paths[module]):
            if path not in done:
                done.add(path)
                yield directory / path


def cpio_member(
    name: str, mode: int, content: bytes = b"", rdev: tuple[int, int] = (0, 0)
) -> bytes:
    """Return one member of a "newc" archive; with one link each, all may have inode number 0."""
    path = name.encode() + b"\0"
    # inode, mode, uid, gid, links, mtime, size, device (two), rdev (two), length of path, checksum
    fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, *rdev, len(path), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + path
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)


def build_initramfs(command: str, directory: Path, modules: Iterator[Path]) -> bytes:
    """Return the archive that the kernel starts from: /init, /command, busybox and modules.

    The guest finds all other modules in the host's `directory`.
    """
    busybox = shutil.which("busybox")
    if busybox is None:
        raise BootError(f"busybox is missing: {INSTALL}")
    members = [
        cpio_member("bin", 0o40755),
        cpio_member("dev", 0o40755),
        cpio_member("dev/console", 0o20600, rdev=(5, 1)),
        cpio_member("bin/busybox", 0o100755, Path(busybox).read_bytes()),
        cpio_member("init", 0o100755, Path(__file__).with_name("init").read_bytes()),
        cpio_member("command", 0o100644, command.encode()),
        cpio_member("repository", 0o100644, os.fsencode(REPOSITORY)),
        cpio_member("directory", 0o100644, os.fsencode(directory)),
    ]
    names = []
    for path in modules:
        content = path.read_bytes()
        if path.suffix == ".xz":
            content = lzma.decompress(content)
        names.append(path.name.removesuffix(".xz"))
        members.append(cpio_member(names[-1], 0o100644, content))
    members.append(cpio_member("modules", 0o100644, "\n".join([*names, ""]).encode()))
    return b"".join([*members, cpio_member("TRAILER!!!", 0)])


def guest_command(arguments: list[str], variables: dict[str, str]) -> str:
    """Return the shell script that the guest runs."""
    python = Path(sys.executable).parent
    environment = {
        "PATH": f"{python}:{os.environ['PATH']}:/usr/local/sbin:/usr/sbin:/sbin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "PYCSI_VM": "1",
        **variables,
    }
    change = shlex.join(["cd", str(REPOSITORY)])
    settings = [f"{name}={value}" for name, value in environment.items()]
    return f"{change} && exec {shlex.join(['env', '-i', *settings, *arguments])}\n"


def has_kvm() -> bool:
    """Tell whether KVM can run this kernel.

    A /dev/kvm without the processor's own virtualisation (a nested, paravirtual one) runs only
    guests made for it: QEMU would hang there.
    """
    processors = Path("/proc/cpuinfo").read_text()
    flags = re.search(r"^flags\s*:.*\b(vmx|svm)\b", processors, re.MULTILINE)
    return flags is not None and os.access("/dev/kvm", os.R_OK | os.W_OK)


def qemu_arguments(directory: Path, kernel: Path, memory: str) -> list[str]:
    """Return QEMU's command line; its files are in the directory."""
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        raise BootError(f"qemu-system-x86_64 is missing: {INSTALL}")
    return [
        qemu, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-accel", "kvm" if has_kvm() else "tcg,thread=multi", "-cpu", "max",
        "-smp", "2", "-m", memory,
        "-kernel", str(kernel), "-initrd", f"{directory}/initramfs",
        # A panic, or an oops, reboots at once, which -no-reboot makes the end.
        "-append", "console=ttyS0 quiet panic=-1 oops=panic mitigations=off",
        "-chardev", f"file,id=console,path={directory}/console", "-serial", "chardev:console",
        "-device", "virtio-serial-pci",
        "-chardev", "file,id=output,path=/dev/stdout",
        "-device", "virtserialport,chardev=output,name=output",
        "-chardev", f"file,id=status,path={directory}/status",
        "-device", "virtserialport,chardev=status,name=status",
        "-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap",
        "-device", "virtio-9p-pci,fsdev=host,mount_tag=host",
        "-drive", f"file={directory}/disk,format=raw,if=virtio,cache=unsafe,discard=unmap",
    ]  # fmt: skip


def stream(process: subprocess.Popen[bytes], deadline: float) -> bool:
    """Copy the process's output until it ends, and tell whether it did so in time."""
    assert process.stdout is not None
    source = process.stdout.fileno()
    while True:
        ready, _, _ = select.select([source], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return False
        chunk = os.read(source, 1 << 16)
        if not chunk:
            return True
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()


def last_words(console: Path) -> list[str]:
    """Return the end of the kernel's log, up to the panic if there was one, without its trace."""
    lines = console.read_text(errors="replace").splitlines() if console.exists() else []
    panic = next((i for i, line in enumerate(lines, 1) if "Kernel panic" in line), len(lines))
    return lines[max(0, panic - 10) : panic]


def run(arguments: list[str]) -> int:
    """Boot, run and return the exit status."""
    options = parse(arguments)
    kernel = options.kernel.resolve() if options.kernel else find_kernel()
    modules = kernel.parents[1] / "lib/modules" / kernel_version(kernel)
    with tempfile.TemporaryDirectory(prefix="pycsi-vm-") as name:
        directory = Path(name)
        command = guest_command(options.command, dict(options.env))
        initramfs = build_initramfs(command, modules, early_modules(modules))
        (directory / "initramfs").write_bytes(initramfs)
        with (directory / "disk").open("wb") as disk:
            disk.truncate(DISK_SIZE)
        qemu = qemu_arguments(directory, kernel, options.memory)
        deadline = time.monotonic() + options.timeout
        with subprocess.Popen(qemu, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
            try:
                in_time = stream(process, deadline)
            finally:
                process.kill()
        status = directory / "status"
        text = status.read_text().strip() if status.exists() else ""
        if text:
            return int(text)
        console = "".join(f"\n  console: {line}" for line in last_words(directory / "console"))
    if not in_time:
        raise TimeUpError(f"no end after {options.timeout:g} seconds{console}")
    code = process.returncode
    raise BootError(f"the machine ended without a status, QEMU with {code}{console}")


def variable(text: str) -> tuple[str, str]:
    """Parse NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not (name.isidentifier() and equals):
        raise argparse.ArgumentTypeError(f"not NAME=VALUE: {text!r}")
    return name, value


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="boot.py",
        description="Run a command as root in a virtual machine whose kernel has project quotas.",
        epilog="Tests may use /dev/vda, an empty sparse disk of 8 GiB, and /tmp, a tmpfs. The "
        "exit status is the command's; 124: time is up; 125: the machine failed.",
    )
    parser.add_argument("--memory", default="4G", help="the guest's memory (%(default)s)")
    parser.add_argument(
        "--timeout", type=float, default=1800.0, metavar="SECONDS",
        help="time for boot and command together (%(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--kernel", type=Path, metavar="PATH",
        help="the kernel image; its modules are in ../lib/modules from there, as those of "
        "fetch-kernel are (the newest suitable one in /boot)",
    )  # fmt: skip
    parser.add_argument(
        "--env", type=variable, action="append", default=[], metavar="NAME=VALUE",
        help="a variable for the command (may be repeated)",
    )  # fmt: skip
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="with its arguments")
    return parser.parse_args(arguments)


def main() -> int:
    """Run the program."""
    # Ended by SIGTERM, leave through the `with` blocks too: no machine or directory stays.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return run(sys.argv[1:])
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except (BootError, OSError) as error:
        sys.stderr.write(f"boot.py: {error}\n")
        return error.exit_status if isinstance(error, BootError) else BootError.exit_status


if __name__ == "__main__":
    sys.exit(main())
