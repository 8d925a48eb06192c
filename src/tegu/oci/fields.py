"""Every field of the OCI runtime specification's config.json, and what becomes of it here.

Source: opencontainers/runtime-spec 1.2 (config.md, config-linux.md, schema/); the few fields that
1.3 adds are in the table to be refused by name. What the table does not know is refused as well:
the specification lets a runtime ignore it, but a limit or a mask that is ignored is a hole.
`python -m tegu.oci.fields` prints the table for docs/oci.md.
"""

from __future__ import annotations

from tegu.errors import TeguError, UnsupportedError

TYPE_CHECKING = False  # see __init__.py
if TYPE_CHECKING:
    from typing import Any

__all__ = ["FIELDS", "HARMLESS", "HONOURED", "REFUSED", "ConfigError", "check", "markdown"]

HONOURED = "honoured"
REFUSED = "refused"
HARMLESS = "harmless"


class ConfigError(TeguError):
    """config.json (or process.json) is wrong; the message starts with the field's name."""


class Field:
    """One field: `kind` of its value, the verdict, and a note (for refused ones the reason)."""

    __slots__ = ("kind", "note", "path", "verdict")

    def __init__(self, path: str, kind: str, verdict: str, note: str) -> None:
        self.path = path
        self.kind = kind
        self.verdict = verdict
        self.note = note


# path | kind | verdict | note. "[]" stands for each element of a list, ".*" for each key of a map.
# ruff: noqa: E501 - a table has long lines
_TABLE = """
ociVersion | text | honoured | 1.x
root | object | honoured |
root.path | text | honoured |
root.readonly | flag | honoured |
hostname | text | honoured | needs a uts namespace
domainname | text | honoured | needs a uts namespace
annotations | map | honoured | `io.tegu.class` (see "Classes"); others are shown by `state` and given to hooks
mounts | objects | honoured | in the order they stand in
mounts[].destination | text | honoured | followed inside the root only
mounts[].source | text | honoured |
mounts[].type | text | honoured |
mounts[].options | texts | honoured | see "Mount options"
mounts[].uidMappings | objects | refused | id-mapped mounts are not made
mounts[].gidMappings | objects | refused | id-mapped mounts are not made
process | object | honoured |
process.terminal | flag | honoured |
process.consoleSize | object | honoured |
process.consoleSize.height | uint | honoured |
process.consoleSize.width | uint | honoured |
process.cwd | text | honoured | must be absolute, and inside the root when all is done
process.env | texts | honoured |
process.args | texts | honoured |
process.commandLine | text | refused | it is for Windows
process.rlimits | objects | honoured |
process.rlimits[].type | text | honoured |
process.rlimits[].soft | uint | honoured |
process.rlimits[].hard | uint | honoured |
process.apparmorProfile | text | honoured | refused where the kernel runs no AppArmor
process.selinuxLabel | text | honoured | refused where the kernel runs no SELinux
process.capabilities | object | honoured |
process.capabilities.effective | texts | honoured | a name that the kernel or the caller lacks is logged and left out, as the specification asks
process.capabilities.bounding | texts | honoured |
process.capabilities.inheritable | texts | honoured |
process.capabilities.permitted | texts | honoured |
process.capabilities.ambient | texts | honoured |
process.noNewPrivileges | flag | honoured |
process.oomScoreAdj | int | honoured |
process.scheduler | object | honoured |
process.scheduler.policy | text | honoured | SCHED_OTHER, FIFO, RR, BATCH, IDLE, DEADLINE
process.scheduler.nice | int | honoured |
process.scheduler.priority | int | honoured |
process.scheduler.flags | texts | honoured |
process.scheduler.runtime | uint | honoured |
process.scheduler.deadline | uint | honoured |
process.scheduler.period | uint | honoured |
process.ioPriority | object | honoured |
process.ioPriority.class | text | honoured |
process.ioPriority.priority | int | honoured |
process.execCPUAffinity | object | honoured | by `exec`
process.execCPUAffinity.initial | text | honoured | by `exec`
process.execCPUAffinity.final | text | honoured | by `exec`
process.user | object | honoured |
process.user.uid | uint | honoured |
process.user.gid | uint | honoured |
process.user.umask | uint | honoured |
process.user.additionalGids | uints | honoured |
process.user.username | text | refused | it is for Windows
hooks | object | honoured |
hooks.prestart | hooks | honoured |
hooks.createRuntime | hooks | honoured |
hooks.createContainer | hooks | honoured |
hooks.startContainer | hooks | honoured |
hooks.poststart | hooks | honoured | a failure is logged
hooks.poststop | hooks | honoured | a failure is logged
linux | object | honoured |
linux.uidMappings | idmaps | honoured |
linux.gidMappings | idmaps | honoured |
linux.timeOffsets | object | honoured | needs a new time namespace
linux.timeOffsets.* | object | honoured | monotonic, boottime
linux.timeOffsets.*.secs | int | honoured |
linux.timeOffsets.*.nanosecs | uint | honoured |
linux.sysctl | map | honoured | only what belongs to the container's own namespaces
linux.cgroupsPath | text | honoured |
linux.namespaces | objects | honoured |
linux.namespaces[].type | text | honoured |
linux.namespaces[].path | text | honoured | refused for `mount`: what is mounted there is not ours to change
linux.devices | objects | honoured |
linux.devices[].path | text | honoured |
linux.devices[].type | text | honoured |
linux.devices[].major | int | honoured |
linux.devices[].minor | int | honoured |
linux.devices[].fileMode | uint | honoured |
linux.devices[].uid | uint | honoured |
linux.devices[].gid | uint | honoured |
linux.netDevices | any | refused | of version 1.3: network devices are not moved
linux.seccomp | object | honoured |
linux.seccomp.defaultAction | text | honoured |
linux.seccomp.defaultErrnoRet | uint | honoured |
linux.seccomp.architectures | texts | honoured |
linux.seccomp.flags | texts | honoured | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV is refused
linux.seccomp.listenerPath | text | refused | no system call is handed to an agent (SCMP_ACT_NOTIFY)
linux.seccomp.listenerMetadata | text | refused | no system call is handed to an agent
linux.seccomp.syscalls | objects | honoured |
linux.seccomp.syscalls[].names | texts | honoured | a name that libseccomp does not know gets the default action
linux.seccomp.syscalls[].action | text | honoured | SCMP_ACT_NOTIFY is refused
linux.seccomp.syscalls[].errnoRet | uint | honoured |
linux.seccomp.syscalls[].args | objects | honoured |
linux.seccomp.syscalls[].args[].index | uint | honoured |
linux.seccomp.syscalls[].args[].value | uint | honoured |
linux.seccomp.syscalls[].args[].valueTwo | uint | honoured |
linux.seccomp.syscalls[].args[].op | text | honoured |
linux.seccomp.syscalls[].comment | text | harmless | written by some clients; for readers
linux.rootfsPropagation | text | honoured | the container's own tree; never linked with the host's
linux.maskedPaths | texts | honoured |
linux.readonlyPaths | texts | honoured |
linux.mountLabel | text | refused | no SELinux labels are put on mounts
linux.intelRdt | any | refused | processor caches and memory bandwidth are not shared out
linux.memoryPolicy | any | refused | of version 1.3: NUMA policies are not set
linux.personality | object | honoured |
linux.personality.domain | text | honoured |
linux.personality.flags | texts | refused | the specification defines none
linux.resources | object | honoured | with cgroup version 2, else version 1; refused where the controller is missing
linux.resources.unified | map | honoured | version 2 only
linux.resources.devices | objects | honoured | version 2: a BPF program
linux.resources.devices[].allow | flag | honoured |
linux.resources.devices[].type | text | honoured |
linux.resources.devices[].major | int | honoured |
linux.resources.devices[].minor | int | honoured |
linux.resources.devices[].access | text | honoured |
linux.resources.memory | object | honoured |
linux.resources.memory.limit | int | honoured |
linux.resources.memory.reservation | int | honoured |
linux.resources.memory.swap | int | honoured |
linux.resources.memory.kernel | int | refused | Linux 5.16 took the limit away
linux.resources.memory.kernelTCP | int | honoured | version 1 only
linux.resources.memory.swappiness | uint | honoured | version 1 only
linux.resources.memory.disableOOMKiller | flag | honoured | version 1 only
linux.resources.memory.useHierarchy | flag | harmless | always so since Linux 5.11
linux.resources.memory.checkBeforeUpdate | flag | honoured |
linux.resources.cpu | object | honoured |
linux.resources.cpu.shares | uint | honoured |
linux.resources.cpu.quota | int | honoured |
linux.resources.cpu.burst | uint | honoured |
linux.resources.cpu.period | uint | honoured |
linux.resources.cpu.realtimeRuntime | int | honoured | version 1 only
linux.resources.cpu.realtimePeriod | uint | honoured | version 1 only
linux.resources.cpu.cpus | text | honoured |
linux.resources.cpu.mems | text | honoured |
linux.resources.cpu.idle | int | honoured |
linux.resources.pids | object | honoured |
linux.resources.pids.limit | int | honoured |
linux.resources.blockIO | object | honoured |
linux.resources.blockIO.weight | uint | honoured |
linux.resources.blockIO.leafWeight | uint | honoured | refused where the kernel has no leaf weights (since 5.0)
linux.resources.blockIO.weightDevice | objects | honoured |
linux.resources.blockIO.weightDevice[].major | int | honoured |
linux.resources.blockIO.weightDevice[].minor | int | honoured |
linux.resources.blockIO.weightDevice[].weight | uint | honoured |
linux.resources.blockIO.weightDevice[].leafWeight | uint | refused | the kernel has no leaf weights since 5.0
linux.resources.blockIO.throttleReadBpsDevice | rates | honoured |
linux.resources.blockIO.throttleWriteBpsDevice | rates | honoured |
linux.resources.blockIO.throttleReadIOPSDevice | rates | honoured |
linux.resources.blockIO.throttleWriteIOPSDevice | rates | honoured |
linux.resources.hugepageLimits | objects | honoured |
linux.resources.hugepageLimits[].pageSize | text | honoured |
linux.resources.hugepageLimits[].limit | uint | honoured |
linux.resources.network | object | honoured | version 1 only
linux.resources.network.classID | uint | honoured | version 1 only
linux.resources.network.priorities | objects | honoured | version 1 only
linux.resources.network.priorities[].name | text | honoured | version 1 only
linux.resources.network.priorities[].priority | uint | honoured | version 1 only
linux.resources.rdma | object | honoured |
linux.resources.rdma.* | object | honoured |
linux.resources.rdma.*.hcaHandles | uint | honoured |
linux.resources.rdma.*.hcaObjects | uint | honoured |
solaris | any | refused | this is Linux
windows | any | refused | this is Linux
freebsd | any | refused | this is Linux
zos | any | refused | this is Linux
vm | any | refused | containers only, no virtual machines
"""

_COMPOUND = {
    "hooks": (("path", "text"), ("args", "texts"), ("env", "texts"), ("timeout", "int")),
    "idmaps": (("containerID", "uint"), ("hostID", "uint"), ("size", "uint")),
    "rates": (("major", "int"), ("minor", "int"), ("rate", "uint")),
}


def _fields() -> dict[str, Field]:
    found: dict[str, Field] = {}
    for line in _TABLE.strip().splitlines():
        path, kind, verdict, note = (part.strip() for part in line.split("|"))
        parts = _COMPOUND.get(kind)
        found[path] = Field(path, "objects" if parts else kind, verdict, note)
        for name, below in parts or ():
            found[f"{path}[].{name}"] = Field(f"{path}[].{name}", below, verdict, note)
    return found


FIELDS = _fields()
"""The table, by path."""

_KINDS = {
    "text": "a string",
    "flag": "true or false",
    "int": "a whole number",
    "uint": "a whole number from 0",
    "texts": "a list of strings",
    "uints": "a list of whole numbers from 0",
    "object": "an object",
    "objects": "a list of objects",
    "map": "an object of strings",
    "any": "anything",
}


def _is(kind: str, value: Any) -> bool:
    if kind == "text":
        # The kernel's strings end at a zero byte: what follows would be lost without a word.
        return isinstance(value, str) and "\0" not in value
    if kind == "flag":
        return isinstance(value, bool)
    if kind == "int":
        return type(value) is int and -(2**63) <= value < 2**64
    if kind == "uint":
        return type(value) is int and 0 <= value < 2**64
    if kind == "object":
        return isinstance(value, dict)
    if kind == "map":
        return isinstance(value, dict) and all(_is("text", v) for v in value.values())
    if kind == "any":
        return True
    return isinstance(value, list) and all(_is(kind[:-1], v) for v in value)


def check(value: Any, path: str = "") -> Any:
    """Return `value` (parsed JSON) without nulls, which mean "not given".

    `path` is where it stands in config.json ("" for all of it, "process" for a process.json).
    Raises ConfigError for a field of the wrong kind or one that the specification does not have,
    UnsupportedError for one that is refused; a refused field that is empty is no field.
    """
    return _check(value, path, path)


def _check(value: Any, shape: str, shown: str) -> Any:
    if isinstance(value, dict):
        clean: dict[str, Any] = {}
        for key, below in value.items():
            if below is None:
                continue
            name = f"{shown}.{key}" if shown else key
            path = f"{shape}.{key}" if shape else key
            field = FIELDS.get(path)
            if field is None:
                path = f"{shape}.*"
                field = FIELDS.get(path)
            if field is None:
                raise ConfigError(
                    f"{name}: no such field in the runtime specification 1.2",
                    hint="fields are refused rather than ignored: see docs/oci.md",
                )
            clean[key] = _one(field, below, path, name)
        return clean
    raise ConfigError(f"{shown or 'config.json'}: must be an object")


def _one(field: Field, value: Any, path: str, name: str) -> Any:
    if field.verdict == REFUSED:
        if value in (False, 0, "", [], {}):
            return value
        raise UnsupportedError(f"{name}: {field.note}")
    if not _is(field.kind, value):
        raise ConfigError(f"{name}: must be {_KINDS[field.kind]}")
    if field.kind == "object":
        return _check(value, path, name)
    if field.kind == "objects":
        return [_check(v, f"{path}[]", f"{name}[{i}]") for i, v in enumerate(value)]
    return value


def markdown() -> str:
    """Return the table as it stands in docs/oci.md."""
    lines = ["| field | | |", "|---|---|---|"]
    lines += [f"| `{f.path}` | {f.verdict} | {f.note} |" for f in FIELDS.values()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
