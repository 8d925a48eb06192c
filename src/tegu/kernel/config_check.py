"""What became of a configuration: which options did not take, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tegu.errors import BuildError, DefinitionError
from tegu.kernel.fragments import Option
from tegu.kernel.symbols import Symbols

__all__ = ["Miss", "compare_config", "refuse_misses", "refuse_unknown"]


@dataclass(frozen=True, slots=True)
class Miss:
    """An option that is not what a fragment asks for; `unmet` is what it lacks, if known."""

    option: Option
    got: str
    unmet: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{self.option.where}: CONFIG_{self.option.name}: wanted {self.option.value}, "
        text += f"got {self.got}"
        if not self.unmet:
            return text
        why = ", ".join(self.unmet)
        return f"{text}: {why}" if self.option.value == "n" else f"{text}; needs {why}"


def refuse_unknown(options: Mapping[str, Option], symbols: Symbols) -> None:
    """Raise DefinitionError for the first option that the source does not have."""
    for option in options.values():
        if option.name in symbols:
            continue
        near = ", ".join(f"CONFIG_{n}" for n in symbols.near(option.name))
        raise DefinitionError(
            f"{option.where}: CONFIG_{option.name}: this kernel has no such option",
            hint=f"did you mean {near}?" if near else "it may have been removed or renamed",
        )


def compare_config(
    options: Mapping[str, Option], config: Mapping[str, str], symbols: Symbols
) -> list[Miss]:
    """Return the options that did not take, in the order of files and lines."""

    def value_of(name: str) -> str:
        return config.get(name, "n")

    misses = []
    for option in options.values():
        got = value_of(option.name)
        if got == option.value:
            continue
        if option.value == "n":
            unmet = symbols.unwanted(option.name, value_of)
        else:
            unmet = symbols.unmet(option.name, option.value, value_of)
        misses.append(Miss(option, got, tuple(unmet)))
    return sorted(misses, key=lambda m: (m.option.file, m.option.line))


def refuse_misses(misses: list[Miss]) -> None:
    """Raise BuildError when there is a miss, naming the first and how many more."""
    if not misses:
        return
    more = f" (and {len(misses) - 1} more)" if len(misses) > 1 else ""
    raise BuildError(
        f"{misses[0]}{more}",
        hint="`tegu kernel config check` lists all of them",
    )
