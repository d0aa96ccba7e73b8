"""Each message says what was wrong, what was found and what to do, as the lists beside this show.

In these a case is a script that sets a scene (`>`), a command (`$`), what it says on standard error
besides, with `…` for anything, and its exit status (`[2]`).
"""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from messages.templates import ANY, shows, templates
from sandbox import scripted

HERE = Path(__file__).parent
LISTS = sorted(HERE.glob("*.txt"))
SCENES = (HERE / "scenes.sh").read_text()

NOT_SHOWN = {
    "… has just been restored or deleted; see: pycsi get trash": "a race of two commands",
    "mounting needs open_tree(2), which this kernel does not have, or a sandbox forbids: use Linux "
    "5.12 or later, without a seccomp profile": "it takes an old kernel, or a seccomp profile",
    "--tracing: OpenTelemetry cannot use what is set in …; correct that": "whatever it may refuse",
    "the driver at … has ended …": "a driver that ends at that time",
    "the pool's disk is full (…): … are free; nothing is left of the import. Free space there": "a "
    "disk that others fill at that time",
    "an export is no text for a terminal; give a file, or a pipe": "it takes a terminal",
    "standard input is a terminal; give a file, or a pipe": "it takes a terminal",
    "…: nothing is planned for it": "for the type checker: that would have been told before",
    "… holds …, more than …; give a --size that is larger": "it takes project quota",
    "… is in use: … while it was copied": "what somebody changes at that time",
    "… is in use: it was changed while it was copied": "what somebody changes at that time",
    "…: there is no room for it in the pool, or it is larger than its limit (…); give a larger "
    "--size, or free space": "a disk that others fill at that time",
    "… is attached to …; detach it": "it takes an orchestrator that attaches volumes",
    "--tls-directory is missing": "for the type checker: the configuration was refused before",
}
"""Messages that no command line brings about, with the reason."""


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    scene: str
    command: str
    messages: tuple[str, ...]
    status: int


def cases(text: str) -> Iterator[Case]:
    for block in re.split(r"\n\n+", text):
        lines = [line for line in block.splitlines() if not line.startswith("#")]
        if lines:
            scene = [line[2:] for line in lines if line.startswith("> ")]
            (command,) = (line[2:] for line in lines if line.startswith("$ "))
            messages = [line for line in lines[:-1] if not line.startswith(("> ", "$ "))]
            yield Case("\n".join(scene), command, tuple(messages), int(lines[-1].strip("[]")))


CASES = [case for place in LISTS for case in cases(place.read_text())]


def said(line: str) -> str:
    """Return what a line on standard error says: one of the driver's log, or of a command."""
    if line.startswith("{"):
        event = json.loads(line)
        return f"{event['event']}: {event.get('error')}"
    return line.rstrip()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.command)
def test_message(case: Case, tmp_path: Path) -> None:
    """A command says exactly what is listed, on standard error, and ends with its status."""
    # With `exit`, bash waits for the command, and does not become it: the process with which all
    # others end must not be one that hangs.
    scene = f"{{ :\n{case.scene}\n}} >/srv/scene 2>&1"
    script = f"{SCENES}\n{scene}\n{case.command}\nexit $?\n"
    done = scripted(tmp_path, script, PYTHONPATH=str(HERE.parent))
    lines = [said(line) for line in done.stderr.splitlines()]
    before = (tmp_path / "srv" / "scene").read_text()
    for message in case.messages:
        pattern = ".+".join(map(re.escape, message.split(ANY)))
        assert any(re.fullmatch(pattern, line) for line in lines), (lines, done.stdout, before)
    assert done.returncode == case.status, (lines, before)
    assert "Traceback" not in done.stderr + done.stdout


def test_all_are_listed() -> None:
    """Whoever adds a message adds a case: none of the source is without one."""
    listed = [message for case in CASES for message in case.messages]
    missing = {
        template: place
        for template, place in templates().items()
        if not any(shows(message, template) for message in [*listed, *NOT_SHOWN])
    }
    assert not missing, f"add cases to tests/messages/*.txt: {missing}"
    assert templates().keys() >= NOT_SHOWN.keys()
