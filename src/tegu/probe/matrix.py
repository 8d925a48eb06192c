"""Which probe works on which kernel, from what `tegu probe list --json` said on each."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tegu.errors import ProbeError

__all__ = ["Listing", "asked_here", "read_listing", "table"]


@dataclass(frozen=True)
class Listing:
    """One machine: its kernel, and for each probe why it does not work; nothing when it does."""

    kernel: str
    probes: dict[str, str]


def asked_here(say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Load and attach each probe for a moment: what `tegu probe list --json` prints."""
    from tegu.probe.session import availability
    from tegu.probe.tools import TOOLS, find_tool

    rows = []
    for name in TOOLS:
        tool = find_tool(name)
        say(f"trying {name}")
        reason = availability(tool)
        rows.append(
            {
                "name": name,
                "group": tool.group,
                "question": tool.question,
                "facility": tool.facility,
                "available": not reason,
                "reason": reason or None,
            }
        )
    return {"kernel": platform.release(), "probes": rows}


def read_listing(path: Path) -> Listing:
    """Read what `tegu probe list --json` printed; raises ProbeError naming the file."""
    try:
        value = json.loads(path.read_bytes())
        probes = {str(p["name"]): str(p["reason"] or "") for p in value["probes"]}
        return Listing(str(value["kernel"]), probes)
    except OSError as e:
        raise ProbeError(f"cannot read {path}: {e.strerror}") from e
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise ProbeError(
            f"{path} is not what `tegu probe list --json` prints", hint="run that on the machine"
        ) from e


def table(listings: Sequence[Listing]) -> list[str]:
    """Return a table in Markdown: a row for each probe, a column for each kernel."""
    names = sorted({name for listing in listings for name in listing.probes})
    head = ["probe", *(listing.kernel for listing in listings)]
    rows = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for name in names:
        cells = [f"`{name}`"]
        for listing in listings:
            reason = listing.probes.get(name)
            cells.append(
                "not asked" if reason is None else f"unsupported: {reason}" if reason else "works"
            )
        rows.append(f"| {' | '.join(cells)} |")
    return rows
