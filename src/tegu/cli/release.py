"""`tegu release`: releases put together, judged, signed, published, shown and compared."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tegu.cli.output import human_size, note, print_json, print_table, spinner
from tegu.cli.release_delta import add_to

if TYPE_CHECKING:
    from tegu.release.gate import Gate
    from tegu.release.manifest import Manifest

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Put releases together, judge, sign, publish them.")
add_to(app)

Number = Annotated[str, typer.Argument(help="The release: YY.MM or YY.MM.N.")]
Shop = Annotated[
    Path,
    typer.Option("--releases", envvar="TEGU_RELEASES", help="The workshop [this directory]."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command(epilog="Example: tegu release init /srv/releases")
def init(
    directory: Annotated[Path, typer.Argument(help="Where the workshop shall be.")],
    as_json: Json = False,
) -> None:
    """Make a workshop: keys of the four TUF roles, and the first root metadata."""
    from tegu.release import Workshop

    shop = Workshop.create(directory)
    root = shop.public / "metadata" / "1.root.json"
    if as_json:
        print_json({"path": str(shop.root), "root": str(root)})
        return
    print(shop.root)
    note(f"clients need {root}, brought by a way that they trust")
    note(f"keep {shop.keys / 'root.pem'} offline: it is needed to change keys, not to release")


@app.command(epilog="Example: tegu release key timestamp")
def key(
    role: Annotated[str, typer.Argument(help="root, targets, snapshot or timestamp.")],
    releases: Shop = Path(),
    as_json: Json = False,
) -> None:
    """Give a role a new key (move the old file away first); root metadata tells clients."""
    from tegu.errors import UsageError
    from tegu.release import Workshop
    from tegu.release.signing import ROLES, renew_root

    if role not in ROLES:
        raise UsageError(f"there is no role {role}", hint=f"there are: {', '.join(ROLES)}")
    shop = Workshop(releases)
    with shop.locked():
        renew_root(shop, role)
    print_json({"role": role}) if as_json else print(f"{role} has a new key")


@app.command(
    epilog="Example: tegu release prepare 26.11 -f distro/tegu.toml -p server --repo /srv/repo "
    "--report out/acceptance.json --security tracker.json"
)
def prepare(
    number: Number,
    file: Annotated[
        Path, typer.Option("-f", "--file", help="The definition.", metavar="FILE")
    ] = Path("tegu.toml"),
    profile: Annotated[
        list[str] | None, typer.Option("-p", "--profile", help="Profiles [the definition's own].")
    ] = None,
    repository: Annotated[
        Path | None, typer.Option("--repo", help="The package repository to freeze a channel of.")
    ] = None,
    channel: Annotated[str, typer.Option("--channel", "-c", help="That channel.")] = "stable",
    report: Annotated[
        list[Path] | None, typer.Option("--report", help="JSON reports of `tegu test`.")
    ] = None,
    figures: Annotated[
        list[Path] | None, typer.Option("--figures", help="JSON objects of numbers by name.")
    ] = None,
    security: Annotated[
        list[Path] | None,
        typer.Option("--security", help="Security data: tracker JSON, OSV, exploited list."),
    ] = None,
    vex: Annotated[
        list[Path] | None, typer.Option("--vex", help="OpenVEX: what does not apply.")
    ] = None,
    issue: Annotated[
        list[str] | None, typer.Option("--known-issue", help="A line for the notes.")
    ] = None,
    releases: Shop = Path(),
    as_json: Json = False,
) -> None:
    """Put a release together: lock, images, repository snapshot, SBOMs, advisories, notes."""
    from tegu.definition import load
    from tegu.release import Number as Release
    from tegu.release import Workshop
    from tegu.release.cve import read_security_data, read_statements
    from tegu.release.prepare import Ingredients, read_figures
    from tegu.release.prepare import prepare as put_together
    from tegu.store import Store

    which = Release.parse(number)
    shop = Workshop(releases)
    values: dict[str, float] = {}
    for path in figures or []:
        values |= read_figures(path)
    data = None
    if security:
        suite = load(file, profile=profile[0] if profile else None).base.suites[0]
        data = read_security_data(security, suite.partition("-")[0])
    made_of = Ingredients(
        file,
        tuple(profile or [""]),
        repository,
        channel,
        tuple(report or ()),
        values,
        data,
        tuple(s for path in vex or [] for s in read_statements(path)),
        tuple(issue or ()),
    )
    with shop.locked(), spinner() as say:
        manifest = put_together(shop, which, made_of, Store.default(), say=say)
    _show(manifest, shop.work(which) / "files", as_json)


@app.command(epilog="Example: tegu release mark 26.11 release-notes --by alice")
def mark(
    number: Number,
    name: Annotated[str, typer.Argument(help="What was reviewed.")],
    by: Annotated[str, typer.Option("--by", help="Who looked.")],
    releases: Shop = Path(),
    as_json: Json = False,
) -> None:
    """Note that someone has reviewed a part of a release."""
    from tegu.release import Number as Release
    from tegu.release import Workshop

    shop = Workshop(releases)
    with shop.locked():
        manifest = shop.mark(Release.parse(number), name, by)
    print_json(list(manifest.marks)) if as_json else print(f"{name}: {by}")


@app.command(epilog="Example: tegu release gate 26.11")
def gate(
    number: Number,
    rules: Annotated[Path | None, typer.Option("--rules", help="Instead of our gate.toml.")] = None,
    override: Annotated[
        str | None, typer.Option("--override", metavar="CHECK", help="Let this check pass.")
    ] = None,
    reason: Annotated[str, typer.Option("--reason", help="Why; it is kept.")] = "",
    releases: Shop = Path(),
    as_json: Json = False,
) -> None:
    """Hold a release against the gate. Exit code 15 when it is closed."""
    from tegu.release import Number as Release
    from tegu.release import Workshop, judge
    from tegu.release.gate import load_rules, require_open
    from tegu.release.gate import override as let_pass

    which = Release.parse(number)
    shop = Workshop(releases)
    with shop.locked():
        manifest = shop.manifest(which)
        previous = shop.manifest(Release.parse(manifest.previous)) if manifest.previous else None
        work = shop.work(which)
        found = judge(work, manifest, previous, load_rules(rules))
        if override is not None:
            found = let_pass(work, override, reason)
    _print_gate(found, as_json)
    require_open(work)


@app.command(epilog="Example: tegu release sign 26.11")
def sign(number: Number, releases: Shop = Path(), as_json: Json = False) -> None:
    """Sign a release that the gate lets pass; nothing is public yet."""
    from tegu.release import Number as Release
    from tegu.release import Workshop
    from tegu.release.gate import require_open
    from tegu.release.signing import sign as sign_release

    which = Release.parse(number)
    shop = Workshop(releases)
    with shop.locked():
        manifest = shop.manifest(which)
        require_open(shop.work(which))
        path = sign_release(shop, manifest)
    print_json({"number": number, "metadata": str(path)}) if as_json else print(path)


@app.command(epilog="Example: tegu release publish 26.11; from a timer: tegu release publish")
def publish(
    number: Annotated[
        str | None, typer.Argument(help="The release [none: only sign the timestamp anew].")
    ] = None,
    releases: Shop = Path(),
    as_json: Json = False,
) -> None:
    """Put a signed release where clients see it, in one step.

    Without a number what is published is signed anew: clients refuse it after a week otherwise.
    """
    from tegu.release import Number as Release
    from tegu.release import Workshop
    from tegu.release.gate import require_open
    from tegu.release.signing import publish as publish_release
    from tegu.release.signing import refresh

    shop = Workshop(releases)
    with shop.locked():
        if number is None:
            refresh(shop)
        else:
            which = Release.parse(number)
            manifest = shop.manifest(which)
            require_open(shop.work(which))
            publish_release(shop, manifest)
        numbers = [str(n) for n in shop.published()]
    print_json({"published": numbers}) if as_json else print(" ".join(numbers))


@app.command(epilog="Example: tegu release show 26.11")
def show(
    number: Annotated[str | None, typer.Argument(help="The release [a list of all].")] = None,
    releases: Shop = Path(),
    as_json: Json = False,
) -> None:
    """Show a release, or list all with their support dates."""
    from tegu.release import Number as Release
    from tegu.release import Workshop, support_of

    shop = Workshop(releases)
    if number is not None:
        which = Release.parse(number)
        _show(shop.manifest(which), shop.work(which) / "files", as_json)
        return
    out = set(shop.published())
    rows = []
    for one in shop.numbers():
        support = support_of(one)
        state = "published" if one in out else "in work"
        rows.append((str(one), state, support.full.isoformat(), support.security.isoformat()))
    if as_json:
        keys = ("number", "state", "full_until", "security_until")
        print_json([dict(zip(keys, row, strict=True)) for row in rows])
        return
    print_table(("release", "state", "full support until", "security until"), rows)


@app.command(epilog="Example: tegu release diff 26.11 26.11.1")
def diff(
    old: Annotated[str, typer.Argument(help="The older release.")],
    new: Annotated[str, typer.Argument(help="The newer release.")],
    releases: Shop = Path(),
    as_json: Json = False,
) -> None:
    """Compare two releases: packages, figures, vulnerabilities."""
    from tegu.release import Number as Release
    from tegu.release import Workshop
    from tegu.release.compare import compare

    shop = Workshop(releases)
    found = compare(shop, Release.parse(old), Release.parse(new))
    if as_json:
        print_json(asdict(found))
        return
    print_table(
        ("what", "name", "before", "now"),
        [
            *(
                (f"package {p}", c.name, c.old, c.new)
                for p, cs in found.packages.items()
                for c in cs
            ),
            *(("figure", n, a, b) for n, (a, b) in found.figures.items()),
            *(("mended", c, "", "") for c in found.mended),
            *(("new vulnerability", c, "", "") for c in found.appeared),
        ],
    )


@app.command(
    epilog="Example: tegu release fetch https://example.org/releases 26.11 --root 1.root.json"
)
def fetch(
    url: Annotated[str, typer.Argument(help="Where releases are served (public/).")],
    number: Annotated[str | None, typer.Argument(help="The release [a list of all].")] = None,
    root: Annotated[
        Path | None, typer.Option("--root", help="Trusted root metadata, the first time.")
    ] = None,
    state: Annotated[
        Path | None, typer.Option("--state", help="What was seen [~/.cache/tegu-releases].")
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option("--kind", help="Only these kinds: image, sbom ... [all].")
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where to.")] = Path("release"),
    as_json: Json = False,
) -> None:
    """Fetch a release as a client: every byte verified, old and withheld metadata refused."""
    from tegu.release.client import Client
    from tegu.release.manifest import Manifest

    place = state or Path.home() / ".cache" / "tegu-releases"
    client = Client(url, place, root.read_bytes() if root is not None else None)
    if number is None:
        names = sorted({n.partition("/")[0] for n in client.names()})
        print_json(names) if as_json else print("\n".join(names))
        return
    client.fetch(f"{number}/manifest.json", output / "manifest.json")
    manifest = Manifest.read(output / "manifest.json")
    wanted = [f for f in manifest.files if not kind or f.kind in kind]
    with spinner() as say:
        for file in wanted:
            say(f"fetching {file.path}")
            client.fetch(f"{number}/{file.path}", output / file.path)
    if as_json:
        print_json({"number": number, "files": [f.path for f in wanted]})
        return
    print_table(("file", "kind", "size"), [(f.path, f.kind, human_size(f.size)) for f in wanted])


def _show(manifest: Manifest, place: Path, as_json: bool) -> None:
    if as_json:
        print_json(asdict(manifest))
        return
    print_table(
        ("what", "value", ""),
        [
            ("release", manifest.number, manifest.date),
            ("previous", manifest.previous, ""),
            *(("lock", name, digest[:16]) for name, digest in manifest.locks.items()),
            *((f.kind, f.path, human_size(f.size)) for f in manifest.files),
            *(("figure", name, f"{value:g}") for name, value in manifest.figures.items()),
            *(("mark", m, "") for m in manifest.marks),
            ("notes", place / "notes.md", ""),
        ],
    )


def _print_gate(found: Gate, as_json: bool) -> None:
    if as_json:
        print_json({"open": found.open, **asdict(found)})
        return
    print_table(
        ("check", "result", "why"),
        [
            (c.name, "passed" if c.passed else "overridden" if c.override else "failed",
             f"{c.reason} ({c.override})" if c.override else c.reason)
            for c in found.checks
        ],
    )  # fmt: skip
