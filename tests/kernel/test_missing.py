"""Missing fixes: the rules one by one, then awkward histories against their truth."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from bench.kernel.histories import Maker, make_world
from hypothesis import given
from hypothesis import strategies as st

from tegu.errors import UsageError
from tegu.kernel.gitrepo import Repo
from tegu.kernel.history import History
from tegu.kernel.messages import Reference, parse_message
from tegu.kernel.missing import Findings, find_missing
from tegu.kernel.touched import with_files
from tegu.store import Store

A, B = "a" * 40, "b" * 40


@pytest.mark.parametrize(
    "line",
    [
        f"commit {A} upstream.",
        f"commit {A} upstream",
        f"[ Upstream commit {A} ]",
        f"[Upstream commit {A}]",
        f"[ commit {A} upstream ]",
        f"Upstream commit {A}.",
        f"Commit {A.upper()} upstream.",
    ],
)
def test_upstream_ids(line: str) -> None:
    assert parse_message(f"net: fix\n\n{line}\n\nWords.\n").upstream == (A,)


@pytest.mark.parametrize(
    "body",
    [
        f"As commit {A} upstream. says, words",
        f"It is like [ Upstream commit {A} ] but not it",
        "words\n" * 8 + f"commit {A} upstream.",
        f"commit {A[:8]} upstream.",
        f"> commit {A} upstream.",
    ],
)
def test_prose_is_no_upstream_id(body: str) -> None:
    assert parse_message(f"net: fix\n\n{body}\n").upstream == ()


def test_a_wrapped_revert_is_no_backport() -> None:
    text = f'Revert "net: x"\n\nThis reverts commit {A} which is\ncommit {B} upstream.\n'
    assert parse_message(text).upstream == ()


def test_the_last_cherry_pick_counts() -> None:
    text = f"x\n\n(cherry picked from commit {A})\n(cherry picked from commit {B})\n"
    assert parse_message(text).upstream == (B, A)


def test_cherry_picked_at_the_end() -> None:
    words = "Words.\n" * 20
    text = f"net: fix\n\n{words}(cherry picked from commit {A})\nSigned-off-by: X\n"
    assert parse_message(text).upstream == (A,)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ('Fixes: aaaaaaaaaaaa ("net: add it")', Reference("a" * 12, "net: add it")),
        ("Fixes: aaaaaaaaaaaa", Reference("a" * 12)),
        ("fixes: AAAAAAAA (net: add it)", Reference("a" * 8, "net: add it")),
        ('Fixes: commit aaaaaaaaaaaa ("x")', Reference("a" * 12, "x")),
        ('Fixes: aaaaaaaaaaaa: "x"', Reference("a" * 12, "x")),
        ('Fixes: aaaaaaaaaaaa ("a long\nsubject")', Reference("a" * 12, "a long subject")),
        ('Fixes: aaaaaaaaaaaa ("x (y)")', Reference("a" * 12, "x (y)")),
        ('Fixes: aaaaaaaaaaaa ("x").', Reference("a" * 12, "x")),
        ('Fixes: aaaaaaaaaaaa ("x") # 5.10', Reference("a" * 12, "x")),
        ('Fixes: aaaaaaaaaaaa ("x ( y")', Reference("a" * 12, "x ( y")),
    ],
)
def test_fixes(line: str, wanted: Reference) -> None:
    assert parse_message(f"s\n\nWords.\n\n{line}\nSigned-off-by: X\n").fixes == (wanted,)


@pytest.mark.parametrize(
    "line", ["Fixes: a warning", "> Fixes: aaaaaaaaaaaa", "Fixes: CVE-2024-1", "Fixes aaaaaaaaaaaa"]
)
def test_no_fixes(line: str) -> None:
    assert parse_message(f"s\n\n{line}\n").fixes == ()


def test_several_fixes_on_a_line() -> None:
    said = parse_message(f'x\n\nFixes: {A[:12]} ("y"), {B[:12]}\n').fixes
    assert said == (Reference(A[:12], "y"), Reference(B[:12]))


def test_footers_of_other_projects() -> None:
    text = f"x\n\nFollow-up for {A}\nFollow-up for: {B[:12]}\nFollow-up for 12345678: words\n"
    assert parse_message(text).fixes == ()
    found = parse_message(text, ["Follow-up for"]).fixes
    assert [r.id for r in found] == [A, B[:12], "12345678"]


def test_reverts() -> None:
    def reverts(subject: str, body: str) -> tuple[Reference, ...]:
        return parse_message(f"{subject}\n\n{body}\n").reverts

    assert reverts('Revert "x"', f"This reverts commit {A}.") == (Reference(A, "x"),)
    assert reverts('Revert "x"', f"This reverts commit\n{A}.") == (Reference(A, "x"),)
    assert reverts('Revert "x"', "It broke.") == (Reference("", "x"),)
    assert reverts("x", f"This reverts commits {A} and {B}.") == (Reference(A), Reference(B))
    assert reverts('Revert "x"', f"This reverts commit {A} which is commit {B} upstream.") == (
        Reference(A, "x"),
        Reference(B, "x"),
    )
    assert reverts("x", f"This reverts {A}.") == (Reference(A),)
    assert reverts("x", f"Revert commit {A}.") == (Reference(A),)
    assert reverts("x", f"This reverts commit: {A}") == (Reference(A),)
    assert reverts("x", f'This effectively reverts commit {A} ("y").') == (Reference(A, "y"),)
    listed = f'This reverts the following commits:\n\n - {A} ("y")\n - {B[:12]}: z\n\nWords.'
    assert reverts("x", listed) == (Reference(A, "y"), Reference(B[:12], "z"))
    assert reverts("x", f"This reverts commit {A}, commit {B} is the fix.") == (Reference(A),)
    assert reverts("x", f"This partially reverts commit {A}.") == ()
    assert reverts("x", f"This does not revert commit {A}.") == ()


def test_cves() -> None:
    assert parse_message("s\n\nThis is CVE-2024-26581.\nCVE-2024-26581\n").cves == (
        "CVE-2024-26581",
    )


@given(st.text())
def test_any_message_has_a_meaning(text: str) -> None:
    facts = parse_message(text)
    assert all(r.id == "" or len(r.id) >= 7 for r in (*facts.fixes, *facts.reverts))


@given(
    st.lists(
        st.sampled_from([f"Fixes: {A[:12]}", "", " Fixes:", 'Revert "', f"commit {B} upstream."])
    )
)
def test_lines_in_any_order(lines: list[str]) -> None:
    facts = parse_message("subject\n\n" + "\n".join(lines))
    assert len(facts.fixes) == (1 if f"Fixes: {A[:12]}" in lines else 0)


class Small:
    """A handful of commits, named by letters."""

    def __init__(self, tmp_path: Path) -> None:
        self.maker = Maker(0)
        self.path = tmp_path / "repo"
        self.store = Store(tmp_path / "store")
        self.base = self.maker.commit("mainline", [], "base", "").id
        self.tips = {"mainline": self.base, "stable": self.base}

    def add(self, branch: str, subject: str, body: str = "", **more: object) -> str:
        made = self.maker.commit(branch, [self.tips[branch]], subject, body, **more)  # type: ignore[arg-type]
        self.tips[branch] = made.id
        return made.id

    def fork(self) -> None:
        self.tips["stable"] = self.tips["mainline"]

    def find(self) -> Findings:
        if not self.path.exists():
            for branch, tip in self.tips.items():
                mark = self.maker.marks[tip]
                self.maker.stream.append(f"reset refs/heads/{branch}\nfrom :{mark}\n\n".encode())
            self.maker.write(self.path)
        repo = Repo(self.path)
        return find_missing(History(repo, self.store).pair("mainline", "stable"), repo)

    def subjects(self) -> list[str]:
        return [m.commit.subject for m in self.find().missing]


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return Small(tmp_path)


def test_a_fix_of_something_shared(small: Small) -> None:
    bug = small.add("mainline", "bug")
    small.fork()
    small.add("mainline", "unrelated")
    fix = small.add("mainline", "fix", f'Fixes: {bug[:12]} ("bug")')
    (found,) = small.find().missing
    assert (found.commit.id, found.mends, found.follows) == (fix, (bug,), False)


def test_a_fix_of_something_that_the_tree_never_had(small: Small) -> None:
    bug = small.add("mainline", "bug")
    small.add("mainline", "fix", f"Fixes: {bug}")
    assert small.subjects() == []


def test_a_fix_of_a_backport(small: Small) -> None:
    bug = small.add("mainline", "bug")
    small.add("mainline", "fix", f"Fixes: {bug[:12]}")
    small.add("stable", "bug", f"commit {bug} upstream.")
    assert small.subjects() == ["fix"]


def test_a_fix_that_is_there_under_another_subject(small: Small) -> None:
    bug = small.add("mainline", "bug")
    small.fork()
    fix = small.add("mainline", "fix", f"Fixes: {bug[:12]}")
    small.add("stable", "our own words", f"[ Upstream commit {fix} ]")
    assert small.subjects() == []


def test_a_fix_that_was_reverted_and_one_that_was_put_back(small: Small) -> None:
    bug = small.add("mainline", "bug")
    small.fork()
    fix = small.add("mainline", "fix", f"Fixes: {bug[:12]}")
    undo = small.add("mainline", 'Revert "fix"', f"This reverts commit {fix}.")
    assert Small.subjects(small) == []
    small.path = small.path.with_name("again")
    small.add("mainline", 'Revert "Revert "fix""', f"This reverts commit {undo}.")
    assert small.subjects() == ["fix"]


def test_a_revert_of_what_the_tree_took(small: Small) -> None:
    wrong = small.add("mainline", "wrong")
    small.add("mainline", 'Revert "wrong"', f"This reverts commit {wrong}.")
    small.add("stable", "wrong", f"commit {wrong} upstream.")
    (found,) = small.find().missing
    assert (found.kind, found.mends) == ("revert", (wrong,))


def test_a_fix_of_a_fix_follows(small: Small) -> None:
    bug = small.add("mainline", "bug")
    small.fork()
    fix = small.add("mainline", "fix", f"Fixes: {bug[:12]}")
    small.add("mainline", "better", f"Fixes: {fix[:12]}")
    found = small.find().missing
    assert [(m.commit.subject, m.follows) for m in found] == [("fix", False), ("better", True)]


def test_what_the_tree_took_out_is_declined(small: Small) -> None:
    bug = small.add("mainline", "bug")
    small.fork()
    fix = small.add("mainline", "fix", f"Fixes: {bug[:12]}")
    here = small.add("stable", "fix", f"commit {fix} upstream.")
    small.add("stable", 'Revert "fix"', f"This reverts commit {here}.")
    found = small.find()
    assert found.missing == []
    assert [c.id for c in found.declined] == [fix]


def test_a_fix_of_a_rebased_commit_is_found_by_its_subject(small: Small) -> None:
    small.add("mainline", "old bug")
    small.fork()
    bug = small.add("mainline", "bug")
    small.add("mainline", "fix", 'Fixes: 0123456789ab ("bug")')
    small.add("mainline", "another", 'Fixes: 1123456789ab ("old bug")')
    small.add("stable", "bug", f"commit {bug} upstream.")
    assert small.subjects() == ["fix", "another"]


def test_a_revert_without_an_id_of_what_was_backported(small: Small) -> None:
    small.fork()
    bug = small.add("mainline", "bug")
    small.add("mainline", 'Revert "bug"', "It broke.")
    small.add("stable", "bug", f"commit {bug} upstream.")
    assert small.subjects() == ['Revert "bug"']


def test_copies_of_a_change_are_one(small: Small) -> None:
    bug = small.add("mainline", "bug")
    small.fork()
    first = small.add("mainline", "fix", f"Fixes: {bug[:12]}")
    body = f"Fixes: {bug[:12]}\n(cherry picked from commit {first})"
    second = small.add("mainline", "fix", body)
    small.add("mainline", "better", f"Fixes: {second[:12]}")
    assert small.subjects() == ["fix", "better"]
    small.path = small.path.with_name("again")
    small.add("stable", "fix", f"commit {second} upstream.")
    assert small.subjects() == ["better"]


def test_a_backport_of_what_mainline_had_twice(small: Small) -> None:
    """Its message has both ids: the head names mainline's, the trailer what that was made from."""
    bug = small.add("mainline", "bug")
    small.fork()
    fix = small.add("mainline", "fix", f"Fixes: {bug[:12]}\n(cherry picked from commit {A})")
    body = f"[ Upstream commit {fix} ]\n\nFixes: {bug[:12]}\n(cherry picked from commit {A})"
    small.add("stable", "fix", body)
    assert small.subjects() == []


def test_what_was_reverted_before_the_tree_was_branched(small: Small) -> None:
    bug = small.add("mainline", "bug")
    small.add("mainline", 'Revert "bug"', f"This reverts commit {bug}.")
    small.fork()
    small.add("mainline", "fix", f"Fixes: {bug[:12]}")
    assert small.subjects() == []
    # The index of what both have is kept, and grows with the base.
    small.path = small.path.with_name("again")
    small.add("mainline", 'Revert "Revert "bug""', f"This reverts commit {'0' * 40}.")
    small.fork()
    small.add("mainline", "more", f"Fixes: {bug[:12]}")
    assert small.subjects() == ["more"]


def test_a_reference_that_leads_nowhere_counts_once(small: Small) -> None:
    small.fork()
    small.add("mainline", 'Revert "gone"', "This reverts commit 0123456789ab.")
    small.add("stable", "x", f"commit {A} upstream.")
    assert small.find().unresolved == 1


def test_an_id_that_leads_nowhere(small: Small) -> None:
    small.add("mainline", "fix", 'Fixes: 0123456789ab ("gone")')
    found = small.find()
    assert (found.missing, found.unresolved) == ([], 1)


def test_files_and_what_is_built(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-c", "user.name=A", "-c", "user.email=a@b", *arguments],
            cwd=tmp_path / "repo",
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    (tmp_path / "repo").mkdir()
    git("init", "-q", "-b", "mainline")
    names = ["net/a.c", "drivers/b.c", "sound/ü.c"]
    for name in names:
        path = tmp_path / "repo" / name
        path.parent.mkdir()
        path.write_text("1")
    git("add", ".")
    git("commit", "-qm", "base")
    git("branch", "stable")
    base = git("rev-parse", "HEAD")
    for name in reversed(names):
        (tmp_path / "repo" / name).write_text("2")
        git("commit", "-qam", f"fix {name}\n\nFixes: {base[:12]}")
    repo = Repo(tmp_path / "repo")
    pair = History(repo, Store(tmp_path / "store")).pair("mainline", "stable")
    found = with_files(find_missing(pair, repo).missing, repo, frozenset(["net/a.c"]))
    assert [(m.files, m.built) for m in found] == [
        (("net/a.c",), True),
        (("sound/ü.c",), False),
        (("drivers/b.c",), False),
    ]


def test_only_what_is_new_is_read(small: Small) -> None:
    small.fork()
    small.add("mainline", "one")
    small.add("mainline", "two")
    small.find()
    repo = Repo(small.path)
    assert History(repo, small.store).pair("mainline", "stable").read == 0
    assert History(repo, Store(small.path.with_name("other"))).pair("mainline", "stable").read == 2


def test_no_repository_and_no_commit(tmp_path: Path, small: Small) -> None:
    with pytest.raises(UsageError, match="is not a directory"):
        Repo(tmp_path / "absent")
    (tmp_path / "plain").mkdir()
    with pytest.raises(UsageError, match="not a git repository"):
        Repo(tmp_path / "plain")
    small.find()
    with pytest.raises(UsageError, match=r"there is no commit v9.9"):
        History(Repo(small.path), small.store).pair("v9.9", "stable")


def test_histories_that_cannot_be_compared(tmp_path: Path, small: Small) -> None:
    small.add("stable", "net: one more")
    small.find()

    def git(*words: str) -> None:
        subprocess.run(["git", "-C", small.path, *words], check=True, capture_output=True)

    tree = subprocess.run(
        ["git", "-C", small.path, "rev-parse", "stable^{tree}"], check=True, capture_output=True
    ).stdout.decode()
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    alone = subprocess.run(
        ["git", "-C", small.path, *who, "commit-tree", "-m", "alone", tree.strip()],
        check=True,
        capture_output=True,
    ).stdout.decode()
    git("branch", "alone", alone.strip())
    with pytest.raises(UsageError, match="no commit in common"):
        History(Repo(small.path), small.store).pair("stable", "alone")
    shallow = tmp_path / "shallow"
    subprocess.run(
        ["git", "clone", "-q", "--bare", "--depth=1", "-bstable", f"file://{small.path}", shallow],
        check=True,
    )
    with pytest.raises(UsageError, match="cut short"):
        History(Repo(shallow), small.store).pair("stable", "stable")


@pytest.mark.parametrize("seed", range(8))
def test_awkward_histories(tmp_path: Path, seed: int) -> None:
    world = make_world(seed)
    world.maker.write(tmp_path / "repo")
    repo = Repo(tmp_path / "repo")
    pair = History(repo, Store(tmp_path / "store")).pair("mainline", "stable")
    findings = find_missing(pair, repo)
    assert len(world.truth) > 20
    found = world.changes(m.commit.id for m in findings.missing)
    assert sorted(found) == sorted(world.truth)
    assert set(world.changes(c.id for c in findings.declined)) >= world.declined
