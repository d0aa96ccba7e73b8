"""The options of mkfs that the kernel wants, together with those of a StorageClass."""

import pytest

from pycsi.linux import mkfs

NREXT64 = {"-i": "exchange=0,nrext64=0"}


@pytest.mark.parametrize(
    ("base", "words", "expected"),
    [
        ({}, "", ""),
        ({}, "-O quota", "-O quota"),
        (NREXT64, "", "-i exchange=0,nrext64=0"),
        (NREXT64, "-b size=1024", "-i exchange=0,nrext64=0 -b size=1024"),
        (NREXT64, "-i size=512 -K", "-i exchange=0,nrext64=0,size=512 -K"),
        (NREXT64, "-isize=512 -K", "-i exchange=0,nrext64=0,size=512 -K"),
        (NREXT64, "-i nrext64=1", "-i exchange=0,nrext64=1"),
        (NREXT64, "-i nrext64=1 -i size=512", "-i nrext64=1 -i exchange=0,size=512"),
        ({"-O": "^orphan_file"}, "-O quota", "-O ^orphan_file,quota"),
        ({"-O": "^orphan_file"}, "-O orphan_file", "-O orphan_file"),
    ],
)
def test_options_together(base: dict[str, str], words: str, expected: str) -> None:
    """Each option is given once more at most, and the class's own word counts."""
    assert " ".join(mkfs.merged(base, words.split())) == expected
