"""What a container's process is: user, capabilities, limits, filter, program.

config.md, "Process"; capabilities(7), credentials(7), seccomp(2). `Identity` is made while the
host is in sight; `become` is called in the container and changes this very process.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from tegu.errors import UnsupportedError
from tegu.linux import confine, libc
from tegu.oci.fields import ConfigError
from tegu.oci.state import OciError

TYPE_CHECKING = False  # see __init__.py
if TYPE_CHECKING:
    from typing import Any

__all__ = ["RLIMITS", "Identity", "apply_from_outside", "enter_directory", "find_program", "start"]

_PR_SET_KEEPCAPS = 8
_SYS_ADMIN = 1 << confine.CAPABILITIES.index("sys_admin")
# asm-generic/resource.h: the same on all architectures of ours.
RLIMITS = {
    f"RLIMIT_{name}": number
    for number, name in enumerate(
        [
            "CPU",
            "FSIZE",
            "DATA",
            "STACK",
            "CORE",
            "RSS",
            "NPROC",
            "NOFILE",
            "MEMLOCK",
            "AS",
            "LOCKS",
            "SIGPENDING",
            "MSGQUEUE",
            "NICE",
            "RTPRIO",
            "RTTIME",
        ]
    )
}
_IO_CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
_POLICIES = {
    "SCHED_OTHER": 0,
    "SCHED_FIFO": 1,
    "SCHED_RR": 2,
    "SCHED_BATCH": 3,
    "SCHED_ISO": -1,
    "SCHED_IDLE": 5,
    "SCHED_DEADLINE": 6,
}
_SCHED_FLAGS = {
    f"SCHED_FLAG_{name}": 1 << bit
    for bit, name in enumerate(
        [
            "RESET_ON_FORK",
            "RECLAIM",
            "DL_OVERRUN",
            "KEEP_POLICY",
            "KEEP_PARAMS",
            "UTIL_CLAMP_MIN",
            "UTIL_CLAMP_MAX",
        ]
    )
}
_PERSONALITIES = {"LINUX": 0x0000, "LINUX32": 0x0008}
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Identity:
    """All that a process becomes in its last steps, checked and compiled."""

    def __init__(
        self, process: dict[str, Any], linux: dict[str, Any], *, at: str = "process"
    ) -> None:
        user = process.get("user", {})
        self.process = process
        self.args: list[str] = process["args"]
        self.cwd: str = process["cwd"]
        self.uid: int = user.get("uid", 0)
        self.gid: int = user.get("gid", 0)
        self.groups: list[int] = user.get("additionalGids", [])
        self.umask: int = user.get("umask", 0o022)
        self.no_new_privileges: bool = process.get("noNewPrivileges", False)
        self.unknown: list[str] = []
        self.capabilities = {
            name: self._mask(process.get("capabilities", {}).get(name, []))
            for name in ("bounding", "effective", "permitted", "inheritable", "ambient")
        }
        self.filter = b""
        self.filter_flags = 0
        if linux.get("seccomp"):
            from tegu.oci import seccomp

            self.filter = seccomp.compile_profile(linux["seccomp"])
            self.filter_flags = seccomp.flags(linux["seccomp"])
        self.label = _label(process, at)
        self.label_fd = -1
        self.personality = _personality(linux.get("personality", {}))
        _check_outside(process, at)

    def _mask(self, names: list[str]) -> int:
        mask = 0
        for name in names:
            short = name.upper().removeprefix("CAP_").lower()
            if short in confine.CAPABILITIES:
                mask |= 1 << confine.CAPABILITIES.index(short)
            elif name not in self.unknown:
                self.unknown.append(name)
        return mask

    def see_host(self, proc: int) -> None:
        """Open what is needed of the host's /proc (`proc`, which was looked at) while it is there.

        Must run in the process that is to become this.
        """
        if self.label is not None:
            self.label_fd = os.open(self.label[0], os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)

    def environment(self) -> dict[str, str]:
        """Return the environment, with HOME as passwd(5) has it where none was given."""
        env = dict(v.split("=", 1) for v in self.process.get("env", []))
        if "HOME" not in env:
            env["HOME"] = _home(self.uid)
        return env

    def become(self) -> list[str]:
        """Take on the user and the capabilities; returns the names of those left out.

        What can only be done as the last thing is left to `start`.
        """
        try:
            os.setgroups(self.groups)
        except PermissionError:
            # A user's own namespace may forbid it (user_namespaces(7)): then there are none.
            if self.groups:
                raise
        os.umask(self.umask)
        available = confine.permitted_capabilities()
        wanted = self.capabilities
        lost = 0
        for name, mask in wanted.items():
            # The bounding set is not granted but left: what it lacks already is no loss.
            if name != "bounding":
                lost |= mask & ~available
            wanted[name] = mask & available
        left_out = [n for i, n in enumerate(confine.CAPABILITIES) if lost >> i & 1]
        if available >> confine.CAPABILITIES.index("setpcap") & 1:
            numbers = {i for i in range(64) if wanted["bounding"] >> i & 1}
            confine.bound_capabilities(numbers)
        libc.prctl(_PR_SET_KEEPCAPS, 1)
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)
        libc.prctl(_PR_SET_KEEPCAPS, 0)
        extra = 0
        if self.filter and not self.no_new_privileges:
            # A filter needs either of the two; the capability goes right after it.
            extra = _SYS_ADMIN & available
        confine.undumpable()  # a change of user takes this back
        self._set(extra)
        if self.personality is not None:
            libc.call("personality", self.personality, what="personality")
        return left_out

    def _set(self, extra: int) -> None:
        # capset(2): what is inheritable must be permitted or so already; what is effective too.
        wanted = self.capabilities
        permitted = wanted["permitted"] | extra
        effective = (wanted["effective"] & wanted["permitted"]) | extra
        before = confine.permitted_capabilities()
        if extra:
            confine.set_capabilities(before, before, wanted["inheritable"])
            confine.raise_ambient(wanted["ambient"] & wanted["permitted"] & wanted["inheritable"])
        confine.set_capabilities(effective, permitted, wanted["inheritable"])
        if not extra:
            confine.raise_ambient(wanted["ambient"] & wanted["permitted"] & wanted["inheritable"])

    def start(self, program: str, env: dict[str, str]) -> None:
        """Apply the filter and become `program`. Returns only by raising OSError."""
        if self.label is not None:
            os.write(self.label_fd, self.label[1].encode())
        if self.no_new_privileges:
            confine.no_new_privileges()
        if self.filter:
            confine.load_filter(self.filter, self.filter_flags)
            if not self.no_new_privileges:
                self._set(0)
        os.execve(program, self.args, env)


def start(identity: Identity, program: str, env: dict[str, str]) -> None:
    """Become `program`; raises OciError with the reason when it does not start."""
    try:
        identity.start(program, env)
    except OSError as e:
        raise OciError(f"cannot start {identity.args[0]}: {(e.strerror or '').lower()}") from e


def _label(process: dict[str, Any], at: str) -> tuple[str, str] | None:
    """Return the file below /proc and the text that gives the next program its label."""
    profile, label = process.get("apparmorProfile"), process.get("selinuxLabel")
    if profile:
        if not _says("/sys/module/apparmor/parameters/enabled", "Y"):
            raise UnsupportedError(f"{at}.apparmorProfile: this kernel runs no AppArmor")
        here = "self/attr/apparmor/exec"
        file = here if os.path.exists(f"/proc/{here}") else "self/attr/exec"
        return file, f"exec {profile}"
    if label:
        if not os.path.exists("/sys/fs/selinux/enforce"):
            raise UnsupportedError(f"{at}.selinuxLabel: this kernel runs no SELinux")
        return "self/attr/exec", label
    return None


def _says(path: str, text: str) -> bool:
    try:
        with open(path) as f:
            return f.read().strip() == text
    except OSError:
        return False


def _personality(personality: dict[str, Any]) -> int | None:
    if not personality:
        return None
    domain = personality.get("domain", "")
    if domain not in _PERSONALITIES:
        known = ", ".join(_PERSONALITIES)
        raise ConfigError(f"linux.personality.domain: {domain or 'missing'}: one of {known}")
    return _PERSONALITIES[domain]


def _home(uid: int) -> str:
    # In the container, whose files may be anything: no device, and no more than a passwd has.
    with suppress(OSError):
        fd = os.open("/etc/passwd", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                for line in os.read(fd, 1 << 20).decode(errors="replace").splitlines():
                    parts = line.split(":")
                    if len(parts) == 7 and parts[2] == str(uid) and parts[5]:
                        return parts[5]
        finally:
            os.close(fd)
    return "/"


def enter_directory(path: str) -> None:
    """chdir(2), refusing a place outside the root (CVE-2024-21626). Raises OciError."""
    try:
        os.chdir(path)
        here = os.getcwd()
    except OSError as e:
        text = (e.strerror or "error").lower()
        raise OciError(f"process.cwd: {path}: {text}") from e
    # Outside the root getcwd(2) fails, or answers with "(unreachable)" in front.
    if not here.startswith("/"):
        raise OciError(f"process.cwd: {path}: outside the container's root")


def find_program(name: str, env: dict[str, str]) -> str:
    """Return the path of the program `name`, as execvp(3) finds it. Raises OciError."""
    if "/" in name:
        _check_program(name)
        return name
    denied = False
    for directory in env.get("PATH", _DEFAULT_PATH).split(":"):
        path = f"{directory or '.'}/{name}"
        try:
            _check_program(path)
        except OciError as e:
            denied = denied or "permission denied" in e.message
        else:
            return path
    if denied:
        raise OciError(f"cannot start {name}: permission denied")
    raise OciError(f"executable file {name!r} not found in $PATH: no such file or directory")


def _check_program(path: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except OSError as e:
        raise OciError(f"cannot start {path}: {(e.strerror or '').lower()}") from e
    if not stat.S_ISREG(mode) or not os.access(path, os.X_OK, effective_ids=True):
        raise OciError(f"cannot start {path}: permission denied")


# -- what the runtime does to the process from outside, with its own privileges


def _check_outside(process: dict[str, Any], at: str) -> None:
    for i, limit in enumerate(process.get("rlimits", [])):
        if limit["type"] not in RLIMITS:
            raise ConfigError(f"{at}.rlimits[{i}].type: {limit['type']}: no such limit")
        if limit["soft"] > limit["hard"]:
            raise ConfigError(f"{at}.rlimits[{i}]: soft is more than hard")
    if process.get("ioPriority"):
        _io_priority(process["ioPriority"], at)
    if process.get("scheduler"):
        _scheduler(process["scheduler"], at)


def _io_priority(io: dict[str, Any], at: str) -> int:
    kind: str = io.get("class", "")
    level: int = io.get("priority", 0)
    if kind not in _IO_CLASSES:
        raise ConfigError(f"{at}.ioPriority.class: {kind or 'missing'}: no such class")
    if not 0 <= level <= 7:
        raise ConfigError(f"{at}.ioPriority.priority: from 0 to 7")
    return _IO_CLASSES[kind] << 13 | level


def _scheduler(scheduler: dict[str, Any], at: str) -> bytes:
    """Return a struct sched_attr (sched_setattr(2))."""
    import struct

    policy = _POLICIES.get(scheduler.get("policy", ""), -1)
    if policy < 0:
        raise ConfigError(f"{at}.scheduler.policy: {scheduler.get('policy')}: no such policy")
    mask = 0
    for name in scheduler.get("flags", []):
        if name not in _SCHED_FLAGS:
            raise ConfigError(f"{at}.scheduler.flags: {name}: no such flag")
        mask |= _SCHED_FLAGS[name]
    if not -20 <= scheduler.get("nice", 0) <= 19:
        raise ConfigError(f"{at}.scheduler.nice: from -20 to 19")
    if not 0 <= scheduler.get("priority", 0) <= 99:
        raise ConfigError(f"{at}.scheduler.priority: from 0 to 99")
    times = (scheduler.get(name, 0) for name in ("runtime", "deadline", "period"))
    nice, priority = scheduler.get("nice", 0), scheduler.get("priority", 0)
    return struct.pack("=IIQiIQQQ", 48, policy, mask, nice, priority, *times)


def apply_from_outside(pid: int, process: dict[str, Any], at: str = "process") -> None:
    """Set limits, oomScoreAdj, scheduler and ioPriority of `pid`. Raises OciError."""
    field = ""
    try:
        field = "scheduler"
        if process.get("scheduler"):
            libc.syscall("sched_setattr", pid, _scheduler(process["scheduler"], at), 0)
        field = "ioPriority"
        if process.get("ioPriority"):
            libc.syscall("ioprio_set", 1, pid, _io_priority(process["ioPriority"], at))
        field = "oomScoreAdj"
        if process.get("oomScoreAdj") is not None:
            with open(f"/proc/{pid}/oom_score_adj", "w") as f:
                f.write(str(process["oomScoreAdj"]))
        field = "rlimits"
        if process.get("rlimits"):
            from resource import prlimit

            for limit in process["rlimits"]:
                both = (_limit(limit["soft"]), _limit(limit["hard"]))
                prlimit(pid, RLIMITS[limit["type"]], both)
    except (OSError, ValueError) as e:
        reason = (getattr(e, "strerror", None) or str(e)).lower()
        raise OciError(f"{at}.{field}: {reason}") from e


def _limit(value: int) -> int:
    return -1 if value >= 2**63 else value  # RLIM_INFINITY
