"""Why there is no answer, in words: the way from what was asked for to what cannot be."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from tegu.errors import SolveError

__all__ = ["explain", "readable"]

_RELATION = re.compile(r"^(\S+) (<<|<=|=|>=|>>|<|>) (\S+)$")
_MAX_STEPS = 8


def readable(dep: str) -> str:
    """Return libsolv's text of a relation in Debian's way: `a (>= 2) | b`."""
    parts = []
    for part in dep.split(" | "):
        match = _RELATION.match(part)
        if match is None:
            parts.append(part)
            continue
        operator = {"<": "<<", ">": ">>"}.get(match[2], match[2])
        parts.append(f"{match[1]} ({operator} {match[3]})")
    return " | ".join(parts)


def explain(
    title: str, asked: Sequence[str], excluded: Sequence[str], answer: Mapping[str, Any]
) -> SolveError:
    """Return the error for an answer that is none; `title` names the set ("system", "tools")."""
    if "unknown" in answer:
        return _unknown(answer["unknown"])
    if "excluded" in answer:
        name = answer["excluded"]
        return SolveError(
            f"{name} is both asked for and excluded",
            hint="remove it from packages.exclude, or from packages.install and packages.pin",
        )
    if "unpinnable" in answer:
        name, version, there = answer["unpinnable"]
        return SolveError(
            f"packages.pin: no version of {name} is {version}",
            hint=f"the suites have {', '.join(there)}",
        )
    return _Problem(asked, excluded, answer["problem"] or []).error(title)


def _unknown(unknown: Mapping[str, Mapping[str, Sequence[str]]]) -> SolveError:
    name, found = next(iter(unknown.items()))
    rest = f" (and {len(unknown) - 1} more: {', '.join(list(unknown)[1:])})"
    more = rest if len(unknown) > 1 else ""
    if found["providers"]:
        return SolveError(
            f"{name} is a virtual package{more}",
            hint=f"name one of its providers: {', '.join(found['providers'])}",
        )
    near = ", ".join(found["near"])
    return SolveError(
        f"there is no package {name} in the suites{more}",
        hint=f"did you mean {near}?" if near else "check the name, base.suites and components",
    )


class _Problem:
    def __init__(
        self, asked: Sequence[str], excluded: Sequence[str], facts: Sequence[Mapping[str, Any]]
    ) -> None:
        self.asked = set(asked)
        self.excluded = set(excluded)
        self.facts = facts
        self.ways = self._walk()

    def _walk(self) -> dict[str, list[str]]:
        """Return for each package the steps that lead to it from one that was asked for."""
        needs: dict[str, list[tuple[str, str]]] = {}
        targets: set[str] = set()
        for fact in self.facts:
            if fact["kind"] == "requires":
                name = fact["package"][0]
                for known in self._meant(fact):
                    needs.setdefault(name, []).append((known, fact["dep"]))
                    targets.add(known)
        names = {f[k][0] for f in self.facts for k in ("package", "other") if k in f}
        # What nothing in the problem needs was asked for, or belongs to the base.
        starts = sorted(names & self.asked) + sorted(names - targets - self.asked)
        starts = starts or sorted(names)
        ways: dict[str, list[str]] = {}
        for start in starts:
            how = "you asked for" if start in self.asked else "the base system has"
            ways[start] = [f"{how} {start}"]
        queue = deque(starts)
        while queue:
            name = queue.popleft()
            for target, dep in needs.get(name, ()):
                if target not in ways:
                    ways[target] = [*ways[name], f"which needs {readable(dep)}"]
                    if _names(dep) != {target}:
                        ways[target][-1] += f", that is {target}"
                    queue.append(target)
        return ways

    def _meant(self, fact: Mapping[str, Any]) -> list[str]:
        """Return the packages that a relation leads to: those it names, and providers met."""
        names = [name for name, versions in fact.get("known", {}).items() if versions]
        if "other" in fact:
            names.append(fact["other"][0])
        return names

    def error(self, title: str) -> SolveError:
        sentence = self._nothing() or self._conflict() or self._blocked()
        if sentence is None:
            sentence = "the packages asked for contradict one another"
        where = "" if title == "system" else f" (for the {title})"
        return SolveError(
            f"no set of packages fits{where}: {sentence}",
            hint="change packages.install, packages.exclude or packages.pin, or add a repository "
            "that has what is missing",
        )

    def _way(self, name: str) -> str:
        steps = self.ways.get(name, [f"{name} is needed"])
        if len(steps) > _MAX_STEPS:
            steps = [*steps[:3], "...", *steps[-3:]]
        return ", ".join(steps)

    def _nothing(self) -> str | None:
        """Explain a dependency that nothing answers, by the shortest way there."""
        found = []
        for fact in self.facts:
            if fact["kind"] != "nothing":
                continue
            name = fact["package"][0]
            steps = self.ways.get(name, [])
            text = f"{self._way(name)}, which needs {readable(fact['dep'])}; {self._there(fact)}"
            found.append((name not in self.ways, len(steps), text))
        return min(found)[2] if found else None

    def _there(self, fact: Mapping[str, Any]) -> str:
        parts = []
        for name in dict.fromkeys(_ordered(fact["dep"])):
            versions = fact["known"].get(name) or []
            if name in self.excluded:
                parts.append(f"{name} is excluded (packages.exclude)")
            elif versions:
                parts.append(f"the newest {name} in the suites is {versions[0][0]}")
            else:
                parts.append(f"there is no {name} in the suites")
        return ", ".join(parts)

    def _conflict(self) -> str | None:
        found = []
        for fact in self.facts:
            if fact["kind"] not in ("conflicts", "same") or "other" not in fact:
                continue
            one, other = fact["package"], fact["other"]
            shown = f" ({readable(fact['dep'])})" if fact.get("dep") else ""
            if fact["kind"] == "same":
                return self._two_versions(one[0])
            why = f"{one[0]} {one[1]} conflicts with {other[0]} {other[1]}{shown}"
            length = len(self.ways.get(one[0], "?" * 99)) + len(self.ways.get(other[0], "?" * 99))
            ways = dict.fromkeys([self._way(one[0]), self._way(other[0])])
            found.append((length, f"{'; and '.join(ways)}; but {why}"))
        return min(found)[1] if found else None

    def _two_versions(self, name: str) -> str:
        wanted = dict.fromkeys(
            f"{self._way(fact['package'][0])}, which needs {readable(fact['dep'])}"
            for fact in self.facts
            if fact["kind"] == "requires" and name in self._meant(fact)
        )
        return f"{'; and '.join(wanted)}; but only one version of {name} can be installed"

    def _blocked(self) -> str | None:
        for fact in self.facts:
            if fact["kind"] == "disabled":
                name, version, _ = fact["package"]
                why = "excluded" if name in self.excluded else "ruled out by a pin or a priority"
                return f"{self._way(name)}; but {name} {version} is {why}"
            if fact["kind"] == "job-nothing":
                return f"nothing provides {readable(fact['dep'])}, which was asked for"
        return None


def _ordered(dep: str) -> list[str]:
    return [part.split()[0].partition(":")[0] for part in dep.split(" | ") if part.strip()]


def _names(dep: str) -> set[str]:
    return set(_ordered(dep))
