"""Picking, asking for a backport, and what `tegu kernel` says about where we are."""

from __future__ import annotations

import email
import json
import subprocess
from datetime import UTC, datetime
from email.policy import default
from pathlib import Path

import pytest

from tegu.cli import main
from tegu.errors import BuildError, UsageError
from tegu.kernel import (
    History,
    Repo,
    backport_request,
    load_recipe,
    patch_status,
    pick,
    read_cves,
    tree_status,
)
from tegu.kernel.build import compiled
from tegu.kernel.objects import Objects, build_objects
from tegu.store import Store

from .test_recipe import write

SENDER = "Ada Lovelace <ada@example.org>"


class Work:
    """A small git repository with a mainline and a stable branch."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = Store(path.parent / "store")
        path.mkdir()
        self.git("init", "-q", "-b", "mainline")
        self.git("config", "user.name", "Ada Lovelace")
        self.git("config", "user.email", "ada@example.org")
        self.base = self.commit("base", "", {"a.c": "one\n", "b.c": "one\n"})
        self.git("branch", "stable")
        self.git("tag", "v6.12")

    def git(self, *arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=self.path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    def commit(self, subject: str, body: str, files: dict[str, str]) -> str:
        for name, content in files.items():
            (self.path / name).write_text(content)
        self.git("add", "-A")
        author = "Zoë Dev <zoe@example.net>"
        self.git("commit", "-q", "--author", author, "-m", f"{subject}\n\n{body}".strip())
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path / "repo")


def test_pick(work: Work) -> None:
    first = work.commit("a: fix", "Words.\n\nFixes: 012345678901", {"a.c": "two\n"})
    second = work.commit("b: fix", "", {"b.c": "two\n"})
    head = work.git("rev-parse", "HEAD")
    picked = pick(Repo(work.path), [first[:12], second], "stable", "review", work.store)
    assert list(picked.commits) == [first, second]
    message = work.git("log", "-1", "--format=%B", picked.commits[first])
    assert message == (
        f"a: fix\n\n[ Upstream commit {first} ]\n\nWords.\n\nFixes: 012345678901\n"
        "Signed-off-by: Ada Lovelace <ada@example.org>"
    )
    assert work.git("log", "-1", "--format=%an", "review") == "Zoë Dev"
    assert work.git("rev-parse", "review") == picked.commits[second]
    # The repository's own work tree is where it was, and nothing is left behind.
    assert work.git("rev-parse", "HEAD") == head
    assert work.git("status", "--porcelain") == ""
    assert len(work.git("worktree", "list").splitlines()) == 1


def test_a_commit_keeps_its_time_and_the_user_his_ways(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_AUTHOR_DATE", "@86400 -0730")
    fix = work.commit("a: fix", "# not a comment", {"a.c": "two\n"})
    monkeypatch.delenv("GIT_AUTHOR_DATE")
    work.git("config", "commit.gpgSign", "true")
    work.git("config", "gpg.program", "false")
    other = Work(work.path.with_name("other"))
    monkeypatch.setenv("GIT_DIR", str(other.path / ".git"))  # as in a hook of another repository
    picked = pick(Repo(work.path), [fix], "stable", "review", work.store, mainline="mainline")
    monkeypatch.delenv("GIT_DIR")
    assert work.git("log", "-1", "--format=%ad", "--date=raw", "review") == "86400 -0730"
    assert "# not a comment" in work.git("log", "-1", "--format=%B", picked.commits[fix])


def test_only_what_mainline_has(work: Work) -> None:
    fix = work.commit("a: fix", "", {"a.c": "two\n"})
    work.git("checkout", "-q", "stable")
    own = work.commit("b: ours", "", {"b.c": "two\n"})
    repo = Repo(work.path)
    with pytest.raises(UsageError, match=f"{own[:12]} is not in mainline"):
        pick(repo, [own], fix, "review", work.store, mainline="mainline")
    with pytest.raises(UsageError, match=f"{own[:12]} is not in mainline"):
        backport_request(
            repo, own, series=["6.12"], why="It hangs.", sender=SENDER, mainline="mainline"
        )


def test_a_commit_without_a_message(work: Work) -> None:
    (work.path / "a.c").write_text("two\n")
    work.git("commit", "-qa", "--allow-empty-message", "-m", "")
    fix = work.git("rev-parse", "HEAD")
    picked = pick(Repo(work.path), [fix], "stable", "review", work.store)
    assert work.git("log", "-1", "--format=%s", picked.commits[fix]) == "(no subject)"
    letter = backport_request(Repo(work.path), fix, series=["6.12"], why="It hangs.", sender=SENDER)
    assert b"(no subject)" in letter


MAKEFILE = """
MAKEFLAGS += -r
allnoconfig:
\t@mkdir -p include/config; cp $(KCONFIG_ALLCONFIG) .config; touch include/config/auto.conf
prepare:
%.o: %.c
\tgcc -c -o $@ $<
"""


def test_what_was_touched_is_compiled(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = ["unshare", "--mount", "true"]
    if subprocess.run(probe, capture_output=True).returncode != 0:
        pytest.skip("this machine refuses mount namespaces")
    monkeypatch.setattr("tegu.kernel.objects.require_toolchain", lambda: None)
    kernel = {
        "Makefile": MAKEFILE,
        "Kconfig": "",
        "scripts/Makefile.build": "",
        "scripts/Kbuild.include": "",
        "net/Makefile": "obj-y += whole.o ipv4/\nwhole-y := part.o\nobj-$(CONFIG_OUT) += out.o",
        "net/ipv4/Kbuild": "obj-m := tcp.o",
        "arch/x86/kernel/Makefile": "obj-y := cpu.o",
    }
    sources = (
        *("net/part.c", "net/out.c", "net/ipv4/tcp.c", "net/ipv6/tcp.c"),
        *("arch/x86/kernel/cpu.c", "arch/arm/kernel/cpu.c"),
    )
    for name in (*kernel, *sources):
        (work.path / name).parent.mkdir(parents=True, exist_ok=True)
    work.git("checkout", "-q", "stable")
    start = work.commit("a kernel", "", {**kernel, **dict.fromkeys(sources, "int a;\n")})
    work.git("checkout", "-q", "mainline")
    work.git("reset", "-q", "--hard", "stable")
    names = (*sources, "net/a.h", "Kconfig")
    good = work.commit("good", "", dict.fromkeys(names, "long x;\n"))
    bad = work.commit("bad", "", {"net/part.c": "int b\n"})
    recipe = load_recipe(write(work.path.parent))

    def check(tree: Path, paths: list[str], timestamp: int) -> Objects:
        return build_objects(recipe, work.store, tree, paths, timestamp=timestamp, jobs=1)

    repo = Repo(work.path)
    picked = pick(repo, [good], start, "review", work.store, check=check)
    assert picked.objects is not None
    assert set(picked.objects.built) == {"arch/x86/kernel/cpu.o", "net/ipv4/tcp.o", "net/part.o"}
    out = "our configuration does not build it"
    assert picked.objects.left == {
        "Kconfig": "not a source of the compiler",
        "net/a.h": "a header: compiled with what includes it",
        **dict.fromkeys(("arch/arm/kernel/cpu.c", "net/ipv6/tcp.c", "net/out.c"), out),
    }
    with pytest.raises(BuildError, match=r"make net/part.o failed: net/part.c:1:\d+: error:"):
        pick(repo, [bad], good, "second", work.store, check=check)
    assert "second" not in work.git("branch")


def test_conflict_names_the_file_and_leaves_nothing(work: Work) -> None:
    work.commit("a: first", "", {"a.c": "two\n"})
    second = work.commit("a: second", "", {"a.c": "three\n"})
    with pytest.raises(BuildError, match=r"a: second\) does not apply to stable: a.c"):
        pick(Repo(work.path), [second], "stable", "review", work.store)
    assert "review" not in work.git("branch")
    assert len(work.git("worktree", "list").splitlines()) == 1


def test_what_cannot_be_picked(work: Work) -> None:
    repo = Repo(work.path)
    fix = work.commit("a: fix", "", {"a.c": "two\n"})
    with pytest.raises(UsageError, match="there is no commit nonsense"):
        pick(repo, ["nonsense"], "stable", "review", work.store)
    with pytest.raises(UsageError, match="is there already"):
        pick(repo, [fix], "stable", "mainline", work.store)
    with pytest.raises(UsageError, match="no name for a branch"):
        pick(repo, [fix], "stable", "--force", work.store)
    with pytest.raises(UsageError, match="changes nothing"):
        pick(repo, [fix], "mainline", "review", work.store)
    work.git("checkout", "-q", "-b", "side", work.base)
    work.commit("side", "", {"b.c": "two\n"})
    work.git("checkout", "-q", "mainline")
    work.git("merge", "-q", "--no-edit", "side")
    with pytest.raises(UsageError, match="is a merge"):
        pick(repo, ["mainline"], "stable", "review", work.store)


def test_letter(work: Work) -> None:
    body = "Words.\n\nReviewed-by: Grace <grace@example.com>\nCc: stable@vger.kernel.org # 6.1+\n"
    fix = work.commit("net: fix a naïve thing", body + f"Signed-off-by: {SENDER}", {"a.c": "2\n"})
    raw = backport_request(
        Repo(work.path),
        fix[:12],
        series=["6.12", "6.6"],
        why="Machines hang: it happens on each reboot.",
        sender=SENDER,
        moment=datetime(2026, 11, 1, 12, tzinfo=UTC),
    )
    assert b"\r\n" in raw
    letter = email.message_from_bytes(raw, policy=default)
    assert letter.defects == []
    assert letter["To"] == "stable@vger.kernel.org"
    assert letter["From"] == SENDER
    assert letter["Subject"] == "Please apply to 6.12, 6.6: net: fix a naïve thing"
    assert {a.addr_spec for a in letter["Cc"].addresses} == {
        "zoe@example.net",
        "grace@example.com",
    }
    assert letter["Date"].datetime.year == 2026
    assert letter["Message-ID"].endswith("@example.org>")
    text = letter.get_content()
    assert f"commit {fix}" in text
    assert "6.12.y and 6.6.y" in text
    assert "Machines hang" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"series": ["six"]}, "no series"),
        ({"series": []}, "needs the series"),
        ({"why": " "}, "needs the reason"),
        ({"sender": "nobody"}, "no sender"),
        ({"sender": "A <a@b>\r\nBcc: x@y"}, "no sender"),
        ({"source": Path("/nonexistent")}, "no kernel tree"),
        ({"sender": "A <a@ex\u00e4mple.org>"}, "must be ASCII"),
        ({"why": "It hangs \udcff"}, "not valid UTF-8"),
    ],
)
def test_letters_that_cannot_be(work: Work, changes: dict[str, object], message: str) -> None:
    values = {"series": ["6.12"], "why": "It hangs.", "sender": SENDER, **changes}
    with pytest.raises(UsageError, match=message):
        backport_request(Repo(work.path), work.base, **values)  # type: ignore[arg-type]


def test_get_maintainer_is_asked(work: Work, tmp_path: Path) -> None:
    script = tmp_path / "linux/scripts/get_maintainer.pl"
    script.parent.mkdir(parents=True)
    script.write_text('my @p = <STDIN>; print "Kay <kay\\@example.com>\\nnetdev\\@example.org\\n";')
    raw = backport_request(
        Repo(work.path),
        work.base,
        series=["6.12"],
        why="It hangs.",
        sender=SENDER,
        source=tmp_path / "linux",
    )
    assert b"kay@example.com" in raw
    assert b"netdev@example.org" in raw


def test_patches_that_have_arrived(work: Work, tmp_path: Path) -> None:
    recipe_path = write(tmp_path)
    fix = work.commit("net: fix", "", {"a.c": "two\n"})
    later = work.commit("net: later", "", {"a.c": "three\n"})
    head = "Origin: x\nUpstream: {}\nReason: r\nTest: t\n---\n"
    for name, subject, upstream in (
        ("1.patch", "net: fix", fix),
        ("2.patch", "net: later", later),
        ("3.patch", "tegu: ours", "none"),
        ("4.patch", "base", work.base),
    ):
        text = f"Subject: {subject}\n{head.format(upstream)}"
        (tmp_path / "patches" / name).write_text(text)
    (tmp_path / "patches/series").write_text("1.patch\n2.patch\n3.patch\n4.patch\n")
    work.git("checkout", "-q", "stable")
    here = work.commit("fix", f"commit {fix} upstream.", {"a.c": "two\n"})
    repo = Repo(work.path)
    pair = History(repo, Store(tmp_path / "store")).pair("mainline", "stable")
    found = patch_status(load_recipe(recipe_path), pair, repo)
    work.git("revert", "--no-edit", here)
    reverted = History(repo, Store(tmp_path / "store")).pair("mainline", "stable")
    again = patch_status(load_recipe(recipe_path), reverted, repo)
    assert [p.arrived for p in again] == [None, None, None, work.base]
    assert [p.arrived for p in found] == [here, None, None, work.base]
    sides = tree_status(repo, pair)
    assert (sides.ahead, sides.behind) == (1, 2)
    assert sides.tree.startswith("v6.12-1-g")


def test_cve_list(tmp_path: Path) -> None:
    year = tmp_path / "cve/published/2024"
    year.mkdir(parents=True)
    (year / "CVE-2024-26581.sha1").write_text("a" * 40 + "\n")
    (year / "CVE-2024-26582.sha1").write_text("a" * 40 + "\n" + "b" * 40 + "\n")
    (year / "CVE-2024-1.json").write_text("c" * 40)
    assert read_cves(tmp_path) == {
        "a" * 40: ("CVE-2024-26581", "CVE-2024-26582"),
        "b" * 40: ("CVE-2024-26582",),
    }
    with pytest.raises(UsageError, match="no copy"):
        read_cves(tmp_path / "cve")


def test_compiled_sources(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    for name in ("net/a.c", "net/a.h", "net/unused.c"):
        (tmp_path / name).touch()
    (tmp_path / "net/.a.o.cmd").write_text(
        "source_net/a.o := net/a.c\ndeps_net/a.o := \\\n  $(wildcard x.h) \\\n  net/a.h \\\n"
        "  include/generated/autoconf.h \\\n  /usr/include/stdio.h\n"
    )
    assert compiled(tmp_path) == ["net/a.c", "net/a.h"]


def test_commands(
    work: Work, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEGU_STORE", str(tmp_path / "store"))
    fix = work.commit("net: fix", f"Fixes: {work.base[:12]}", {"a.c": "two\n"})
    arguments = ["-C", str(work.path), "-t", "stable"]
    assert main(["kernel", "missing", *arguments, "-m", "mainline", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [m["commit"] for m in found["missing"]] == [fix]
    assert main(["kernel", "missing", *arguments, "-m", "mainline"]) == 0
    assert capsys.readouterr().out.split("\t")[0] == fix[:12]
    mainline = ["-m", "mainline"]
    assert main(["kernel", "pick", fix, *arguments, *mainline, "-b", "review", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["not_built"] == {"a.c": "not a kernel tree"}
    assert main(["kernel", "pick", fix, *arguments, *mainline, "-b", "two", "--no-build"]) == 0
    assert "branch\ttwo" in capsys.readouterr().out
    out = tmp_path / "letter.eml"
    letter = ["kernel", "mail", fix, "-C", str(work.path), "--series", "6.12", "--why", "It hangs."]
    letter += [*mainline, "--from", SENDER]
    assert main([*letter, "-o", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["subject"] == "Please apply to 6.12: net: fix"
    assert b"Please apply" in out.read_bytes()
    assert main([*letter, "-o", str(tmp_path)]) == 2
    assert "is a directory" in capsys.readouterr().err
    assert main([*letter[:-4], "-m", "stable", "--from", SENDER]) == 2
    assert "is not in stable" in capsys.readouterr().err
    assert main(["kernel", "missing", "-C", str(tmp_path / "absent")]) == 2
    assert "is not a directory" in capsys.readouterr().err
