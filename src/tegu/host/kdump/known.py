"""Known causes of crashes: `known.toml`, matched against a log's end."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

__all__ = ["Known", "known_bugs", "match_known"]


@dataclass(frozen=True, slots=True)
class Known:
    """One entry: what a crash of this look means, what to do, and where that is written."""

    name: str
    match: str
    meaning: str
    remedy: str
    reference: str
    where: str = ""


@cache
def known_bugs() -> tuple[Known, ...]:
    """Return the entries of known.toml."""
    text = files("tegu.host.kdump").joinpath("known.toml").read_text()
    return tuple(Known(**entry) for entry in tomllib.loads(text)["bug"])


def match_known(text: str, where: str | None) -> list[Known]:
    """Return the entries that fit the end of a log and the faulting function."""
    return [
        bug
        for bug in known_bugs()
        if re.search(bug.match, text) and (not bug.where or re.search(bug.where, where or ""))
    ]
