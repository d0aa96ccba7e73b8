"""Ids are derived from names: safe, short, and one for each."""

import re
from pathlib import PurePosixPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pycsi.model import ids
from pycsi.model.errors import InvalidArgument
from pycsi.services.request import name as check_name

FORBIDDEN = [chr(code) for code in (*range(0x9), 0xB, 0xC, *range(0xE, 0x20), *range(0x7F, 0xA0))]
LEGAL = st.characters(exclude_categories=["Cs"], exclude_characters="".join(FORBIDDEN))
NAMES = st.one_of(
    st.text(LEGAL, min_size=1, max_size=128),
    st.text("ab./-_@ ", min_size=1, max_size=128),
    st.from_regex(r"[A-Za-z0-9._-]{1,70}", fullmatch=True),
    st.from_regex(r"(sha256|ephemeral)-[0-9a-f]{1,60}", fullmatch=True),
).filter(lambda text: len(text.encode()) <= 128)
NODES = st.one_of(
    st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=256),
    st.from_regex(r"[a-z0-9.-]{1,256}", fullmatch=True),
).filter(lambda text: len(text.encode()) <= 256)
TOPOLOGY_VALUE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")


@given(NAMES, NODES)
@example("x" * 63, "n" * 63)
@example("..", ".")
@example("../../etc/passwd", "a/b")
@example("a\nb", "x" * 256)
def test_any_name_makes_a_safe_id(name: str, node: str) -> None:
    """Every legal name leads to an id of at most 128 bytes that is one harmless path component."""
    check_name(name)
    made = ids.object_id(name, node)
    assert len(made.encode()) <= 128
    assert made.isascii()
    assert made.isprintable()
    assert PurePosixPath(made).name == made
    assert made not in {".", ".."}
    assert not made.startswith((".", "-"))
    assert "/" not in made
    assert " " not in made


@given(NAMES, NODES)
def test_same_name_same_id(name: str, node: str) -> None:
    """An id depends on nothing but name and node, and tells its node."""
    assert ids.object_id(name, node) == ids.object_id(str(name), str(node))
    assert ids.node_of(ids.object_id(name, node)) == ids.segment(node)


@given(st.lists(NAMES, min_size=2, max_size=2, unique=True))
def test_different_names_different_ids(names: list[str]) -> None:
    """Two names never share an id."""
    assert ids.object_id(names[0], "n") != ids.object_id(names[1], "n")


@given(NAMES, NAMES)
def test_a_digest_is_nobody_s_name(name: str, other: str) -> None:
    """A name that looks like the key of another name gets a key of its own."""
    digested = ids.object_id("../" + name, "n")
    assert ids.object_id(digested.partition("@")[0], "n") != digested
    assert ids.ephemeral_id(other, "n") != ids.object_id(name, "n")
    assert ids.object_id(ids.ephemeral_id(other, "n").partition("@")[0], "n") != ids.ephemeral_id(
        other, "n"
    )


@given(NODES)
@example("x" * 256)
@example("-")
def test_node_segment_is_a_topology_value(node: str) -> None:
    """Every node id leads to a topology value of at most 63 characters."""
    assert len(ids.segment(node)) <= 63
    assert TOPOLOGY_VALUE.fullmatch(ids.segment(node))


@given(st.lists(NODES, min_size=2, max_size=2, unique=True))
def test_different_nodes_different_segments(nodes: list[str]) -> None:
    """Two nodes never share a topology value."""
    assert ids.segment(nodes[0]) != ids.segment(nodes[1])


@pytest.mark.parametrize("name", ["pvc-4f1c", "data", "a.b_c-d", "A", "x" * 63])
def test_plain_name_is_readable_in_the_id(name: str) -> None:
    """A name that is a safe file name stays readable."""
    assert ids.object_id(name, "node-1") == f"{name}@node-1"


@pytest.mark.parametrize(
    "name", ["sha256-0", "ephemeral-x", "x" * 64, ".a", "a.", "-a", "a@b", "a\n"]
)
def test_odd_name_is_digested(name: str) -> None:
    """A name with a reserved prefix or an odd character is not used as a file name."""
    assert re.fullmatch(r"sha256-[0-9a-f]{40}@node-1", ids.object_id(name, "node-1"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fake",
        "../../etc",
        "a@b/c",
        "a@..",
        "@n",
        "a@",
        "a@b@c",
        "a@b\n",
        " a@b",
        "x" * 64 + "@n",
    ],
)
def test_no_id_of_ours(text: str) -> None:
    """What cannot be an id of ours names no node."""
    assert ids.node_of(text) is None


@pytest.mark.parametrize("character", FORBIDDEN)
def test_forbidden_character(character: str) -> None:
    """A name with a control character that the specification bans is refused, and not repeated."""
    with pytest.raises(InvalidArgument, match="control character") as caught:
        check_name(f"a{character}b")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "name", ["\t", "\n", "\r", " ", "/", "..", "\u00a0", "\U0001f600", "\u202e"]
)
def test_odd_legal_name(name: str) -> None:
    """Everything else is legal."""
    assert check_name(name) == name


@pytest.mark.parametrize(("name", "legal"), [("x" * 128, True), ("é" * 64, True), ("", False)])
def test_length_of_a_name(*, name: str, legal: bool) -> None:
    """A name has 1 to 128 bytes."""
    if legal:
        assert check_name(name) == name
    else:
        with pytest.raises(InvalidArgument, match="name"):
            check_name(name)


@pytest.mark.parametrize("name", ["x" * 129, "é" * 64 + "x", "\U0001f600" * 33])
def test_name_that_is_too_long(name: str) -> None:
    """The limit counts bytes, not characters."""
    with pytest.raises(InvalidArgument, match="128"):
        check_name(name)
