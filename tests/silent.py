"""A filesystem that can fall silent: whoever then asks it for anything waits, as for a dead NFS.

It speaks the kernel's protocol on /dev/fuse (fuse(4), <linux/fuse.h>), and has directories only.
Each step of a path through it is asked for again, so that what is mounted on it cannot be reached
either while it is silent.
"""

import ctypes
import enum
import errno
import itertools
import os
import stat
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

from pycsi.linux import mount

_libc = ctypes.CDLL(None, use_errno=True)

_IN = struct.Struct("<IIQQIIIHH")
_OUT = struct.Struct("<IiQ")
_ATTRIBUTES = struct.Struct("<6Q10I")
_INIT = struct.Struct("<IIIIHHIIHHI7I")
_LARGEST_REQUEST = 1 << 17

_ROOT = 1


class Code(enum.IntEnum):
    """What the kernel asks for: `enum fuse_opcode`."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    MKDIR = 9
    RMDIR = 11
    STATFS = 17
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    INTERRUPT = 36
    BATCH_FORGET = 42


_UNANSWERED = frozenset({Code.FORGET, Code.INTERRUPT, Code.BATCH_FORGET})


class SilentFilesystem:
    """Directories at `place`, which `with` mounts."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._speaks = threading.Event()
        self._speaks.set()
        self._numbers = itertools.count(_ROOT + 1)
        self._entries: dict[int, dict[bytes, int]] = {_ROOT: {}}

    def __enter__(self) -> Self:
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._fd},rootmode=40000,user_id=0,group_id=0,allow_other"
        if _libc.mount(b"silent", os.fsencode(self.place), b"fuse", 0, options.encode()):
            raise OSError(ctypes.get_errno(), "mount", str(self.place))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.speak()
        mount.umount2(self.place, mount.MNT_DETACH)
        self._thread.join(10)
        os.close(self._fd)

    def fall_silent(self) -> None:
        """Answer nothing from now on."""
        self._speaks.clear()

    def speak(self) -> None:
        """Answer again, also what was asked meanwhile."""
        self._speaks.set()

    def _serve(self) -> None:
        while True:
            try:
                request = os.read(self._fd, _LARGEST_REQUEST)
            except OSError as error:
                if error.errno in {errno.EINTR, errno.EAGAIN, errno.ENOENT}:
                    continue
                return  # ENODEV: it was unmounted
            _, code, unique, node, *_ = _IN.unpack_from(request)
            self._speaks.wait()
            if code in _UNANSWERED:
                continue
            try:
                status, answer = 0, self._answer(code, node, request[_IN.size :])
            except OSError as error:
                status, answer = -(error.errno or errno.EIO), b""
            try:
                os.write(self._fd, _OUT.pack(_OUT.size + len(answer), status, unique) + answer)
            except OSError as error:
                if error.errno not in {errno.ENOENT, errno.EINVAL}:  # nobody waits any more
                    raise

    def _answer(self, code: int, node: int, body: bytes) -> bytes:
        answers: dict[int, Callable[[], bytes]] = {
            Code.INIT: lambda: _INIT.pack(7, 31, 0, 0, 0, 0, 4096, 0, 0, 0, 0, *([0] * 7)),
            Code.LOOKUP: lambda: self._entry(node, body.rstrip(b"\0")),
            Code.GETATTR: lambda: bytes(16) + self._attributes(node),
            Code.SETATTR: lambda: bytes(16) + self._attributes(node),
            Code.MKDIR: lambda: self._make(node, body[8:].rstrip(b"\0")),
            Code.RMDIR: lambda: self._remove(node, body.rstrip(b"\0")),
            Code.STATFS: lambda: struct.pack("<40xIII28x", 4096, 255, 4096),
            Code.OPENDIR: lambda: bytes(16),
            Code.READDIR: bytes,
            Code.RELEASEDIR: bytes,
        }
        if code not in answers:
            raise OSError(errno.ENOSYS, "not served")
        return answers[code]()

    def _make(self, node: int, name: bytes) -> bytes:
        number = next(self._numbers)
        self._entries[number] = {}
        self._entries[node][name] = number
        return self._entry(node, name)

    def _remove(self, node: int, name: bytes) -> bytes:
        del self._entries[self._entries[node].pop(name)]
        return b""

    def _entry(self, node: int, name: bytes) -> bytes:
        number = self._entries.get(node, {}).get(name)
        if number is None:
            raise OSError(errno.ENOENT, "no such entry")
        return struct.pack("<QQQQII", number, 0, 0, 0, 0, 0) + self._attributes(number)

    def _attributes(self, node: int) -> bytes:
        if node not in self._entries:
            raise OSError(errno.ENOENT, "no such directory")
        mode = stat.S_IFDIR | 0o755
        return _ATTRIBUTES.pack(node, 0, 0, 0, 0, 0, 0, 0, 0, mode, 2, 0, 0, 0, 4096, 0)
