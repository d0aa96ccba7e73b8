"""The sections of CHANGELOG.md, whose form is that of Keep a Changelog."""

import dataclasses
import re
from pathlib import Path

UNRELEASED = "Unreleased"

_HEADING = re.compile(r"^## \[?(?P<name>[^\]\s]+)\]?(?: - (?P<date>.*))?$", re.MULTILINE)
_LINK = re.compile(r"^\[(?P<name>[^\]]+)\]: (?P<target>\S+)$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Section:
    """What has changed in a version; `date` is "" where the heading has none."""

    name: str
    date: str
    text: str

    @property
    def entries(self) -> int:
        """The number of entries."""
        return len(re.findall(r"^- ", self.text, re.MULTILINE))


@dataclasses.dataclass(frozen=True)
class Changelog:
    """The sections in their order, and where the names of versions lead."""

    sections: list[Section]
    links: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> "Changelog":
        """Read a file; `OSError` if that fails."""
        text = path.read_text(encoding="utf-8")
        links = {found["name"]: found["target"] for found in _LINK.finditer(text)}
        text = _LINK.sub("", text)
        headings = [*_HEADING.finditer(text)]
        ends = [*(found.start() for found in headings[1:]), len(text)]
        sections = [
            Section(found["name"], found["date"] or "", text[found.end() : end].strip())
            for found, end in zip(headings, ends, strict=True)
        ]
        return cls(sections, links)

    def section(self, name: str) -> Section | None:
        """Return the section of a version, or None."""
        return next((section for section in self.sections if section.name == name), None)
