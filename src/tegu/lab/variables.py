"""What a build knows of a system that a plan may ask for, as the plan's variables."""

from __future__ import annotations

from collections.abc import Mapping

from tegu.definition import Definition
from tegu.errors import UsageError
from tegu.lab.plan import Plan
from tegu.packages import Lock

__all__ = ["parse_variables", "select", "system_variables"]


def system_variables(definition: Definition | None, lock: Lock | None) -> dict[str, str]:
    """Return the variables that follow from a definition and its lock.

    `packages` has one line `name version architecture` for each package, as dpkg-query prints with
    '${Package} ${Version} ${Architecture}'; `listening` one line `tcp:PORT` for each socket;
    `setuid` one path for each file that keeps the bit, or nothing where the definition is silent.
    """
    out: dict[str, str] = {}
    if definition is not None:
        system = definition.system
        out |= {
            "system": system.name,
            "version": system.version,
            "pretty_name": system.pretty_name,
            "default_target": definition.units.default_target,
            "filesystem": definition.image.filesystem,
            "setuid": "\n".join(sorted(definition.hardening.setuid or ())),
            "listening": "\n".join(sorted(definition.hardening.listening)),
        }
    if lock is not None:
        lines = sorted(f"{p.name} {p.version} {p.architecture}" for p in lock.system)
        out |= {"packages": "\n".join(lines), "architecture": lock.architecture}
    return out


def parse_variables(words: list[str]) -> dict[str, str]:
    """Return the variables in words of the form NAME=VALUE; UsageError for any other."""
    out = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise UsageError(f"not a variable: {word!r}", hint="--var NAME=VALUE")
        out[name] = value
    return out


def select(plan: Plan, known: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """Return what `plan` declares of the `known` values, and all that were `given` by hand."""
    return {k: v for k, v in known.items() if k in plan.variable} | dict(given)
