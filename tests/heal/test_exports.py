"""What the agent shows to Prometheus and OpenTelemetry, read by their own parsers."""

from __future__ import annotations

import http.server
import json
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as classic

from tegu.cli import main
from tegu.errors import TeguError, UnsupportedError, UsageError
from tegu.heal import Finding, Rule, Subject
from tegu.heal.agent import Agent
from tegu.heal.closer import PRESSURES
from tegu.heal.exporter import endpoint, exposition, parse_listen
from tegu.heal.metrics import METRICS, samples
from tegu.heal.otlp import metrics_url, pushing
from tegu.heal.state import read_state

AWKWARD = 'a"b\\c\nd é'
BY_RULE = {"bad": 3, "sound": 0, "broken": 0, **dict.fromkeys(PRESSURES, 0)}


def findings(_: object) -> list[Finding]:
    return [
        Finding("bad", "x", "critical", 0.5, Subject("device", AWKWARD),
                (Subject("cgroup", "/v"),)),
        Finding("bad", "y", "warning", 1.0, Subject("cgroup", "/a/b.service", unit="b.service"),
                remedy="raise-memory"),
        Finding("bad", "nobody is to blame", "notice", 1.0, None),
    ]  # fmt: skip


def raises(_: object) -> list[Finding]:
    raise RuntimeError("oh")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """What a real agent left after two looks."""
    path = tmp_path / "run/agent.json"
    agent = Agent(
        database=tmp_path / "history",
        journal=tmp_path / "journal",
        state=path,
        closer=lambda _, found: list(found),
        tell=lambda _: None,
    )
    agent._rules = [
        Rule("bad", "?", (), "", findings),
        Rule("sound", "?", (), "", lambda _: []),
        Rule("broken", "?", (), "", raises),
    ]
    agent.step()
    agent.step()
    agent.close()
    return path


def values(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (s.name, tuple(sorted(s.labels.items()))): s.value
        for family in classic(text)
        for s in family.samples
    }


def test_prometheus_reads_it(state: Path) -> None:
    text = exposition(state)
    found = values(text)
    assert found["tegu_agent_up", ()] == 1
    assert found["tegu_agent_looks_total", ()] == 2
    assert found["tegu_health_score", ()] == 62
    parts = [v for (name, _), v in found.items() if name == "tegu_health_penalty"]
    assert sorted(parts) == [3, 15, 20] and 100 - sum(parts) == 62
    assert found["tegu_health_penalty", (("culprit", AWKWARD), ("rule", "bad"))] == 20
    by_rule = {
        dict(labels)["rule"]: v for (name, labels), v in found.items()
        if name == "tegu_rule_findings"
    }  # fmt: skip
    assert by_rule == BY_RULE
    assert found["tegu_rule_failures_total", (("rule", "broken"),)] == 2
    (one,) = [dict(k) for (name, k), v in found.items()
              if name == "tegu_finding_sure" and dict(k)["unit"] == "b.service"]  # fmt: skip
    assert one["severity"] == "warning" and one["remedy"] == "raise-memory"
    assert found["tegu_agent_resident_bytes", ()] > 1 << 20


def test_types_and_names_are_as_declared(state: Path) -> None:
    kinds = {f.name: f.type for f in classic(exposition(state))}
    for metric in METRICS.values():
        if metric.name == "tegu_repairs_total":
            continue  # nothing was repaired
        assert kinds[metric.name.removesuffix("_total")] == metric.kind


def test_a_scrape(state: Path) -> None:
    with endpoint("127.0.0.1:0", state) as port:
        url = f"http://127.0.0.1:{port}/metrics"
        with urllib.request.urlopen(url, timeout=60) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain")
            assert values(answer.read().decode())["tegu_health_score", ()] == 62
        asked = urllib.request.Request(url, headers={"Accept": "application/openmetrics-text"})
        with urllib.request.urlopen(asked, timeout=60) as answer:
            families = {f.name: f for f in openmetrics(answer.read().decode())}
            assert families["tegu_agent_looks"].type == "counter"
        # The state is read anew for each scrape.
        seen = json.loads(state.read_text())
        state.write_text(json.dumps({**seen, "score": 7}))
        with urllib.request.urlopen(url, timeout=60) as answer:
            assert values(answer.read().decode())["tegu_health_score", ()] == 7


def test_without_an_agent(state: Path, tmp_path: Path) -> None:
    assert values(exposition(tmp_path / "none")) == {("tegu_agent_up", ()): 0}
    seen = json.loads(state.read_text())
    state.write_text(json.dumps({**seen, "time": time.time() - 1e6}))
    assert read_state(state) is None
    assert values(exposition(state)) == {("tegu_agent_up", ()): 0}


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"{}", b'{"time": "x", "every": 1}'])
def test_a_damaged_state(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state"
    path.write_bytes(content)
    with pytest.raises(TeguError):
        read_state(path)
    said: list[str] = []
    with endpoint("127.0.0.1:0", path, said.append) as port:
        for _ in range(2):
            url = f"http://127.0.0.1:{port}/metrics"
            with urllib.request.urlopen(url, timeout=60) as answer:
                assert values(answer.read().decode()) == {("tegu_agent_up", ()): 0}
    assert len(said) == 1


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(key=st.sampled_from(["findings", "agent", "pressure", "repairs", "score", "rules"]),
       value=_JSON)  # fmt: skip
def test_any_state_is_told_or_refused(state: Path, key: str, value: Any) -> None:
    seen = json.loads(state.read_text())
    try:
        found = samples({**seen, key: value})
    except TeguError:
        return
    assert set(found) == set(METRICS)
    for name, these in found.items():
        assert len({s.labels for s in these}) == len(these), name


class Collector:
    """Takes what OpenTelemetry's exporter sends."""

    def __init__(self) -> None:
        self.requests: list[ExportMetricsServiceRequest] = []
        self.paths: list[str] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                import gzip

                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                outer.paths.append(self.path)
                outer.requests.append(ExportMetricsServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def metrics(self) -> dict[str, Any]:
        return {
            metric.name: metric
            for resource in self.requests[-1].resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_a_collector_gets_it(state: Path, collector: Collector) -> None:
    with pushing(collector.url, state, every=3600):
        pass  # what there is is sent as it ends
    assert collector.paths == ["/v1/metrics"]
    found = collector.metrics()
    (point,) = found["tegu.health_score"].gauge.data_points
    assert point.as_double == 62
    looks = found["tegu.agent_looks"].sum
    assert looks.is_monotonic and looks.data_points[0].as_double == 2
    points = found["tegu.rule_findings"].gauge.data_points
    assert {p.attributes[0].value.string_value: p.as_double for p in points} == BY_RULE
    culprits = {
        a.value.string_value
        for p in found["tegu.finding_sure"].gauge.data_points
        for a in p.attributes
        if a.key == "culprit"
    }
    assert AWKWARD in culprits
    (resource,) = collector.requests[-1].resource_metrics
    names = {a.key: a.value.string_value for a in resource.resource.attributes}
    assert names["service.name"] == "tegu-agent"


def test_the_verb_serves_and_sends(state: Path, collector: Collector) -> None:
    argv = [sys.executable, "-m", "tegu", "agent", "export", "--state", str(state)]
    argv += ["--listen", "127.0.0.1:0", "--otlp", collector.url]
    child = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        url = child.stdout.readline().split()[-1]
        with urllib.request.urlopen(url, timeout=60) as answer:
            assert values(answer.read().decode())["tegu_health_score", ()] == 62
        assert "sending to" in child.stdout.readline()
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 0
    finally:
        child.kill()
        child.wait()
    assert "tegu.health_score" in collector.metrics()


def test_the_verb_prints(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["agent", "export", "--once", "--state", str(state)]) == 0
    assert values(capsys.readouterr().out)["tegu_health_score", ()] == 62
    assert main(["agent", "export", "--json", "--state", str(state)]) == 0
    assert json.loads(capsys.readouterr().out)["tegu_health_score"] == [{"value": 62.0}]


@pytest.mark.parametrize(
    "words", ["9559", "host:", ":1", "127.0.0.1:65536", "[::1", "a b:1", "[x]:1", "127.0.0.1:-1"]
)
def test_bad_addresses(words: str, state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="HOST:PORT"):
        parse_listen(words)
    assert main(["agent", "export", "--listen", words, "--state", str(state)]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_addresses() -> None:
    assert parse_listen("[::1]:80") == ("::1", 80)
    assert parse_listen("localhost:0") == ("localhost", 0)


def test_a_port_that_is_taken(state: Path) -> None:
    with (
        endpoint("127.0.0.1:0", state) as port,
        pytest.raises(TeguError, match="cannot listen at"),
        endpoint(f"127.0.0.1:{port}", state),
    ):
        pass


@pytest.mark.parametrize("url", ["", "x", "ftp://a", "http://", "http://a:99999", "http://[::1"])
def test_bad_collectors(url: str) -> None:
    with pytest.raises(UsageError, match="URL"):
        metrics_url(url)


def test_where_metrics_go() -> None:
    assert metrics_url("http://c:4318") == "http://c:4318/v1/metrics"
    assert metrics_url("https://c/other/path") == "https://c/other/path"


@pytest.mark.parametrize(
    ("option", "package", "module"),
    [
        (["--once"], "python3-prometheus-client", "prometheus_client"),
        (["--listen", "", "--otlp", "http://127.0.0.1:9"], "tegu[otlp]", "opentelemetry.sdk"),
    ],
)
def test_without_the_library(
    state: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: list[str],
    package: str,
    module: str,
) -> None:
    for name in [n for n in sys.modules if n == module or n.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    code = main(["agent", "export", *option, "--state", str(state)])
    said = capsys.readouterr().err
    assert code == UnsupportedError.exit_code
    assert "unsupported:" in said and package in said and "Traceback" not in said


def test_a_state_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said: list[str] = []
    agent = Agent(
        database=tmp_path / "history",
        journal=tmp_path / "journal",
        state=tmp_path / "file/state",
        closer=lambda _, found: list(found),
        tell=said.append,
    )
    agent._rules = []
    agent.step()
    agent.step()
    agent.close()
    assert len(said) == 1 and "no state for exports" in said[0]
