"""The static layer on a fake hierarchy: written, noted, undone, killed at every step."""

from __future__ import annotations

import os
import signal

import pytest
from tests.qos.fake import Fake, chosen, in_child

from tegu.errors import QosError, SettingError, UnsupportedError
from tegu.qos import Policy, apply, parse_policy, undo
from tegu.qos.isolation import find_leaks

POLICY = """
[latency]
match = ["cgroup:/web/redis"]
memory_low = "64M"
[batch]
match = ["cgroup:/batch"]
"""


@pytest.fixture
def policy() -> Policy:
    return parse_policy(POLICY, "p.toml")


@pytest.fixture(autouse=True)
def groups(fake: Fake) -> None:
    for name in ("/web/redis", "/web/other", "/batch/one"):
        fake.group(name)
    (fake.group("/batch") / "cpu.weight").write_text("50\n")
    (fake.group("/web") / "memory.low").write_text("4096\n")


def text(fake: Fake, path: str) -> str:
    return (fake.top / path).read_text().strip()


def test_what_is_written(fake: Fake, policy: Policy) -> None:
    done = apply(policy, fake.place)
    assert not done.refused
    assert text(fake, "cgroup/web/redis/cpu.weight") == "10000"
    assert text(fake, "cgroup/web/redis/memory.low") == str(64 << 20)
    assert text(fake, "cgroup/web/memory.low") == str(64 << 20)  # counts only as far as this
    assert text(fake, "cgroup/web/other/memory.low") == "0"
    assert text(fake, "cgroup/batch/cpu.idle") == "1"
    assert text(fake, "cgroup/batch/io.bfq.weight") == "default 1"
    assert text(fake, "cgroup/web/redis/io.bfq.weight") == "default 1000"
    assert chosen(text(fake, "block/vda/queue/scheduler")) == "bfq"
    assert text(fake, "block/vda/queue/iosched/slice_idle") == "0"
    assert text(fake, "cgroup/batch/one/cpu.idle") == "0"  # belongs to the one above


@pytest.mark.parametrize(("enabled", "hard"), [("0x0007", True), ("0x0000", False), ("odd", False)])
def test_memory_by_generations(fake: Fake, policy: Policy, enabled: str, hard: bool) -> None:
    switch = fake.place.root / "sys/kernel/mm/lru_gen/enabled"
    switch.parent.mkdir(parents=True)
    switch.write_text(f"{enabled}\n")
    before = fake.snapshot()
    apply(policy, fake.place)
    wanted = str(64 << 20) if hard else "0"
    assert text(fake, "cgroup/web/redis/memory.min") == wanted
    assert text(fake, "cgroup/web/memory.min") == wanted
    assert text(fake, "cgroup/web/redis/memory.low") == str(64 << 20)
    undo(fake.place)
    assert fake.snapshot() == before


def test_undo_is_exact(fake: Fake, policy: Policy) -> None:
    before = fake.snapshot()
    apply(policy, fake.place)
    assert fake.snapshot() != before
    again = apply(policy, fake.place)  # a second time: nothing to write, nothing forgotten
    assert not again.written
    undone = undo(fake.place)
    assert not undone.conflicts and not undone.failed
    assert fake.snapshot() == before  # cpu.weight 50 and read_expire 123 with it
    assert not fake.place.journal.path.exists()
    assert undo(fake.place).restored == []


def test_killed_at_every_step(fake: Fake, policy: Policy) -> None:
    before = fake.snapshot()
    apply(policy, fake.place)
    after = fake.snapshot()
    undo(fake.place)
    steps = 0
    for doing in ("apply", "undo"):
        for side in (False, True):
            number = 0
            while True:
                number += 1
                if doing == "undo":
                    apply(policy, fake.place)
                    fake.group("/batch")

                def work(number: int = number, side: bool = side, doing: str = doing) -> None:
                    fake.events, fake.die_at, fake.die_after = 0, number, side
                    (apply(policy, fake.place) if doing == "apply" else undo(fake.place))

                status = in_child(work)
                if not os.WIFSIGNALED(status):
                    undo(fake.place)
                    break
                assert os.WTERMSIG(status) == signal.SIGKILL
                steps += 1
                # What was begun can be finished as well as taken back.
                if doing == "apply":
                    apply(policy, fake.place)
                    assert fake.snapshot() == after
                undone = undo(fake.place)
                assert not undone.conflicts and not undone.failed, (doing, number, side)
                assert fake.snapshot() == before, (doing, number, side)
            assert fake.snapshot() == before
    assert steps > 50


def test_a_line_that_was_cut_off(fake: Fake, policy: Policy) -> None:
    before = fake.snapshot()
    apply(policy, fake.place)
    path = fake.place.journal.path
    whole = path.read_text()
    path.write_text(whole + '{"target": {"pa')
    undo(fake.place)
    assert fake.snapshot() == before
    path.write_text("not json\n")
    with pytest.raises(SettingError, match=r"qos.journal:1 is damaged"):
        undo(fake.place)


def test_what_others_changed_stays(fake: Fake, policy: Policy) -> None:
    apply(policy, fake.place)
    path = fake.group("/web/redis") / "cpu.weight"
    path.write_text("777\n")
    undone = undo(fake.place)
    assert [c for c in undone.conflicts if "is 777, which tegu did not write" in c]
    assert path.read_text() == "777\n"


def test_force(fake: Fake, policy: Policy) -> None:
    before = fake.snapshot()
    apply(policy, fake.place)
    (fake.group("/web/redis") / "cpu.weight").write_text("777\n")
    undo(fake.place, force=True)
    assert fake.snapshot() == before


def test_groups_that_vanish(fake: Fake, policy: Policy) -> None:
    import shutil

    apply(policy, fake.place)
    shutil.rmtree(fake.place.hierarchy.root / "batch")
    undone = undo(fake.place)
    assert not undone.failed and len(undone.gone) >= 3


def test_another_policy_replaces_the_first(fake: Fake, policy: Policy) -> None:
    before = fake.snapshot()
    apply(policy, fake.place)
    other = parse_policy(
        '[batch]\nmatch=["cgroup:/web/other"]\nweight=7\nio_weight=5\n[devices]\nvda="none"', "o"
    )
    done = apply(other, fake.place)
    assert any("web/redis/cpu.weight" in r for r in done.restored)
    assert text(fake, "cgroup/batch/cpu.weight") == "50"
    assert text(fake, "cgroup/web/other/cpu.weight") == "7"
    assert chosen(text(fake, "block/vda/queue/scheduler")) == "mq-deadline"
    undo(fake.place)
    assert fake.snapshot() == before


def test_refusals(fake: Fake, policy: Policy) -> None:
    fake.refuse["io.bfq.weight"] = 95
    fake.refuse["memory.low"] = 30
    done = apply(policy, fake.place)
    assert {r.why for r in done.refused} >= {"the hierarchy is read-only"}
    assert done.written
    undo(fake.place)
    fake.refuse = dict.fromkeys(
        ("cpu.idle", "cpu.weight", "memory.low", "scheduler", "slice_idle", "io.bfq.weight"), 30
    )
    with pytest.raises(QosError, match=r"nothing could be set: .*read-only"):
        apply(policy, fake.place)


def test_a_hierarchy_without_controllers(fake: Fake, policy: Policy) -> None:
    (fake.place.hierarchy.root / "cgroup.controllers").write_text("\n")
    with pytest.raises(UnsupportedError, match="cpu"):
        apply(policy, fake.place)
    (fake.place.hierarchy.root / "cgroup.controllers").write_text("cpu\n")
    done = apply(policy, fake.place)
    assert {(r.what, r.why) for r in done.refused} == {
        ("I/O weights", "the hierarchy has no io controller"),
        ("memory protection", "the hierarchy has no memory controller"),
    }


def test_controllers_are_handed_down_and_taken_back(fake: Fake, policy: Policy) -> None:
    root = fake.place.hierarchy.root
    (root / "cgroup.subtree_control").write_text("memory\n")
    (root / "batch/cgroup.controllers").write_text("memory\n")
    apply(policy, fake.place)
    assert text(fake, "cgroup/cgroup.subtree_control") == "cpu io memory"
    undo(fake.place)
    assert text(fake, "cgroup/cgroup.subtree_control") == "memory"


def test_the_kubelets_static_policy(fake: Fake) -> None:
    fake.group("/kubepods/besteffort")
    state = fake.place.root / "var/lib/kubelet/cpu_manager_state"
    state.parent.mkdir(parents=True)
    state.write_text('{"policyName": "static", "defaultCpuSet": "0-1"}')
    done = apply(parse_policy('[batch]\nmatch=["cgroup:/kubepods/besteffort"]', "p"), fake.place)
    assert any("static CPU policy" in r.why for r in done.refused)
    assert text(fake, "cgroup/kubepods/besteffort/cpu.idle") == "0"


def test_two_classes_and_no_match(fake: Fake) -> None:
    both = '[latency]\nmatch=["cgroup:/batch"]\n[batch]\nmatch=["cgroup:/batch"]'
    with pytest.raises(QosError, match="matched by latency and by batch"):
        apply(parse_policy(both, "p"), fake.place)
    with pytest.raises(QosError, match="nothing on this machine matches"):
        apply(parse_policy('[batch]\nmatch=["cgroup:/none"]', "p"), fake.place)


def test_only_one_at_a_time(fake: Fake, policy: Policy) -> None:
    with fake.place.journal.locked(), pytest.raises(SettingError, match="another tegu is at work"):
        apply(policy, fake.place)


def test_lost_rank_is_found(fake: Fake) -> None:
    fake.group("/web/jobs")
    hierarchy = fake.place.hierarchy
    # Siblings: the batch group itself competes. Deep below web, it competes as web does.
    assert find_leaks({"latency": ["/web/redis"], "batch": ["/batch"]}, hierarchy) == []
    (leak,) = find_leaks({"latency": ["/batch/one"], "batch": ["/web/jobs"]}, hierarchy)
    assert (leak.latency_as, leak.batch_as) == ("/batch", "/web")
    assert "competes with /batch/one as /web" in leak.words()
