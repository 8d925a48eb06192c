"""The configuration beside the recommendations of kernel-hardening-checker.

The program is Debian's package of the same name (13-backports, or later). What we deviate in is in
`hardening.toml` beside the recipe, with the reason.
"""

from __future__ import annotations

import json
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tegu.errors import BuildError, DefinitionError
from tegu.process import require, run

__all__ = ["Deviation", "Hardening", "check_hardening", "read_accepted"]

PROGRAM = "kernel-hardening-checker"


@dataclass(frozen=True, slots=True)
class Deviation:
    """An option that is not as recommended; `reason` is why we accept it, None when we do not."""

    option: str
    wanted: str
    result: str
    reason: str | None


@dataclass(frozen=True, slots=True)
class Hardening:
    """The verdict: how many checks there were, what deviates, what is accepted without need."""

    version: str
    checks: int
    deviations: list[Deviation]
    needless: list[str]

    @property
    def refused(self) -> list[Deviation]:
        return [d for d in self.deviations if d.reason is None]


def read_accepted(path: Path) -> dict[str, str]:
    """Return the accepted deviations of `hardening.toml`, option to reason.

    No file: none. Raises DefinitionError for what is wrong.
    """
    if not path.exists():
        return {}
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise DefinitionError(f"{path}: {e}") from e
    if set(raw) - {"accept"} or not isinstance(raw.get("accept", []), list):
        raise DefinitionError(f"{path}: there is only one key, [[accept]]")
    accepted: dict[str, str] = {}
    for number, table in enumerate(raw.get("accept", []), 1):
        where = f"{path}: accept {number}"
        if not isinstance(table, dict):
            raise DefinitionError(f"{where}: it must be a table, [[accept]]")
        reason, options = table.get("reason"), table.get("options")
        if not isinstance(reason, str) or not reason.strip():
            raise DefinitionError(f"{where}: a deviation needs its reason")
        if not isinstance(options, list) or not all(isinstance(o, str) for o in options):
            raise DefinitionError(f"{where}: options must be a list of names")
        for option in options:
            if option in accepted:
                raise DefinitionError(f"{where}: {option} is there twice")
            accepted[option] = reason.strip()
    return accepted


def check_hardening(config: str, accepted: Mapping[str, str]) -> Hardening:
    """Check the text of a `.config`; raises UnsupportedError when the program is not here."""
    program = require(PROGRAM, package=f"{PROGRAM} (Debian 13 backports, or later)")
    with tempfile.TemporaryDirectory(prefix="tegu-config-") as directory:
        path = Path(directory) / "kernel.config"
        path.write_text(config)
        done = run([program, "-c", path, "-m", "json"], timeout=120)
        version = run([program, "--version"], timeout=60).stdout.strip()
    try:
        answer = json.loads(done.stdout)
        if not isinstance(answer, list):
            raise TypeError("no list")
        results = [r for r in answer if r["type"] == "kconfig"]
        deviations = [
            Deviation(
                r["option_name"],
                r["desired_val"],
                r["check_result"].removeprefix("FAIL: "),
                accepted.get(r["option_name"]),
            )
            for r in results
            if not r["check_result"].startswith("OK")
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise BuildError(f"{PROGRAM} answered something else than its JSON: {e}") from e
    deviating = {d.option for d in deviations}
    needless = sorted(set(accepted) - deviating)
    return Hardening(version.rpartition(" ")[2], len(results), deviations, needless)
