"""Metrics of the agent for Prometheus, by its own client library (python3-prometheus-client).

It reads the state that the agent leaves (`tegu.heal.state`) whenever it is asked: the agent itself
needs no library and opens no port.
"""

from __future__ import annotations

import re
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from tegu.errors import TeguError, UnsupportedError, UsageError
from tegu.heal.metrics import METRICS, samples
from tegu.heal.state import STATE, read_state

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

__all__ = ["LISTEN", "endpoint", "exposition", "registry"]

LISTEN = "127.0.0.1:9559"
"""Loopback: findings name programs and files. Who wants it elsewhere says so."""


def registry(path: Path = STATE, tell: Callable[[str], None] = print) -> CollectorRegistry:
    """Return a registry whose one collector reads the state at `path` anew each time.

    A state that cannot be read is told once, and counts as an agent that is not up.
    """
    try:
        from prometheus_client import CollectorRegistry
    except ImportError as e:
        raise UnsupportedError(
            "the Prometheus client library is not installed",
            hint="apt-get install python3-prometheus-client, or pip install 'tegu[export]'",
        ) from e
    made = CollectorRegistry()
    made.register(_Collector(path, tell))
    return made


class _Collector:
    def __init__(self, path: Path, tell: Callable[[str], None]) -> None:
        self._path = path
        self._tell = tell
        self._told = ""

    def describe(self) -> Iterator[Metric]:
        """Say nothing: what there is changes."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield a family for each metric that has samples."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        try:
            found = samples(read_state(self._path))
            self._told = ""
        except TeguError as e:
            if e.message != self._told:
                self._told = e.message
                self._tell(e.message)
            found = samples(None)
        for name, values in found.items():
            if not values:
                continue
            metric = METRICS[name]
            make = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = make(name, metric.help, labels=metric.labels)
            for labels, value in values:
                family.add_metric(labels, value)
            yield family


def exposition(path: Path = STATE) -> str:
    """Return the metrics as text, for a textfile collector or a person."""
    made = registry(path)
    from prometheus_client import generate_latest

    return generate_latest(made).decode()


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    timeout = 10
    """Seconds after which a client that says nothing is left."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        """Keep the journal quiet."""


@contextmanager
def endpoint(
    listen: str = LISTEN, path: Path = STATE, tell: Callable[[str], None] = print
) -> Iterator[int]:
    """Answer scrapes at HOST:PORT while the block runs; yields the port.

    Raises UsageError for another form, UnsupportedError without the library, TeguError when it
    cannot listen there.
    """
    host, port = parse_listen(listen)
    made = registry(path, tell)
    from prometheus_client import make_wsgi_app

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    kind = type("_Bound", (_Server,), {"address_family": family})
    try:
        server = kind((host, port), _Quiet)
    except (OSError, UnicodeError) as e:
        why = e.strerror if isinstance(e, OSError) else "no such host"
        raise TeguError(f"cannot listen at {listen}: {why}") from e
    with server:
        server.set_app(make_wsgi_app(made))
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def parse_listen(words: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT, or of [ADDRESS]:PORT; raises UsageError."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:\s]+)):(\d{1,5})", words, re.ASCII)
    if match is None or int(match[3]) > 65535:
        raise UsageError(
            f"--listen: {words!r} is not HOST:PORT", hint=f"for example {LISTEN}, or [::1]:9559"
        )
    return match[1] or match[2], int(match[3])
