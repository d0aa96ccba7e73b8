"""StorageClass parameters: what is chosen, what size it gets, and what is refused."""

from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from pycsi.linux import mkfs
from pycsi.model import mountflags, parameters, spec
from pycsi.model.errors import InvalidArgument, OutOfRange
from pycsi.model.records import VolumeType
from pycsi.model.request import (
    Access,
    Capability,
    CapacityRange,
    Mode,
)
from pycsi.model.size import BLOCK, GIB, MIB

DIRECTORY, IMAGE = VolumeType.DIRECTORY, VolumeType.IMAGE
MOUNT = Capability(access=Access.MOUNT, mode=Mode.SINGLE_NODE_WRITER)
RAW = Capability(access=Access.BLOCK, mode=Mode.SINGLE_NODE_WRITER)


def mounted(kind: str | None = None, *flags: str) -> Capability:
    return Capability(
        access=Access.MOUNT, mode=Mode.SINGLE_NODE_WRITER, filesystem=kind, mount_flags=flags
    )


def choose(
    given: dict[str, str],
    *capabilities: Capability,
    limiter: str | None = None,
    ground: str = "btrfs",
) -> spec.VolumeSpec:
    wanted = parameters.parse(given)
    return spec.choose(wanted, capabilities, limiter=limiter, directories={ground})


@pytest.fixture(autouse=True)
def _programs() -> None:
    for kind in mkfs.KINDS:
        if missing := mkfs.missing_programs(kind):
            pytest.skip(f"needs {missing}")


@pytest.mark.parametrize(
    ("given", "capability", "limiter", "expected"),
    [
        # parameters, capability, how the pool limits -> type, filesystem, enforced, thick
        ({}, None, None, (IMAGE, "ext4", True, False)),
        ({}, None, "quota", (DIRECTORY, None, True, False)),
        ({}, MOUNT, None, (IMAGE, "ext4", True, False)),
        ({}, MOUNT, "quota", (DIRECTORY, None, True, False)),
        ({}, RAW, None, (IMAGE, None, True, False)),
        ({}, RAW, "quota", (IMAGE, None, True, False)),
        ({}, mounted("xfs"), None, (IMAGE, "xfs", True, False)),
        ({"type": "image"}, mounted("btrfs"), "quota", (IMAGE, "btrfs", True, False)),
        ({"type": "image"}, RAW, None, (IMAGE, None, True, False)),
        ({"type": "directory"}, MOUNT, "quota", (DIRECTORY, None, True, False)),
        ({"type": "directory", "quota": "none"}, MOUNT, None, (DIRECTORY, None, False, False)),
        ({"type": "directory", "quota": "required"}, MOUNT, "q", (DIRECTORY, None, True, False)),
        ({"quota": "none"}, MOUNT, None, (DIRECTORY, None, False, False)),
        ({"quota": "none"}, MOUNT, "quota", (DIRECTORY, None, False, False)),
        ({"allocation": "thick"}, MOUNT, None, (IMAGE, "ext4", True, True)),
        ({"allocation": "thick"}, MOUNT, "quota", (IMAGE, "ext4", True, True)),
        ({"allocation": "thin"}, RAW, None, (IMAGE, None, True, False)),
        ({"allocation": "thick"}, RAW, None, (IMAGE, None, True, True)),
        ({"mkfsOptions": "-b 4096"}, MOUNT, "quota", (IMAGE, "ext4", True, False)),
        ({"csi.storage.k8s.io/pvc/name": "x"}, MOUNT, None, (IMAGE, "ext4", True, False)),
    ],
)
def test_choice(
    given: dict[str, str],
    capability: Capability | None,
    limiter: str | None,
    expected: tuple[Any, ...],
) -> None:
    """What a volume is made of follows from parameters, capability and pool, and says why."""
    make = choose(given, *([capability] if capability else []), limiter=limiter)
    assert (make.type, make.filesystem, make.enforced, make.thick) == expected
    assert 0 < len(make.reason.encode()) <= 128
    assert make.minimum % BLOCK == 0


def test_a_default_that_is_written_down_changes_nothing() -> None:
    """What the documentation calls the default of `quota` can be given for every type."""
    assert choose({"quota": "required"}, MOUNT) == choose({}, MOUNT)
    assert choose({"quota": "required"}, RAW) == choose({}, RAW)


@pytest.mark.parametrize(
    ("given", "capabilities", "word"),
    [
        ({"type": "directory"}, [MOUNT], "quota: none"),
        ({"type": "directory", "quota": "required"}, [MOUNT], "quota: none"),
        ({"type": "directory", "quota": "none", "allocation": "thin"}, [MOUNT], "allocation"),
        ({"type": "directory", "quota": "none", "mkfsOptions": "-K"}, [MOUNT], "mkfsOptions"),
        ({"type": "directory"}, [RAW], "block"),
        ({"type": "image", "quota": "none"}, [MOUNT], "quota"),
        ({"quota": "none"}, [RAW], "quota"),
        ({"mkfsOptions": "-b 4096"}, [RAW], "mkfsOptions"),
        ({"type": "image"}, [mounted("ntfs")], "ntfs"),
        ({}, [MOUNT, RAW], "access type"),
        ({"type": "image"}, [mounted("xfs"), mounted("ext4")], "fs_type"),
    ],
)
def test_contradiction(given: dict[str, str], capabilities: list[Capability], word: str) -> None:
    """What contradicts itself or the pool is refused, with the reason."""
    with pytest.raises(InvalidArgument, match=word):
        choose(given, *capabilities)


@pytest.mark.parametrize(
    "given",
    [
        {"Type": "image"},
        {"fsType": "xfs"},
        {"": ""},
        {"type": ""},
        {"type": "Image"},
        {"type": "lvm"},
        {"quota": "no"},
        {"allocation": "fat"},
        {"mkfsOptions": "-b '4096"},
        {"size": "1Gi"},
        {"csi.storage.k8s.io": "x"},
    ],
)
def test_unknown_parameter(given: dict[str, str]) -> None:
    """An unknown key or value is refused, never ignored."""
    with pytest.raises(InvalidArgument):
        parameters.parse(given)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("ext4", "-d /etc"),
        ("ext4", "-d/etc"),
        ("ext4", "-J device=/dev/sda"),
        ("ext4", "/dev/sda"),
        ("ext4", "1g"),
        ("ext4", "-b 4096 /dev/sda"),
        ("ext4", "-l /etc/passwd"),
        ("ext4", "-L /etc"),
        ("ext4", "-z /tmp/undo"),
        ("ext4", "-E offset=4096"),
        ("ext4", "-E stride=4,offset=4096"),
        ("ext4", "-Eoffset=1"),
        ("ext4", "-b"),
        ("ext4", "-b ''"),
        ("ext4", "''"),
        ("ext4", "-"),
        ("ext4", "--"),
        ("ext4", "-n"),
        ("ext4", "-S"),
        ("ext4", "-qd /etc"),
        ("ext4", "-O 'a b'"),
        ("ext4", "-O a\nb"),
        ("xfs", "-l logdev=/dev/x"),
        ("xfs", "-l logdev=x"),
        ("xfs", "-l internal,logdev=x"),
        ("xfs", "-d file"),
        ("xfs", "-d file=1,name=x"),
        ("xfs", "-d name=x"),
        ("xfs", "-dname=x"),
        ("xfs", "-r rtdev=x"),
        ("xfs", "-p /etc/proto"),
        ("xfs", "-c options=/etc/x"),
        ("xfs", "-Kx"),
        ("btrfs", "--rootdir=/"),
        ("btrfs", "--rootdir /"),
        ("btrfs", "-r /"),
        ("btrfs", "--root=/"),
        ("btrfs", "--byte-count=1t"),
        ("btrfs", "/dev/sda"),
        ("btrfs", "--csum"),
        ("btrfs", "--csum="),
        ("btrfs", "--mixed=yes"),
        ("btrfs", "-V"),
    ],
)
def test_mkfs_option_that_reaches_out(kind: str, words: str) -> None:
    """No mkfs option can read or write another file, or is half an option."""
    with pytest.raises(InvalidArgument, match="mkfsOptions") as caught:
        choose({"type": "image", "mkfsOptions": words}, mounted(kind))
    if words.startswith("/"):
        assert f"{words!r} is not allowed" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("ext4", ("-b", "4096", "-i", "16384")),
        ("ext4", ("-b4096",)),
        ("ext4", ("-O", "^has_journal,metadata_csum")),
        ("ext4", ("-E", "stride=16,stripe_width=64", "-m", "1")),
        ("ext4", ("-T", "largefile")),
        ("xfs", ("-i", "size=512", "-m", "reflink=1,crc=1", "-K")),
        ("xfs", ("-d", "su=64k,sw=4", "-l", "size=64m")),
        ("btrfs", ("-d", "dup", "-m", "single", "-M")),
        ("btrfs", ("--csum=xxhash", "--nodesize", "16k")),
    ],
)
def test_mkfs_option(kind: str, words: tuple[str, ...]) -> None:
    """The options by which people tune filesystems are passed on as they are."""
    make = choose({"mkfsOptions": " ".join(words)}, mounted(kind))
    assert make.mkfs_options == words


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        ({"quota": "none"}, ["password=hunter2"]),
        ({"quota": "none"}, ["ro,password=hunter2"]),
        ({"allocation": "thick"}, ["discard=hunter2"]),
        ({"allocation": "thick"}, ["noatime", "discard"]),
        ({}, ["bind"]),
        ({}, ["noatime,remount"]),
        ({}, ["rshared"]),
    ],
)
def test_mount_flag_that_is_refused_is_not_repeated(
    given: dict[str, str], flags: list[str]
) -> None:
    """A refused mount flag, which may be sensitive, is named by its place only."""
    with pytest.raises(InvalidArgument, match=r"mount flag \d") as caught:
        choose(given, mounted(None, *flags))
    for flag in ",".join(flags).split(","):
        if flag not in {"ro", "noatime"}:  # the message lists what a directory takes
            assert flag not in str(caught.value).split()
            assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "flag", ["ro", "noatime", "nosuid,nodev", "rw", "defaults", "_netdev", "x-a=b"]
)
def test_mount_flag_of_a_directory(flag: str) -> None:
    """A directory takes what belongs to a mount, and what only mount(8) reads."""
    assert choose({"quota": "none"}, mounted(None, flag)).type is DIRECTORY


LABEL = 'context="system_u:object_r:container_file_t:s0:c1,c2"'


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        (["ro,,noatime", "nodev"], ["ro", "noatime", "nodev"]),
        ([LABEL], [LABEL.replace('"', "")]),
        ([f"ro,{LABEL},noatime"], ["ro", LABEL.replace('"', ""), "noatime"]),
        (['a="b",c="d,e"f'], ["a=b", 'c="d,e"f']),
        (['x-a="b,bind",nofail,ro'], ["ro"]),
        (["a=", 'b=""'], ["a=", "b="]),
    ],
)
def test_mount_flags_are_split_as_mount_does(flags: list[str], options: list[str]) -> None:
    """A comma within double quotes belongs to a value; the quotes around a value do not."""
    assert mountflags.split(flags) == options


@pytest.mark.parametrize("flag", ['context="s0:hunter2,c2', '"', 'ro,a="b",c="hunter2'])
def test_mount_flag_with_an_open_quote(flag: str) -> None:
    """A quote that is not closed is refused, without the flag's text."""
    with pytest.raises(InvalidArgument, match="quote") as caught:
        choose({}, mounted("ext4", flag))
    assert "hunter2" not in str(caught.value)


def test_quotes_hide_no_option() -> None:
    """What a volume may not be given is found beside quoted values too."""
    with pytest.raises(InvalidArgument, match="mount flag 2"):
        choose({}, mounted("ext4", f"{LABEL},logdev=/dev/sda"))
    with pytest.raises(InvalidArgument, match="directory takes"):
        choose({"quota": "none"}, mounted(None, LABEL))


SIZES = st.none() | st.integers(1, 2**63 - 1) | st.integers(1, 64 * MIB)
MINIMA = st.sampled_from([0, MIB, 16 * MIB, 128 * MIB, 300 * MIB])


@given(SIZES, SIZES, MINIMA)
@example(2**63 - 1, None, MIB)
@example(None, 2**63 - 1, MIB)
@example(None, 1, MIB)
@example(MIB + 1, MIB + 4095, MIB)
def test_size_lies_in_the_range(required: int | None, limit: int | None, minimum: int) -> None:
    """A size is whole blocks within the range; OutOfRange means that no such size exists."""
    assume(required is None or limit is None or required <= limit)
    assume(required or minimum)  # a volume of which nothing is known has a minimum
    wanted = CapacityRange(required=required, limit=limit)
    least = max(-(-(required or 0) // BLOCK) * BLOCK, minimum)
    most = 2**63 - BLOCK if limit is None else limit // BLOCK * BLOCK
    if least > most:
        with pytest.raises(OutOfRange):
            spec.size_for(wanted, minimum)
    else:
        size = spec.size_for(wanted, minimum)
        assert wanted.holds(size)
        assert size % BLOCK == 0
        assert size >= minimum
        assert required is None or size == least


@pytest.mark.parametrize(
    ("wanted", "size"),
    [
        (None, GIB),
        (CapacityRange(required=1), MIB),
        (CapacityRange(required=MIB + 1), MIB + BLOCK),
        (CapacityRange(required=5 * GIB), 5 * GIB),
        (CapacityRange(limit=5 * GIB), GIB),
        (CapacityRange(limit=10 * MIB + 5), 10 * MIB),
        (CapacityRange(required=MIB, limit=MIB), MIB),
    ],
)
def test_size(wanted: CapacityRange | None, size: int) -> None:
    """The size is the required one, rounded up, or the default within the limit."""
    assert spec.size_for(wanted, MIB) == size
