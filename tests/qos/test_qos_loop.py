"""The feedback layer: its rules, lying feeds, a whole daemon on the fake hierarchy, killed."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import threading
import time
import urllib.request
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.qos.fake import Fake, in_child

from tegu.errors import UnsupportedError, UsageError
from tegu.qos import Policy, parse_policy, undo
from tegu.qos.controller import Controller
from tegu.qos.daemon import Daemon, serve
from tegu.qos.exposition import endpoint, exposition, read_state
from tegu.qos.feeds import FeedError, Reading, check, open_feed
from tegu.qos.policy import Feed, Loop

LOOP = Loop(samples=100, cooldown=30, knobs=("cpu", "io"), ceilings={"io": 1000.0})


class Told:
    """Feeds a controller with one figure after another, a second apart."""

    def __init__(self, loop: Loop = LOOP, slo: float = 0.010) -> None:
        self.controller = Controller(loop, slo)
        self.now = 1000.0

    def say(self, p99: float | str, samples: int = 500, **pressure: float) -> Any:
        self.now += 1
        reading = p99 if isinstance(p99, str) else Reading(p99, samples, self.now)
        return self.controller.step(self.now, reading, pressure)  # type: ignore[arg-type]


def test_cut_wait_and_undo_what_did_not_help() -> None:
    told = Told()
    cut = told.say(0.020, cpu=1.0, io=9.0)
    assert (cut.state, cut.knobs) == ("cut", {"cpu": 1.0, "io": 0.5})
    assert told.say(0.020, io=9.0).state == "cooling"  # 30 s
    told.now += 30
    undone = told.say(0.0199, io=9.0)
    assert (undone.state, undone.knobs) == ("undone", {"cpu": 1.0, "io": 1.0})
    other = told.say(0.020, io=9.0)  # io was tried: now the other one
    assert (other.state, other.knobs) == ("cut", {"cpu": 0.5, "io": 1.0})
    told.now += 30
    helped = told.say(0.012, io=9.0)
    assert helped.state == "cut" and helped.knobs == {"cpu": 0.25, "io": 1.0}  # it helped


def test_holds_and_grows() -> None:
    told = Told()
    told.say(0.020, io=9.0)
    told.now += 31
    assert told.say(0.0095).state == "holding"  # slack 0.05
    assert told.say(0.0085).state == "holding"  # slack 0.15
    states = [told.say(0.0010 + i / 1e6) for i in range(3)]
    assert [s.state for s in states] == ["holding", "holding", "growing"]
    assert states[-1].knobs["io"] == pytest.approx(0.55)
    for i in range(40):
        last = told.say(0.0010 + i / 1e6)
    assert last.state == "open" and last.knobs == {"cpu": 1.0, "io": 1.0}


def test_never_below_the_floor() -> None:
    told = Told()
    for i in range(40):
        told.say(0.020 - i / 1e4, io=9.0)
        told.now += 31
    assert all(v >= LOOP.floor for v in told.controller.knobs.values())


def test_too_few_samples_and_nothing_new() -> None:
    told = Told()
    assert told.say(0.020, samples=99).state == "waiting"
    reading = Reading(0.005, 500, 5.0)
    told.controller.step(1, reading, {})
    assert told.controller.step(2, reading, {}).state == "waiting"


def test_safe_when_the_feed_is_gone_or_constant() -> None:
    told = Told()
    safe = told.say("the feed is 11.0 s old")
    assert (safe.state, safe.knobs) == ("safe", {"cpu": 0.1, "io": 0.1})
    assert told.say("still").knobs == {"cpu": 0.1, "io": 0.1}
    assert told.say(0.0095).knobs == {"cpu": 1.0, "io": 1.0}  # known again: no reason for a cap
    told.say(0.020, io=9.0)
    assert told.say("gone again").knobs == {"cpu": 0.1, "io": 0.1}
    assert told.say(0.0095).knobs == {"cpu": 1.0, "io": 0.5}
    told = Told()
    states = [told.say(0.001).state for _ in range(31)]
    assert states[-1] == "safe" and "safe" not in states[:-1]


@given(st.lists(st.floats(min_value=1e-6, max_value=10), max_size=60))
def test_knobs_stay_in_range(figures: list[float]) -> None:
    told = Told()
    for p99 in figures:
        decision = told.say(p99, io=1.0)
        assert all(LOOP.floor <= v <= 1.0 for v in decision.knobs.values())
        told.now += 10


NOW = 1e9


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"p99": math.nan, "time": NOW}, "p99 is nan"),
        ({"p99": math.inf, "time": NOW}, "p99 is inf"),
        ({"p99": -0.1, "time": NOW}, "p99 is -0.1"),
        ({"p99": 0, "samples": 9, "time": NOW}, "take no time"),
        ({"p99": True, "time": NOW}, "p99 is no number"),
        ({"p99": "2ms", "time": NOW}, "p99 is no number"),
        ({"p99": 0.1}, "time is no number"),
        ({"p99": 0.1, "time": math.nan}, "time is nan"),
        ({"p99": 0.1, "time": NOW + 60}, "60.0 s ahead"),
        ({"p99": 0.1, "time": NOW - 11}, "11.0 s old"),
        ({"p99": 0.1, "time": NOW, "samples": -1}, "samples is no count"),
        ({"p99": 0.1, "time": NOW, "samples": 1.5}, "samples is no count"),
        ([0.1], "no object"),
        (None, "no object"),
    ],
)
def test_lies(raw: object, words: str) -> None:
    with pytest.raises(FeedError) as error:
        check(raw, 10, NOW)
    assert words in error.value.message and "\n" not in error.value.message


@given(st.recursive(st.none() | st.floats() | st.text(max_size=4), st.lists, max_leaves=4))
def test_anything_is_a_reading_or_refused(value: object) -> None:
    try:
        found = check({"p99": value, "time": NOW, "samples": 1}, 10, NOW)
    except FeedError:
        return
    assert math.isfinite(found.p99) and found.p99 > 0


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "p99"
    feed = open_feed(Feed("file", str(path)), [])
    with pytest.raises(FeedError, match="No such file"):
        feed.read()
    path.write_text('{"p99": 0.00')
    with pytest.raises(FeedError, match="is not JSON"):
        feed.read()
    path.write_text(json.dumps({"p99": 0.002, "samples": 700, "time": time.time()}))
    assert feed.read().samples == 700
    feed.close()


def test_a_socket(tmp_path: Path) -> None:
    path = tmp_path / "s"
    feed = open_feed(Feed("unix", str(path)), [])
    with pytest.raises(FeedError, match="No such file"):
        feed.read()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def answer() -> None:
            client, _ = server.accept()
            with client:
                client.sendall(json.dumps({"p99": 0.004, "time": time.time()}).encode() + b"\n")

        thread = threading.Thread(target=answer)
        thread.start()
        assert feed.read().p99 == 0.004
        thread.join()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"resultType": "vector", "result": [{"value": [0, "0.003"]}]}, ""),
        ({"resultType": "scalar", "result": [0, "0.003"]}, ""),
        ({"resultType": "vector", "result": []}, "gives no number"),
        ({"resultType": "vector", "result": [{"value": [0, "NaN"]}]}, "p99 is nan"),
    ],
)
def test_prometheus(data: dict[str, Any], words: str) -> None:
    import http.server

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text = json.dumps({"status": "success", "data": data})
            body = text.replace("[0, ", f"[{time.time()}, ").encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        where = f"http://127.0.0.1:{server.server_address[1]}"
        feed = open_feed(Feed("prometheus", where, "x{a='b'}"), [])
        if words:
            with pytest.raises(FeedError, match=words):
                feed.read()
        else:
            assert feed.read().p99 == 0.003
        thread.join()
    with pytest.raises(FeedError, match="refused"):
        feed.read()


POLICY = """
[latency]
match = ["cgroup:/web"]
[batch]
match = ["cgroup:/batch"]
[devices]
vda = "none"
[slo]
p99 = "10ms"
feed = "file:{feed}"
[loop]
samples = 100
knobs = ["cpu", "io", "memory"]
ceiling = {{ cpu = 2, io = 1000, memory = "100M" }}
"""


@pytest.fixture
def policy(fake: Fake) -> Policy:
    fake.group("/web")
    fake.group("/batch")
    (fake.group("/batch") / "cpu.max").write_text("150000 100000\n")
    return parse_policy(POLICY.format(feed=fake.top / "run/p99"), "p.toml")


def feed(fake: Fake, p99: float) -> None:
    path = fake.top / "run/p99"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"p99": p99, "samples": 500, "time": time.time()}))


def batch(fake: Fake, name: str) -> str:
    return (fake.top / "cgroup/batch" / name).read_text().strip()


def test_the_loop_writes_and_restores(fake: Fake, policy: Policy) -> None:
    before = fake.snapshot()
    (fake.group("/web") / "io.pressure").write_text("some avg10=40.0 avg60=1 avg300=1 total=9\n")
    daemon = Daemon.start(policy, fake.place)
    decision = daemon.window(0)  # no feed yet
    assert decision.state == "safe" and "No such file" in decision.why
    assert batch(fake, "cpu.max") == "20000 100000"
    assert batch(fake, "io.max") == "254:0 rbps=max wbps=max riops=100 wiops=100"
    assert batch(fake, "memory.high") == str((100 << 20) * 99 // 100 // 4096 * 4096)
    feed(fake, 0.001)
    daemon.window(10.0)  # known: the caps go
    assert batch(fake, "cpu.max") == "150000 100000"  # as it was, not "max"
    assert batch(fake, "io.max") == ""
    feed(fake, 0.030)
    assert daemon.window(300).knobs["io"] == 0.5
    state = read_state(fake.place.journal.path.with_suffix(".state"))
    assert state is not None and state["knobs"]["io"] == 0.5 and state["p99"] == 0.03
    daemon.source.close()
    undo(fake.place)
    (fake.group("/web") / "io.pressure").unlink()
    assert fake.snapshot() == before


def test_memory_shrinks_slowly(fake: Fake, policy: Policy) -> None:
    daemon = Daemon.start(policy, fake.place)
    sizes = []
    for second in range(0, 25):
        daemon.window(float(second))
        sizes.append(int(batch(fake, "memory.high")))
    steps = sorted(set(sizes), reverse=True)
    assert len(steps) == 5  # one in 6 s
    assert all(b >= a * 0.99 - 4096 for a, b in pairwise(steps))


def test_killed_at_every_step_of_a_cycle(fake: Fake, policy: Policy) -> None:
    before = fake.snapshot()

    def cycle() -> None:
        with fake.place.journal.locked():
            daemon = Daemon.start(policy, fake.place)
            daemon.window(0.0)  # safe: three knobs down
            feed(fake, 0.001)
            for i in range(4):
                feed(fake, 0.001 + i / 1e6)
                daemon.window(10.0 + i)
            feed(fake, 0.030)
            daemon.window(20.0)
            undo_all = fake.place.journal.undo()
            assert not undo_all.failed

    steps = 0
    for side in (False, True):
        number = 0
        while True:
            number += 1

            def work(number: int = number, side: bool = side) -> None:
                fake.events, fake.die_at, fake.die_after = 0, number, side
                cycle()

            status = in_child(work)
            (fake.top / "run/p99").unlink(missing_ok=True)
            if not os.WIFSIGNALED(status):
                assert os.WEXITSTATUS(status) == 0
                break
            assert os.WTERMSIG(status) == signal.SIGKILL
            steps += 1
            undone = undo(fake.place)  # the lock died with its holder
            assert not undone.conflicts and not undone.failed, (number, side)
            assert fake.snapshot() == before, (number, side)
    assert steps > 40


def test_the_static_layer_outlives_the_loop(fake: Fake, policy: Policy) -> None:
    def work() -> None:
        with fake.place.journal.locked():
            Daemon.start(policy, fake.place).window(0.0)
            os.kill(os.getpid(), signal.SIGKILL)

    assert os.WIFSIGNALED(in_child(work))
    assert batch(fake, "cpu.idle") == "1"
    assert batch(fake, "cpu.max") == "20000 100000"
    with fake.place.journal.locked():  # the next start takes the limits back, not the protection
        Daemon.start(policy, fake.place).source.close()
    assert batch(fake, "cpu.idle") == "1"
    assert batch(fake, "cpu.max") == "150000 100000"
    undo(fake.place)


def test_groups_that_vanish(fake: Fake, policy: Policy) -> None:
    import shutil

    daemon = Daemon.start(policy, fake.place)
    daemon.window(0.0)
    shutil.rmtree(fake.top / "cgroup/batch")
    for i in range(12):
        daemon.window(1.0 + i)
    shutil.rmtree(fake.top / "cgroup/web")
    for i in range(12):
        daemon.window(20.0 + i)
    assert not undo(fake.place).failed


def test_a_whole_run(fake: Fake, policy: Policy) -> None:
    before = fake.snapshot()
    stop = threading.Event()
    thread = threading.Thread(target=serve, args=(policy, fake.place, stop))
    thread.start()
    state = fake.place.journal.path.with_suffix(".state")
    while thread.is_alive() and not state.exists():
        time.sleep(0.01)
    stop.set()
    thread.join()
    assert fake.snapshot() == before
    assert not state.exists() and not fake.place.journal.path.exists()


def test_what_cannot_begin(fake: Fake, policy: Policy) -> None:
    bare = parse_policy('[latency]\nmatch=["cgroup:/web"]', "p")
    with pytest.raises(UsageError, match=r"no \[slo\]"):
        Daemon.start(bare, fake.place)
    (fake.place.hierarchy.root / "cgroup.controllers").write_text("cpu memory\n")
    with pytest.raises(UnsupportedError, match="controller io"):
        Daemon.start(policy, fake.place)
    with pytest.raises(UsageError, match="HOST:PORT"), endpoint("9871", Path("/none")):
        pass


def test_metrics(fake: Fake, policy: Policy) -> None:
    daemon = Daemon.start(policy, fake.place)
    feed(fake, 0.004)
    daemon.window(0.0)
    path = fake.place.journal.path.with_suffix(".state")
    with endpoint("127.0.0.1:0", path) as port:
        url = f"http://127.0.0.1:{port}/metrics"
        with urllib.request.urlopen(url) as answer:
            text = answer.read().decode()
    assert "tegu_qos_p99_seconds 0.004\n" in text
    assert 'tegu_qos_knob_ratio{knob="io"} 1\n' in text
    assert exposition(None).endswith("tegu_qos_up 0\n")
    daemon.source.close()
