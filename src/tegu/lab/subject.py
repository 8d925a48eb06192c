"""What a plan is run against: an image, a machine that runs, a host by SSH, or this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tegu.errors import MachineError, UsageError
from tegu.lab.disk import parse_size
from tegu.lab.local import LocalMachine
from tegu.lab.machine import Machine
from tegu.lab.options import AcceleratorChoice, QemuOptions
from tegu.lab.plan import MachinePlan, Plan
from tegu.lab.qemu import QemuMachine
from tegu.lab.registry import Registry
from tegu.lab.remote import SshMachine
from tegu.lab.seed import Seed

__all__ = ["Subject", "plan_options", "subject_for"]


@dataclass(frozen=True, slots=True)
class Subject:
    """`name` is for the report; `machines` are those to run on; `make` makes one, not started."""

    name: str
    machines: tuple[MachinePlan, ...]
    make: Callable[[MachinePlan], Machine]


def subject_for(
    target: str,
    plan: Plan,
    *,
    only: Sequence[str] = (),
    accelerator: AcceleratorChoice = "auto",
    registry: Registry | None = None,
) -> Subject:
    """Return what `target` names: an image file, `local`, `ssh://...`, or a machine that runs.

    An image is run on every machine of `plan`, or on those named in `only`; the others are one
    machine each. UsageError when it is none of these.
    """
    chosen = _choose(plan, only)
    path = Path(target)
    if path.exists():
        return Subject(
            str(path), chosen, lambda spec: QemuMachine(plan_options(path, spec, accelerator))
        )
    if target == "local":
        return Subject(LocalMachine().name, _single("local", plan), lambda _: LocalMachine())
    if target.startswith("ssh://"):
        remote = SshMachine.parse(target)
        return Subject(remote.name, _single("remote", plan), lambda _: remote)
    try:
        record = (registry or Registry()).get(target)
    except MachineError as e:
        raise UsageError(
            f"{target} is neither an image nor a machine that runs",
            hint="it may also be ssh://[USER@]HOST[:PORT] or local; `tegu machines` lists machines",
        ) from e
    if record.ssh_port is None:
        raise UsageError(f"{target} has no network, so that SSH cannot reach it")
    return Subject(
        target, _single(target, plan), lambda _: SshMachine(record.address, name=record.name)
    )


def plan_options(image: Path, spec: MachinePlan, accelerator: AcceleratorChoice) -> QemuOptions:
    """Return the machine that `spec` of a plan describes, with `image` as its disk."""
    data = spec.user_data.encode() if spec.user_data is not None else None
    return QemuOptions(
        image=image,
        firmware=spec.firmware,
        bus=spec.bus,
        memory=parse_size(spec.memory),
        cpus=spec.cpus,
        disk_size=parse_size(spec.disk) if spec.disk is not None else None,
        network=spec.network,
        accelerator=accelerator,
        seed=Seed(user=spec.user, hostname=spec.hostname, user_data=data),
    )


def _choose(plan: Plan, only: Sequence[str]) -> tuple[MachinePlan, ...]:
    machines = {m.name: m for m in plan.machines()}
    unknown = [name for name in only if name not in machines]
    if unknown:
        raise UsageError(
            f"the plan {plan.name} has no machine {unknown[0]!r}",
            hint=f"it has: {', '.join(machines)}",
        )
    return tuple(m for m in machines.values() if not only or m.name in only)


def _single(name: str, plan: Plan) -> tuple[MachinePlan, ...]:
    """Return one machine that is not made by us: the plan's `[boot]` says how to wait for it."""
    body = plan.boot.model_dump() | {"user_data": None}
    safe = "".join(c if c.isalnum() or c == "-" else "-" for c in name.lower())
    return (MachinePlan(name=safe, **body),)
