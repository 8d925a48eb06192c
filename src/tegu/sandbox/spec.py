"""What a caller asks for: a box and its limits, a program to run in it; checked at the border."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from tegu.errors import UsageError

__all__ = ["BASE_ENVIRONMENT", "CLASSES", "BoxSpec", "Limits", "RunSpec", "parse_size"]

CLASSES = ("process", "container", "gvisor", "microvm", "microvm-tcg", "tee")
BASE_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = re.compile(r"([0-9]{1,30}(?:\.[0-9]{1,30})?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_HOSTNAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_USER = re.compile(r"([0-9]{1,5})(?::([0-9]{1,5})((?:,[0-9]{1,5}){0,32}))?")
_MAX_ID = 65535
_MAX_BYTES = 96 * 1024
_MAX_DEFAULTS = 16 * 1024


def parse_size(value: int | str, what: str) -> int:
    """Return bytes: 268435456 and "256M" are the same. Raises UsageError naming `what`."""
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        found = _SIZE.fullmatch(str(value).strip())
        if found is None:
            raise UsageError(f"{what}: {value!r} is not a size", hint="write 64M, 1.5G or bytes")
        size = int(float(found[1]) * _UNITS[found[2].upper()])
    if size <= 0 or size >= 2**62:
        raise UsageError(f"{what}: {value!r} is out of range")
    return size


@dataclass(frozen=True)
class Limits:
    """What a box may use. None is no limit of its own."""

    memory: int | None = None
    """Bytes, swap included."""
    cpus: float | None = None
    """Processors, as in 0.5."""
    pids: int = 512
    """Processes and threads, the box's first process among them."""
    files: int = 1024
    """Open descriptors of one process: at least 128, which streams and secrets may take."""
    disk: int = 256 * 2**20
    """Bytes of all that is written in the box; kept in memory until the box ends."""

    def __post_init__(self) -> None:
        _range("memory", self.memory, 4 * 2**20, 2**50)
        _range("cpus", self.cpus, 0.01, 4096)
        _range("pids", self.pids, 2, 2**22)
        _range("files", self.files, 128, 2**20)
        _range("disk", self.disk, 2**16, 2**50)


@dataclass(frozen=True)
class BoxSpec:
    """A box. `timeout` is its whole life in seconds, or None.

    `template` is "host" (this machine's programs, read-only, and none of its data) or the absolute
    path of a directory that holds a root file system.
    """

    template: str = "host"
    kind: str = "container"
    limits: Limits = field(default_factory=Limits)
    timeout: float | None = None
    read_only: bool = False
    hostname: str = "box"
    init: bool = True
    """Whether a program that is run once has a first process above it, which waits for orphans.
    Without, the program itself is process 1: half a megabyte less, but signals that it does not
    handle do not reach it (pid_namespaces(7)), and its end is only told when all is gone."""
    snapshot: str = ""
    """The name of a snapshot that the box continues (classes microvm and microvm-tcg)."""
    network: str | Sequence[str] = "none"
    """What it may reach: "none", "full", or names, addresses and ports (tegu.sandbox.net.policy);
    "allow:NAME,ADDRESS" is the same as a list of them."""
    publish: Sequence[str] = ()
    """Ports of the host that lead to ports of the box, as in "8080:8000"."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables, the working directory and the user of programs that do not say their own: what
    the configuration of an image names. A user is "UID:GID[,GID...]", or "" for root."""
    cwd: str = "/"
    user: str = ""

    def __post_init__(self) -> None:
        for what in ("template", "kind", "hostname", "snapshot"):
            _text(what, getattr(self, what))
        for what in ("read_only", "init"):
            if not isinstance(getattr(self, what), bool):
                raise UsageError(f"{what}: {getattr(self, what)!r} is neither true nor false")
        if self.kind not in CLASSES:
            raise UsageError(f"class: {self.kind!r} is none of {', '.join(CLASSES)}")
        if self.template != "host" and not self.template.startswith("/"):
            raise UsageError(
                f"template: {self.template!r} is neither 'host' nor an absolute path",
                hint="a directory with a root file system in it, or a name that "
                "`tegu sandbox template list` shows",
            )
        _range("timeout", self.timeout, 0.001, 2**31)
        self._check_network()
        _variables(self.env)
        if sum(len(k) + 4 * len(v) + 8 for k, v in self.env.items()) > _MAX_DEFAULTS:
            raise UsageError(f"env: more than {_MAX_DEFAULTS} bytes of variables for every program")
        if not _text("cwd", self.cwd).startswith("/"):
            raise UsageError(f"cwd: {self.cwd!r} is not an absolute path")
        _user(self.user)
        if _HOSTNAME.fullmatch(self.hostname) is None:
            raise UsageError(f"hostname: {self.hostname!r} is not a host name")

    def _check_network(self) -> None:
        """Bring `network` and `publish` into their one form; loads what that takes only then."""
        if self.network != "none":
            from tegu.sandbox.net.policy import canonical

            object.__setattr__(self, "network", canonical(self.network))
        if self.publish != ():
            from tegu.sandbox.net.ports import check_ports

            object.__setattr__(self, "publish", check_ports(self.publish))
        if not self.init and (self.network != "none" or self.publish):
            raise UsageError(
                "network: a box without a first process of its own has none",
                hint="leave --no-init out",
            )

    def to_json(self) -> dict[str, Any]:
        """Return plain data that `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: object) -> BoxSpec:
        """Read plain data. Raises UsageError that names the field."""
        values = _fields(cls, data, "box")
        if "limits" in values:
            values["limits"] = Limits(**_fields(Limits, values["limits"], "limits"))
        return cls(**values)


@dataclass(frozen=True)
class RunSpec:
    """A program in a box: `argv`, variables added to the base environment, `cwd`, and `timeout`
    in seconds after which the program and all that it left are killed."""

    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = ""
    timeout: float | None = None
    user: str = ""
    """"UID[:GID[,GID...]]" in the box. This and `cwd` are the box's own when they are ""."""

    def __post_init__(self) -> None:
        if isinstance(self.argv, str) or not self.argv or not self.argv[0]:
            raise UsageError("argv: there is no program to run")
        for word in self.argv:
            _text("argv", word)
        _variables(self.env)
        if self.cwd and not _text("cwd", self.cwd).startswith("/"):
            raise UsageError(f"cwd: {self.cwd!r} is not an absolute path")
        _user(self.user)
        _range("timeout", self.timeout, 0.001, 2**31)
        size = sum(len(w.encode(errors="surrogateescape")) + 8 for w in self.argv)
        size += sum(
            len(k) + len(v.encode(errors="surrogateescape")) + 8 for k, v in self.env.items()
        )
        if size > _MAX_BYTES:
            raise UsageError(
                f"argv and env: {size} bytes are more than {_MAX_BYTES}",
                hint="hand large data over in a file or on stdin",
            )

    def to_json(self) -> dict[str, Any]:
        """Return plain data that `from_json` reads."""
        return {
            "argv": list(self.argv),
            "env": dict(self.env),
            "cwd": self.cwd,
            "timeout": self.timeout,
            "user": self.user,
        }

    @classmethod
    def from_json(cls, data: object) -> RunSpec:
        """Read plain data. Raises UsageError that names the field."""
        values = _fields(cls, data, "run")
        if not isinstance(values.get("argv"), list) or not isinstance(values.get("env", {}), dict):
            raise UsageError("run: argv is a list and env a table")
        return cls(**values)

    def within(self, box: BoxSpec) -> RunSpec:
        """Return it with all that it leaves to the box: whole environment, directory, user."""
        uid, mark, rest = (self.user or box.user).partition(":")
        user = f"{uid}:{rest if mark else 0}" if uid else ""
        return replace(
            self,
            env={**BASE_ENVIRONMENT, **box.env, **self.env},
            cwd=self.cwd or box.cwd,
            user=user if user != "0:0" else "",
        )


def _fields(kind: type, data: object, what: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise UsageError(f"{what}: a table is wanted")
    known = {f.name for f in fields(kind)}
    for key in data:
        if key not in known:
            raise UsageError(f"{what}: there is no field {key!r}")
    return dict(data)


def _variables(env: Mapping[str, str]) -> None:
    if not isinstance(env, Mapping):
        raise UsageError("env: a table is wanted")
    for name, value in env.items():
        if not isinstance(name, str) or _NAME.fullmatch(name) is None:
            raise UsageError(f"env: {name!r} is not the name of a variable")
        _text(f"env: {name}", value)


def _user(user: str) -> None:
    if not user:
        return
    found = _USER.fullmatch(_text("user", user))
    ids = found and [found[1], found[2] or "0", *(found[3] or "").lstrip(",").split(",")]
    if not ids or any(int(i or 0) > _MAX_ID for i in ids):
        raise UsageError(
            f"user: {user!r} is no user of a box",
            hint=f"write UID, UID:GID or UID:GID,GID..., numbers up to {_MAX_ID}",
        )


def _range(what: str, value: object, low: float, high: float) -> None:
    if value is None and what in ("memory", "cpus", "timeout"):
        return
    whole = what not in ("cpus", "timeout")
    right = isinstance(value, int) if whole else isinstance(value, int | float)
    if not right or isinstance(value, bool):
        raise UsageError(f"{what}: {value!r} is not a {'whole ' if whole else ''}number")
    assert isinstance(value, int | float)
    if not low <= value <= high:
        raise UsageError(f"{what}: {value} is not between {low:g} and {high:g}")


def _text(what: str, value: object) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{what}: {value!r} is not text")
    if "\0" in value:
        raise UsageError(f"{what}: a NUL character cannot be passed on")
    try:
        value.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        raise UsageError(f"{what}: {value!a} holds what is no character") from None
    return value
