"""linux.resources as writes to the files of control groups, of version 2 or version 1.

Pure translation: config-linux.md, "Control groups"; Documentation/admin-guide/cgroup-v2.rst and
cgroup-v1/. What a version has no file for is refused by the field's name.
"""

from __future__ import annotations

from tegu.errors import UnsupportedError
from tegu.oci.fields import ConfigError

TYPE_CHECKING = False  # see __init__.py
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Write", "first_version", "second_version", "weight_from_shares"]

_R = "linux.resources"
_THROTTLES = (
    ("throttleReadBpsDevice", "rbps", "read_bps_device"),
    ("throttleWriteBpsDevice", "wbps", "write_bps_device"),
    ("throttleReadIOPSDevice", "riops", "read_iops_device"),
    ("throttleWriteIOPSDevice", "wiops", "write_iops_device"),
)


class Write:
    """Write `text` to the first of `files` that is there, in the group of `controller`.

    With `optional` a missing file means that what is limited does not exist here (swap).
    """

    __slots__ = ("controller", "field", "files", "optional", "text")

    def __init__(
        self, field: str, controller: str, file: str | tuple[str, ...], value: object,
        *, optional: bool = False,
    ) -> None:  # fmt: skip
        self.field = f"{_R}.{field}"
        self.controller = controller
        self.files = (file,) if isinstance(file, str) else file
        self.text = str(value)
        self.optional = optional

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Write) and vars_of(self) == vars_of(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Write{vars_of(self)}"


def vars_of(write: Write) -> tuple[object, ...]:
    """Return the parts of a Write."""
    return tuple(getattr(write, name) for name in Write.__slots__)


def weight_from_shares(shares: int) -> int:
    """Return cpu.weight (1 to 10,000) for cpu.shares (2 to 262,144), as all runtimes map them."""
    shares = min(max(shares, 2), 262144)
    return 1 + (shares - 2) * 9999 // 262142


def _io_weight(weight: int) -> int:
    """Return io.weight (1 to 10,000) for a weight of 10 to 1,000."""
    return 1 + (min(max(weight, 10), 1000) - 10) * 9999 // 990


def _or_max(value: int) -> object:
    return "max" if value < 0 else value


def _no(field: str, version: int) -> UnsupportedError:
    return UnsupportedError(f"{_R}.{field}: cgroup version {version} has no such limit")


def _swap(memory: dict[str, Any]) -> int | None:
    """Return the limit on memory and swap together; None when none is given, -1 for no limit."""
    swap: int = memory.get("swap", 0)
    if swap == 0:
        return None
    limit = memory.get("limit", 0)
    if swap > 0 and limit <= 0:
        raise ConfigError(f"{_R}.memory.swap: needs memory.limit")
    if 0 < swap < limit:
        raise ConfigError(f"{_R}.memory.swap: is less than memory.limit, which it includes")
    return swap


def second_version(resources: dict[str, Any]) -> list[Write]:
    """Return the writes for version 2 (devices apart). Raises UnsupportedError, ConfigError."""
    out: list[Write] = []
    memory = resources.get("memory", {})
    for name in ("kernelTCP", "swappiness", "disableOOMKiller"):
        if memory.get(name) and not (name == "kernelTCP" and memory[name] < 0):
            raise _no(f"memory.{name}", 2)
    swap, limit = _swap(memory), memory.get("limit", 0)
    if limit:
        out.append(Write("memory.limit", "memory", "memory.max", _or_max(limit)))
    if swap is not None:
        value = "max" if swap < 0 else swap - limit
        out.append(Write("memory.swap", "memory", "memory.swap.max", value, optional=True))
    if memory.get("reservation"):
        low = _or_max(memory["reservation"])
        out.append(Write("memory.reservation", "memory", "memory.low", low))
    out += _second_cpu(resources.get("cpu", {}))
    if pids := resources.get("pids", {}).get("limit"):
        out.append(Write("pids.limit", "pids", "pids.max", _or_max(pids)))
    out += _second_io(resources.get("blockIO", {}))
    for huge in resources.get("hugepageLimits", []):
        for file in ("max", "rsvd.max"):
            name = f"hugetlb.{_page(huge)}.{file}"
            optional = file != "max"
            value = huge.get("limit", 0)
            out.append(Write("hugepageLimits", "hugetlb", name, value, optional=optional))
    for name in ("classID", "priorities"):
        if resources.get("network", {}).get(name):
            raise _no(f"network.{name}", 2)
    out += _rdma(resources)
    for name, text in resources.get("unified", {}).items():
        if "/" in name or "." not in name or name.startswith("cgroup."):
            raise ConfigError(f"{_R}.unified.{name}: not the file of a controller")
        out.append(Write(f"unified.{name}", name.partition(".")[0], name, text))
    return out


def _second_cpu(cpu: dict[str, Any]) -> list[Write]:
    out: list[Write] = []
    for name in ("realtimeRuntime", "realtimePeriod"):
        if cpu.get(name):
            raise _no(f"cpu.{name}", 2)
    if cpu.get("idle") is not None:
        out.append(Write("cpu.idle", "cpu", "cpu.idle", cpu["idle"]))
    if cpu.get("shares") and not cpu.get("idle"):
        weight = weight_from_shares(cpu["shares"])
        out.append(Write("cpu.shares", "cpu", "cpu.weight", weight))
    if cpu.get("quota") or cpu.get("period"):
        quota = cpu.get("quota", 0)
        text = f"{quota if quota > 0 else 'max'} {cpu.get('period') or 100_000}"
        out.append(Write("cpu.quota", "cpu", "cpu.max", text))
    if cpu.get("burst"):
        out.append(Write("cpu.burst", "cpu", "cpu.max.burst", cpu["burst"]))
    return out + _cpuset(cpu)


def _cpuset(cpu: dict[str, Any]) -> list[Write]:
    return [
        Write(f"cpu.{name}", "cpuset", f"cpuset.{name}", cpu[name])
        for name in ("cpus", "mems")
        if cpu.get(name)
    ]


def _page(huge: dict[str, Any]) -> str:
    size: str = huge.get("pageSize", "")
    if not (size[:-2].isdigit() and size[-2:] in ("KB", "MB", "GB")):
        raise ConfigError(f"{_R}.hugepageLimits.pageSize: {size!r}: as in 2MB")
    return size


def _device(rate: dict[str, Any]) -> str:
    return f"{rate.get('major', 0)}:{rate.get('minor', 0)}"


def _second_io(io: dict[str, Any]) -> list[Write]:
    out: list[Write] = []
    if io.get("leafWeight"):
        raise _no("blockIO.leafWeight", 2)
    if weight := io.get("weight"):
        # Two schedulers may share out by weight: BFQ has a file and a scale of its own.
        if not 10 <= weight <= 1000:
            raise ConfigError(f"{_R}.blockIO.weight: from 10 to 1000")
        out.append(Write("blockIO.weight", "io", "io.bfq.weight", weight, optional=True))
        text = f"default {_io_weight(weight)}"
        out.append(Write("blockIO.weight", "io", "io.weight", text))
    for device in io.get("weightDevice", []):
        text = f"{_device(device)} {device.get('weight', 0)}"
        out.append(Write("blockIO.weightDevice", "io", "io.bfq.weight", text))
    for field, key, _ in _THROTTLES:
        for rate in io.get(field, []):
            text = f"{_device(rate)} {key}={rate.get('rate', 0) or 'max'}"
            out.append(Write(f"blockIO.{field}", "io", "io.max", text))
    return out


def _rdma(resources: dict[str, Any]) -> list[Write]:
    out: list[Write] = []
    for device, limit in resources.get("rdma", {}).items():
        parts = [device]
        if "hcaHandles" in limit:
            parts.append(f"hca_handle={limit['hcaHandles']}")
        if "hcaObjects" in limit:
            parts.append(f"hca_object={limit['hcaObjects']}")
        out.append(Write(f"rdma.{device}", "rdma", "rdma.max", " ".join(parts)))
    return out


def first_version(resources: dict[str, Any]) -> list[Write]:
    """Return the writes for version 1 (devices apart). Raises UnsupportedError, ConfigError."""
    out: list[Write] = []
    memory = resources.get("memory", {})
    swap = _swap(memory)
    if memory.get("limit"):
        out.append(Write("memory.limit", "memory", "memory.limit_in_bytes", memory["limit"]))
    if swap is not None:
        name = "memory.memsw.limit_in_bytes"
        out.append(Write("memory.swap", "memory", name, swap, optional=True))
    for field, name in (
        ("reservation", "memory.soft_limit_in_bytes"),
        ("kernelTCP", "memory.kmem.tcp.limit_in_bytes"),
        ("swappiness", "memory.swappiness"),
    ):
        if memory.get(field) is not None and (memory[field] or field == "swappiness"):
            out.append(Write(f"memory.{field}", "memory", name, memory[field]))
    if memory.get("disableOOMKiller"):
        out.append(Write("memory.disableOOMKiller", "memory", "memory.oom_control", 1))
    cpu = resources.get("cpu", {})
    for field, name in (
        ("idle", "cpu.idle"),
        ("shares", "cpu.shares"),
        ("period", "cpu.cfs_period_us"),
        ("quota", "cpu.cfs_quota_us"),
        ("burst", "cpu.cfs_burst_us"),
        ("realtimePeriod", "cpu.rt_period_us"),
        ("realtimeRuntime", "cpu.rt_runtime_us"),
    ):
        if cpu.get(field):
            out.append(Write(f"cpu.{field}", "cpu", name, cpu[field]))
    out += _cpuset(cpu)
    if pids := resources.get("pids", {}).get("limit"):
        out.append(Write("pids.limit", "pids", "pids.max", _or_max(pids)))
    out += _first_io(resources.get("blockIO", {}))
    for huge in resources.get("hugepageLimits", []):
        name = f"hugetlb.{_page(huge)}.limit_in_bytes"
        out.append(Write("hugepageLimits", "hugetlb", name, huge.get("limit", 0)))
    network = resources.get("network", {})
    if network.get("classID"):
        name = "net_cls.classid"
        out.append(Write("network.classID", "net_cls", name, network["classID"]))
    for each in network.get("priorities", []):
        text = f"{each.get('name', '')} {each.get('priority', 0)}"
        out.append(Write("network.priorities", "net_prio", "net_prio.ifpriomap", text))
    out += _rdma(resources)
    if resources.get("unified"):
        raise _no("unified", 1)
    return out


def _first_io(io: dict[str, Any]) -> list[Write]:
    out: list[Write] = []
    weights = ("blkio.bfq.weight", "blkio.weight")
    if io.get("weight"):
        out.append(Write("blockIO.weight", "blkio", weights, io["weight"]))
    if io.get("leafWeight"):
        out.append(Write("blockIO.leafWeight", "blkio", "blkio.leaf_weight", io["leafWeight"]))
    devices = ("blkio.bfq.weight_device", "blkio.weight_device")
    for device in io.get("weightDevice", []):
        text = f"{_device(device)} {device.get('weight', 0)}"
        out.append(Write("blockIO.weightDevice", "blkio", devices, text))
    for field, _, name in _THROTTLES:
        for rate in io.get(field, []):
            text = f"{_device(rate)} {rate.get('rate', 0)}"
            out.append(Write(f"blockIO.{field}", "blkio", f"blkio.throttle.{name}", text))
    return out
