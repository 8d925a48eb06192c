"""Repairs: dry run, limits, verification, taking back, the journal; on this machine where safe."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tegu.cli import main
from tegu.errors import TeguError, UsageError
from tegu.heal import Diagnosis, Evidence, Finding, Look, Rule, Subject, examine
from tegu.heal import repair as repairs
from tegu.heal.journal import Entry, Journal
from tegu.heal.policy import Policy, load_policy
from tegu.heal.remedies import REMEDIES, find_remedy
from tegu.heal.remedy import Refused, Remedy, State
from tegu.heal.report import page
from tegu.heal.snapshot import Snapshot, parse_stat


def finding(remedy: str = "raise-tasks", **target: object) -> Finding:
    return Finding(
        "pid_limit",
        "a <title>",
        "critical",
        0.9,
        Subject("cgroup", "/a.service", unit="a.service"),
        evidence=(Evidence("tasks", 9, "of 10", 9),),
        remedy=remedy,
        target=dict(target),
    )


class Pretend(Remedy):
    """A remedy that only notes what is asked of it."""

    name = "raise-tasks"
    summary = "nothing"
    blast = "none"
    settle = 0.0

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.failure: Exception | None = None

    def prepare(self, finding: Finding) -> State:
        self.calls.append("prepare")
        return {"old": 1}

    def plan(self, finding: Finding, state: State) -> list[str]:
        return ["nothing"]

    def apply(self, finding: Finding, state: State) -> None:
        self.calls.append("apply")
        if self.failure is not None:
            raise self.failure

    def undo(self, finding: Finding, state: State) -> None:
        assert state["old"] == 1
        self.calls.append("undo")


class Scene:
    """`repair` with a pretended remedy and machine; `there` says whether the finding stays."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.remedy = Pretend()
        self.there = False
        self.journal = Journal(folder / "heal/journal.jsonl")
        self.policy = Policy()
        monkeypatch.setattr(repairs, "find_remedy", lambda _: self.remedy)
        monkeypatch.setattr(repairs, "diagnose", self._look)

    def _look(self, *_: object) -> Diagnosis:
        found = (finding(),) if self.there else ()
        return Diagnosis("host", "6.12", 0.0, 1.0, found)

    def repair(self, *, apply: bool = True, again: bool = False) -> repairs.Repair:
        (one,) = repairs.repair(
            [finding()], apply=apply, policy=self.policy, journal=self.journal, again=again
        )
        return one


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Scene:
    return Scene(monkeypatch, tmp_path)


def test_a_dry_run_does_nothing(scene: Scene) -> None:
    one = scene.repair(apply=False)
    assert one.outcome == "planned" and one.plan == ["nothing"]
    assert scene.remedy.calls == ["prepare"] and not scene.journal.entries()


def test_verified(scene: Scene) -> None:
    assert scene.repair().outcome == "verified"
    assert scene.remedy.calls == ["prepare", "apply"]
    (entry,) = scene.journal.entries()
    assert entry.outcome == "verified" and entry.state == {"old": 1}


def test_in_vain_is_taken_back_and_not_repeated(scene: Scene) -> None:
    scene.there = True
    one = scene.repair()
    assert one.outcome == "undone" and "a person must look" in one.detail
    assert scene.remedy.calls == ["prepare", "apply", "undo"]
    second = scene.repair()
    assert second.outcome == "refused" and "did not help last time" in second.detail
    assert scene.repair(again=True).outcome == "undone"


def test_what_fails_half_way_is_taken_back(scene: Scene) -> None:
    scene.remedy.failure = OSError(5, "Input/output error", "/x")
    one = scene.repair()
    assert one.outcome == "undone" and "Input/output error" in one.detail
    assert scene.remedy.calls[-1] == "undo"


def test_what_cannot_be_taken_back_is_said(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pretend, "reversible", False)
    scene.there = True
    one = scene.repair()
    assert one.outcome == "failed" and "cannot be taken back" in one.detail


def test_budget(scene: Scene) -> None:
    scene.policy = Policy(budget=1)
    assert scene.repair().outcome == "verified"
    one = scene.repair()
    assert one.outcome == "refused" and "budget of 1" in one.detail


def test_a_journal_that_cannot_be_written(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Journal, entry: Entry) -> None:
        raise OSError(28, "No space left on device", "journal")

    monkeypatch.setattr(Journal, "add", full)
    one = scene.repair()
    assert one.outcome == "refused" and "No space left" in one.detail
    assert scene.remedy.calls == ["prepare"]


def test_one_at_a_time(scene: Scene) -> None:
    with scene.journal.held(), pytest.raises(TeguError, match="at work"):
        scene.repair()


def test_undo_by_hand(scene: Scene) -> None:
    number = scene.repair().id
    assert repairs.undo(number, scene.journal).outcome == "undone"
    assert scene.remedy.calls[-1] == "undo"
    with pytest.raises(TeguError, match="nothing to take back"):
        repairs.undo(number, scene.journal)
    with pytest.raises(TeguError, match="has no repair"):
        repairs.undo("x", scene.journal)


def test_a_torn_journal_is_read(tmp_path: Path) -> None:
    book = Journal(tmp_path / "j/journal.jsonl")
    with book.held():
        book.add(Entry("1", time.time(), {"key": "k"}, "thaw", [], {}, "begun"))
    with book.path.open("ab") as f:
        f.write(b'{"id": "2", "ti\n[]\n{"id": 3}\n')
    assert [e.id for e in book.entries()] == ["1"]


@pytest.mark.parametrize(
    ("unit", "remedy", "refused"),
    [
        ("ssh.service", "restart-unit", True),
        ("systemd-resolved.service", "restart-unit", False),
        ("systemd-logind.service", "restart-unit", True),
        ("web.service", "restart-unit", False),
        ("web.service", "thaw", True),
    ],
)
def test_policy(unit: str, remedy: str, refused: bool) -> None:
    policy = Policy(forbidden=("thaw",))
    assert bool(policy.refuses(finding(remedy, unit=unit))) is refused


def test_the_root_group_is_protected() -> None:
    assert "protected" in Policy().refuses(finding("contain-memory", group="/"))
    assert not Policy().refuses(finding("reclaim-zombies", group="/"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("nonsense", "heal.toml"),
        ("bugdet = 3", "unknown key 'bugdet'"),
        ("budget = -1", "budget must be"),
        ("budget = true", "budget must be"),
        ("protected = 'x'", "list of strings"),
        ("automatic = ['fly']", "no remedy 'fly'"),
    ],
)
def test_a_bad_policy(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "heal.toml"
    path.write_text(content)
    with pytest.raises(UsageError, match=said):
        load_policy(path)


def test_a_policy(tmp_path: Path) -> None:
    path = tmp_path / "heal.toml"
    path.write_text("budget = 3\nautomatic = ['thaw']\n")
    assert load_policy(path) == Policy(budget=3, automatic=("thaw",))
    assert load_policy(tmp_path / "none") == Policy()


@given(st.binary(max_size=200))
def test_any_policy(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("policy") / "heal.toml"
    path.write_bytes(content)
    try:
        load_policy(path)
    except TeguError as e:
        assert "heal.toml" in e.message


@pytest.mark.parametrize("name", REMEDIES)
def test_each_remedy_says_what_it_is(name: str) -> None:
    remedy = find_remedy(name)
    assert remedy.name == name and remedy.summary
    assert remedy.reversible is (type(remedy).undo is not Remedy.undo)


def test_the_limit_of_a_process_is_raised_and_set_back() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        resource.prlimit(child.pid, resource.RLIMIT_NOFILE, (100, 400))
        stat = parse_stat(Path(f"/proc/{child.pid}/stat").read_text())
        assert stat is not None
        what = finding("raise-fd-limit", pid=child.pid, started=stat.started, soft=100)
        remedy = find_remedy("raise-fd-limit")
        state = remedy.prepare(what)
        remedy.apply(what, state)
        assert resource.prlimit(child.pid, resource.RLIMIT_NOFILE) == (200, 400)
        remedy.undo(what, state)
        assert resource.prlimit(child.pid, resource.RLIMIT_NOFILE) == (100, 400)
        other = finding("raise-fd-limit", pid=child.pid, started=1, soft=100)
        with pytest.raises(Refused, match="has ended"):
            remedy.prepare(other)
    finally:
        child.kill()
        child.wait()


def test_a_deleted_log_is_emptied_and_data_is_not(tmp_path: Path) -> None:
    remedy = find_remedy("truncate-deleted")
    for flags, may in ((os.O_WRONLY | os.O_APPEND, True), (os.O_RDWR, False)):
        path = tmp_path / "file"
        fd = os.open(path, flags | os.O_CREAT)
        try:
            os.write(fd, bytes(50_000))
            path.unlink()
            what = finding("truncate-deleted", pid=os.getpid(), fd=fd, name=str(path))
            if may:
                remedy.apply(what, remedy.prepare(what))
                assert os.fstat(fd).st_size == 0
            else:
                with pytest.raises(Refused, match="is no log"):
                    remedy.prepare(what)
                assert os.fstat(fd).st_size == 50_000
        finally:
            os.close(fd)


def test_only_disposable_directories_are_emptied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    (spool / "a").touch()
    what = finding("clean-directory", directory=str(spool))
    remedy = find_remedy("clean-directory")
    with pytest.raises(Refused, match="disposable"):
        remedy.prepare(what)
    allowed = Policy(disposable=(str(spool),))
    monkeypatch.setattr("tegu.heal.remedies.files.load_policy", lambda: allowed)
    remedy.apply(what, remedy.prepare(what))
    assert not list(spool.iterdir())


def test_a_rule_that_raises_is_one_line_and_no_more() -> None:
    def bad(_: Look) -> list[Finding]:
        raise ZeroDivisionError("a\nb")

    rules = [
        Rule("bad", "?", (), "", bad),
        Rule("good", "?", (), "", lambda _: [finding()]),
    ]
    seen = examine(Look(Snapshot(), Snapshot(at=1.0)), rules)
    assert seen.failures == {"bad": "ZeroDivisionError: a"}
    assert [f.rule for f in seen.findings] == ["pid_limit"] and seen.ill
    assert json.loads(json.dumps(seen.to_json()))["score"] == 64
    shown = page(seen)
    assert "a &lt;title&gt;" in shown and "<title>:" not in shown and "ZeroDivision" in shown


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["doctor", "--rule", "clock-jmp"], "did you mean clock_jump?"),
        (["doctor", "--seconds", "soon"], "no number of seconds"),
        (["doctor", "--seconds", "9999"], "from 0.2 to 600"),
        (["heal", "--finding", "clock_jump:x", "--seconds", "0.2"], "there is no finding"),
        (["heal", "--rule", "nothing"], "there is no rule"),
    ],
)
def test_bad_words(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert said in capsys.readouterr().err


def test_the_front_door(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--rule", "clock_jump", "--seconds", "0.2", "--json", "--html",
                 str(tmp_path / "page.html")]) in (0, 30)  # fmt: skip
    assert json.loads(capsys.readouterr().out)["rules"] == ["clock_jump"]
    assert "</html>" in (tmp_path / "page.html").read_text()
    for argv in (["doctor", "--list"], ["heal", "--list"], ["heal", "--list", "--json"]):
        assert main(argv) == 0
        assert capsys.readouterr().out
