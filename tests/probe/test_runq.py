"""Two processes that want the same processor: each waits, and behind the other."""

from __future__ import annotations

from tests.probe.load import SPIN, Groups, events, needs_probe, one_cpu, watch_until

from tegu.probe import Settings, encode, find_tool, parse


def test_the_waiting_and_the_culprit_are_named_with_their_groups(groups: Groups) -> None:
    needs_probe("runq")
    victim, culprit = groups.make("victim"), groups.make("culprit")
    waits = groups.python(victim, SPIN, one_cpu())
    holds = groups.python(culprit, SPIN, one_cpu())

    def seen(records: list) -> bool:
        return any(e["behind"]["cgroup"] == culprit for e in events(records))

    records = watch_until(
        "runq", Settings(seconds=None, cgroup=victim, threshold_ns=1_000_000), seen
    )
    event = next(e for e in events(records) if e["behind"]["cgroup"] == culprit)
    assert event["victim"]["cgroup"] == victim
    assert event["victim"]["pid"] == waits.pid
    assert event["behind"]["pid"] == holds.pid
    assert event["wait_ns"] >= 1_000_000
    assert event["behind"]["ran_ns"] > 0
    # Only the chosen group is a victim.
    assert {e["victim"]["cgroup"] for e in events(records)} == {victim}
    recording = parse([encode(r) for r in records], "run")
    summary = recording.summary
    assert any(p["victim"] == victim and p["culprit"] == culprit for p in summary["pairs"])
    assert sum(summary["histogram_us"]) >= len(recording.events)
    assert [t["pid"] for t in summary["tasks"]] == [waits.pid]
    shown = "\n".join(str(r) for t in find_tool("runq").tables(recording, 10) for r in t.rows)
    assert victim in shown and culprit in shown


def test_the_stack_of_who_held_the_processor_is_there(groups: Groups) -> None:
    needs_probe("runq")
    both = groups.make("both")
    for _ in range(2):
        groups.python(both, SPIN, one_cpu())
    records = watch_until(
        "runq", Settings(seconds=None), lambda r: any(e["behind"]["stack"] for e in events(r))
    )
    event = next(e for e in events(records) if e["behind"]["stack"])
    # Whatever it did, it left the processor through the scheduler.
    assert any("schedule" in frame for frame in event["behind"]["stack"])
