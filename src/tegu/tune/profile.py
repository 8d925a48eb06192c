"""Profiles of settings, as data: each setting with its reason, source, and receipt or correctness.

A profile is a TOML file: `include` names others, `[[setting]]` are the settings. A setting without
a receipt and without a correctness reason is refused when a profile is loaded, and so is one on
the deny-list: security is not for sale, and a key that acts when it is written is no setting.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tegu.errors import DefinitionError, TuneError

__all__ = [
    "DENIED",
    "Profile",
    "Receipt",
    "Setting",
    "find_profile",
    "load_profile",
    "profile_names",
    "refuse_denied",
]

KINDS = ("sysctl", "sysfs", "boot", "file")

DENIED = (
    # Security: whatever is gained by turning it off is not a gain.
    "sysctl:kernel.yama.*",
    "sysctl:kernel.kptr_restrict",
    "sysctl:kernel.dmesg_restrict",
    "sysctl:kernel.randomize_va_space",
    "sysctl:kernel.unprivileged_*",
    "sysctl:kernel.perf_event_paranoid",
    "sysctl:kernel.modules_disabled",
    "sysctl:kernel.core_pattern",
    "sysctl:kernel.modprobe",
    "sysctl:fs.protected_*",
    "sysctl:fs.suid_dumpable",
    "sysctl:net.core.bpf_jit_*",
    "sysctl:net.*.conf.*.accept_redirects",
    "sysctl:net.*.conf.*.accept_source_route",
    "sysctl:net.*.conf.*.rp_filter",
    "sysctl:net.ipv4.tcp_syncookies",
    "sysctl:user.max_*_namespaces",
    "boot:mitigations",
    "boot:*_mitigation*",
    "boot:spectre_v2*",
    "boot:mds",
    "boot:nopti",
    "boot:pti",
    "boot:nosmt",
    "boot:lsm",
    "boot:apparmor",
    "boot:selinux",
    "boot:lockdown",
    "boot:module.sig_enforce",
    "boot:init_on_*",
    "sysfs:*/vulnerabilities/*",
    "sysfs:/sys/kernel/security/*",
    # Keys that do something once, when they are written.
    "sysctl:vm.drop_caches",
    "sysctl:vm.compact_memory",
    "sysctl:kernel.sysrq",
    "sysctl:kernel.panic_on_*",
    "sysctl:net.ipv*.route.flush",
    "sysfs:*/remove",
    "sysfs:*/rescan",
    "sysfs:*/reset",
    "sysfs:/sys/power/*",
)
"""Patterns of KIND:KEY that no profile may hold and no proof may learn."""


@dataclass(frozen=True)
class Receipt:
    """What a proof measured: shape of the workload, kernel, and figures as told by `prove`."""

    workload: str
    kernel: str
    gain: float
    noise: float
    pairs: int
    date: str
    command: str = ""


@dataclass(frozen=True)
class Setting:
    """One setting: `kind` sysctl (key with dots), sysfs (path), boot (parameter) or file (path)."""

    kind: str
    key: str
    value: str
    reason: str
    source: str
    receipt: Receipt | None = None
    correctness: str = ""

    @property
    def name(self) -> str:
        """`KIND:KEY`."""
        return f"{self.kind}:{self.key}"


@dataclass(frozen=True)
class Profile:
    """Settings by name; a later file's value replaces an included one's."""

    name: str
    about: str
    settings: Mapping[str, Setting]


def profile_directories() -> list[Path]:
    """Return where profiles are: the machine's own first, then those that Tegu ships."""
    here = Path(__file__).resolve()
    shipped = [here.parents[1] / "distro/tune", here.parents[3] / "distro/tune"]
    return [Path("/etc/tegu/tune"), *[d for d in shipped if d.is_dir()]]


def profile_names() -> list[str]:
    """Return the names of all profiles here."""
    return sorted({p.stem for d in profile_directories() for p in d.glob("*.toml")})


def find_profile(name: str) -> Path:
    """Return the file of a profile: a path, or a name; raises TuneError."""
    if "/" in name or name.endswith(".toml"):
        return Path(name)
    for directory in profile_directories():
        path = directory / f"{name}.toml"
        if path.is_file():
            return path
    raise TuneError(
        f"there is no profile {name!r}", hint=f"there are: {', '.join(profile_names()) or 'none'}"
    )


def load_profile(path: Path, _above: tuple[Path, ...] = ()) -> Profile:
    """Read a profile and what it includes; raises DefinitionError with file and key."""
    if path in _above:
        raise DefinitionError(f"{path}: include: it includes itself")
    try:
        raw = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as e:
        raise DefinitionError(f"{path}: {e}") from e
    except OSError as e:
        raise DefinitionError(f"cannot read {path}: {e.strerror}") from e
    for key in raw:
        if key not in ("about", "include", "setting"):
            raise DefinitionError(f"{path}: {key}: there is no such key")
    settings: dict[str, Setting] = {}
    included = raw.get("include", [])
    if not isinstance(included, list) or not all(isinstance(n, str) for n in included):
        raise DefinitionError(f"{path}: include: must be a list of names")
    for name in included:
        beside = path.parent / f"{name}.toml"
        settings.update(
            load_profile(
                beside if beside.is_file() else find_profile(name), (*_above, path)
            ).settings
        )
    listed = raw.get("setting", [])
    if not isinstance(listed, list):
        raise DefinitionError(f"{path}: setting: write [[setting]]")
    own: set[str] = set()
    for number, table in enumerate(listed, start=1):
        setting = _setting(f"{path}: setting {number}", table)
        if setting.name in own:
            raise DefinitionError(f"{path}: setting {number}: {setting.name} is there twice")
        own.add(setting.name)
        settings[setting.name] = setting
    return Profile(path.stem, str(raw.get("about", "")), settings)


def refuse_denied(name: str) -> None:
    """Raise TuneError when `KIND:KEY` is on the deny-list."""
    for pattern in DENIED:
        if fnmatchcase(name, pattern):
            raise TuneError(
                f"{name} is on the deny-list ({pattern}): security settings and keys that act once"
                " are never tuned"
            )


def _setting(where: str, raw: object) -> Setting:
    if not isinstance(raw, dict):
        raise DefinitionError(f"{where}: must be a table")
    keys = ("kind", "key", "value", "reason", "source", "correctness", "receipt")
    for key in raw:
        if key not in keys:
            raise DefinitionError(f"{where}: {key}: there is no such key")
    values: dict[str, str] = {}
    for key in ("kind", "key", "value", "reason", "source", "correctness"):
        value = raw.get(key, "" if key == "correctness" else None)
        if key == "value" and isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or (not value and key != "correctness"):
            raise DefinitionError(f"{where}: {key}: must be a text")
        values[key] = value
    _check_key(where, values["kind"], values["key"])
    receipt = _receipt(where, raw["receipt"]) if "receipt" in raw else None
    if receipt is None and not values["correctness"]:
        raise DefinitionError(
            f"{where}: {values['key']} has neither a receipt nor a correctness reason",
            hint="earn one with `tegu tune prove`",
        )
    setting = Setting(**values, receipt=receipt)
    try:
        refuse_denied(setting.name)
    except TuneError as e:
        raise DefinitionError(f"{where}: {e.message}") from e
    return setting


def _check_key(where: str, kind: str, key: str) -> None:
    good = {
        "sysctl": re.fullmatch(r"[a-z][A-Za-z0-9_-]*(\.[A-Za-z0-9_*:-]+)+", key),
        "sysfs": re.fullmatch(r"/sys/[A-Za-z0-9_./:*-]+", key),
        "boot": re.fullmatch(r"[a-z][A-Za-z0-9_.-]*", key),
        "file": re.fullmatch(r"/etc/[A-Za-z0-9_./@-]+", key),
    }
    if kind not in good:
        raise DefinitionError(f"{where}: kind: must be one of {', '.join(KINDS)}")
    if good[kind] is None or ".." in key:
        raise DefinitionError(f"{where}: key: {key!r} is no {kind} key")


def _receipt(where: str, raw: Any) -> Receipt:
    try:
        found = Receipt(
            str(raw["workload"]),
            str(raw["kernel"]),
            float(raw["gain"]),
            float(raw["noise"]),
            int(raw["pairs"]),
            str(raw["date"]),
            str(raw.get("command", "")),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise DefinitionError(f"{where}: receipt: {e!r} is wrong or missing") from e
    if found.gain <= max(0.05, found.noise) or found.pairs < 3:
        raise DefinitionError(
            f"{where}: receipt: a gain of {found.gain:.1%} in {found.pairs} pairs proves nothing"
        )
    return found
