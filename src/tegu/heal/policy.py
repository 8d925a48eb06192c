"""What may be repaired, how often, and what is never touched: /etc/tegu/heal.toml."""

from __future__ import annotations

import fnmatch
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path

from tegu.errors import UsageError
from tegu.heal.finding import Finding, Subject

__all__ = ["POLICY", "Policy", "load_policy"]

POLICY = Path("/etc/tegu/heal.toml")


@dataclass(frozen=True)
class Policy:
    """The policy file's keys, with their defaults."""

    automatic: tuple[str, ...] = ()
    """Remedies that the agent may use by itself; none unless named."""
    forbidden: tuple[str, ...] = ()
    """Remedies that are never used."""
    budget: int = 12
    """Repairs in an hour, in all."""
    protected: tuple[str, ...] = (
        "/",
        "/init.scope",
        "*systemd-*.service",
        "*ssh.service",
        "*sshd.service",
        "*dbus.service",
    )
    """Patterns (fnmatch) of control groups and units that are never touched."""
    restartable: tuple[str, ...] = ("systemd-resolved.service",)
    """Units that may be restarted although they are protected."""
    disposable: tuple[str, ...] = ()
    """Directories whose files may be removed."""
    window: int = 3600
    """Seconds in which a repair that did not help is not tried again."""

    def refuses(self, finding: Finding) -> str:
        """Return why the policy forbids a repair of this finding; nothing when it does not."""
        if finding.remedy in self.forbidden:
            return f"the policy forbids {finding.remedy}"
        unit = str(finding.target.get("unit", ""))
        if finding.remedy == "restart-unit" and any(
            fnmatch.fnmatchcase(unit, p) for p in self.restartable
        ):
            return ""
        # A reclaim takes caches and nothing else: it may be asked of any group.
        touched = [unit] if finding.remedy.startswith("reclaim-") else _touched(finding, unit)
        for name in filter(None, touched):
            for pattern in self.protected:
                if fnmatch.fnmatchcase(name, pattern):
                    return f"{name} is protected by the policy ({pattern})"
        return ""


def _touched(finding: Finding, unit: str) -> list[str]:
    names = [unit, str(finding.target.get("group", ""))]
    culprit: Subject | None = finding.culprit
    if culprit is not None:
        names += [culprit.unit] if culprit.kind == "process" else []
    return names


def load_policy(path: Path = POLICY) -> Policy:
    """Read the policy; the defaults when there is no file. Raises UsageError naming the key."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return Policy()
    except OSError as e:
        raise UsageError(f"{path}: {e.strerror}") from e
    try:
        values = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UsageError(f"{path}: {e}") from e
    known = {f.name: f for f in fields(Policy)}
    given: dict[str, int | tuple[str, ...]] = {}
    for key, value in values.items():
        if key not in known:
            raise UsageError(f"{path}: unknown key {key!r}", hint=f"known: {', '.join(known)}")
        default = known[key].default
        if isinstance(default, int):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise UsageError(f"{path}: {key} must be a whole number, 0 or more")
            given[key] = value
        else:
            if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
                raise UsageError(f"{path}: {key} must be a list of strings")
            given[key] = tuple(value)
    _names(path, given)
    return Policy(**given)  # type: ignore[arg-type]


def _names(path: Path, given: dict[str, int | tuple[str, ...]]) -> None:
    from tegu.heal.remedies import REMEDIES

    for key in ("automatic", "forbidden"):
        for name in given.get(key, ()):  # type: ignore[union-attr]
            if name not in REMEDIES:
                raise UsageError(f"{path}: {key}: there is no remedy {name!r}")
