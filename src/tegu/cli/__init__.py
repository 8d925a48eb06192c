"""The front door: one module per group of verbs; parses, calls a room, prints. No logic.

Verbs are loaded when called, so that the host half starts without the works' dependencies.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Run the front door (`tegu.cli.front`); returns the exit code."""
    args = sys.argv[1:] if argv is None else list(argv)
    if args[:1] == ["run"]:
        # The one verb whose whole work takes less time than loading the others' front door.
        from tegu.sandbox.thin import main as run

        return run(args[1:])
    from tegu.cli.front import main as front

    return front(args)
