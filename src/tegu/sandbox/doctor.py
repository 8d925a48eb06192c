"""Which classes this host can run, and what their limits rest on: tried out, never assumed."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from tegu.errors import TeguError, UnsupportedError
from tegu.linux import landlock
from tegu.linux.cgroups import Groups
from tegu.sandbox.spec import CLASSES

__all__ = ["Finding", "examine", "limits", "require"]

_NO_DRIVER = "this version of Tegu has no driver for it"


@dataclass(frozen=True)
class Finding:
    """One line of the report: `reason` says why it is not `available`, `detail` how it is."""

    name: str
    kind: Literal["class", "limit", "hardening", "speed", "network"]
    available: bool
    reason: str = ""
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


@cache
def _process() -> str:
    if landlock.abi() == 0:
        return "this kernel has no Landlock, or it is off"
    return _container()


@cache
def _container() -> str:
    try:
        ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return "the library libseccomp is not installed (package libseccomp2)"
    return ""


def _gvisor() -> str:
    from tegu.sandbox.gvisor.trial import why_not

    return why_not()


def _microvm() -> str:
    from tegu.sandbox.vm.drivers import why_not

    return why_not("microvm")


def _microvm_tcg() -> str:
    from tegu.sandbox.vm.drivers import why_not

    return why_not("microvm-tcg")


def _tee() -> str:
    found = [d for d in ("/dev/sev", "/dev/tdx_guest", "/dev/sev-guest") if Path(d).exists()]
    return _NO_DRIVER if found else "no hardware for it here: neither SEV nor TDX is offered"


_REASONS: dict[str, Callable[[], str]] = {
    "process": _process,
    "container": _container,
    "gvisor": _gvisor,
    "microvm": _microvm,
    "microvm-tcg": _microvm_tcg,
    "tee": _tee,
}


def require(kind: str) -> None:
    """Raise UnsupportedError when the class `kind` cannot be had here."""
    reason = _REASONS[kind]()
    if reason:
        raise UnsupportedError(f"class {kind}: {reason}", hint="see `tegu sandbox doctor`")


def limits(groups: Groups) -> list[Finding]:
    """Return what enforces each limit for this supervisor, and what else confines a box."""
    found = []
    for name, controller in (("memory", "memory"), ("cpus", "cpu")):
        provider = groups.provider(controller)
        why = "" if provider else groups.why.get(controller, "no cgroups")
        slow = "; costs a start some milliseconds" if provider == "cgroup v1" else ""
        found.append(Finding(name, "limit", bool(provider), why, provider + slow))
    rlimit = "rlimit, counted for each user id of the box: its root may take many"
    pids = groups.provider("pids")
    found += [
        Finding("pids", "limit", True, "", f"{pids} for the whole box" if pids else rlimit),
        Finding("files", "limit", True, "", "rlimit, for each process"),
        Finding("disk", "limit", True, "", "size of the tmpfs that holds what a box writes"),
        Finding("timeout", "limit", True, "", "the supervisor kills the box's pid namespace"),
    ]
    version = landlock.abi()
    what = f"Landlock version {version}"
    if version == 0:
        found.append(Finding("landlock", "hardening", False, "this kernel has none, or it is off"))
    else:
        scope = "" if version >= 6 else ", without scopes for signals and sockets (6 has them)"
        found.append(Finding("landlock", "hardening", True, "", what + scope))
    return found


def launcher(*, there: bool) -> Finding:
    """Return whether boxes are started by the compiled launcher."""
    why = "not built, or not wanted: boxes start by Python, some milliseconds later"
    return Finding("launcher", "speed", there, "" if there else why, "compiled" if there else "")


def network(why: str) -> Finding:
    """Return whether boxes can have networks; `why` they cannot."""
    how = "by names, addresses and ports; steered by BPF, carried by a relay without rights"
    return Finding("network", "network", not why, why, "" if why else how)


def examine(
    try_class: Callable[[str], None], ask_limits: Callable[[], list[dict[str, Any]]]
) -> list[Finding]:
    """Return the whole report. `try_class` runs a program in a box, or raises TeguError."""
    found = []
    for kind in CLASSES:
        reason, detail = _REASONS[kind](), ""
        if kind in ("process", "container", "gvisor") and not reason:
            try:
                try_class(kind)
            except TeguError as e:
                reason = e.message.removeprefix("unsupported: ").removeprefix(f"class {kind}: ")
            detail = "" if reason else "a program ran in it"
        elif kind.startswith("microvm") and not reason:
            from tegu.sandbox.state import state_directory
            from tegu.sandbox.vm.trial import try_boot

            reason, detail = try_boot(kind, state_directory())
        found.append(Finding(kind, "class", not reason, reason, detail))
    try:
        found += [Finding(**finding) for finding in ask_limits()]
    except TeguError as e:
        found.append(Finding("limits", "limit", False, e.message))
    return found
