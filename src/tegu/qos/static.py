"""The static layer: what is set once, and holds when nothing of ours runs any more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tegu.errors import SettingError
from tegu.linux.cgroup2 import Hierarchy
from tegu.linux.journal import ANY
from tegu.linux.settings import FileTarget, PropertyTarget, Target
from tegu.qos.devices import Device, Refusal, choose, devices
from tegu.qos.owner import Owner
from tegu.qos.policy import ClassName, ClassPolicy, IoChoice, Policy

__all__ = ["Plan", "Step", "bfq_weight", "make_plan"]


@dataclass(frozen=True)
class Step:
    """One write; `also` are values that change along with it and must be restored after it."""

    target: Target
    value: str
    why: str
    also: tuple[tuple[Target, str], ...] = ()


@dataclass
class Plan:
    """What to write, in order, and what cannot be done."""

    steps: list[Step] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)

    def refuse(self, what: str, why: str) -> None:
        """Note that `what` cannot be done; the same reason once."""
        if Refusal(what, why) not in self.refusals:
            self.refusals.append(Refusal(what, why))

    def targets(self) -> set[Target]:
        """Return everything that is written or changes along."""
        return {s.target for s in self.steps} | {t for s in self.steps for t, _ in s.also}


def make_plan(
    policy: Policy,
    classes: Mapping[ClassName, Sequence[str]],
    hierarchy: Hierarchy,
    owner: Owner,
    *,
    sys_block: Path = Path("/sys/block"),
    generations: bool = False,
) -> Plan:
    """Return what the static layer of `policy` is for these groups.

    `generations`: the kernel reclaims by generations (MGLRU), and so below memory.low.
    """
    plan = Plan()
    sharing: set[IoChoice] = set()
    weighs = [n for n, groups in classes.items() if groups and policy.classes[n].io_weight]
    if weighs:
        if "io" in hierarchy.controllers():
            sharing = _devices(policy, hierarchy, devices(sys_block), plan)
        else:
            plan.refuse("I/O weights", "the hierarchy has no io controller")
    _enable(policy, classes, hierarchy, owner, plan)
    for name, groups in classes.items():
        for group in groups:
            _processor(policy.classes[name], group, owner, plan)
            _disks(policy.classes[name], group, owner, sharing, plan)
    _memory(policy, classes, hierarchy, owner, plan, generations)
    return plan


def bfq_weight(weight: int) -> int:
    """Return a weight of 1 to 10000 on BFQ's scale of 1 to 1000, where 100 is the default, too."""
    return weight if weight <= 100 else 100 + (weight - 100) * 900 // 9900


def _needs(policy: ClassPolicy) -> list[str]:
    found = []
    if policy.idle or policy.weight is not None:
        found.append("cpu")
    if policy.memory_low is not None:
        found.append("memory")
    if policy.io_weight is not None:
        found.append("io")
    return found


def _ancestors(group: str) -> list[str]:
    """Return the groups above `group`, the root first."""
    parts = [p for p in group.split("/") if p]
    return ["/", *("/" + "/".join(parts[: i + 1]) for i in range(len(parts) - 1))]


def _enable(
    policy: Policy,
    classes: Mapping[ClassName, Sequence[str]],
    hierarchy: Hierarchy,
    owner: Owner,
    plan: Plan,
) -> None:
    """Hand controllers down to groups that systemd does not look after (it does so by itself)."""
    seen: set[Target] = set()
    for name, groups in classes.items():
        for group in groups:
            for controller in _needs(policy.classes[name]):
                for above in _ancestors(group):
                    if owner.unit(above) is not None or (owner.systemd and above == "/"):
                        continue
                    target = FileTarget(
                        hierarchy.directory(above) / "cgroup.subtree_control", "member", controller
                    )
                    if owner.unit(group) is None and target not in seen:
                        seen.add(target)
                        plan.steps.append(Step(target, "+", f"{group} needs it"))


def _processor(policy: ClassPolicy, group: str, owner: Owner, plan: Plan) -> None:
    if not policy.idle and policy.weight is None:
        return
    if owner.kubelet_static and group.startswith("/kubepods"):
        plan.refuse(
            f"processor share of {group}",
            "the kubelet's static CPU policy places it (/var/lib/kubelet/cpu_manager_state)",
        )
        return
    why = f"class {policy.name}"
    weight = owner.target(group, "cpu.weight")
    if isinstance(weight, PropertyTarget):
        plan.steps.append(Step(weight, "idle" if policy.idle else str(policy.weight), why))
    elif policy.idle:
        # A group that is idle no more has the default weight, not its own (sched_group_set_idle()).
        idle = owner.target(group, "cpu.idle")
        plan.steps.append(Step(idle, "1", why, ((weight, ANY),)))
    else:
        plan.steps.append(Step(weight, str(policy.weight), why))


def _disks(
    policy: ClassPolicy, group: str, owner: Owner, sharing: Iterable[IoChoice], plan: Plan
) -> None:
    if policy.io_weight is None:
        return
    why = f"class {policy.name}"
    unit = isinstance(owner.target(group, "io.weight"), PropertyTarget)
    if unit and sharing:  # systemd writes both files from the one property
        plan.steps.append(Step(owner.target(group, "io.weight"), str(policy.io_weight), why))
        return
    for kind in sorted(sharing):
        bfq = kind == "bfq"
        file = "io.bfq.weight" if bfq else "io.weight"
        value = bfq_weight(policy.io_weight) if bfq else policy.io_weight
        plan.steps.append(Step(owner.target(group, file, key="default"), str(value), why))


def _memory(
    policy: Policy,
    classes: Mapping[ClassName, Sequence[str]],
    hierarchy: Hierarchy,
    owner: Owner,
    plan: Plan,
    generations: bool,
) -> None:
    """Protect memory, in the groups above as well: a protection counts only as far as theirs.

    By generations the kernel passes over a group below its memory.low once, and reclaims it the
    next time (mm/vmscan.c, shrink_one()), however much others have; memory.min holds.
    """
    wanted: dict[str, int] = {}
    for name, groups in classes.items():
        low = policy.classes[name].memory_low
        if low is None:
            continue
        for group in groups:
            wanted[group] = wanted.get(group, 0) + low
            for above in _ancestors(group)[1:]:
                wanted[above] = wanted.get(above, 0) + low
    if wanted and "memory" not in hierarchy.controllers():
        plan.refuse("memory protection", "the hierarchy has no memory controller")
        return
    files = {"memory.low": "class latency, here or below"}
    if generations:
        files["memory.min"] = "memory.low does not hold where the kernel reclaims by generations"
    for group in sorted(wanted):
        for file, why in files.items():
            target = owner.target(group, file)
            now = target.read() or "0"
            # What someone protected before is kept; max protects all.
            kept = now in ("max", "infinity") or int(now) >= wanted[group]
            plan.steps.append(Step(target, now if kept else str(wanted[group]), why))


def _devices(
    policy: Policy, hierarchy: Hierarchy, found: Sequence[Device], plan: Plan
) -> set[IoChoice]:
    sharing: set[IoChoice] = set()
    missing = set(policy.devices) - {d.name for d in found}
    for name in sorted(missing):
        plan.refuse(f"sharing of {name}", "there is no such device")
    for device in found:
        choice = choose(device, policy.devices.get(device.name, "auto"), hierarchy)
        if isinstance(choice, Refusal):
            plan.refuse(choice.what, choice.why)
            continue
        kind, why = choice
        if kind == "bfq":
            sharing.add(kind)
            plan.steps += _use_bfq(device, why)
        elif kind == "iocost":
            sharing.add(kind)
            target = FileTarget(hierarchy.root / "io.cost.qos", "keyed", device.number)
            plan.steps.append(Step(target, "enable=1", why))
    return sharing


def _use_bfq(device: Device, why: str) -> list[Step]:
    queue = device.directory / "queue"
    # The former scheduler comes back with its defaults: note what it was set to.
    tuned: list[tuple[Target, str]] = []
    for file in sorted((queue / "iosched").glob("*")) if device.scheduler != "bfq" else []:
        target = FileTarget(file)
        with suppress(SettingError):  # write-only
            if target.read() is not None:
                tuned.append((target, ANY))
    steps = [Step(FileTarget(queue / "scheduler", "choice"), "bfq", why, tuple(tuned))]
    for name, reason in (
        ("slice_idle", "a group that pauses holds nobody up"),
        ("low_latency", "weights decide, not guesses at who is interactive"),
    ):
        steps.append(Step(FileTarget(queue / "iosched" / name), "0", reason))
    return steps
