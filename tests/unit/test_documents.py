"""What the documents say of themselves, of the repository and of the command line is so."""

import re
from pathlib import Path

import pytest

from pycsi.cli import main
from pycsi.cli.doctor.codes import Code
from pycsi.model.health import Reason

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *PAGES,
    *sorted((ROOT / "docs" / "runbooks").glob("*.md")),
    *sorted((ROOT / "docs" / "findings").glob("*.md")),
    *sorted((ROOT / ".github").glob("*.md")),
    *sorted((ROOT / "deploy").rglob("README.md")),
]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

each = pytest.mark.parametrize("place", DOCUMENTS, ids=lambda place: str(place.relative_to(ROOT)))


def prose(place: Path) -> str:
    """Return a document without its blocks of code, in which nothing is a heading or a link."""
    return re.sub(r"^```.*?^```$", "", place.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(place: Path) -> set[str]:
    """Return the fragments that GitHub gives the headings of a document."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose(place), re.MULTILINE):
        name = re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        same = (f"{name}-{number}" for number in range(1, 100))
        found.add(
            name if name not in found else next(other for other in same if other not in found)
        )
    return found


def links(place: Path) -> list[str]:
    """Return where the links and pictures of a document lead, unless to the web."""
    text = re.sub(r"`[^`\n]*`", "", prose(place))
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(
        r"^\[.+\]: (\S+)", text, re.MULTILINE
    )
    return [target for target in targets if not target.startswith(("http://", "https://"))]


@each
def test_links(place: Path) -> None:
    """Each relative link leads to a file, and to a heading in it where it names one."""
    for link in links(place):
        path, _, fragment = link.partition("#")
        target = (place.parent / path).resolve() if path else place
        assert target.exists(), link
        assert not fragment or fragment in anchors(target), link


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "# A node's name, twice\n# `A` node's name, twice\n",
            {"a-nodes-name-twice"} | {"a-nodes-name-twice-1"},
        ),
        ("```sh\n# a comment\n```\n## One_word\n", {"one_word"}),
    ],
)
def test_anchors(tmp_path: Path, text: str, expected: set[str]) -> None:
    (tmp_path / "page.md").write_text(text)
    assert anchors(tmp_path / "page.md") == expected


def test_index() -> None:
    """The index has each page once, in a line that says what is in it; the README leads there."""
    index = ROOT / "docs" / "README.md"
    entries = re.findall(r"^- \[.+?\]\(([\w-]+\.md)\): .+$", index.read_text(), re.MULTILINE)
    assert sorted(entries) == [page.name for page in PAGES if page != index]
    assert "docs/README.md" in links(ROOT / "README.md")


def test_size_of_the_readme() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 120


@each
def test_names(place: Path) -> None:
    """Targets of make and paths of the repository that a document shows are there."""
    text = place.read_text()
    shown = re.findall(r"^(?:sudo )?make (.+)|`(?:sudo )?make ([^`]+)`", text, re.MULTILINE)
    for word in " ".join(re.sub("#.*", "", "".join(pair)) for pair in shown).split():
        assert word in TARGETS or "=" in word, word
    for path in re.findall(r"\b(?:deploy|docs|tests|benchmarks|src/pycsi)/[\w./-]*\w", text):
        assert (ROOT / path).exists(), path


def test_way_of_a_request() -> None:
    """Each module and function that the page on the architecture names is where it says."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    cells = re.findall(r"`((?:[a-z]+/)+\w+\.py)`((?:,? `[\w.]+`)*)", page)
    assert cells
    for path, names in cells:
        place = ROOT / path if path.startswith("tests/") else ROOT / "src/pycsi" / path
        source = place.read_text()
        for name in re.findall(r"[\w]+", names):
            assert re.search(rf"\b(?:class|def) {name}\b", source), (path, name)


def test_options() -> None:
    """The page of the command line has each option of `serve`, and no other."""
    page = (ROOT / "docs" / "cli.md").read_text()
    table = page[page.index("## Options of") : page.index("## Modes")]
    shown = set(re.findall(r"`(--[a-z-]+)", table))
    options = [item for item in main.commands["serve"].params if item.name != "help"]
    assert {option.opts[0] for option in options} <= shown
    assert shown <= {name for option in options for name in option.opts + option.secondary_opts}


def test_commands() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    shown = set(re.findall(r"^\| `pycsi ([a-z-]+)", page, re.MULTILINE))
    assert shown >= set(main.commands)


def test_findings() -> None:
    """Each code of a finding, as each reason of a fault is, has a page and a row in the index."""
    folder = ROOT / "docs" / "findings"
    assert {page.stem for page in folder.glob("*.md")} == {"README", *Code}
    rows = re.findall(
        r"^\| \[(\w+)\]\((\w+)\.md\) \| (\w+)(?:, \*fix\*)? \| (.+) \|$",
        (folder / "README.md").read_text(),
        re.MULTILINE,
    )
    assert rows == [(code, code, code.severity, code.about) for code in Code]
    for code in Code:
        head = f"# {code}\n\n{code.severity.capitalize()}. {code.about}.\n\n"
        assert (folder / f"{code}.md").read_text().startswith(head)
    assert {Code.of(reason) for reason in Reason} <= set(Code)


def test_distribution() -> None:
    """Whoever looks for the package is told that another project has the name `pycsi`."""
    name = re.search(r'^name = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert name
    assert name[1] != "pycsi"
    for place in (ROOT / "README.md", ROOT / "docs" / "standalone.md"):
        text = place.read_text()
        assert f"`{name[1]}`" in text
        assert "`pip install pycsi`" in text
