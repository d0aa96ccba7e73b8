"""How faults are told: in which order, and how many and how long."""

import re
from pathlib import Path

from pycsi.model.health import Fault, Reason, Status, ranked


def test_order() -> None:
    """The worst comes first; of one status, what was found first."""
    found = [
        Fault(Reason.NEARLY_FULL, "a"),
        Fault(Reason.POOL_MISSING, "b"),
        Fault(Reason.FEW_INODES, "c"),
        Fault(Reason.DATA_MISSING, "d"),
        Fault(Reason.UNREADABLE, "e"),
    ]
    assert [fault.message for fault in ranked(found)] == ["d", "b", "e", "a", "c"]
    assert ranked([]) == ()


def test_reason_is_told_once() -> None:
    found = ranked(Fault(Reason.MOUNT_REPLACED, str(number)) for number in range(3))
    assert found == (Fault(Reason.MOUNT_REPLACED, "0"),)


def test_most() -> None:
    """Of all faults at once 16 are told, and those are the worst."""
    found = ranked(Fault(reason, "") for reason in reversed(Reason))
    assert len(found) == 16
    assert {fault.reason for fault in found} >= {
        reason for reason in Reason if reason.status is not Status.DEGRADED
    }


def test_reasons_are_names() -> None:
    for reason in Reason:
        assert re.fullmatch(r"([A-Z][a-z]+)+", reason)
        assert isinstance(reason.status, Status)


def test_long_message() -> None:
    """It is cut to 128 bytes, and never within a character."""
    assert Fault(Reason.UNREADABLE, "x" * 200).message == "x" * 128
    assert Fault(Reason.UNREADABLE, "€" * 200).message == "€" * 42
    assert Fault(Reason.UNREADABLE, "\udcff").message == "?"


def test_documented() -> None:
    """The page on health has each reason, with its status, and no other."""
    page = (Path(__file__).parents[2] / "docs" / "health.md").read_text()
    rows = re.findall(r"^\| ([A-Z]\w+) \| ([A-Z_]+) \|", page, re.MULTILINE)
    assert sorted(rows) == sorted((reason, reason.status.name) for reason in Reason)
