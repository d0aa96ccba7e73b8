"""A program that writes numbered records, syncing each before the next, until it is killed.

Usage: `recorder.py FILE...`. Record n goes to the file whose index is n modulo the number of files,
so a point-in-time copy of all files that has record n also has every earlier record.
"""

import os
import struct
import sys
import zlib
from pathlib import Path

RECORD = struct.Struct("<QI500x")


def record(number: int) -> bytes:
    return RECORD.pack(number, zlib.crc32(number.to_bytes(8, "little")))


def records(file: Path) -> list[int]:
    """Return the numbers of the records in a file; AssertionError if a record is damaged."""
    data = file.read_bytes()
    assert len(data) % RECORD.size == 0, f"{file}: a part of a record"
    numbers = [number for number, _ in RECORD.iter_unpack(data)]
    for place, (number, check) in enumerate(RECORD.iter_unpack(data)):
        assert check == zlib.crc32(number.to_bytes(8, "little")), f"{file}: record {place}"
    return numbers


def main(files: list[str]) -> None:
    descriptors = [os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) for file in files]
    number = 0
    while True:
        fd = descriptors[number % len(descriptors)]
        os.write(fd, record(number))
        os.fdatasync(fd)
        number += 1


if __name__ == "__main__":
    main(sys.argv[1:])
