"""VEX statements: what does not apply here, and why (OpenVEX 0.2, https://openvex.dev/)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tegu.errors import VerifyError

__all__ = ["Statement", "read_statements"]

_STATUSES = ("not_affected", "affected", "fixed", "under_investigation")
# OpenVEX, "Status Justifications": one of them, or an impact statement, must say why.
_WHY = (
    "component_not_present",
    "vulnerable_code_not_present",
    "vulnerable_code_not_in_execute_path",
    "vulnerable_code_cannot_be_controlled_by_adversary",
    "inline_mitigations_already_exist",
)


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement: about a vulnerability, for packages by name (none: for all)."""

    id: str
    products: tuple[str, ...]
    status: str
    reason: str

    @property
    def applies_not(self) -> bool:
        """Whether it says that there is nothing to do."""
        return self.status in ("not_affected", "fixed")

    def covers(self, vulnerability: str, source: str, packages: tuple[str, ...]) -> bool:
        """Whether it speaks of this vulnerability of this source, for every package of it."""
        if vulnerability != self.id:
            return False
        return not self.products or source in self.products or set(packages) <= set(self.products)


def read_statements(path: Path) -> list[Statement]:
    """Read an OpenVEX document; VerifyError when it is none, or a statement says no reason."""
    try:
        raw: Any = json.loads(path.read_text())
        statements = raw["statements"]
        if "openvex" not in str(raw["@context"]):
            raise ValueError("its @context is not OpenVEX")
        return [_one(s) for s in statements]
    except OSError as e:
        raise VerifyError(f"{path}: {e.strerror}") from e
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise VerifyError(f"{path} is no OpenVEX document: {e}") from e


def _one(raw: Any) -> Statement:
    vulnerability = raw["vulnerability"]
    name = vulnerability["name"] if isinstance(vulnerability, dict) else vulnerability
    status = raw["status"]
    if status not in _STATUSES:
        raise ValueError(f"{name}: there is no status {status!r}")
    why = str(raw.get("justification", ""))
    if why and why not in _WHY:
        raise ValueError(f"{name}: there is no justification {why!r}")
    reason = ": ".join(w for w in (why, str(raw.get("impact_statement", ""))) if w)
    if status == "not_affected" and not reason:
        raise ValueError(f"{name}: not_affected needs a justification or an impact_statement")
    products = tuple(_product(p) for p in raw.get("products") or ())
    return Statement(str(name), products, status, reason)


def _product(raw: Any) -> str:
    """Return the package's name of a product, which is a package URL or a name."""
    text = str(raw["@id"] if isinstance(raw, dict) else raw)
    if text.startswith("pkg:"):
        text = text.partition("?")[0].rpartition("/")[2].partition("@")[0]
    return unquote(text)
