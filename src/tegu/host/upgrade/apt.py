"""apt, as an upgrade drives it: what would change, and the change itself, without questions."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tegu.errors import UpgradeError
from tegu.process import CommandError, require, run

__all__ = ["Update", "available", "follow", "install", "parse_simulation", "refresh"]

_HOURS = 3600
# A kernel has its boot file on the EFI system partition, which no snapshot goes back to: kernels
# are installed beside each other, by apt itself.
_KERNELS = re.compile(r"linux-(image|headers|modules)-")
# apt-get(8), -s: "Inst NAME [OLD] (NEW ORIGIN:SUITE [ARCH])", and "Remv NAME [OLD]".
_INSTALL = re.compile(r"^Inst (\S+) (?:\[(\S+)\] )?\((\S+) ([^)]*)\)")
_REMOVE = re.compile(r"^Remv (\S+) (?:\[(\S+)\])?")
_KEEP = (
    *("-o", "Dpkg::Options::=--force-confdef"),
    *("-o", "Dpkg::Options::=--force-confold"),  # what the owner changed stays
)


@dataclass(frozen=True, slots=True)
class Update:
    """One package: `old` is empty for one that is new, `new` for one that goes."""

    name: str
    old: str
    new: str
    origin: str

    @property
    def security(self) -> bool:
        """Whether a suite of security updates brings it."""
        return "security" in self.origin.lower()

    @property
    def kernel(self) -> bool:
        """Whether it is a kernel, which is not part of an upgrade."""
        return _KERNELS.match(self.name) is not None


def refresh() -> None:
    """Fetch the indexes; UpgradeError when one cannot be had or does not verify.

    Without --error-on=any apt keeps old lists and reports success (apt-get(8)).
    """
    _apt("update", "--error-on=any")


def available(*, security: bool = False) -> list[Update]:
    """Return what an upgrade would change, kernels too, by the indexes that are here."""
    # What is being rolled out waits for this machine's turn (Phased-Update-Percentage).
    found = parse_simulation(_apt("-s", "-o", "APT::Get::Phase-Policy=true", "dist-upgrade"))
    return [u for u in found if u.security] if security else found


def parse_simulation(text: str) -> list[Update]:
    """Return what `apt-get -s` says that it would do, by name."""
    found = {}
    for line in text.splitlines():
        if m := _INSTALL.match(line):
            found[m[1]] = Update(m[1], m[2] or "", m[3], m[4])
        elif m := _REMOVE.match(line):
            found[m[1]] = Update(m[1], m[2] or "", "", "")
    return [found[name] for name in sorted(found)]


def install(updates: Sequence[Update]) -> None:
    """Bring the system to the versions of `updates`; UpgradeError with dpkg's own words."""
    words = [f"{u.name}={u.new}" if u.new else f"{u.name}-" for u in updates]
    guard = ["--no-remove"] if all(u.new for u in updates) else []
    asked = set(_mark("showmanual"))
    _apt("install", "--yes", *guard, *_KEEP, *words)
    # To apt, what is installed by name was asked for by name; most of it only came along.
    came = sorted({u.name for u in updates if u.new} - asked)
    if came:
        _mark("auto", *came)


def _mark(*words: str) -> list[str]:
    command = [require("apt-mark", package="apt"), *words]
    try:
        return run(command, timeout=300).stdout.split()
    except CommandError as e:
        raise UpgradeError(e.message) from e


def follow(release: str, sources: Path = Path("/etc/apt/sources.list.d/tegu.sources")) -> None:
    """Make the machine follow a snapshot or channel of Tegu's repository instead of another.

    A release's snapshot has the component `snapshot` (docs/repository.md).
    """
    from tegu.files import write_atomic

    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", release):
        raise UpgradeError(f"{release!r} is no name of a release or channel")
    try:
        text = sources.read_text()
    except FileNotFoundError as e:
        raise UpgradeError(
            f"{sources} is not there: this machine follows no repository of Tegu",
            hint="install tegu-release",
        ) from e
    component = "snapshot" if release[0].isdigit() else "main"
    text = re.sub(r"(?m)^Suites:.*$", f"Suites: {release}", text)
    text = re.sub(r"(?m)^Components:.*$", f"Components: {component}", text)
    write_atomic(sources, text)


def _apt(*words: str) -> str:
    environment = {
        **{k: v for k, v in os.environ.items() if k.lower().endswith("_proxy")},
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LC_ALL": "C.UTF-8",
        "DEBIAN_FRONTEND": "noninteractive",
        "NEEDRESTART_MODE": "l",
    }
    command = [require("apt-get", package="apt"), "-q", "-o", "DPkg::Lock::Timeout=300", *words]
    try:
        return run(command, env=environment, timeout=4 * _HOURS).stdout
    except CommandError as e:
        said = (e.completed.stderr + e.completed.stdout).splitlines() if e.completed else []
        errors = [s.strip() for s in said if s.startswith(("E:", "Err:", "dpkg: error"))]
        shown = "; ".join(errors[:3]) or e.message
        raise UpgradeError(f"apt-get {words[0]} failed: {shown}") from e
