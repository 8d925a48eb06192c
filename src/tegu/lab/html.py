"""Results as one HTML page for a person: nothing to fetch, no script, readable when printed."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from tegu import __version__
from tegu.files import write_atomic
from tegu.lab.results import STATUSES, Report

__all__ = ["html_page", "write_html"]


def write_html(report: Report, path: Path) -> None:
    """Write the report as an HTML page."""
    write_atomic(path, html_page(report).encode(errors="replace"))


def html_page(report: Report) -> str:
    """Return the report as an HTML page: the verdict first, then every step of every machine."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["duration"] = _duration
    source = resources.files("tegu.lab").joinpath("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        report=report,
        version=__version__,
        when=datetime.fromtimestamp(report.started, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        statuses=STATUSES,
    )


def _duration(seconds: float) -> str:
    """Return seconds as a person says them: `0.4 s`, `38 s`, `3 min 05 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"
