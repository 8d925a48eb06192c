"""What a machine says about its own boot: a script to run in it, and the figures in its answer."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from bench.common import BenchError

__all__ = ["COMMAND", "Boot", "parse"]

UNITS = (
    "multi-user.target",
    "ssh.service",
    "cloud-init-main.service",
    "cloud-init-local.service",
    "cloud-init-network.service",
    "cloud-config.service",
    "cloud-final.service",
)

# The first line must come at once: it is the moment of the login. The rest waits until the machine
# has done all that a first boot does.
COMMAND = (
    "cat /proc/uptime /proc/stat; for f in /sys/fs/cgroup/cpu.stat /sys/fs/cgroup/*/cpu.stat "
    "/sys/fs/cgroup/system.slice/*/cpu.stat; do read -r _ usec <$f && echo cpu:$f:$usec; done; "
    "until systemctl is-active --quiet multi-user.target; do sleep 0.5; done; "
    "sudo -n cloud-init status --wait >/dev/null 2>&1; "
    "until state=$(systemctl is-system-running); [ $state != starting ]; do sleep 0.5; done; "
    "sleep 5; echo state:$state; cat /proc/meminfo; "
    "echo root:$(df --output=used -B1 / | tail -1); "
    "systemctl show -p UserspaceTimestampMonotonic; "
    "systemctl --failed --no-legend --plain; "
    "echo; systemctl show " + " ".join(UNITS) + " -p Id -p ActiveEnterTimestampMonotonic; "
    "test -e /etc/bench-boot && test -e /var/lib/bench-boot && hostname && echo complete"
)


@dataclass(frozen=True, slots=True)
class Boot:
    """One boot, in seconds of the guest's time since its kernel started, and MiB.

    `login` is the first command of the first login; `units` say when units became active (for
    cloud-init-main.service: when its Python modules were imported). `cpu` is the CPU time of each
    control group at the login. `memory` is MemTotal less MemAvailable (proc_meminfo(5)) when all is
    done, `used` the data in the root file system.
    """

    login: float
    userspace: float
    units: dict[str, float]
    cpu: dict[str, float]
    memory: float
    used: float
    state: str
    failed: tuple[str, ...] = field(default=())

    @property
    def multi_user(self) -> float:
        """When multi-user.target was reached."""
        return self.units["multi-user.target"]


def parse(output: str, hostname: str) -> Boot:
    """Read what COMMAND printed; raises BenchError when the machine did not do what it was told."""
    if not output.rstrip().endswith(f"{hostname}\ncomplete"):
        tail = " / ".join(output.strip().splitlines()[-3:])
        raise BenchError(f"the machine did not honour its user-data, or did not finish: {tail}")
    meminfo = {k: int(v) for k, v in re.findall(r"^(\w+): +(\d+) kB$", output, re.MULTILINE)}
    groups = re.findall(r"^cpu:/sys/fs/cgroup/(.*?)/?cpu\.stat:(\d+)$", output, re.MULTILINE)
    try:
        units = {
            unit: int(_one(rf"^Id={re.escape(unit)}\nActiveEnter\w+=(\d+)$", output, unit)) / 1e6
            for unit in UNITS
        }
        return Boot(
            login=float(output.split(maxsplit=1)[0]),
            userspace=int(_one(r"^UserspaceTimestampMonotonic=(\d+)$", output, "systemd")) / 1e6,
            units=units,
            cpu={name or "all": int(usec) / 1e6 for name, usec in groups},
            memory=(meminfo["MemTotal"] - meminfo["MemAvailable"]) / 1024,
            used=int(_one(r"^root:(\d+)$", output, "df")) / 2**20,
            state=_one(r"^state:(\S+)$", output, "systemctl"),
            failed=tuple(re.findall(r"^(\S+) +\S+ failed failed", output, re.MULTILINE)),
        )
    except (KeyError, ValueError) as e:
        raise BenchError(f"the machine's report makes no sense: {e}") from e


def _one(pattern: str, text: str, what: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    if match is None:
        raise ValueError(f"nothing about {what}")
    return match[1]
