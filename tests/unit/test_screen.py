"""What the demo prints can be read in a pipe, on a narrow terminal and on a wide one."""

import pytest

from pycsi.cli.demo.screen import Screen

TITLE = "Directory volume, 64 MiB: snapshot, restore and clone in use, one after the other"
PROOF = "writing past the size was refused: ENOSPC after 127 MiB, 63 MiB of them from before"
ROW = ("directory", "directory, btrfs quota group", "keeps files, size enforced", "0.3 s")


@pytest.fixture
def printed(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> list[str]:
    """Return a little of everything, on a terminal with as many columns as the parameter says."""
    monkeypatch.setenv("COLUMNS", str(request.param))
    screen = Screen()
    screen.title(TITLE)
    screen.remark("  its mounts are in a namespace of the demo's own: none of them can stay")
    screen.call("NodePublishVolume", "FAILED_PRECONDITION", 0.00123, "for pod-3, read-only")
    screen.call("Probe", "OK", 0.00123, "")
    screen.proved(PROOF)
    screen.disproved("CreateVolume answers OK", "UNKNOWN:\nout of order")
    screen.summary([ROW])
    return capsys.readouterr().out.splitlines()


def words(lines: list[str]) -> str:
    return " ".join(" ".join(lines).split())


@pytest.mark.parametrize(
    ("printed", "width"), [(40, 60), (60, 60), (80, 80), (200, 110)], indirect=["printed"]
)
def test_lines(printed: list[str], width: int) -> None:
    """No line is wider than the terminal, or than can be read with ease; and nothing is cut off."""
    assert max(map(len, printed)) <= width
    said = words(printed)
    for text in (TITLE, PROOF, "none of them can stay", "NodePublishVolume", "1.2 ms"):
        assert text in said
    assert "FAILED_PRECONDITION" in said
    assert "expected: CreateVolume answers OK found: UNKNOWN: out of order" in said


@pytest.mark.parametrize("printed", [60], indirect=True)
def test_narrow(printed: list[str]) -> None:
    """What belongs to a call is below it; the table has one column less."""
    call = next(index for index, line in enumerate(printed) if "NodePublish" in line)
    assert printed[call].endswith("1.2 ms")
    assert printed[call + 1].strip() == "for pod-3, read-only"
    assert "  its mounts are in a namespace of the demo's own: none of" in printed
    assert "  them can stay" in printed
    assert "directory, btrfs quota group: keeps" in words(printed)


@pytest.mark.parametrize("printed", [80], indirect=True)
def test_wide(printed: list[str]) -> None:
    """What belongs to a call is beside it."""
    assert any("NodePublish" in line and "read-only" in line for line in printed)
    assert any(line.split()[:3] == ["SHOWN", "MADE", "OF"] for line in printed)


@pytest.mark.parametrize("printed", [80], indirect=True)
def test_pipe(printed: list[str]) -> None:
    """There are no colours, nothing that only a terminal understands, and no spaces at the end."""
    assert "\x1b" not in "".join(printed)
    assert [line for line in printed if line.endswith(" ")] == []
