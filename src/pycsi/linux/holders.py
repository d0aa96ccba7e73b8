"""Finding what keeps a mount or a loop device in use, as fuser(1) does.

This is for error messages, since it examines every process. Processes that this one may not examine
are left out, such as those outside its container. The filesystem in question is never accessed,
because its disk may have failed.
"""

import contextlib
import functools
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from pycsi.linux import devicemapper, loop
from pycsi.linux.backing import number_shown, on_device, on_top_of, path_of
from pycsi.linux.descriptor import opened
from pycsi.linux.kernel import Mount, MountTable, parse_mountinfo

_MEMORY = frozenset({"devtmpfs", "ramfs", "tmpfs"})
"""The filesystems of device nodes; stat(2) there never waits for a disk or a network."""

_MOST = 4
"""The number of users that a message names."""


def named(found: Iterable[str]) -> str:
    """Return the descriptions in `found` as one text, of which the first 4 are spelt out."""
    those = list(found)
    if not those:
        return "somebody who cannot be seen from here (try fuser on the node itself)"
    more = len(those) - _MOST
    return ", ".join(those[:_MOST]) + (f" and {more} more" if more > 0 else "")


def of_mount(mounted: Mount) -> list[str]:
    """Return descriptions of what keeps a mount in use: mounts, loop devices, swap and processes.

    Each is a phrase for an error message.
    """
    inside = f"{mounted.target.rstrip('/')}/"
    found = [f"a mount at {item.target}" for item in MountTable() if item.parent == mounted.id]
    for number in loop.numbers():
        path = path_of(number) or ""
        if path.startswith(inside):
            found.append(f"/dev/loop{number}, which is on {path}")
    found += [f"swap in {path}" for path in _swaps() if path.startswith(inside)]
    if mounted.fstype in _MEMORY and (node := number_shown(mounted)) is not None:
        found += [f"{top.path}, which is on top of it" for top in on_top_of(node)]
    look = _Look()
    for pid in _processes():
        numbers = look.numbers_of(pid, mounted)
        if numbers and any(number in numbers for number in _mounts_used(pid, mounted)):
            found.append(_described(pid))
    return found


def of_device(number: int) -> list[str]:
    """Return descriptions of what keeps the loop device `number` in use, as `of_mount` does.

    What uses a mapping on it is named instead of the mapping.
    """
    found: list[str] = []
    for name in _holders(number):
        mapping = devicemapper.shown(f"/{name}")
        used = of_mapping(mapping) if mapping else []
        found += used or [f"{_device_mapper(name)}, which is on top of it"]
    return found + _of_node({f"/dev/loop{number}"}, os.makedev(loop.LOOP_MAJOR, number))


def of_mapping(mapping: devicemapper.Mapping) -> list[str]:
    """Return descriptions of what keeps a mapping in use, as `of_mount` does."""
    return _of_node({str(mapping.path), f"/dev/mapper/{mapping.name}"}, mapping.device)


def _of_node(nodes: Collection[str], device: int) -> list[str]:
    """Return descriptions of what uses a block device, whose nodes are at these paths."""
    found = [f"{top.path}, which is on top of it" for top in on_device(device)]
    found += [f"swap on {path}" for path in _swaps() if path in nodes]
    look = _Look()
    seen: set[str] = set()
    for pid in _processes():
        namespace = look.namespace_of(pid)
        for item in look.mounts_in(namespace, pid) if namespace not in seen else ():
            if device == item.device or item.source in nodes:
                place = "" if namespace == look.own else f" for {_described(pid)}"
                found.append(f"a mount at {item.target}{place}")
        seen.add(namespace)
        if _has_open(pid, device, look):
            found.append(_described(pid))
    return found


def of_filesystem(device: int) -> tuple[list[Mount], dict[tuple[int, int], str]]:
    """Return what uses the filesystem with the number `device`: mounts, and files in use.

    The mounts are those in any mount namespace. The files, and directories, are those that a
    process has open or mapped, executes, or has as its working or root directory: the process is
    described by the device and inode numbers that stat(2) has for the file.
    """
    look = _Look()
    mounts: dict[tuple[str, str, str], Mount] = {}
    files: dict[tuple[int, int], str] = {}
    for pid in _processes():
        namespace = look.namespace_of(pid)
        here = [item for item in look.mounts_in(namespace, pid) if item.device == device]
        mounts.update({(namespace, item.root, item.target): item for item in here})
        for link in _links_of(pid, device, {item.id for item in here}):
            with contextlib.suppress(OSError):
                status = os.stat(link)
                files.setdefault((status.st_dev, status.st_ino), _described(pid))
    return list(mounts.values()), files


def _links_of(pid: int, device: int, mounts: set[int]) -> Iterator[str]:
    """Yield the links in proc(5) to what a process uses through one of `mounts`, by their ids."""
    for link in ("cwd", "root", "exe"):
        if mounts.intersection(_mount_of_link(f"/proc/{pid}/{link}")):
            yield f"/proc/{pid}/{link}"
    for name in _listed(f"/proc/{pid}/fdinfo"):
        if mounts.intersection(_mount_in(f"/proc/{pid}/fdinfo/{name}")):
            yield f"/proc/{pid}/fd/{name}"
    number = f" {os.major(device):02x}:{os.minor(device):02x} "
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/maps").read_bytes().decode(errors="replace").splitlines():
            if number in line:
                yield f"/proc/{pid}/map_files/{_range(line)}"


def _processes() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _described(pid: int) -> str:
    with contextlib.suppress(OSError):
        return f"process {pid} ({Path(f'/proc/{pid}/comm').read_text().strip()})"
    return f"process {pid}"


class _Look:
    """The mounts in the mount namespaces of processes, each read once."""

    def __init__(self) -> None:
        self._mounts: dict[str, list[Mount]] = {}

    @functools.cached_property
    def own(self) -> str:
        """The mount namespace of this process."""
        return self.namespace_of(os.getpid())

    def namespace_of(self, pid: int) -> str:
        with contextlib.suppress(OSError):
            return os.readlink(f"/proc/{pid}/ns/mnt")
        return ""

    def mounts_in(self, namespace: str, pid: int) -> list[Mount]:
        """Return the mounts in `namespace`, which is that of the process `pid`."""
        if namespace not in self._mounts:
            self._mounts[namespace] = []
            with contextlib.suppress(OSError):
                text = os.fsdecode(Path(f"/proc/{pid}/mountinfo").read_bytes())
                self._mounts[namespace] = parse_mountinfo(text) if text else []
        return self._mounts[namespace]

    def numbers_of(self, pid: int, mounted: Mount) -> set[int]:
        """Return the mount ids of a mount, or of copies of it, in the namespace of a process."""
        namespace = self.namespace_of(pid)
        if namespace == self.own:
            return {mounted.id}
        return {
            item.id
            for item in self.mounts_in(namespace, pid)
            if (item.device, item.root) == (mounted.device, mounted.root)
        }


def _mounts_used(pid: int, mounted: Mount) -> Iterator[int]:
    """Yield the ids of mounts that a process uses by a working or root directory, or a file.

    Files are those that it has open, executes or has mapped from the device of `mounted`.
    """
    for link in ("cwd", "root", "exe"):
        yield from _mount_of_link(f"/proc/{pid}/{link}")
    for name in _listed(f"/proc/{pid}/fdinfo"):
        yield from _mount_in(f"/proc/{pid}/fdinfo/{name}")
    device = f" {os.major(mounted.device):02x}:{os.minor(mounted.device):02x} "
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/maps").read_bytes().decode(errors="replace").splitlines():
            if device in line:
                yield from _mount_of_link(f"/proc/{pid}/map_files/{_range(line)}")


def _range(line: str) -> str:
    """Return the name in map_files (proc(5)) for a line of maps: addresses, no leading zeros."""
    start, _, end = line.partition(" ")[0].partition("-")
    return f"{int(start, 16):x}-{int(end, 16):x}"


def _mount_of_link(path: str) -> Iterator[int]:
    # O_PATH follows the link without accessing the filesystem of its target.
    with contextlib.suppress(OSError), opened(path, os.O_PATH) as fd:
        yield from _mount_in(f"/proc/self/fdinfo/{fd}")


def _mount_in(fdinfo: str) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for row in Path(fdinfo).read_text().splitlines():
            if row.startswith("mnt_id:"):
                yield int(row.split()[1])


def _has_open(pid: int, device: int, look: _Look) -> bool:
    """Tell whether a process has a block device open."""
    for name in _listed(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            path = f"/proc/{pid}/fd/{name}"
            if not os.readlink(path).startswith("/"):
                continue
            if _is_in_memory(pid, name, look):
                status = os.stat(path)
                if stat.S_ISBLK(status.st_mode) and status.st_rdev == device:
                    return True
    return False


def _is_in_memory(pid: int, name: str, look: _Look) -> bool:
    """Tell whether stat(2) of an open file is safe: its filesystem is in memory.

    A file whose mount is gone counts too: it may be a device node that was bind-mounted.
    """
    numbers = set(_mount_in(f"/proc/{pid}/fdinfo/{name}"))
    mounts = look.mounts_in(look.namespace_of(pid), pid)
    return all(item.fstype in _MEMORY for item in mounts if item.id in numbers)


def _listed(folder: str) -> list[str]:
    with contextlib.suppress(OSError):
        return os.listdir(folder)
    return []


def _holders(number: int) -> list[str]:
    return _listed(f"/sys/block/loop{number}/holders")


def _device_mapper(name: str) -> str:
    with contextlib.suppress(OSError):
        return f"/dev/mapper/{Path(f'/sys/block/{name}/dm/name').read_text().strip()}"
    return f"/dev/{name}"


def _swaps() -> list[str]:
    with contextlib.suppress(OSError):
        return [row.split()[0] for row in Path("/proc/swaps").read_text().splitlines()[1:]]
    return []
