"""The options that a kernel source tree knows, and what each depends on.

Reads the Kconfig files of one architecture (Documentation/kbuild/kconfig-language.rst) far enough
to say whether an option exists and why it could not be set. Values are the business of the
kernel's own `conf`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from tegu.errors import BuildError
from tegu.kernel.expressions import Expression, parse_expression

__all__ = ["Symbol", "Symbols", "read_symbols"]

_ENTRY = re.compile(r"(config|menuconfig)\s+([A-Za-z0-9_]+)\s*$")
_TYPE = re.compile(r"(def_)?(bool|tristate|string|int|hex)\b\s*(.*)")
_MACRO = re.compile(r"\$\((SRCARCH|srctree)\)|\$(SRCARCH|srctree)\b")
_DEPTH = 40


@dataclass(slots=True)
class Symbol:
    """An option: its type, whether a user can set it, and what it needs.

    An option may be defined more than once; then each of `needs` is one definition's condition.
    `selectors` are the options that turn it on, `default` says that it has a default of its own,
    `choice` that it is one of a choice.
    """

    name: str
    type: str = ""
    prompt: bool = False
    needs: list[list[str]] = field(default_factory=list)
    selectors: list[str] = field(default_factory=list)
    default: bool = False
    choice: bool = False


class Symbols:
    """All options of a source tree for one architecture."""

    def __init__(self, symbols: dict[str, Symbol]) -> None:
        self._symbols = symbols

    def __contains__(self, name: str) -> bool:
        # What is only selected is defined nowhere (a typing error, or another architecture's).
        return name in self._symbols and bool(self._symbols[name].needs)

    def __len__(self) -> int:
        return sum(bool(s.needs) for s in self._symbols.values())

    def __getitem__(self, name: str) -> Symbol:
        return self._symbols[name]

    def near(self, name: str) -> list[str]:
        """Return up to three names that look like `name`."""
        names = [n for n, s in self._symbols.items() if s.needs]
        return get_close_matches(name, names, n=3, cutoff=0.7)

    def unmet(self, name: str, value: str, config: Callable[[str], str]) -> list[str]:
        """Say what keeps `name` from being `value`, given the values in `config`."""
        symbol = self._symbols[name]
        # For a yes-or-no option "depends on M" is met when M is a module; only a tristate can be
        # no more than what it depends on (Documentation/kbuild/kconfig-language.rst).
        wanted = 2 if value == "y" and symbol.type == "tristate" else 1
        best: list[str] | None = None
        tools: list[str] = []
        for condition in symbol.needs:
            missing = [text for e in _parsed(condition) for text in e.unmet(config, wanted)]
            if best is None or len(missing) < len(best):
                best, tools = missing, [c for c in condition if "$(" in c]
        if best:
            return list(dict.fromkeys(best))
        if tools and config(name) == "n":
            return [f"{text} (of the compiler or linker)" for text in tools]
        if not symbol.prompt:
            return ["it cannot be set by hand: other options select it"]
        if symbol.choice:
            return ["it is one of a choice: another of its options is on"]
        return []

    def unwanted(self, name: str, config: Callable[[str], str]) -> list[str]:
        """Say why `name` is on although it was to be off."""
        symbol = self._symbols[name]
        on = [s for s in dict.fromkeys(symbol.selectors) if config(s) != "n"]
        if on:
            return [f"{s} selects it" for s in on]
        if symbol.choice:
            return ["it is one of a choice: one of its options must be on"]
        if not symbol.prompt or symbol.default:
            return ["its own default turns it on, and it cannot be set here"]
        return ["another option selects it"]


def _parsed(conditions: list[str]) -> Iterator[Expression]:
    for text in conditions:
        try:
            yield parse_expression(text)
        except ValueError:
            continue  # a condition that we cannot read explains nothing


def read_symbols(tree: Path, srcarch: str) -> Symbols:
    """Read the Kconfig files of `tree` for `srcarch` ("x86", "arm64").

    Raises BuildError when there is no Kconfig: it is no kernel source.
    """
    if not (tree / "Kconfig").is_file():
        raise BuildError(f"{tree} is no kernel source: it has no Kconfig")
    reader = _Reader(tree, srcarch)
    reader.file("Kconfig", [], 0)
    return Symbols(reader.symbols)


class _Reader:
    """Walks the files; `stack` holds the conditions of the menus and ifs around a line."""

    def __init__(self, tree: Path, srcarch: str) -> None:
        self.tree = tree
        self.values = {"SRCARCH": srcarch, "srctree": "."}
        self.symbols: dict[str, Symbol] = {}

    def file(self, name: str, around: list[str], depth: int) -> None:
        path = self.tree / name
        if depth > _DEPTH or not path.is_file():
            return
        blocks: list[list[str]] = [around]  # conditions, one list per open menu, choice or if
        kinds = ["file"]
        current: Symbol | None = None
        for line in _lines(path):
            word, _, rest = line.partition(" ")
            rest = rest.strip()
            if match := _ENTRY.match(line):
                current = self.symbols.setdefault(match[2], Symbol(match[2]))
                current.needs.append([c for block in blocks for c in block])
                current.choice = current.choice or "choice" in kinds
            elif word in ("if", "menu", "choice"):
                blocks.append([rest] if word == "if" else [])
                kinds.append(word)
                current = None
            elif word in ("endif", "endmenu", "endchoice"):
                if len(blocks) > 1:
                    blocks.pop()
                    kinds.pop()
                current = None
            elif word in ("source", "rsource", "osource", "orsource"):
                target = self._expand(rest.strip("\"'"))
                if word in ("rsource", "orsource"):
                    target = str(Path(name).parent / target)
                self.file(target, [c for block in blocks for c in block], depth + 1)
                current = None
            elif word == "comment":
                current = Symbol("")  # what follows is the comment's: it holds for no option
                current.needs.append([])
            elif line.startswith("depends on "):
                condition = line.removeprefix("depends on ").strip()
                if current is not None:
                    current.needs[-1].append(condition)
                elif kinds[-1] in ("menu", "choice"):
                    blocks[-1].append(condition)
            elif word == "visible" and kinds[-1] == "menu":
                blocks[-1].append(rest.removeprefix("if").strip())
            elif word in ("select", "imply") and current is not None:
                target = rest.partition(" ")[0]
                self.symbols.setdefault(target, Symbol(target)).selectors.append(current.name)
            elif current is not None:
                _describe(current, line)

    def _expand(self, text: str) -> str:
        return _MACRO.sub(lambda m: self.values[m[1] or m[2]], text)


def _describe(symbol: Symbol, line: str) -> None:
    if match := _TYPE.match(line):
        symbol.type = symbol.type or match[2]
        symbol.default = symbol.default or bool(match[1])
        if not match[1] and match[3][:1] in "\"'" and match[3]:
            symbol.prompt = True
            _prompt_condition(symbol, match[3])
    elif line.startswith("default "):
        symbol.default = True
    elif line.startswith("prompt "):
        symbol.prompt = True
        _prompt_condition(symbol, line.removeprefix("prompt "))


def _prompt_condition(symbol: Symbol, rest: str) -> None:
    """A prompt with a condition can be set only where it holds."""
    match = re.match(r"""("[^"]*"|'[^']*')\s+if\s+(.*)""", rest)
    if match:
        symbol.needs[-1].append(match[2])


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines that mean something: joined, without comments and help texts."""
    help_indent: int | None = None
    in_help = False
    joined = ""
    for raw in path.read_text(encoding="utf-8", errors="replace").splitlines():
        expanded = raw.expandtabs()
        indent = len(expanded) - len(expanded.lstrip())
        if in_help:
            if not expanded.strip():
                continue
            if help_indent is None:
                help_indent = indent
            if indent >= help_indent and indent > 0:
                continue
            in_help = False
        line = joined + raw.strip()
        joined = ""
        if line.endswith("\\"):
            joined = line[:-1].rstrip() + " "
            continue
        if not line or line.startswith("#"):
            continue
        if line in ("help", "---help---"):
            in_help, help_indent = True, None
            continue
        yield _uncommented(line)


def _uncommented(line: str) -> str:
    quote = ""
    for position, character in enumerate(line):
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character == "#":
            return line[:position].rstrip()
    return " ".join(line.split())
