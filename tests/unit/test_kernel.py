"""What the kernel says of mounts, parsed."""

import os

import pytest

from pycsi.linux import kernel, mount

LINE = r"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue"


def test_line() -> None:
    """Every field of a line of mountinfo is in its place."""
    [found] = kernel.parse_mountinfo(LINE)
    assert found == kernel.Mount(
        id=36,
        device=os.makedev(98, 0),
        root="/mnt1",
        target="/mnt2",
        options=frozenset({"rw", "noatime"}),
        fstype="ext3",
        source="/dev/root",
        super_options=frozenset({"rw", "errors=continue"}),
    )
    assert not found.readonly


@pytest.mark.parametrize("optional", ["", " shared:1", " shared:1 master:2 propagate_from:3"])
def test_optional_fields(optional: str) -> None:
    """Any number of optional fields may precede the separator."""
    text = f"1 2 0:5 / /x ro,nosuid{optional} - tmpfs none rw"
    [found] = kernel.parse_mountinfo(text)
    assert (found.fstype, found.target, found.readonly) == ("tmpfs", "/x", True)


@pytest.mark.parametrize(
    ("escaped", "path"),
    [
        (r"/a\040b", "/a b"),
        (r"/a\011b", "/a\tb"),
        (r"/a\012b", "/a\nb"),
        (r"/a\134b", r"/a\b"),
        (r"/a\134040b", r"/a\040b"),
        (r"/a\043b", "/a#b"),
        ("/é", "/é"),
    ],
)
def test_escapes(escaped: str, path: str) -> None:
    """What the kernel escapes in paths is read back, once."""
    [found] = kernel.parse_mountinfo(f"1 2 0:5 {escaped} {escaped} rw - ext4 {escaped} rw")
    assert found.root == found.target == found.source == path


@pytest.mark.parametrize("name", ["a\x0bb", "a\x0cb", "a\rb", "a\x85b", "a\u2028b", "a\x1cb"])
def test_path_with_an_odd_line_separator(name: str) -> None:
    """Only a newline ends a line: other separators are legal in paths, and not escaped."""
    text = f"1 2 0:5 / /{name} rw - ext4 /dev/x rw\n2 3 0:6 / /other rw - ext4 /dev/y rw\n"
    assert [found.target for found in kernel.parse_mountinfo(text)] == [f"/{name}", "/other"]


def test_path_with_a_separator_of_fields() -> None:
    """A dash between escaped spaces in a path is not the separator of the fields."""
    text = r"1 2 0:5 / /a\040-\040b rw - ext4 /dev/x rw"
    assert [found.target for found in kernel.parse_mountinfo(text)] == ["/a - b"]


def test_later_lines_lie_over_earlier_ones() -> None:
    """Mounts at one target keep the kernel's order, the topmost last."""
    lower = "1 0 0:5 / /x rw - ext4 /dev/lower rw"
    upper = "2 1 0:6 / /x rw - ext4 /dev/upper rw"
    assert [found.source for found in kernel.parse_mountinfo(f"{lower}\n{upper}\n")] == [
        "/dev/lower",
        "/dev/upper",
    ]


def test_this_process() -> None:
    """The real mountinfo can be read, and holds the root filesystem."""
    assert "/" in {found.target for found in kernel.mountinfo()}


_ATIME = mount.MOUNT_ATTR__ATIME
_HARDENED = (
    mount.MOUNT_ATTR_RDONLY
    | mount.MOUNT_ATTR_NOSUID
    | mount.MOUNT_ATTR_NODEV
    | mount.MOUNT_ATTR_NOEXEC
)


@pytest.mark.parametrize(
    ("options", "change"),
    [
        (["ro"], (mount.MOUNT_ATTR_RDONLY, 0)),
        (["nosuid", "nodev"], (mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NODEV, 0)),
        (["rw", "anything"], (0, mount.MOUNT_ATTR_RDONLY)),
        (["defaults"], (0, _HARDENED)),
        (["noatime"], (mount.MOUNT_ATTR_NOATIME, _ATIME)),
        (["relatime"], (0, _ATIME)),
        (["anything"], (0, 0)),
    ],
)
def test_attributes(options: list[str], change: tuple[int, int]) -> None:
    """Options of a mount set and clear attribute bits, others do not."""
    assert mount.attributes_of(options) == change


def test_looking_up() -> None:
    """What is looked for in the kernel's text, or in an index of it, is what a search finds."""
    table, index = kernel.MountTable(), kernel.MountIndex()
    every = list(table)
    assert every == list(index)
    for item in every:
        assert table.numbered(item.id) == item
        for found in (table, index):
            assert found.at(item.target) == [one for one in every if one.target == item.target]
            assert found.showing(item.root) == [one for one in every if one.root == item.root]
            assert found.of_source(item.source) == [
                one for one in every if one.source == item.source
            ]
            assert found.of(item.device, item.root) == [
                one
                for one in every
                if one.device == item.device
                and f"{one.root}/".startswith(f"{item.root.rstrip('/')}/")
            ]
        assert table.below(item.target) == [
            one for one in every if f"{one.target}/".startswith(f"{item.target.rstrip('/')}/")
        ]
    assert table.at("/nothing here") == index.at("/nothing here") == []


def test_indexed_view_is_read_once() -> None:
    """A view of many volumes is not read again for each of them."""
    view = kernel.IndexedKernelView()
    read = view.mounts
    view.invalidate()
    assert view.mounts is read
