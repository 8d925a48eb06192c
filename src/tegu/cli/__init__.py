"""The front door: one module per group of verbs; parses, calls a room, prints. No logic.

Verbs are loaded when called, so that the host half starts without the works' dependencies.
"""

from __future__ import annotations

from tegu.cli.front import main

__all__ = ["main"]
