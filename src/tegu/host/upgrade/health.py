"""Is the machine well? Units that failed, checks of its owner, and settings that got lost."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tegu.process import CommandError, run

__all__ = ["CHECKS", "changed_settings", "effective_settings", "failed_units", "problems"]

CHECKS = Path("/etc/tegu/health.d")
"""Programs of the machine's owner: each must end with 0 for the machine to be well."""
_SECONDS = 900


def failed_units() -> list[str]:
    """Return the units that have failed, as systemd says (systemctl(1))."""
    command = ["systemctl", "list-units", "--state=failed", "--plain", "--no-legend", "--full"]
    said = run(command, timeout=60).stdout
    return sorted(line.split()[0] for line in said.splitlines() if line.strip())


def problems(before: Sequence[str] = (), *, checks: Path = CHECKS, wait: bool = True) -> list[str]:
    """Return what is wrong, one line each; units that had failed `before` do not count.

    With `wait` it first waits until systemd has done starting.
    """
    found = []
    if wait:
        try:
            run(["systemctl", "is-system-running", "--wait"], check=False, timeout=_SECONDS)
        except CommandError:
            found.append(f"the system was still starting after {_SECONDS} s")
    found += [f"the unit {unit} has failed" for unit in failed_units() if unit not in before]
    if checks.is_dir():
        for program in sorted(checks.iterdir()):
            if not program.is_file() or not program.stat().st_mode & 0o100:
                continue
            try:
                run([program], timeout=_SECONDS)
            except CommandError as e:
                found.append(f"the check {program.name}: {e.message}")
    return found


def effective_settings() -> dict[str, str]:
    """Return the kernel settings that configuration speaks of, as they are now.

    Upgrades were seen to lose an edited /etc/sysctl.conf while apt reported success.
    """
    try:
        said = run(["/usr/lib/systemd/systemd-sysctl", "--cat-config"], timeout=60).stdout
    except CommandError:
        return {}
    found = {}
    for line in said.splitlines():
        match = re.match(r"\s*-?([A-Za-z0-9_./-]+)\s*=", line)
        if match is None:
            continue
        name = match[1]
        path = Path("/proc/sys") / (name if "/" in name else name.replace(".", "/"))
        try:
            found[name] = " ".join(path.read_text().split())
        except OSError:
            continue
    return found


def changed_settings(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Return one line for each setting that was there before and is another now."""
    found = []
    for name, value in sorted(before.items()):
        path = Path("/proc/sys") / (name if "/" in name else name.replace(".", "/"))
        now = after.get(name)
        if now is None:
            try:
                now = " ".join(path.read_text().split())
            except OSError:
                continue
        if now != value:
            found.append(f"{name}: {value} before, {now} now")
    return found
