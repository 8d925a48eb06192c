"""config.json and process.json: read, checked field by field, and checked against themselves.

What is returned are the checked objects themselves, as the specification shapes them: the table
in `fields` has seen to it that each value is of its kind.
"""

from __future__ import annotations

import json
import os

from tegu.linux import libc
from tegu.oci.fields import ConfigError, check

TYPE_CHECKING = False  # see __init__.py
if TYPE_CHECKING:
    from typing import Any

__all__ = ["NAMESPACES", "Config", "load", "load_process", "read_json"]

_MOST = 16 << 20
"""Bytes of a config.json; real ones have some tens of thousands."""

NAMESPACES = {
    "user": (libc.CLONE_NEWUSER, "user"),
    "mount": (libc.CLONE_NEWNS, "mnt"),
    "pid": (libc.CLONE_NEWPID, "pid"),
    "network": (libc.CLONE_NEWNET, "net"),
    "ipc": (libc.CLONE_NEWIPC, "ipc"),
    "uts": (libc.CLONE_NEWUTS, "uts"),
    "cgroup": (libc.CLONE_NEWCGROUP, "cgroup"),
    "time": (libc.CLONE_NEWTIME, "time"),
}
"""The specification's types of namespaces: the flag of clone(2), and the name in /proc/PID/ns."""


class Config:
    """A bundle's configuration; `raw` is the checked object, `bundle` an absolute path."""

    __slots__ = ("bundle", "linux", "mounts", "namespaces", "process", "raw", "rootfs")

    def __init__(self, raw: dict[str, Any], bundle: str) -> None:
        self.raw = raw
        self.bundle = bundle
        self.rootfs: str = os.path.join(bundle, raw["root"]["path"])
        self.process: dict[str, Any] = raw.get("process", {})
        self.linux: dict[str, Any] = raw.get("linux", {})
        self.mounts: list[dict[str, Any]] = raw.get("mounts", [])
        self.namespaces: dict[str, str] = {
            n["type"]: n.get("path", "") for n in self.linux.get("namespaces", [])
        }

    def is_new(self, namespace: str) -> bool:
        """Whether the container gets a namespace of its own of this type."""
        return self.namespaces.get(namespace) == ""

    def hooks(self, name: str) -> list[dict[str, Any]]:
        """Return the hooks of this name, in their order."""
        found: list[dict[str, Any]] = self.raw.get("hooks", {}).get(name, [])
        return found


def read_json(path: str | int) -> Any:
    """Return what the JSON file at `path` (or descriptor) says. Raises ConfigError."""
    try:
        with open(path, "rb") as f:
            data = f.read(_MOST + 1)
    except OSError as e:
        raise ConfigError(f"cannot read {path}: {(e.strerror or 'error').lower()}") from e
    if len(data) > _MOST:
        raise ConfigError(f"{path}: longer than {_MOST >> 20} MiB")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as e:
        raise ConfigError(f"{path}: not JSON: {e}") from e


def load(bundle: str) -> Config:
    """Read and check `bundle`/config.json. Raises ConfigError, UnsupportedError."""
    bundle = os.path.abspath(bundle)
    return checked(read_json(os.path.join(bundle, "config.json")), bundle)


def checked(value: Any, bundle: str) -> Config:
    """Check parsed JSON as the configuration of `bundle`. Raises ConfigError, UnsupportedError."""
    raw = check(value)
    version = raw.get("ociVersion", "")
    if not version.startswith("1."):
        raise ConfigError(f"ociVersion: {version or 'missing'}: this runtime knows 1.x")
    if not raw.get("root", {}).get("path"):
        raise ConfigError("root.path: missing")
    _check_linux(raw.get("linux", {}))
    config = Config(raw, bundle)
    if "mount" not in config.namespaces or not config.is_new("mount"):
        raise ConfigError("linux.namespaces: a container needs a new namespace of type mount")
    if not config.process:
        raise ConfigError("process: missing")
    check_process(config.process)
    for name in ("hostname", "domainname"):
        if raw.get(name) and "uts" not in config.namespaces:
            raise ConfigError(f"{name}: needs a namespace of type uts in linux.namespaces")
    if config.linux.get("timeOffsets") and not config.is_new("time"):
        raise ConfigError("linux.timeOffsets: needs a new namespace of type time")
    mapped = config.linux.get("uidMappings") or config.linux.get("gidMappings")
    if mapped and "user" not in config.namespaces:
        raise ConfigError("linux.uidMappings: needs a namespace of type user in linux.namespaces")
    if config.is_new("user"):
        for name in ("uidMappings", "gidMappings"):
            if not config.linux.get(name):
                raise ConfigError(f"linux.{name}: missing, for a new namespace of type user")
    for i, mount in enumerate(config.mounts):
        if not mount.get("destination", "").startswith("/"):
            raise ConfigError(f"mounts[{i}].destination: must be an absolute path")
    for name, hooks in raw.get("hooks", {}).items():
        for i, hook in enumerate(hooks):
            if not hook.get("path", "").startswith("/"):
                raise ConfigError(f"hooks.{name}[{i}].path: must be an absolute path")
            if hook.get("timeout", 1) <= 0:
                raise ConfigError(f"hooks.{name}[{i}].timeout: must be more than 0 seconds")
    return config


def _check_linux(linux: dict[str, Any]) -> None:
    seen: set[str] = set()
    for i, namespace in enumerate(linux.get("namespaces", [])):
        kind = namespace.get("type", "")
        at = f"linux.namespaces[{i}]"
        if kind not in NAMESPACES:
            raise ConfigError(f"{at}.type: {kind or 'missing'}: one of {', '.join(NAMESPACES)}")
        if kind in seen:
            raise ConfigError(f"{at}.type: {kind} is there twice")
        seen.add(kind)
        path = namespace.get("path", "")
        if path and not path.startswith("/"):
            raise ConfigError(f"{at}.path: must be an absolute path")
        if path and kind == "mount":
            raise ConfigError(f"{at}.path: {kind} can only be new")
    for i, device in enumerate(linux.get("devices", [])):
        at = f"linux.devices[{i}]"
        if not device.get("path", "").startswith("/"):
            raise ConfigError(f"{at}.path: must be an absolute path")
        if device.get("type") not in ("c", "b", "u", "p"):
            raise ConfigError(f"{at}.type: one of c, b, u, p")
        if device["type"] != "p" and not ("major" in device and "minor" in device):
            raise ConfigError(f"{at}: major and minor are missing")
    for name in ("maskedPaths", "readonlyPaths"):
        for i, path in enumerate(linux.get(name, [])):
            if not path.startswith("/"):
                raise ConfigError(f"linux.{name}[{i}]: must be an absolute path")
    clocks = set(linux.get("timeOffsets", {})) - {"monotonic", "boottime"}
    if clocks:
        raise ConfigError(f"linux.timeOffsets.{min(clocks)}: one of monotonic, boottime")


def check_process(process: dict[str, Any], at: str = "process") -> None:
    """Check one process (of a config.json or of `exec`) against itself. Raises ConfigError."""
    if not process.get("args"):
        raise ConfigError(f"{at}.args: missing")
    if not process["args"][0]:
        raise ConfigError(f"{at}.args[0]: must not be empty")
    if not process.get("cwd", "").startswith("/"):
        raise ConfigError(f"{at}.cwd: must be an absolute path")
    for i, variable in enumerate(process.get("env", [])):
        if "=" not in variable[1:]:
            raise ConfigError(f"{at}.env[{i}]: must be NAME=VALUE")
    for name, top in (("uid", 2**32 - 2), ("gid", 2**32 - 2), ("umask", 0o777)):
        if process.get("user", {}).get(name, 0) > top:
            raise ConfigError(f"{at}.user.{name}: at most {top}")
    for i, gid in enumerate(process.get("user", {}).get("additionalGids", [])):
        if gid > 2**32 - 2:
            raise ConfigError(f"{at}.user.additionalGids[{i}]: at most {2**32 - 2}")
    if not -1000 <= process.get("oomScoreAdj", 0) <= 1000:
        raise ConfigError(f"{at}.oomScoreAdj: from -1000 to 1000")
    for i, limit in enumerate(process.get("rlimits", [])):
        if not {"type", "soft", "hard"} <= set(limit):
            raise ConfigError(f"{at}.rlimits[{i}]: needs type, soft and hard")
    size = process.get("consoleSize", {})
    if size and not all(0 <= size.get(k, -1) < 65536 for k in ("height", "width")):
        raise ConfigError(f"{at}.consoleSize: needs height and width, from 0 to 65535")


def load_process(path: str) -> dict[str, Any]:
    """Read and check the process.json of `exec --process`. Raises ConfigError, UnsupportedError."""
    process: dict[str, Any] = check(read_json(path), "process")
    check_process(process)
    return process
