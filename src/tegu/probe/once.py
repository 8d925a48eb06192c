"""One probe for some seconds, its sums as one line of JSON: `python3 -I -m tegu.probe.once runq 3`.

For programs that ask now and then and stay small themselves: what libbpf and the kernel's types
take goes with this process. The line is {"summary": ..., "end": ...}, or {"unsupported": reason}.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Sequence
from typing import Any

from tegu.errors import TeguError, UnsupportedError, UsageError
from tegu.probe.session import watch
from tegu.probe.tool import Settings
from tegu.probe.tools import find_tool

__all__ = ["main", "sums"]

_NO_EVENTS = 3600 * 10**9
"""Nanoseconds: nothing takes so long, so that all is summed up and nothing sent by itself."""


def sums(name: str, seconds: float) -> dict[str, Any]:
    """Run the probe `name`; returns its summary and end. Raises UnsupportedError, UsageError."""
    tool = find_tool(name)
    threshold = _NO_EVENTS if tool.threshold_ns is not None else None
    found: dict[str, Any] = {}
    for record in watch(tool, Settings(seconds, threshold_ns=threshold), threading.Event()):
        if record["type"] in ("summary", "end"):
            found[record["type"]] = record
    return found


def main(argv: Sequence[str]) -> int:
    """Run as a program: NAME SECONDS; returns the exit code."""
    try:
        if len(argv) != 2 or not argv[1].replace(".", "", 1).isdigit():
            raise UsageError("tegu.probe.once: NAME SECONDS")
        print(json.dumps(sums(argv[0], float(argv[1]))))
    except UnsupportedError as e:
        print(json.dumps({"unsupported": e.message.removeprefix("unsupported: ")}))
    except TeguError as e:
        print(e.message, file=sys.stderr)
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
