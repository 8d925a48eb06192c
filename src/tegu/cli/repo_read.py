"""The verbs of `tegu repo` that change nothing: list, verify, serve."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tegu.cli.output import note, print_json, print_table, spinner

if TYPE_CHECKING:
    from tegu.packages.repo.repository import Repository

__all__ = ["Directory", "Json", "add_to"]

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Directory = Annotated[
    Path,
    typer.Option("--repo", "-r", envvar="TEGU_REPO", help="The repository [this directory]."),
]


def add_to(app: typer.Typer) -> None:
    """Add the verbs to `tegu repo`."""
    app.command("list", epilog="Example: tegu repo list stable")(list_)
    app.command(
        epilog="Example: tegu repo verify https://packages.example.org --channel stable "
        "--keyring keyring.gpg"
    )(verify)
    app.command(epilog="Example: tegu repo serve --port 8750")(serve)


def list_(
    name: Annotated[str | None, typer.Argument(help="A channel or snapshot [all of them].")] = None,
    directory: Directory = Path(),
    as_json: Json = False,
) -> None:
    """List channels and snapshots, or the packages of one."""
    from tegu.packages.repo import Repository

    with Repository(directory) as repo:
        if name is not None:
            repo.collection(name)
            items = repo.catalogue.members(name)
            if as_json:
                print_json(
                    [
                        {
                            "name": i.name,
                            "version": i.version,
                            "arch": i.arch,
                            "kind": i.kind,
                            "size": i.size,
                            "sha256": i.sha256,
                            "path": i.path,
                        }
                        for i in items
                    ]
                )
                return
            print_table(
                ["package", "version", "arch", "kind", "size"],
                [(i.name, i.version, i.arch, i.kind, i.size) for i in items],
            )
            return
        rows = [
            {
                "name": c.name,
                "snapshot_of": c.origin,
                "packages": len(repo.catalogue.members(c.name)),
                "published": None if c.published is None else _moment(c.published),
            }
            for c in repo.catalogue.collections()
        ]
    if as_json:
        print_json(rows)
        return
    print_table(
        ["name", "snapshot of", "packages", "published"],
        [(r["name"], r["snapshot_of"], r["packages"], r["published"] or "never") for r in rows],
    )


def verify(
    url: Annotated[
        str | None, typer.Argument(help="A served repository [what --repo has published].")
    ] = None,
    channel: Annotated[
        list[str] | None, typer.Option("--channel", "-c", help="Channels or snapshots.")
    ] = None,
    keyring: Annotated[
        Path | None, typer.Option(help="Keys to trust, for a URL [those of --repo].")
    ] = None,
    packages: Annotated[
        bool, typer.Option("--packages/--indexes-only", help="Read every package as well.")
    ] = True,
    directory: Directory = Path(),
    as_json: Json = False,
) -> None:
    """Look at a repository as its clients do: signatures, age, every index, every package."""
    from tegu.errors import UsageError, VerifyError
    from tegu.packages.repo import Repository
    from tegu.packages.repo import verify as verify_url
    from tegu.packages.repo.verification import verify_own

    names = channel or []
    with spinner() as say:
        if url is None:
            with Repository(directory) as repo:
                report = verify_own(repo, names, packages=packages, say=say)
        else:
            if keyring is None:
                raise UsageError("a URL needs --keyring: whose signature is to be trusted?")
            place = (
                url if "://" in url or url.startswith("file:") else Path(url).absolute().as_uri()
            )
            report = verify_url(place, names, [str(keyring)], packages=packages, say=say)
    if as_json:
        print_json(
            {
                "checked": [
                    {
                        "name": c.name,
                        "side": c.side,
                        "packages": c.packages,
                        "date": _moment(c.date),
                        "valid_until": None if c.valid_until is None else _moment(c.valid_until),
                    }
                    for c in report.checked
                ],
                "problems": report.problems,
                "orphans": report.orphans,
            }
        )
    else:
        print_table(
            ["name", "side", "packages", "date", "valid until"],
            [
                (
                    c.name,
                    c.side,
                    c.packages,
                    _moment(c.date),
                    "" if c.valid_until is None else _moment(c.valid_until),
                )
                for c in report.checked
            ],
        )
        for problem in report.problems[1:]:
            note(problem)
    if report.orphans:
        note(
            f"{report.orphans} files of the pool are in no catalogue: the next change removes them"
        )
    if report.problems:
        more = len(report.problems) - 1
        raise VerifyError(report.problems[0] + (f" (and {more} more)" if more else ""))


def serve(
    directory: Directory = Path(),
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8750,
    as_json: Json = False,
) -> None:
    """Serve what is published, for a try, until Ctrl-C."""
    from tegu.packages.repo import Repository
    from tegu.packages.repo import serve as serve_repo

    with Repository(directory) as repo:

        def ready(url: str) -> None:
            if as_json:
                print_json({"url": url, "keyring": f"{url}/keyring.gpg"})
            else:
                print(url, flush=True)
                for line in _lines(repo, url):
                    note(line)

        serve_repo(repo, host=host, port=port, ready=ready)


def _lines(repo: Repository, url: str) -> list[str]:
    """Return what clients need to read the last channel."""
    channel = repo.settings.channels[-1] if repo.settings.channels else "CHANNEL"
    keyring = repo.public / "keyring.asc"
    return [
        f"apt: deb [signed-by={keyring}] {url} {channel} main",
        f"dnf: baseurl={url}/rpm/{channel}/$basearch gpgkey=file://{keyring} "
        "gpgcheck=0 repo_gpgcheck=1",
    ]


def _moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
