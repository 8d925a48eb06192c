"""Probes: each answers one question about a machine that runs, with who suffers and who causes it.

A probe is a BPF program (`bpf/`, compiled when the package is built) and a `Tool` (`tools/`) that
reads and shows what it found. `watch` runs one and yields records; recordings are those records in
a file. What a kernel lacks is an UnsupportedError that names it.
"""

from __future__ import annotations

from tegu.probe.recording import Record, Recording, encode, parse, read
from tegu.probe.report import quantile
from tegu.probe.session import Session, availability, watch
from tegu.probe.tool import Settings, Tool
from tegu.probe.tools import TOOLS, find_tool

__all__ = [
    "TOOLS",
    "Record",
    "Recording",
    "Session",
    "Settings",
    "Tool",
    "availability",
    "encode",
    "find_tool",
    "parse",
    "quantile",
    "read",
    "watch",
]
