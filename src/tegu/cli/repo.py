"""`tegu repo`: apt and RPM repositories of our own from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tegu.cli import repo_read
from tegu.cli.output import note, print_json, print_table, spinner
from tegu.cli.repo_read import Directory, Json

if TYPE_CHECKING:
    from tegu.packages.repo.catalogue import Item
    from tegu.packages.repo.publication import Published
    from tegu.packages.repo.repository import Repository

app = typer.Typer(no_args_is_help=True, help="Publish apt and RPM repositories of your own.")

Publish = Annotated[bool, typer.Option("--publish", help="Publish afterwards.")]
Downgrade = Annotated[
    bool, typer.Option("--allow-downgrade", help="Let a version go backwards: newer ones leave.")
]
Percent = Annotated[int, typer.Option(min=0, max=100, help="Of the machines that get what is new.")]
Channel = Annotated[
    str | None, typer.Option("--channel", "-c", help="The channel [the first of repo.toml].")
]


@app.command(epilog="Example: tegu repo init /srv/repo --name acme")
def init(
    directory: Annotated[Path, typer.Argument(help="Where the repository shall be.")],
    name: Annotated[str, typer.Option(help="Origin and label, as clients show them.")],
    channel: Annotated[
        list[str] | None, typer.Option("--channel", "-c", help="Channels [dev, testing, stable].")
    ] = None,
    architecture: Annotated[
        list[str] | None, typer.Option("--arch", help="Debian architectures [amd64, arm64].")
    ] = None,
    signer: Annotated[
        list[str] | None,
        typer.Option(help="Private key file, or agent:FINGERPRINT [a new key is made]."),
    ] = None,
    days: Annotated[float, typer.Option(min=1, help="How long a new key is valid.")] = 730,
    as_json: Json = False,
) -> None:
    """Make a repository: its directory, its channels, its settings (repo.toml), its key."""
    from tegu.packages.repo import Repository, make_key

    signers = [s if ":" in s else str(Path(s).absolute()) for s in signer or []]
    made = ""
    if not signers and not (directory / "repo.toml").exists():
        signers = ["private/signing.key"]
        made = make_key(directory / signers[0], f"{name} repository signing key", days=days)
    repo = Repository.create(
        directory,
        name=name,
        channels=channel or ["dev", "testing", "stable"],
        architectures=architecture or ["amd64", "arm64"],
        signers=signers,
    )
    with repo:
        if as_json:
            print_json({"path": str(repo.root), "signers": signers, "made_key": made or None})
            return
        print(repo.root)
        if made:
            note(f"made the key {made}: keep a copy of {repo.root / signers[0]} in a safe place")


@app.command(epilog="Example: tegu repo key /srv/repo/private/2027.key --name 'acme 2027'")
def key(
    path: Annotated[Path, typer.Argument(help="File to write the private key to.")],
    name: Annotated[str, typer.Option(help="Whose key it is.")],
    days: Annotated[float, typer.Option(min=1, help="How long it is valid.")] = 730,
    as_json: Json = False,
) -> None:
    """Make a further signing key: name it in `signers` of repo.toml beside the old one."""
    from tegu.packages.repo import make_key

    fingerprint = make_key(path, name, days=days)
    print_json({"fingerprint": fingerprint, "path": str(path)}) if as_json else print(fingerprint)


@app.command(epilog="Example: tegu repo add --channel dev out/*.deb --publish")
def add(
    packages: Annotated[list[Path], typer.Argument(help="Packages, or directories of them.")],
    channel: Channel = None,
    directory: Directory = Path(),
    publish: Publish = False,
    allow_downgrade: Downgrade = False,
    as_json: Json = False,
) -> None:
    """Put packages into a channel. A version that is there with other content is refused."""
    from tegu.packages.repo import Repository
    from tegu.packages.repo import add as add_packages

    with Repository(directory) as repo, repo.locked():
        name = channel or _first(repo)
        with spinner() as say:
            added = add_packages(
                repo,
                name,
                packages,
                allow_downgrade=allow_downgrade,
                progress=lambda path: say(f"adding {path.name}"),
            )
        published = _publish(repo, [name]) if publish else None
    if as_json:
        print_json(
            {
                "channel": name,
                "new": _items(added.new),
                "known": _items(added.known),
                "left": _items(added.left),
                "published": _written(published),
            }
        )
        return
    _table(name, [("new", added.new), ("known", added.known), ("left", added.left)])


@app.command(epilog="Example: tegu repo remove --channel dev 'hello=1.0-1' 'libhello*' --publish")
def remove(
    packages: Annotated[list[str], typer.Argument(help="Names, or name=version; patterns too.")],
    channel: Channel = None,
    directory: Directory = Path(),
    publish: Publish = False,
    as_json: Json = False,
) -> None:
    """Take packages out of a channel. Snapshots keep theirs."""
    from tegu.packages.repo import Repository
    from tegu.packages.repo import remove as remove_packages

    with Repository(directory) as repo, repo.locked():
        name = channel or _first(repo)
        gone = remove_packages(repo, name, packages)
        published = _publish(repo, [name]) if publish else None
    if as_json:
        print_json({"channel": name, "left": _items(gone), "published": _written(published)})
        return
    _table(name, [("left", gone)])


@app.command(epilog="Example: tegu repo promote dev testing --publish")
def promote(
    source: Annotated[str, typer.Argument(help="Channel or snapshot to take from.")],
    target: Annotated[str, typer.Argument(help="Channel that becomes the same.")],
    packages: Annotated[
        list[str] | None, typer.Argument(help="Only these: names, or name=version; patterns too.")
    ] = None,
    directory: Directory = Path(),
    publish: Publish = False,
    allow_downgrade: Downgrade = False,
    percent: Percent = 100,
    as_json: Json = False,
) -> None:
    """Make a channel what another is, without a rebuild: the same files, other indexes.

    With --percent below 100, machines that have a package get its new version by and by, each when
    its turn has come (`tegu repo rollout`); until then the older version stays in the channel.
    """
    from tegu.packages.repo import Repository
    from tegu.packages.repo import promote as promote_channel

    with Repository(directory) as repo, repo.locked():
        done = promote_channel(
            repo,
            source,
            target,
            packages or [],
            allow_downgrade=allow_downgrade,
            percent=percent,
        )
        published = _publish(repo, [target]) if publish else None
    if as_json:
        print_json(
            {
                "channel": target,
                "entered": _items(done.entered),
                "left": _items(done.left),
                "published": _written(published),
            }
        )
        return
    _table(target, [("entered", done.entered), ("left", done.left)])


@app.command(epilog="Example: tegu repo rollout stable 50 --publish")
def rollout(
    channel: Annotated[str, typer.Argument(help="The channel.")],
    percent: Annotated[
        int, typer.Argument(min=0, max=100, help="Of the machines; 0 stops, 100 ends it.")
    ],
    packages: Annotated[
        list[str] | None,
        typer.Argument(help="Names, or name=version; patterns too [what is being rolled out]."),
    ] = None,
    directory: Directory = Path(),
    publish: Publish = False,
    as_json: Json = False,
) -> None:
    """Offer new versions to so many of the machines that have the package.

    apt chooses them by a hash of machine id and version: those that have it at 10 % are among those
    at 50 %. A machine that installs the package anew gets the newest at once.
    """
    from tegu.packages.repo import Repository, roll_out

    with Repository(directory) as repo, repo.locked():
        offered = roll_out(repo, channel, percent, packages or [])
        published = _publish(repo, [channel]) if publish else None
    if as_json:
        print_json(
            {
                "channel": channel,
                "percent": percent,
                "packages": _items(offered),
                "published": _written(published),
            }
        )
        return
    _table(channel, [(f"{percent} %", offered)])


@app.command(epilog="Example: tegu repo snapshot stable stable-2026.11")
def snapshot(
    channel: Annotated[str, typer.Argument(help="The channel to freeze.")],
    name: Annotated[str, typer.Argument(help="What the snapshot is called, for ever.")],
    directory: Directory = Path(),
    as_json: Json = False,
) -> None:
    """Freeze a channel under a name, and publish that: it never changes."""
    from tegu.packages.repo import Repository, take_snapshot

    with Repository(directory) as repo, repo.locked():
        count = take_snapshot(repo, channel, name)
        _publish(repo, [name])
    if as_json:
        print_json({"snapshot": name, "channel": channel, "packages": count})
        return
    print(f"{name}: {count} packages of {channel}")


@app.command(epilog="Example: tegu repo publish stable")
def publish(
    channels: Annotated[
        list[str] | None, typer.Argument(help="Channels or snapshots [all that changed].")
    ] = None,
    directory: Directory = Path(),
    force: Annotated[bool, typer.Option(help="Write and sign anew even what is current.")] = False,
    as_json: Json = False,
) -> None:
    """Write and sign the indexes of what changed, and put them in place in one step."""
    from tegu.packages.repo import Repository

    with Repository(directory) as repo, repo.locked():
        done = _publish(repo, channels or [], force=force)
    if as_json:
        print_json(
            {"written": done.written, "current": done.current, "dropped_files": done.dropped}
        )
        return
    print_table(
        ["channel", "state"],
        [*((n, "written") for n in done.written), *((n, "current") for n in done.current)],
    )


@app.command(
    epilog="Example: tegu repo mirror --from https://example.org/debian --suite trixie "
    "--keyring /usr/share/keyrings/debian-archive-keyring.gpg --package 'openssl*' -c dev"
)
def mirror(
    url: Annotated[str, typer.Option("--from", help="The directory above dists/.")],
    suite: Annotated[str, typer.Option(help="The suite to read.")],
    keyring: Annotated[Path, typer.Option(help="The keys that sign it.")],
    component: Annotated[list[str] | None, typer.Option(help="Components [main].")] = None,
    architecture: Annotated[
        list[str] | None, typer.Option("--arch", help="Architectures [those of repo.toml].")
    ] = None,
    package: Annotated[
        list[str] | None, typer.Option("--package", help="Only these; patterns too [all].")
    ] = None,
    channel: Channel = None,
    directory: Directory = Path(),
    publish: Publish = False,
    allow_downgrade: Downgrade = False,
    as_json: Json = False,
) -> None:
    """Bring packages of another apt repository into a channel, each verified."""
    from tegu.packages.repo import Repository
    from tegu.packages.repo import mirror as mirror_suite
    from tegu.packages.repo.mirroring import Upstream
    from tegu.store import Store

    with Repository(directory) as repo, repo.locked(), spinner() as say:
        name = channel or _first(repo)
        upstream = Upstream(
            url,
            suite,
            tuple(component or ["main"]),
            tuple(architecture or repo.settings.architectures),
            keyring,
            tuple(package or []),
        )
        added = mirror_suite(
            repo, name, upstream, Store.default(), allow_downgrade=allow_downgrade, say=say
        )
        published = _publish(repo, [name]) if publish else None
    if as_json:
        print_json(
            {
                "channel": name,
                "new": _items(added.new),
                "known": _items(added.known),
                "published": _written(published),
            }
        )
        return
    _table(name, [("new", added.new), ("known", added.known), ("left", added.left)])


repo_read.add_to(app)


def _first(repo: Repository) -> str:
    from tegu.errors import RepositoryError

    if not repo.settings.channels:
        raise RepositoryError(f"{repo.root}: repo.toml names no channel")
    return repo.settings.channels[0]


def _publish(repo: Repository, names: Sequence[str], *, force: bool = False) -> Published:
    from tegu.packages.repo import publish as publish_channels

    with spinner() as say:
        return publish_channels(repo, names, force=force, say=say)


def _written(published: Published | None) -> list[str] | None:
    return None if published is None else list(published.written)


def _items(items: Sequence[Item]) -> list[dict[str, Any]]:
    return [
        {"kind": i.kind, "name": i.name, "version": i.version, "arch": i.arch, "sha256": i.sha256}
        for i in items
    ]


def _table(channel: str, groups: Sequence[tuple[str, Sequence[Item]]]) -> None:
    print_table(
        ["channel", "what", "package", "version", "arch", "kind"],
        [
            (channel, what, i.name, i.version, i.arch, i.kind)
            for what, items in groups
            for i in items
        ],
    )
