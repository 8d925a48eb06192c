"""`tegu cve`: known vulnerabilities of a lock, an image, a status file or this machine."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tegu.cli.output import note, print_json, print_table

if TYPE_CHECKING:
    from tegu.release.cve import Package

__all__ = ["app"]

app = typer.Typer()


@app.command(epilog="Example: tegu cve distro/tegu.lock --security tracker.json --vex vex.json")
def cve(
    subject: Annotated[
        Path,
        typer.Argument(
            help="A lock (*.lock), an SBOM (*.json), dpkg's status file, or / for this machine."
        ),
    ],
    security: Annotated[
        list[Path],
        typer.Option(
            "--security",
            help="Data: the distribution's tracker (JSON), OSV (JSON, .zip or a directory), the "
            "list of exploited vulnerabilities.",
        ),
    ],
    vex: Annotated[
        list[Path] | None, typer.Option("--vex", help="OpenVEX: what does not apply.")
    ] = None,
    suite: Annotated[str, typer.Option("--suite", help="Release of the distribution.")] = "trixie",
    fixable: Annotated[bool, typer.Option("--fixable", help="Only what a version mends.")] = False,
    fail: Annotated[
        bool, typer.Option("--fail", help="Exit with 7 when something that can be mended is found.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say which known vulnerabilities there are, by source package and version.

    The data is read from files and never fetched; how old it is, is said.
    """
    from tegu.errors import VerifyError
    from tegu.release.cve import examine, read_security_data, read_statements
    from tegu.release.cve.sources import running_packages

    data = read_security_data(security, suite)
    statements = [s for path in vex or [] for s in read_statements(path)]
    here = subject == Path("/")
    packages = _packages(subject)
    found = examine(packages, data, statements, running=running_packages() if here else None)
    shown = found.of("fixable") if fixable else list(found.findings)
    day = f"{datetime.fromtimestamp(found.date, UTC):%Y-%m-%d}"
    if as_json:
        print_json(
            {
                "suite": found.suite,
                "data": day,
                "age_days": round(data.age_days(), 1),
                "packages": found.packages,
                "sources": found.sources,
                "findings": [asdict(f) for f in shown],
            }
        )
    else:
        print_table(
            ("id", "severity", "source", "version", "status", "fixed in", "", "why not"),
            [
                (f.id, f.severity, f.source, f.version, f.status, f.fixed,
                 " ".join(w for w, yes in (("exploited", f.exploited), ("running", f.running))
                          if yes), f.reason)
                for f in shown
            ],
        )  # fmt: skip
        note(
            f"{found.packages} packages of {found.sources} sources against data of {day} "
            f"({data.age_days():.0f} days old)"
        )
    mendable = found.of("fixable")
    if fail and mendable:
        first = mendable[0]
        raise VerifyError(
            f"{len(mendable)} vulnerabilities can be mended: {first.id} in {first.source} by "
            f"{first.fixed}"
        )


def _packages(subject: Path) -> list[Package]:
    from tegu.release.cve import packages_of_lock, packages_of_sbom, packages_of_status

    if subject == Path("/"):
        return packages_of_status(Path("/var/lib/dpkg/status"))
    if subject.suffix == ".lock":
        from tegu.packages import Lock

        return packages_of_lock(Lock.read(subject))
    if subject.suffix == ".json":
        return packages_of_sbom(subject)
    return packages_of_status(subject)
