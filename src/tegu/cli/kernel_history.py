"""`tegu kernel status | missing | pick | mail`: keeping the kernel current."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tegu.cli.output import print_json, print_table, progress, spinner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tegu.kernel.gitrepo import Repo as GitRepo
    from tegu.kernel.history import Pair
    from tegu.kernel.objects import Objects

__all__ = ["add_to"]

_HEADERS = ("From", "To", "Cc", "Subject", "Date", "Message-ID")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Recipe = Annotated[
    Path | None, typer.Option("--recipe", "-r", help="Our kernel [distro/kernel/kernel.toml].")
]
Repo = Annotated[Path, typer.Option("--repo", "-C", help="A git repository of the kernel.")]
Mainline = Annotated[
    str, typer.Option("--mainline", "-m", help="Mainline in it: a branch, a tag or an id.")
]
Tree = Annotated[str, typer.Option("--tree", "-t", help="The tree to look after, likewise.")]


def add_to(app: typer.Typer) -> None:
    """Add the verbs to `tegu kernel`."""
    app.command(
        epilog="Example: tegu kernel status -C ~/linux -m origin/master -t stable/linux-6.12.y"
    )(status)
    app.command(
        epilog="Example: tegu kernel missing -C ~/linux -m origin/master -t stable/linux-6.12.y"
    )(missing)
    app.command(
        epilog="Example: tegu kernel pick 1a2b3c4d5e6f -C ~/linux -t v6.12.107 --branch for-review"
    )(pick)
    app.command(
        epilog="Example: tegu kernel mail 1a2b3c4d5e6f -C ~/linux --series 6.12 --why 'Hangs on "
        "reboot without it.' --from 'A <a@example.org>' -o request.eml"
    )(mail)


def _pair(repo: GitRepo, mainline: str, tree: str, footers: Sequence[str] = ()) -> Pair:
    from tegu.kernel import History
    from tegu.store import Store

    with progress() as bar:
        task = bar.add_task("read commits", total=None)
        return History(repo, Store.default(), footers).pair(
            mainline, tree, lambda done, all_: bar.update(task, completed=done, total=all_)
        )


def status(
    recipe: Recipe = None,
    repo: Annotated[
        Path | None, typer.Option("--repo", "-C", help="A git repository of the kernel.")
    ] = None,
    mainline: Mainline = "origin/master",
    tree: Tree = "HEAD",
    offline: Annotated[bool, typer.Option("--offline", help="Use what the store has.")] = False,
    as_json: Json = False,
) -> None:
    """Say which release we are on, what is newer, and which of our patches have arrived.

    Without --repo only the distribution's signed index is asked.
    """
    from tegu.kernel import Repo as GitRepository
    from tegu.kernel import load_recipe, patch_status, source_status, tree_status
    from tegu.store import Store

    loaded = load_recipe(recipe)
    source = source_status(loaded, Store.default(), offline=offline)
    found: dict[str, object] = {
        "release": source.release,
        "source": source.version,
        "newest": source.newest,
        "behind": source.behind,
        "patches": [
            {"patch": p.path.name, "subject": p.subject, "upstream": p.commit}
            for p in loaded.patches
        ],
    }
    rows: list[tuple[str, object]] = [
        ("release", source.release),
        ("source", source.version),
        ("newest", f"{source.newest}{' (newer)' if source.behind else ''}"),
    ]
    if repo is not None:
        opened = GitRepository(repo)
        pair = _pair(opened, mainline, tree)
        sides = tree_status(opened, pair)
        patches = patch_status(loaded, pair, opened)
        found["tree"] = {
            "mainline": sides.mainline,
            "tree": sides.tree,
            "own_commits": sides.ahead,
            "new_upstream": sides.behind,
        }
        found["patches"] = [
            {
                "patch": p.patch.path.name,
                "subject": p.patch.subject,
                "upstream": p.patch.commit,
                "arrived": p.arrived,
            }
            for p in patches
        ]
        rows += [
            ("mainline", f"{sides.mainline}, {sides.behind} commits that the tree has not"),
            ("tree", f"{sides.tree}, {sides.ahead} commits of its own"),
            *(
                (
                    p.patch.path.name,
                    f"arrived as {p.arrived[:12]}: drop it" if p.arrived else "needed",
                )
                for p in patches
            ),
        ]
    else:
        rows += [(p.path.name, p.commit or "ours") for p in loaded.patches]
    if as_json:
        print_json(found)
        return
    print_table(["", ""], rows)


def missing(
    repo: Repo,
    mainline: Mainline = "origin/master",
    tree: Tree = "HEAD",
    recipe: Recipe = None,
    cves: Annotated[
        Path | None, typer.Option(help="A copy of the kernel's CVE list (vulns.git).")
    ] = None,
    footer: Annotated[
        list[str] | None,
        typer.Option(help="A footer that names what is mended, beside `Fixes:`; repeatable."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also what our configuration does not build.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List mainline's fixes of what the tree has, that the tree has not.

    A fix names what it mends by `Fixes:`, or reverts it. What was reverted in mainline, or taken
    out of the tree again, is left out. Commits are read once: the next run reads only new ones.
    Files that our kernel builds are known once `tegu kernel build` has built it.
    """
    from tegu.cli.output import note
    from tegu.kernel import Repo as GitRepository
    from tegu.kernel import built_sources, find_missing, load_recipe, read_cves, with_files
    from tegu.store import Store

    opened = GitRepository(repo)
    known = read_cves(cves) if cves is not None else {}
    pair = _pair(opened, mainline, tree, footer or ())
    findings = find_missing(pair, opened)
    ours = opened.has_file(pair.tree_tip, "scripts/Makefile.build")  # else it is no kernel
    built = built_sources(Store.default(), load_recipe(recipe).release) if ours else None
    if ours and built is None:
        note("our kernel was not built here yet: it is not known which files it uses")
    found = with_files(findings.missing, opened, built, known)
    listed = found if everything else [m for m in found if m.built is not False]
    if as_json:
        print_json(
            {
                "mainline": pair.mainline_tip,
                "tree": pair.tree_tip,
                "read": pair.read,
                "unresolved": findings.unresolved,
                "missing": [
                    {
                        "commit": m.commit.id,
                        "subject": m.commit.subject,
                        "kind": m.kind,
                        "mends": m.mends,
                        "follows": m.follows,
                        "files": m.files,
                        "built": m.built,
                        "cves": m.cves,
                    }
                    for m in listed
                ],
                "declined": [{"commit": c.id, "subject": c.subject} for c in findings.declined],
            }
        )
        return
    print_table(
        ["commit", "kind", "mends", "cve", "subject"],
        [
            [
                m.commit.id[:12],
                f"{m.kind} (follows)" if m.follows else m.kind,
                " ".join(t[:12] for t in m.mends),
                " ".join(m.cves),
                m.commit.subject,
            ]
            for m in listed
        ],
    )
    hidden = len(found) - len(listed)
    if hidden:
        note(f"{hidden} more in files that our configuration does not build (--all)")
    if findings.declined:
        note(f"{len(findings.declined)} were in the tree and were taken out again")
    if findings.unresolved:
        note(f"{findings.unresolved} references lead to no commit of this repository")


def pick(
    commits: Annotated[list[str], typer.Argument(help="Commits to pick, in this order.")],
    repo: Repo,
    branch: Annotated[str, typer.Option("--branch", "-b", help="Name of the new branch.")],
    tree: Tree = "HEAD",
    mainline: Mainline = "origin/master",
    recipe: Recipe = None,
    build: Annotated[
        bool, typer.Option("--build/--no-build", help="Compile the files that are touched.")
    ] = True,
    jobs: Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Jobs [CPUs].")] = None,
    as_json: Json = False,
) -> None:
    """Pick commits onto a tree, as a new branch; the work tree is not touched.

    All apply, and the files that they touch compile with our kernel's configuration, or there is no
    branch.
    """
    from tegu.kernel import Repo as GitRepository
    from tegu.kernel import build_objects, load_recipe
    from tegu.kernel import pick as pick_commits
    from tegu.store import Store

    store = Store.default()
    loaded = load_recipe(recipe)
    with spinner() as say:

        def check(work: Path, paths: list[str], timestamp: int) -> Objects:
            return build_objects(
                loaded, store, work, paths, timestamp=timestamp, jobs=jobs, say=say
            )

        picked = pick_commits(
            GitRepository(repo),
            commits,
            tree,
            branch,
            store,
            mainline=mainline,
            check=check if build else None,
        )
    objects = picked.objects
    if as_json:
        print_json(
            {
                "branch": picked.branch,
                "commits": picked.commits,
                "built": list(objects.built) if objects else [],
                "not_built": objects.left if objects else {},
            }
        )
        return
    rows = [[old[:12], new[:12]] for old, new in picked.commits.items()]
    if objects:
        rows += [[name, "compiled"] for name in objects.built]
        rows += [[name, f"not compiled: {why}"] for name, why in objects.left.items()]
    print_table(["", ""], [*rows, ["branch", picked.branch]])


def mail(
    commit: Annotated[str, typer.Argument(help="The mainline commit to ask for.")],
    repo: Repo,
    series: Annotated[list[str], typer.Option(help="Stable series, such as 6.12; repeatable.")],
    why: Annotated[str, typer.Option(help="Why it should be applied.")],
    sender: Annotated[str, typer.Option("--from", help="Who asks: Name <address>.")],
    source: Annotated[
        Path | None, typer.Option(help="A kernel tree whose get_maintainer.pl is asked for Cc.")
    ] = None,
    mainline: Mainline = "origin/master",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file to write.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the letter that asks the stable maintainers for a backport. Nothing is sent."""
    from email import message_from_bytes
    from email.policy import default

    from tegu.errors import UsageError
    from tegu.files import write_atomic
    from tegu.kernel import Repo as GitRepository
    from tegu.kernel import backport_request

    if output is not None and output.is_dir():
        raise UsageError(f"{output} is a directory", hint="name the file to write")
    letter = backport_request(
        GitRepository(repo),
        commit,
        series=series,
        why=why,
        sender=sender,
        source=source,
        mainline=mainline,
    )
    if output is not None:
        write_atomic(output, letter)
    if as_json:
        read = message_from_bytes(letter, policy=default)
        body = read.get_body()
        print_json(
            {
                **{name.lower(): str(read[name] or "") for name in _HEADERS},
                "text": body.get_content() if body is not None else "",
                "file": str(output) if output is not None else None,
            }
        )
    elif output is None:
        sys.stdout.buffer.write(letter)
