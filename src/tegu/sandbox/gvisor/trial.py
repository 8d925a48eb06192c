"""Whether runsc works here: one real start with a deadline, for each way it has to trap calls.

The answer is kept until this host boots anew or its runsc changes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from tegu.errors import SandboxError, TeguError
from tegu.files import write_atomic
from tegu.process import CommandError, run
from tegu.sandbox.state import make_state

__all__ = ["PLATFORMS", "find_runsc", "main", "try_runsc", "why_not"]

PLATFORMS = ("systrap", "ptrace")
"""In the order they are tried. Not kvm: one that is broken hangs, and wants more of the host."""
DEADLINE = 30.0
"""Seconds; a start takes a fraction of one."""


def find_runsc() -> str | None:
    """Return the path of runsc, or None."""
    return shutil.which("runsc", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/usr/bin")


def why_not() -> str:
    """Return why this class cannot be had, as far as that shows without a start; else ""."""
    return "" if find_runsc() else "runsc is not installed (package runsc)"


def try_runsc(state: Path, *, deadline: float = DEADLINE) -> tuple[str, str]:
    """Return (the platform that works, "") or ("", why none does)."""
    reason = why_not()
    if reason:
        return "", reason
    runsc = find_runsc()
    assert runsc is not None
    key, file = _key(runsc), state / "runsc.json"
    try:
        known = json.loads(file.read_bytes())
        if known["key"] == key:
            return str(known["platform"]), str(known["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        known = None
    reasons = []
    platform = ""
    for platform in PLATFORMS:
        reason = _start(runsc, platform, deadline)
        if not reason:
            break
        reasons.append(f"{platform}: {reason}")
    answer = ("", "; ".join(reasons)) if reason else (platform, "")
    with suppress(OSError, SandboxError):
        make_state(state)
        body = {"key": key, "platform": answer[0], "reason": answer[1]}
        write_atomic(file, json.dumps(body, indent=1) + "\n")
    return answer


def _start(runsc: str, platform: str, deadline: float) -> str:
    """Run /bin/true of this machine under runsc; return why that failed, or ""."""
    config = {
        "ociVersion": "1.0.2",
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["/bin/true"], "cwd": "/"},
        "root": {"path": "/", "readonly": True},
        "linux": {"namespaces": [{"type": n} for n in ("pid", "network", "ipc", "uts", "mount")]},
    }
    try:
        with tempfile.TemporaryDirectory(prefix="tegu-runsc-") as name:
            place = Path(name)
            (place / "config.json").write_text(json.dumps(config))
            # In a pid namespace that ends with unshare(1): whatever hangs is gone after it.
            words = [
                *("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--net", runsc),
                *("--root", str(place / "state"), f"--platform={platform}", "--network=none"),
                *("--ignore-cgroups", "run", "--bundle", str(place), "trial"),
            ]
            # As another user it mounts over $TMPDIR, which it must be able to reach.
            run(words, timeout=deadline, env={**os.environ, "TMPDIR": "/tmp"})
    except CommandError as e:
        done = e.completed
        if done is None:
            return f"/bin/true did not end within {deadline:g} s"
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return lines[-1].strip()[:300] if lines else e.message
    except (OSError, TeguError) as e:
        return str(e)
    return ""


def _key(runsc: str) -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    about = Path(runsc).stat()
    rest = (boot, runsc, about.st_mtime_ns, about.st_size, PLATFORMS)
    return hashlib.sha256(repr(rest).encode()).hexdigest()[:32]


def main(arguments: list[str]) -> None:
    """Try, and print [platform, reason] as JSON; for the supervisor, which must not wait itself."""
    json.dump(try_runsc(Path(arguments[0])), sys.stdout)
