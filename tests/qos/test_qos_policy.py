"""Policies: what is right, and one clear line for what is wrong."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tegu.errors import DefinitionError
from tegu.qos import load_policy, parse_policy
from tegu.qos.match import matches
from tegu.qos.policy import Match, parse_size, parse_time, policy_from

WHOLE = """
[latency]
match = ["unit:redis-server", "pod:0f5c3f0e-9f8b-4c7d-8f66-0123456789ab"]
memory_low = "512M"
[batch]
match = ["slice:batch", "cgroup:/ci/*"]
[devices]
vda = "bfq"
[slo]
p99 = "2ms"
feed = "file:/run/redis.p99"
stale = "5s"
[loop]
knobs = ["io", "cpu"]
ceiling = { io = 2000 }
"""


def test_a_whole_policy() -> None:
    policy = parse_policy(WHOLE, "p.toml")
    latency, batch = policy.classes["latency"], policy.classes["batch"]
    assert (latency.weight, latency.memory_low, latency.idle) == (10000, 512 << 20, False)
    assert (batch.idle, batch.io_weight, batch.weight) == (True, 1, None)
    assert policy.objective is not None and policy.objective.p99 == 0.002
    assert policy.objective.feed.where == "/run/redis.p99"
    assert policy.loop.knobs == ("io", "cpu")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[latency", "Expected ']'"),
        ("", "match: no class matches anything"),
        ('[latnecy]\nmatch=["unit:a"]', "latnecy: there is no such key"),
        ('[batch]\nmatch=["a"]', "batch.match: 'a' must be KIND:NAME"),
        ('[batch]\nmatch=["cgroup:/a/../b"]', "has no .."),
        ('[batch]\nmatch=["cgroup:/"]', "belongs to everyone"),
        ('[batch]\nmatch="unit:a"', "batch.match: must be a list"),
        ('[batch]\nmatch=["unit:a"]\nweight=0', "batch.weight: must be a whole number"),
        ('[batch]\nmatch=["unit:a"]\nweight=true', "batch.weight: must be a whole number"),
        ('[batch]\nmatch=["unit:a"]\nidle=true\nweight=5', "an idle group has no weight"),
        ('[batch]\nmatch=["unit:a"]\n[slo]\nfeed="runq"', "slo.p99: is missing"),
        ('[batch]\nmatch=["unit:a"]\n[slo]\np99="2 ms"', "slo.p99: write a time as"),
        ('[batch]\nmatch=["unit:a"]\n[slo]\np99="0ms"', "more than nothing"),
        ('[batch]\nmatch=["unit:a"]\n[slo]\np99="2ms"\nfeed="http"', "slo.feed: must begin with"),
        ('[batch]\nmatch=["unit:a"]\n[slo]\np99="2ms"\nfeed="file:x"', "absolute path"),
        (
            '[batch]\nmatch=["unit:a"]\n[slo]\np99="2ms"\nfeed="prometheus:http://x"',
            "slo.query: prometheus needs",
        ),
        ('[batch]\nmatch=["unit:a"]\n[devices]\nvda="cfq"', "devices.vda: must be auto"),
        ('[batch]\nmatch=["unit:a"]\n[devices]\n"../x"="bfq"', "no name of a block device"),
        ('[batch]\nmatch=["unit:a"]\n[loop]\nknobs=["cpu"]', "needs an [slo]"),
        ('[batch]\nmatch=["unit:a"]\n[slo]\np99="2ms"\n[loop]\nknobs=["io"]', "ceiling.io"),
        ('[batch]\nmatch=["unit:a"]\n[loop]\nfloor=nan', "loop.floor: must be from"),
        ('[latency]\nmatch=["unit:a"]\nmemory_low="much"', "latency.memory_low: write a size"),
    ],
)
def test_what_is_wrong(text: str, words: str) -> None:
    with pytest.raises(DefinitionError) as error:
        parse_policy(text, "p.toml")
    assert error.value.message.startswith("p.toml: ")
    assert words in error.value.message
    assert "\n" not in error.value.message


def test_unreadable(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match="cannot read"):
        load_policy(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(DefinitionError, match="it is not text"):
        load_policy(tmp_path / "bytes.toml")


@given(st.text(max_size=60))
def test_any_text_is_a_policy_or_one_line(text: str) -> None:
    try:
        parse_policy(text, "p.toml")
    except DefinitionError as e:
        assert "\n" not in e.message


SCALARS = st.one_of(st.integers(), st.floats(), st.booleans(), st.text(max_size=8))


@given(
    st.dictionaries(
        st.sampled_from(["match", "weight", "idle", "io_weight", "memory_low"]),
        st.one_of(SCALARS, st.lists(SCALARS, max_size=2)),
    )
)
def test_any_values_are_taken_or_refused(values: dict[str, object]) -> None:
    try:
        policy_from({"batch": values, "latency": {"match": ["unit:a"]}}, "p")
    except DefinitionError as e:
        assert e.message.startswith("p: ")


@given(st.text(max_size=12))
def test_times_and_sizes(text: str) -> None:
    for parse in (parse_time, parse_size):
        with suppress(ValueError):
            assert parse(text) >= 0


POD = "0f5c3f0e-9f8b-4c7d-8f66-0123456789ab"
ID = "ab" * 32


@pytest.mark.parametrize(
    ("match", "group", "means"),
    [
        (Match("unit", "redis-server"), "/system.slice/redis-server.service", True),
        (Match("unit", "redis@*.service"), "/system.slice/redis@1.service", True),
        (Match("unit", "redis"), "/system.slice/redis-server.service", False),
        (Match("slice", "batch"), "/batch.slice", True),
        (Match("slice", "batch"), "/batch.slice/x.service", False),
        (Match("cgroup", "/ci/*"), "/ci/1", True),
        (Match("cgroup", "/ci/*"), "/ci/1/2", False),
        (Match("container", ID[:12]), f"/system.slice/docker-{ID}.scope", True),
        (Match("container", ID), f"/kubepods/x/{ID}", True),
        (Match("container", "ff"), f"/kubepods/x/{ID}", False),
        (Match("pod", POD), f"/kubepods/burstable/pod{POD}", True),
        (
            Match("pod", POD),
            f"/kubepods.slice/kubepods-pod{POD.replace('-', '_')}.slice",
            True,
        ),
        (Match("pod", POD[:-1] + "c"), f"/kubepods/pod{POD}", False),
    ],
)
def test_matching(match: Match, group: str, means: bool) -> None:
    assert matches(match, group) is means
