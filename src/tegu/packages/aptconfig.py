"""The build machine's own apt configuration: its sources and its settings.

Sources are read as apt reads them (sources.list(5)): one-line `.list` files and deb822 `.sources`
files. Settings are asked of `apt-config`(8), so that includes and overrides are apt's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tegu.process import CommandError, run

__all__ = [
    "AptSettings",
    "AptSource",
    "parse_deb822",
    "parse_list",
    "parse_settings",
    "read_settings",
    "read_sources",
]

_OPTIONS = re.compile(r"\[([^\]]*)\]")
_FALSE = frozenset({"no", "false", "without", "off", "disable", "0"})


@dataclass(frozen=True, slots=True)
class AptSource:
    """One repository of sources.list(5): type "deb", one URI, one suite.

    `options` has the lower-case option names of the deb822 form (`signed-by`, `check-valid-until`).
    """

    uri: str
    suite: str
    components: tuple[str, ...]
    options: dict[str, str] = field(default_factory=dict, hash=False)

    def allows(self, option: str) -> bool:
        """Return False when the boolean `option` is there and says no."""
        return self.options.get(option, "yes").strip().lower() not in _FALSE


@dataclass(frozen=True, slots=True)
class AptSettings:
    """What of apt.conf(5) concerns us: proxies by `scheme` or `scheme::host`, and index checks."""

    proxies: dict[str, str] = field(default_factory=dict, hash=False)
    check_valid_until: bool = True
    check_date: bool = True


def parse_list(text: str) -> Iterator[AptSource]:
    """Yield the `deb` entries of a one-line-style file; what is malformed is passed over."""
    for raw in text.splitlines():
        line = raw.split("#", 1)[0].strip()
        if not re.match(r"deb\s", line):
            continue
        line = line[3:].strip()
        options: dict[str, str] = {}
        if line.startswith("["):
            match = _OPTIONS.match(line)
            if match is None:
                continue
            for item in match[1].split():
                key, _, value = item.partition("=")
                options[key.rstrip("+-").lower()] = value
            line = line[match.end() :].strip()
        words = line.split()
        if len(words) >= 2:
            yield AptSource(words[0], words[1], tuple(words[2:]), options)


def parse_deb822(text: str) -> Iterator[AptSource]:
    """Yield the enabled `deb` entries of a deb822-style file, one per URI and suite."""
    for stanza in re.split(r"\n[ \t]*\n", text.replace("\r\n", "\n")):
        fields: dict[str, str] = {}
        key = ""
        for line in stanza.splitlines():
            if line.startswith("#") or not line.strip():
                continue
            if line[0] in " \t" and key:
                fields[key] += "\n" + line.strip()
            elif ":" in line:
                key, value = line.split(":", 1)
                key = key.strip().lower()
                fields[key] = value.strip()
        if "deb" not in fields.pop("types", "").split():
            continue
        if fields.pop("enabled", "yes").strip().lower() in _FALSE:
            continue
        components = tuple(fields.pop("components", "").split())
        suites = fields.pop("suites", "").split()
        for uri in fields.pop("uris", "").split():
            for suite in suites:
                yield AptSource(uri, suite, components, fields)


def read_sources(etc: Path = Path("/etc/apt")) -> list[AptSource]:
    """Return the sources of the machine in the order apt reads them; unreadable files are skipped.

    File names as in sources.list(5): letters, digits, `_`, `-` and `.`, ending in `.list` or
    `.sources`.
    """
    parts = [
        path
        for path in sorted((etc / "sources.list.d").glob("*"))
        if re.fullmatch(r"[A-Za-z0-9_.-]+\.(list|sources)", path.name)
    ]
    found: list[AptSource] = []
    for path in [etc / "sources.list", *parts]:
        try:
            text = path.read_text(errors="replace")
        except OSError:
            continue
        found.extend(parse_deb822(text) if path.suffix == ".sources" else parse_list(text))
    return found


def parse_settings(dump: str) -> AptSettings:
    """Read the output of `apt-config dump`: lines of `Key::Sub "value";`."""
    proxies: dict[str, str] = {}
    flags = {"acquire::check-valid-until": True, "acquire::check-date": True}
    for match in re.finditer(r'^([^\s"]+) "(.*)";$', dump, re.MULTILINE):
        key, value = match[1].lower(), match[2]
        if key in flags:
            flags[key] = value.strip().lower() not in _FALSE
        proxy = re.fullmatch(r"acquire::(https?)::proxy(?:::(.+))?", key)
        if proxy is not None and value:
            proxies[f"{proxy[1]}::{proxy[2]}" if proxy[2] else proxy[1]] = value
    return AptSettings(proxies, *flags.values())


def read_settings() -> AptSettings:
    """Return the machine's apt settings; the defaults where there is no apt."""
    try:
        dump = run(["apt-config", "dump", "Acquire"], timeout=20).stdout
    except CommandError:
        return AptSettings()
    return parse_settings(dump)
