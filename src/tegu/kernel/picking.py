"""Cherry-picking a fix onto a tree: on a branch of its own, whole or not at all."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tegu.errors import BuildError, UsageError
from tegu.kernel.gitrepo import Repo
from tegu.kernel.messages import backport_of, first_line

if TYPE_CHECKING:
    from tegu.kernel.objects import Objects
    from tegu.store import Store

__all__ = ["Picked", "pick", "refuse_strangers"]

_BRANCH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")


@dataclass(frozen=True, slots=True)
class Picked:
    """What was picked: the `branch`, per asked commit the new one, what came of the check."""

    branch: str
    commits: dict[str, str]
    objects: Objects | None


def pick(
    repo: Repo,
    commits: list[str],
    tree: str,
    branch: str,
    store: Store,
    *,
    mainline: str | None = None,
    check: Callable[[Path, list[str], int], Objects] | None = None,
) -> Picked:
    """Pick `commits`, in their order, onto `tree` as the new `branch`.

    Each gets the line that stable trees use (`[ Upstream commit X ]`) and the picker's sign-off;
    with `mainline` (a branch, a tag or an id), each must be in it. The repository's own work tree
    is not touched. `check` is given the new work tree, the paths that were touched and the time of
    the last commit (seconds since the epoch), and raises when the result is no good. Raises
    UsageError for what cannot be picked and BuildError, with the files, for a conflict; there is no
    branch then.
    """
    if not _BRANCH.fullmatch(branch):
        raise UsageError(f"{branch!r} is no name for a branch")
    if repo.git("rev-parse", "--verify", "-q", f"refs/heads/{branch}", check=False).returncode == 0:
        raise UsageError(f"{repo.path}: the branch {branch} is there already")
    start = repo.commit(tree)
    asked = [repo.commit(c) for c in commits]
    if not asked:
        raise UsageError("name a commit to pick")
    if mainline is not None:
        refuse_strangers(repo, asked, mainline)
    identity = _identity(repo)
    made: dict[str, str] = {}
    objects = None
    with store.shared(), store.scratch() as temporary:
        work = temporary / "tree"
        repo.git("worktree", "add", "--quiet", "--detach", "--no-checkout", str(work), start)
        try:
            repo.git("reset", "--quiet", "--hard", start, cwd=work)
            for name in asked:
                made[name] = _one(repo, work, name, tree, identity)
            tip = made[asked[-1]]
            if check is not None:
                changed = repo.git("diff", "--name-only", "-z", start, tip).stdout
                (last,) = repo.read([tip])
                objects = check(work, [p for p in changed.split("\0") if p], last.committed)
            repo.git("branch", "--no-track", branch, tip)
        finally:
            repo.git("worktree", "remove", "--force", str(work), check=False)
    return Picked(branch, made, objects)


def refuse_strangers(repo: Repo, commits: list[str], mainline: str) -> None:
    """Raise UsageError when one of `commits` is not in `mainline`: nobody upstream has it."""
    tip = repo.commit(mainline)
    for name in commits:
        if not repo.is_ancestor(name, tip):
            raise UsageError(
                f"{name[:12]} is not in {mainline}",
                hint="name mainline's own commit, not a backport's; -m names mainline",
            )


def _identity(repo: Repo) -> str:
    name = repo.git("config", "user.name", check=False).stdout.strip()
    email = repo.git("config", "user.email", check=False).stdout.strip()
    if not name or not email:
        raise UsageError(
            f"{repo.path}: git does not know who picks",
            hint="git config user.name 'Your Name' && git config user.email you@example.org",
        )
    return f"Signed-off-by: {name} <{email}>"


def _one(repo: Repo, work: Path, name: str, tree: str, identity: str) -> str:
    (raw,) = repo.read([name])
    short = f"{name[:12]} ({first_line(raw.message)})"
    if len(raw.parents) > 1:
        raise UsageError(f"{short} is a merge, which cannot be picked")
    done = repo.git("cherry-pick", "--no-commit", name, cwd=work, check=False)
    if done.returncode != 0:
        unmerged = repo.git("diff", "--name-only", "--diff-filter=U", cwd=work).stdout.split()
        where = ", ".join(unmerged) or (done.stderr.strip().splitlines() or ["no message"])[0]
        raise BuildError(
            f"{short} does not apply to {tree}: {where}",
            hint="an earlier commit may be missing too; see `tegu kernel missing`",
        )
    if repo.git("diff", "--cached", "--quiet", cwd=work, check=False).returncode == 0:
        raise UsageError(f"{short} changes nothing on {tree}: it is there already")
    repo.git(
        # The user's own ways with commits (signatures, comments) have no place in a backport.
        "-c", "commit.gpgSign=false", "commit", "--quiet", "--no-verify", "--cleanup=verbatim",
        "-F", "-", f"--author={raw.author} <{raw.email}>", f"--date=@{raw.time} {raw.zone}",
        cwd=work, stdin=_message(raw.message, name, identity),
    )  # fmt: skip
    return repo.git("rev-parse", "HEAD", cwd=work).stdout.strip()


def _message(text: str, name: str, identity: str) -> str:
    subject, _, body = (text.strip("\n") or first_line(text)).partition("\n")
    note = [] if backport_of(body.splitlines()) else [f"[ Upstream commit {name} ]", ""]
    lines = [subject, "", *note, *body.strip("\n").splitlines()]
    if identity not in lines:
        lines.append(identity)
    return "\n".join(lines) + "\n"
