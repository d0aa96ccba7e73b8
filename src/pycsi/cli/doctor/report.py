"""`pycsi doctor`: examine, print, and mend if that is wanted."""

import os
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from pycsi.backends.throttle import throttle_at
from pycsi.cli import listing, tables
from pycsi.cli.commands.options import confirm
from pycsi.cli.doctor import mending
from pycsi.cli.doctor.cluster import Cluster
from pycsi.cli.doctor.codes import Code, Severity
from pycsi.cli.doctor.examination import Diagnosis, Subject, examine
from pycsi.cli.doctor.finding import Finding
from pycsi.cli.errors import MistakesError
from pycsi.cli.pools import chosen
from pycsi.linux import privileges
from pycsi.model import ids
from pycsi.model.config import PoolConfig

_FOUND, _UNSEEN = 1, 2
_INDENT = "  "
_COLUMNS = (
    tables.Column("code"),
    tables.Column("severity", 3),
    tables.Column("subject", 1),
    tables.Column("pool", 4),
    tables.Column("message", 2),
)


def show(
    given: Sequence[PoolConfig],
    *,
    cluster: str | None,
    driver_name: str,
    node_id: str | None,
    ignored: Sequence[Code],
    output: str,
    fix: bool,
    yes: bool,
    cgroup_root: Path | None,
) -> int:
    """Print what is wrong; with `fix` mend what is safe to mend, and print what is wrong then.

    Return the exit status: 0 if nothing is, 1 if something is, 2 if not all could be looked at.
    """
    if yes and not fix:
        raise MistakesError("--yes goes with --fix; give both, or neither")
    if fix and not yes and output in {"json", "yaml"}:
        raise MistakesError(f"--fix with -o {output} asks nobody; add --yes, or leave --fix out")
    configs = chosen(given)
    _refuse_powerless()
    subject = Subject(
        pools=configs,
        cluster=Cluster.read(cluster, driver_name) if cluster else None,
        node=ids.segment(node_id) if node_id else None,
        ignored=frozenset(ignored),
        throttle=throttle_at(cgroup_root),
    )
    found = examine(subject)
    if fix and (mends := mending.mends(found.findings)):
        if not yes:
            _print(found, configs, output)
        confirm("; ".join(mend.text for mend in mends), yes=yes, otherwise="nothing was changed")
        failures = mending.carry_out(mends, lambda text: click.echo(f"done: {text}", err=True))
        found = examine(subject)
        found.unseen += failures
    _print(found, configs, output)
    for message in found.unseen:
        click.echo(f"pycsi: {message}", err=True)
    return _UNSEEN if found.unseen else _FOUND if found.findings else 0


def _refuse_powerless() -> None:
    """Raise `MistakesError`, whose status is 2, if this process cannot look at the kernel."""
    if os.geteuid():
        raise MistakesError("doctor reads disks and asks the kernel, which takes root; run it so")
    try:
        privileges.try_to_mount()
    except OSError as error:
        raise MistakesError(
            f"this root may not look at mounts ({error.strerror}); run it in a privileged container"
        ) from None


def _print(found: Diagnosis, configs: Sequence[PoolConfig], output: str) -> None:
    rows = [_row(finding) for finding in found.findings]
    if output in {"json", "yaml"}:
        click.echo(listing.structured(rows, output))
    elif output == "table":
        made = tables.lines(_COLUMNS, rows, tables.Screen()) if rows else ()
        tables.print_lines(made, _write)
    else:
        tables.print_lines(_lines(found, configs), _write)


def _write(text: str) -> None:
    click.echo(text, nl=False)


def _row(finding: Finding) -> dict[str, Any]:
    return {
        "code": finding.code.value,
        "severity": finding.code.severity.value,
        "subject": finding.subject,
        "pool": finding.pool,
        "message": finding.message,
        "command": finding.command,
        "fix": finding.mend.text if finding.mend else None,
        "page": finding.code.page,
    }


def _lines(found: Diagnosis, configs: Sequence[PoolConfig]) -> Iterator[str]:
    """Yield the findings for people. Commands are never broken, so that they can be copied."""
    screen = tables.Screen()
    for finding in found.findings:
        yield from _told(finding, screen)
        yield ""
    pools = f"pool{'s' if len(configs) > 1 else ''} {', '.join(item.name for item in configs)}"
    looked = f"{_count(found.volumes, 'volume')} and {_count(found.snapshots, 'snapshot')}"
    well = "nothing was found" if found.unseen else "nothing is wrong"
    total = _count(len(found.findings), "finding") if found.findings else well
    yield f"{pools}: {total}; looked at {looked}"
    if any(finding.mend for finding in found.findings):
        yield "what is marked + can be mended by: pycsi doctor --fix"


def _told(finding: Finding, screen: tables.Screen) -> Iterator[str]:
    heading = f"{finding.code.severity}: {finding.code.about} ({finding.code})"
    if screen.coloured:
        red = finding.code.severity is Severity.ERROR
        heading = f"{tables.RED if red else tables.BOLD}{heading}{tables.PLAIN}"
    yield heading
    message = tables.printable(finding.message)
    width = (screen.width or 0) - len(_INDENT)
    wrapped = textwrap.wrap(message, max(width, 20), break_on_hyphens=False) if screen.width else ()
    yield from (f"{_INDENT}{line}" for line in wrapped or [message])
    yield f"{'+' if finding.mend else '$'} {tables.printable(finding.command)}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
