"""Encrypted images: a LUKS2 header, then the encrypted data; cryptsetup(8) does the work.

Passphrases reach cryptsetup through pipes: they are in no file, no argument and no variable. Its
output has none of them.
"""

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from pycsi.linux import devicemapper, fiemap, program
from pycsi.linux.coredump import forbid
from pycsi.linux.descriptor import closing, opened
from pycsi.linux.filecopy import data_ranges

HEADER = 4 * 1024 * 1024
"""The bytes before the encrypted data: two copies of the header, keys, and a gap."""

_COPIES = 32 * 1024
_KEYS_END = 3 * 1024 * 1024
"""The bytes of a header that hold anything: the keys of up to 12 passphrases come last.

The gap that follows keeps them apart from the data. Where blocks of that are shared, XFS takes 128
KiB of new ones for a write, which may begin before it, and would move keys to new blocks too.
"""

SECTOR = 4096
"""The bytes that are encrypted as one, where a filesystem is on the mapping: its least block."""

SMALLEST_SECTOR = 512
"""Those where anything may be on the mapping, whose logical blocks have this size too."""

_BLOCK = 4096

_MAGIC = {0: b"LUKS\xba\xbe", 16 * 1024: b"SKUL\xba\xbe"}
"""What the two copies of the header begin with, by their offsets (LUKS2 On-Disk Format, 2.1)."""

_DERIVATION = (
    "--pbkdf=argon2id",
    "--pbkdf-memory=65536",
    "--pbkdf-parallel=1",
    "--pbkdf-force-iterations=4",
)
"""How a passphrase becomes a key: with 64 MiB of memory, by which no node runs out of it.

These are fixed, and not measured on the machine: a measurement takes two seconds, and another
machine, or the same one under load, would choose others.
"""

_WRONG_PASSPHRASE = 2
"""The status with which cryptsetup ends if no passphrase of the header is the one given."""

_NO_UDEV: Mapping[str, str] = {"DM_DISABLE_UDEV": "1"}
"""With it libdevmapper waits for no udev, which a container does not see."""

_deriving = threading.Lock()
"""Held while memory is taken to derive a key, so that many volumes at once do not take it all."""


class WrongPassphraseError(Exception):
    """No passphrase of the header is the one given."""


def refusal() -> str | None:
    """Return why this node cannot use encrypted images, and what to do; None if it can."""
    if program.find("cryptsetup") is None:
        return "cryptsetup is not installed on this node"
    return devicemapper.refusal("crypt")


def make(image: Path, passphrase: bytes, *, sector: int) -> None:
    """Write a header into the file `image`, whose key is new and protected by `passphrase`.

    `sector` are the bytes that are encrypted as one.
    """
    with _deriving, _piped(passphrase) as (key,):
        program.run(
            "cryptsetup",
            "luksFormat",
            "--batch-mode",
            "--type=luks2",
            "--cipher=aes-xts-plain64",
            "--key-size=512",
            f"--sector-size={sector}",
            f"--offset={HEADER // 512}",
            f"--luks2-keyslots-size={_KEYS_END - _COPIES}",
            *_DERIVATION,
            image,
            _path(key),
            keep=(key,),
            variables=_NO_UDEV,
        )


def open_mapping(device: Path, name: str, passphrase: bytes, *, discards: bool) -> None:
    """Make the mapping `name` that presents the data on `device` decrypted.

    With `discards` it passes those on. `WrongPassphraseError` if the passphrase is another.

    The key is in the mapping's table, and not in the kernel's keyring: so that the mapping can be
    resized without the passphrase.
    """
    words = ["--disable-keyring", *(["--allow-discards"] if discards else [])]
    _unlock("open", "--type=luks2", *words, device, name, passphrase=passphrase)
    _forget_node(name)


def verify(image: Path, passphrase: bytes) -> None:
    """Raise `WrongPassphraseError` unless the passphrase is one of the header of `image`."""
    _unlock("open", "--type=luks2", "--test-passphrase", image, passphrase=passphrase)


def _unlock(*words: str | Path, passphrase: bytes) -> None:
    with _deriving, _piped(passphrase) as (key,), _refused_as_wrong():
        file = f"--key-file={_path(key)}"
        program.run("cryptsetup", *words, file, keep=(key,), variables=_NO_UDEV)


def resize(name: str) -> None:
    """Set the size of a mapping to what its device has after the header."""
    program.run("cryptsetup", "resize", name, variables=_NO_UDEV)
    _forget_node(name)


def change_passphrase(image: Path, old: bytes, new: bytes) -> None:
    """Replace a passphrase of the header of `image`, durably; the encrypted data stays as it is.

    Until the new one is durable, the old one stays. `WrongPassphraseError` if there is no such.
    """
    with _deriving, _piped(old, new) as (before, after), _refused_as_wrong():
        program.run(
            "cryptsetup",
            "luksChangeKey",
            "--batch-mode",
            *_DERIVATION,
            f"--key-file={_path(before)}",
            image,
            _path(after),
            keep=(before, after),
            variables=_NO_UDEV,
        )
    with opened(image) as fd:
        os.fsync(fd)


@contextlib.contextmanager
def _refused_as_wrong() -> Iterator[None]:
    try:
        yield
    except program.ProgramError as error:
        if error.status == _WRONG_PASSPHRASE:
            raise WrongPassphraseError from None
        raise


@contextlib.contextmanager
def _piped(*secrets: bytes) -> Iterator[Sequence[int]]:
    """Yield a pipe for each secret, from which a program can read it.

    What is in a pipe is never swapped out, as what is in a file in memory may be.
    """
    forbid()
    with contextlib.ExitStack() as pipes:
        found = []
        for secret in secrets:
            reader, writer = os.pipe2(os.O_CLOEXEC)
            found.append(pipes.enter_context(closing(reader)))
            with closing(writer):
                os.write(writer, secret)  # less than a pipe takes at once
        yield found


def _path(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


def _forget_node(name: str) -> None:
    """Remove the node that libdevmapper has made beside the kernel's own.

    Nothing would remove it with the mapping, which the kernel may do, and then its number would be
    another mapping's.
    """
    Path("/dev/mapper", name).unlink(missing_ok=True)


def has_header(image: Path) -> bool:
    """Tell whether a file has a header, or one of its copies."""
    with opened(image) as fd:
        return any(os.pread(fd, len(magic), at) == magic for at, magic in _MAGIC.items())


def own_header(image: Path) -> None:
    """Give the header of an image that was copied blocks that it shares with no other file."""
    with opened(image, os.O_RDWR) as fd:
        for start, end in list(data_ranges(fd, _KEYS_END)):
            _write(fd, os.pread(fd, end - start, start), start)
        os.fsync(fd)


def wipe(image: Path) -> bool:
    """Overwrite the header of an image, durably; tell whether that was where it had been.

    Without it nobody can decrypt the data, with whatever passphrase. A filesystem that does not
    write in place may keep the blocks that had it until it uses them for something else.
    """
    with opened(image, os.O_RDWR) as fd:
        written = list(data_ranges(fd, _KEYS_END))
        before = _places(fd, written)
        for start, end in written:
            _write(fd, bytes(end - start), start)
        os.fsync(fd)
        return before == _places(fd, written)


def _places(fd: int, ranges: Iterable[tuple[int, int]]) -> dict[int, int]:
    """Return where on the disk each block in the ranges is; {} if the filesystem does not tell."""
    wanted = {at for start, end in ranges for at in range(start, end, _BLOCK)}
    places: dict[int, int] = {}
    with contextlib.suppress(OSError):
        for extent in fiemap.extents(fd):
            if extent.start >= _KEYS_END:
                break
            for at in range(extent.start, min(extent.end, _KEYS_END), _BLOCK):
                places[at] = extent.physical + at - extent.start
    return {at: place for at, place in places.items() if at in wanted}


def _write(fd: int, data: bytes, at: int) -> None:
    left = memoryview(data)
    while left:
        count = os.pwrite(fd, left, at)
        left, at = left[count:], at + count
