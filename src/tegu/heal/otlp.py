"""Metrics of the agent to an OpenTelemetry collector, by OpenTelemetry's own library, over HTTP."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import tegu
from tegu.errors import TeguError, UnsupportedError, UsageError
from tegu.heal.metrics import METRICS, Metric, samples
from tegu.heal.state import STATE, read_state

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Observation

__all__ = ["pushing"]


@contextmanager
def pushing(url: str, path: Path = STATE, every: float = 30.0) -> Iterator[None]:
    """Send all metrics to the collector at `url` every so many seconds while the block runs.

    The last ones are sent as it ends. A collector that does not answer is the library's to tell
    and to try again. Raises UsageError for a bad URL, UnsupportedError without the library.
    """
    endpoint = metrics_url(url)
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.resources import Resource
    except ImportError as e:
        raise UnsupportedError(
            "OpenTelemetry's library is not installed",
            hint="pip install 'tegu[otlp]': Debian has no package of its exporter",
        ) from e
    resource = Resource.create(
        {
            "service.name": "tegu-agent",
            "service.version": tegu.__version__,
            "host.name": socket.gethostname(),
        }
    )
    reader = PeriodicExportingMetricReader(
        OTLPMetricExporter(endpoint=endpoint, timeout=10), export_interval_millis=every * 1000
    )
    provider = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
    try:
        meter = provider.get_meter("tegu.heal", tegu.__version__)
        for metric in METRICS.values():
            make: Callable[..., object] = (
                meter.create_observable_counter
                if metric.kind == "counter"
                else meter.create_observable_gauge
            )
            make(
                metric.name.replace("_", ".", 1).removesuffix("_total"),
                callbacks=[partial(_observe, metric, path)],
                unit=metric.unit,
                description=metric.help,
            )
        yield
    finally:
        provider.shutdown()


def _observe(metric: Metric, path: Path, options: CallbackOptions) -> Sequence[Observation]:
    from opentelemetry.metrics import Observation

    try:
        found = samples(read_state(path))
    except TeguError:
        found = samples(None)
    return [
        Observation(value, dict(zip(metric.labels, labels, strict=True)))
        for labels, value in found[metric.name]
    ]


def metrics_url(url: str) -> str:
    """Return where metrics go: `url`, or its path /v1/metrics when it has none (OTLP/HTTP)."""
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        sound = None
    if not sound:
        raise UsageError(
            f"--otlp: {url!r} is no URL of a collector", hint="for example http://127.0.0.1:4318"
        )
    return url if parts.path.strip("/") else f"{url.rstrip('/')}/v1/metrics"
