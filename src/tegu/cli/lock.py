"""`tegu lock`: a definition to exact packages, and what changed between two locks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tegu.cli.output import human_size, print_json, print_table
from tegu.errors import LockError, UsageError

if TYPE_CHECKING:
    from tegu.packages import Lock
    from tegu.packages.compare import Difference

__all__ = ["app"]

app = typer.Typer()


@app.command(
    epilog="Examples: tegu lock | tegu lock --update openssl | tegu lock --diff old.lock tegu.lock"
)
def lock(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help="With --update: the packages to renew (none: all). With --diff: OLD and NEW.",
        ),
    ] = None,
    file: Annotated[
        Path, typer.Option("-f", "--file", help="The definition.", metavar="FILE")
    ] = Path("tegu.toml"),
    profile: Annotated[
        str | None, typer.Option("-p", "--profile", help="Profile of the definition.")
    ] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Take the newest versions, of all packages or NAMEs.")
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Use the indexes that are in the store already.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; fail if the lock is out of date.")
    ] = False,
    diff: Annotated[
        bool, typer.Option("--diff", help="Compare two lock files: OLD and NEW.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The lock file; default: tegu[.PROFILE].lock."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Resolve a definition to exact packages, with versions and checksums.

    Indexes are verified with the distribution's keyring. Versions that are locked already are kept
    unless --update says otherwise.
    """
    from tegu.packages import Lock

    names = names or []
    if diff:
        if len(names) != 2 or update or check:
            raise UsageError("--diff takes two lock files: tegu lock --diff OLD NEW")
        from tegu.packages import diff as compare

        _print_difference(compare(Lock.read(Path(names[0])), Lock.read(Path(names[1]))), as_json)
        return
    if names and not update:
        raise UsageError(
            f"unexpected argument {names[0]!r}",
            hint="package names go with --update; packages are added in the definition",
        )
    from tegu.definition import load
    from tegu.packages import default_lock_path

    definition = load(file, profile=profile)
    path = output or default_lock_path(file, profile)
    if check:
        _check(Lock.read(path), definition, path, as_json)
        return
    from tegu.packages import make_lock
    from tegu.store import Store

    previous = Lock.read(path) if path.exists() else None
    made = make_lock(
        definition,
        Store.default(),
        previous=previous,
        update=names or update,
        offline=offline,
    )
    if made != previous:
        made.write(path)
    _report(made, previous, path, as_json)


def _check(found: Lock, definition: Any, path: Path, as_json: bool) -> None:
    from tegu.packages import stale

    why = stale(found, definition)
    if why is not None:
        raise LockError(f"{path} is out of date: {why}", hint="run `tegu lock`")
    if as_json:
        print_json({"lock": str(path), "current": True})
    else:
        print(f"{path} is up to date")


def _report(made: Lock, previous: Lock | None, path: Path, as_json: bool) -> None:
    from tegu.packages import diff

    size = sum(p.size for p in made.system)
    if as_json:
        changed = diff(previous, made).as_json() if previous else None
        print_json(
            {
                "lock": str(path),
                "digest": made.digest(),
                "timestamp": made.timestamp,
                "system": len(made.system),
                "tools": len(made.tools),
                "download": size,
                "changed": made != previous,
                "difference": changed,
            }
        )
        return
    if previous is not None and previous != made:
        _print_difference(diff(previous, made), as_json=False)
    state = "unchanged" if made == previous else "written"
    print(
        f"{path} {state}: {len(made.system)} packages ({human_size(size)}), "
        f"{len(made.tools)} for the tools"
    )


def _print_difference(difference: Difference, as_json: bool) -> None:
    if as_json:
        print_json(difference.as_json())
        return
    print_table(
        ("set", "package", "change", "old", "new", "download", "installed"),
        (
            (c.set, c.name, c.kind, c.old, c.new, _signed(c.download), _signed(c.installed))
            for c in difference.changes
        ),
    )
    if difference.changes:
        print(
            f"{len(difference.changes)} changes, download {_signed(difference.download)}, "
            f"installed {_signed(difference.installed)}"
        )


def _signed(size: int) -> str:
    return f"{'-' if size < 0 else '+'}{human_size(abs(size))}" if size else "0 B"
