"""The state of the loop for Prometheus (its text exposition format, version 0.0.4)."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tegu.errors import QosError, UsageError

__all__ = ["endpoint", "exposition", "read_state"]


def read_state(path: Path) -> dict[str, Any] | None:
    """Return what the loop said last; None when none runs."""
    try:
        raw = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return raw if isinstance(raw, dict) else None


def exposition(state: dict[str, Any] | None) -> str:
    """Return the metrics of a state."""
    lines = [
        "# HELP tegu_qos_up Whether the loop runs.",
        "# TYPE tegu_qos_up gauge",
        f"tegu_qos_up {int(state is not None)}",
    ]
    if state is None:
        return "\n".join(lines) + "\n"

    def gauge(name: str, text: str, values: list[tuple[str, float]]) -> None:
        lines.extend((f"# HELP {name} {text}", f"# TYPE {name} gauge"))
        lines.extend(f"{name}{label} {value:.9g}" for label, value in values)

    gauge("tegu_qos_slo_seconds", "The objective of the p99.", [("", state["slo"])])
    if state["p99"] is not None:
        gauge("tegu_qos_p99_seconds", "The p99 of the last window.", [("", state["p99"])])
    knobs = [(f'{{knob="{k}"}}', v) for k, v in sorted(state["knobs"].items())]
    gauge("tegu_qos_knob_ratio", "What batch may have, of its ceiling.", knobs)
    pressure = [(f'{{resource="{k}"}}', v / 100) for k, v in sorted(state["pressure"].items())]
    gauge("tegu_qos_pressure_ratio", "Share of time the latency class waits.", pressure)
    gauge(
        "tegu_qos_state",
        "What the loop does now.",
        [(f'{{state="{state["state"]}"}}', 1)],
    )
    return "\n".join(lines) + "\n"


@contextmanager
def endpoint(listen: str, state: Path) -> Iterator[int]:
    """Answer GET /metrics at HOST:PORT while the block runs; nothing when `listen` is empty.

    Yields the port. Raises UsageError or QosError when it cannot listen there.
    """
    if not listen:
        yield 0
        return
    import http.server

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/metrics":
                self.send_error(404)
                return
            body = exposition(read_state(state)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            """Keep the journal quiet."""

    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"--listen: {listen!r} is not HOST:PORT")
    try:
        server = http.server.ThreadingHTTPServer((host.strip("[]"), int(port)), Handler)
    except OSError as e:
        raise QosError(f"cannot listen at {listen}: {e.strerror}") from e
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
