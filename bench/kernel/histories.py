"""Awkward kernel histories, made up: a mainline, a stable tree, and what the tree truly lacks.

Commits are empty; all the trouble is in what they say. Ids are computed here, as git computes them,
so that messages can name earlier commits; git fast-import then makes the very same objects.
"""

from __future__ import annotations

import hashlib
import random
import subprocess
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
START = 1_700_000_000
AREAS = ("net", "mm", "ext4", "nvme", "tcp", "x86/kvm", "bpf", "sched")
WORDS = ("fix", "add", "use", "drop", "move", "check", "avoid", "handle", "split", "limit")


@dataclass
class Made:
    """One commit: its id, what it truly mends or undoes.

    `change` is the first commit of the same change: mainline has some twice, some again after the
    revert that is in `restores`.
    """

    id: str
    subject: str
    author: str
    time: int
    merge: bool = False
    mends: tuple[str, ...] = ()
    undoes: tuple[str, ...] = ()
    brings: tuple[str, ...] = ()
    restores: str = ""
    body: str = ""
    change: str = ""


@dataclass
class Maker:
    """Makes histories from `seed` into a stream for git fast-import."""

    seed: int
    random: random.Random = field(init=False)
    stream: list[bytes] = field(default_factory=list)
    marks: dict[str, int] = field(default_factory=dict)
    clock: int = START
    commits: dict[str, Made] = field(default_factory=dict)
    subjects: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def chance(self, percent: float) -> bool:
        return self.random.random() * 100 < percent

    def subject(self) -> str:
        # Few words, many commits: some subjects come up again and again.
        return (
            f"{self.random.choice(AREAS)}: {self.random.choice(WORDS)} "
            f"thing {self.random.randrange(4000)}"
        )

    def commit(
        self,
        branch: str,
        parents: list[str],
        subject: str,
        body: str,
        *,
        author: str = "",
        time: int = 0,
        **facts: object,
    ) -> Made:
        self.clock += self.random.randrange(1, 90)
        author = author or f"Dev {self.random.randrange(300)}"
        time = time or self.clock
        who = f"{author} <{author.replace(' ', '.').lower()}@example.org> {time} +0000"
        message = f"{subject}\n\n{body}\n".encode()
        head = f"tree {EMPTY_TREE}\n" + "".join(f"parent {p}\n" for p in parents)
        head += f"author {who}\ncommitter C <c@example.org> {self.clock} +0000\n\n"
        raw = head.encode() + message
        name = hashlib.sha1(b"commit %d\0" % len(raw) + raw, usedforsecurity=False).hexdigest()
        self.marks[name] = len(self.marks) + 1
        lines = [f"commit refs/heads/{branch}", f"mark :{self.marks[name]}", f"author {who}"]
        lines += [f"committer C <c@example.org> {self.clock} +0000", f"data {len(message)}"]
        self.stream.append("\n".join(lines).encode() + b"\n" + message)
        for word, parent in zip(["from", *["merge"] * 9], parents, strict=False):
            self.stream.append(f"{word} :{self.marks[parent]}\n".encode())
        self.stream.append(b"\n")
        made = Made(name, subject, author, time, merge=len(parents) > 1, body=body, **facts)  # type: ignore[arg-type]
        made.change = made.change or name
        self.commits[name] = made
        self.subjects[subject] += made.change == name
        return made

    def write(self, repository: Path) -> None:
        """Make the git repository."""
        repository.mkdir()
        subprocess.run(["git", "init", "-q", "--bare", str(repository)], check=True)
        subprocess.run(
            ["git", "fast-import", "--quiet"],
            cwd=repository,
            input=b"".join(self.stream),
            check=True,
        )


@dataclass
class World:
    """A mainline and a tree, and the changes that the tree lacks, by the rules of the game."""

    maker: Maker
    truth: set[str]
    declined: set[str]

    def changes(self, commits: Iterable[str]) -> list[str]:
        """Return the changes that `commits` are, one for each: naming one twice is a mistake."""
        return [self.maker.commits[c].change for c in commits]


def make_world(seed: int, *, shared: int = 150, mainline: int = 500, tree: int = 200) -> World:
    """Make a mainline of `shared` + `mainline` steps, and a tree of `tree` on the shared ones."""
    maker = Maker(seed)
    line = _Mainline(maker)
    for _ in range(shared):
        line.step()
    base = line.tip
    common = list(line.order)
    line.branch = "mainline"
    for _ in range(mainline):
        line.step()
    stable = _Tree(maker, line, base, common)
    for _ in range(tree):
        stable.step()
    maker.stream.append(f"reset refs/heads/mainline\nfrom :{maker.marks[line.tip]}\n\n".encode())
    maker.stream.append(f"reset refs/heads/stable\nfrom :{maker.marks[stable.tip]}\n\n".encode())
    return World(maker, *_truth(line, stable, set(common)))


class _Mainline:
    def __init__(self, maker: Maker) -> None:
        self.maker = maker
        self.branch = "shared"
        self.order: list[str] = []
        self.alive: set[str] = set()
        self.copies: dict[str, list[str]] = {}
        self.undone: list[tuple[str, str]] = []  # a change, and the revert that took it out
        root = maker.commit(self.branch, [], "Linux 6.0", "")
        self.tip = root.id
        self._note(root)

    def _note(self, made: Made) -> None:
        self.order.append(made.id)
        self.alive.add(made.id)
        self.copies.setdefault(made.change, []).append(made.id)
        for target in made.undoes:
            self._undo(target)
        if made.restores:
            self.alive.discard(made.restores)
            self.alive.update(self._copies(made.id))

    def _copies(self, target: str) -> list[str]:
        return self.copies[self.maker.commits[target].change]

    def _undo(self, target: str) -> None:
        made = self.maker.commits[target]
        self.alive.difference_update(self._copies(target))
        for other in made.undoes:  # a revert of a revert
            self._redo(other)
        for other in made.brings:
            self._undo(other)

    def _redo(self, target: str) -> None:
        self.alive.update(self._copies(target))
        for other in self.maker.commits[target].undoes:
            self._undo(other)
        for other in self.maker.commits[target].brings:
            self.alive.add(other)

    def _any(self, *, reverts: bool = False) -> Made | None:
        pool = [
            self.maker.commits[i]
            for i in self.order[-400:]
            if i in self.alive and i != self.order[0]
        ]
        pool = [m for m in pool if bool(m.undoes) == reverts and not m.merge]
        return self.maker.random.choice(pool) if pool else None

    def step(self) -> None:
        roll = self.maker.random.random() * 100
        if roll < 7:
            self._side_branch()
            return
        if roll < 7.5:
            self._revert_merge()
            return
        if self.maker.chance(2):
            self._again()
            return
        made = self.change([self.tip], self.branch, roll)
        self.tip = made.id

    def change(self, parents: list[str], branch: str, roll: float) -> Made:
        maker = self.maker
        if roll < 15 and (old := self._any(reverts=roll >= 13)) is not None:
            made = maker.commit(branch, parents, *self._revert(old), undoes=(old.id,))
            if parents == [self.tip]:
                self.undone.append((old.change, made.id))
        elif roll < 48 and (old := self._any()) is not None:
            mends = [old]
            if maker.chance(8) and (second := self._any()) is not None:
                mends.append(second)
            tags = "\n".join(self._tag(m) for m in mends)
            body = f"It was wrong.\n\n{tags}\nSigned-off-by: A <a@example.org>"
            made = maker.commit(
                branch, parents, maker.subject(), body, mends=tuple(m.id for m in mends)
            )
        else:
            made = maker.commit(branch, parents, maker.subject(), self._prose())
        self._note(made)
        return made

    def _again(self) -> None:
        """Bring a change a second time: as it is in another branch, or after it was reverted."""
        maker = self.maker
        copied = {m for m, all_ in self.copies.items() if len(all_) > 1}
        gone = [
            (old, undo)
            for change, undo in self.undone[-20:]
            if undo in self.alive
            and (old := maker.commits[change]).change not in copied
            and not old.undoes
        ]
        undo = ""
        if gone and maker.chance(40):
            old, undo = maker.random.choice(gone)
        else:
            other = self._any()
            if other is None or other.change in copied:
                return
            old = other
        body = old.body
        if maker.chance(60):
            body += f"\n(cherry picked from commit {old.id})"
        made = maker.commit(
            self.branch, [self.tip], old.subject, body, author=old.author, time=old.time,
            mends=old.mends, restores=undo, change=old.change,
        )  # fmt: skip
        self._note(made)
        self.tip = made.id

    def _prose(self) -> str:
        old = self._any()
        if old is None or self.maker.chance(60):
            return "Words.\n\nSigned-off-by: A <a@example.org>"
        short = old.id[:12]
        return self.maker.random.choice(
            [
                f'As in commit {short} ("{old.subject}") we do this.',
                f"This partially reverts commit {old.id}.",
                f"It does not fix what commit {short} upstream did.",
                "Fixes: a warning of the compiler",
                f'The report quotes:\n > Fixes: {short} ("{old.subject}")',
                f"Link: https://example.org/{old.id}",
            ]
        )

    def _tag(self, old: Made) -> str:
        length = self.maker.random.choice([8, 10, 12, 12, 12, 12, 13, 16, 40])
        name = old.id[:length]
        return self.maker.random.choices(
            [
                f'Fixes: {name} ("{old.subject}")',
                f"Fixes: {name}",
                f"fixes: {name} ({old.subject})",
                f'Fixes: commit {name} ("{old.subject}")',
                f'Fixes: {name}: "{old.subject}"',
                f'Fixes: {old.id[::-1][:12]} ("{old.subject}")',  # of a tree that was rebased
                f'Fixes: {name} ("{old.subject}") # 5.10',
            ],
            [80, 6, 4, 4, 4, 2, 2],
        )[0]

    def _revert(self, old: Made) -> tuple[str, str]:
        title = f'Revert "{old.subject}"'
        form = self.maker.random.randrange(12)
        if form == 10 and self.maker.subjects[old.subject] == 1:
            return title, "It broke a machine."  # only the subject says what
        if form == 11:
            return f"{old.subject.partition(':')[0]}: undo it", (
                f"This reverts the following commits:\n\n - {old.id[:12]}\n\nWords."
            )
        if form < 6 or form == 10:
            return title, f"This reverts commit {old.id}.\n\nIt broke things."
        if form < 8:
            return title, f'This reverts commit {old.id[:12]} ("{old.subject}").\n\nBad.'
        if form < 9:
            return (
                f"{old.subject.partition(':')[0]}: undo it",
                f"This patch reverts commit\n{old.id}.",
            )
        return title, f'This reverts commit {old.id}.\n\nFixes: {old.id[:12]} ("{old.subject}")'

    def _side_branch(self) -> None:
        maker = self.maker
        start = maker.random.choice(self.order[-20:])
        if start not in self.maker.marks or self.maker.commits[start].merge:
            start = self.tip
        at, brought = start, []
        for _ in range(maker.random.randrange(1, 5)):
            made = self.change([at], "side", maker.random.random() * 85 + 15)
            brought.append(made.id)
            at = made.id
        merge = maker.commit(
            self.branch,
            [self.tip, at],
            "Merge branch 'side'",
            f'Pull fixes:\n "Things"\n\n * side:\n  Fixes: {brought[0][:12]}',
            brings=tuple(brought),
        )
        self._note(merge)
        self.tip = merge.id

    def _revert_merge(self) -> None:
        pool = [
            m
            for i in self.order[-60:]
            if (m := self.maker.commits[i]).merge
            and i in self.alive
            # Only what nothing later has touched: else nobody could say what is left.
            and all(b in self.alive and not self.maker.commits[b].undoes for b in m.brings)
        ]
        if not pool:
            return
        old = self.maker.random.choice(pool)
        made = self.maker.commit(
            self.branch,
            [self.tip],
            f'Revert "{old.subject}"',
            f"This reverts commit {old.id}, reversing\nchanges made to {self.tip}.",
            undoes=(old.id,),
        )
        self._note(made)
        self.tip = made.id


class _Tree:
    def __init__(self, maker: Maker, line: _Mainline, base: str, common: list[str]) -> None:
        self.maker = maker
        self.line = line
        self.tip = base
        self.common = common
        self.new = set(line.order) - set(common)
        self.candidates = [i for i in line.order if i in self.new and not maker.commits[i].merge]
        self.alive_common = self._settled()
        self.has = {self._change(i): i in self.alive_common for i in common}
        self.backports: dict[str, str] = {}  # tree id -> mainline id
        self.standing: set[str] = set()
        self.ever: set[str] = set()

    def _change(self, name: str) -> str:
        return self.maker.commits[name].change

    def _settled(self) -> set[str]:
        """Return what stands of the shared commits at the point of the branch."""
        alive: set[str] = set()
        copies: dict[str, list[str]] = {}
        for name in self.common:
            made = self.maker.commits[name]
            alive.add(name)
            copies.setdefault(made.change, []).append(name)
            if made.restores:
                alive.discard(made.restores)
                alive.update(copies[made.change])
            stack = [(t, False) for t in made.undoes]
            while stack:
                target, again = stack.pop()
                other = self.maker.commits[target]
                (alive.update if again else alive.difference_update)(copies[other.change])
                stack += [(t, not again) for t in other.undoes] if not again else []
                stack += [(t, again) for t in other.brings]
        return alive

    def step(self) -> None:
        roll = self.maker.random.random() * 100
        if roll < 68:
            self._backport(self.maker.random.choice(self.candidates))
        elif roll < 76:
            self._revert_backport()
        elif roll < 79:
            self._revert_common()
        elif roll < 82:
            gone = [i for i in self.ever if not self.has.get(i) and i in self.new]
            if gone:
                self._backport(self.maker.random.choice(sorted(gone)))
        else:
            self._add(self.maker.subject(), "Only here.")

    def _add(self, subject: str, body: str, **more: object) -> Made:
        made = self.maker.commit("stable", [self.tip], subject, body, **more)  # type: ignore[arg-type]
        self.tip = made.id
        return made

    def _backport(self, name: str) -> None:
        old = self.maker.commits[name]
        if self.has.get(old.change):
            return
        if old.undoes and not all(self.has.get(self._change(t)) for t in old.undoes):
            return  # a revert of what is not there does not apply
        if any(self.maker.commits[t].merge for t in old.undoes):
            return
        if any(self.maker.commits[t].undoes for t in old.undoes):
            return  # reverts of reverts are made by _revert_backport
        form = self.maker.random.randrange(20)
        subject = old.subject
        if form < 2:
            subject = f"UPSTREAM: {old.subject.replace('thing', 'something')}"
        keep: dict[str, object] = {"author": old.author, "time": old.time}
        if form == 19 and old.time and not old.undoes:
            made = self._add(subject, old.body, **keep)  # nothing but author and time says so
        elif form < 10:
            made = self._add(subject, f"commit {name} upstream.\n\n{old.body}", **keep)
        elif form < 16:
            made = self._add(subject, f"[ Upstream commit {name} ]\n\n{old.body}", **keep)
        else:
            where = [f"(cherry picked from commit {name})"]
            if form == 18:  # by way of a tree that nobody has
                where.insert(0, f"(cherry picked from commit {name[::-1]})")
            made = self._add(subject, "\n".join([old.body, *where]), **keep)
        self._stand(made.id, name)
        for target in old.undoes:
            self._fall(target)

    def _stand(self, here: str, name: str) -> None:
        self.backports[here] = name
        self.standing.add(here)
        self.ever.add(self._change(name))
        self.has[self._change(name)] = True

    def _fall(self, name: str) -> None:
        change = self._change(name)
        self.has[change] = False
        self.ever.add(change)
        self.standing -= {h for h, n in self.backports.items() if self._change(n) == change}

    def _revert_backport(self) -> None:
        pool = sorted(h for h in self.standing if not self.maker.commits[self.backports[h]].undoes)
        if not pool:
            return
        here = self.maker.random.choice(pool)
        name = self.backports[here]
        title = f'Revert "{self.maker.commits[here].subject}"'
        body = self.maker.random.choice(
            [
                f"This reverts commit {here}.",
                f"This reverts commit {here} which is\ncommit {name} upstream.",
                f"This reverts commit {here[:12]} which is commit {name} upstream.",
                f"This reverts commit {name}.",
                "It broke a machine.",  # only the subject says what
            ]
        )
        if body.startswith("It broke") and self._ambiguous(here):
            body = f"This reverts commit {here}."
        undo = self._add(title, body)
        self._fall(name)
        if self.maker.chance(25):
            self._add(f'Revert "{title}"', f"This reverts commit {undo.id}.")
            self._stand(here, name)

    def _ambiguous(self, here: str) -> bool:
        return self.maker.subjects[self.maker.commits[here].subject] > 2

    def _revert_common(self) -> None:
        pool = [
            i
            for i in self.common[1:]
            if self.has[self._change(i)]
            and i in self.alive_common
            and not self.maker.commits[i].undoes
            and not self.maker.commits[i].merge
        ]
        if not pool:
            return
        name = self.maker.random.choice(pool)
        subject = self.maker.commits[name].subject
        body = f"This reverts commit {name}.\n\nNot for us."
        if self.maker.chance(30) and self.maker.subjects[subject] == 1:
            body = "Not for us."
        self._add(f'Revert "{subject}"', body)
        self._fall(name)


def _truth(line: _Mainline, stable: _Tree, common: set[str]) -> tuple[set[str], set[str]]:
    needed: set[str] = set()
    declined: set[str] = set()
    commits = line.maker.commits

    def there(name: str) -> bool:
        return bool(stable.has.get(commits[name].change))

    for name in line.order:
        made = commits[name]
        if name in common or made.merge or name not in line.alive or there(name):
            continue
        restores = made.restores and there(made.restores)
        if any(there(t) or commits[t].change in needed for t in (*made.mends, *made.undoes)):
            dropped = made.change in stable.ever and not restores
            (declined if dropped else needed).add(made.change)
    return needed, declined
