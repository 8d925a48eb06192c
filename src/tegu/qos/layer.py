"""Applying the static layer, looking at it, undoing it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tegu.errors import QosError
from tegu.linux.cgroup2 import Hierarchy, find_hierarchy
from tegu.linux.journal import Journal, Restored
from tegu.linux.settings import Target
from tegu.qos.devices import Refusal
from tegu.qos.match import members
from tegu.qos.owner import Owner
from tegu.qos.policy import ClassName, Policy
from tegu.qos.static import Plan, Step, make_plan

__all__ = ["Applied", "Place", "apply", "apply_locked", "undo"]


@dataclass(frozen=True)
class Place:
    """Where a policy is applied: the hierarchy, block devices, journal and the file system."""

    hierarchy: Hierarchy
    journal: Journal
    sys_block: Path = Path("/sys/block")
    root: Path = Path("/")

    @classmethod
    def here(cls) -> Place:
        """Return this machine; raises UnsupportedError when it has no version 2 hierarchy."""
        return cls(find_hierarchy(), Journal())

    def plan(self, policy: Policy) -> tuple[dict[ClassName, list[str]], Plan]:
        """Return the members of each class and what is to be written for them."""
        self.hierarchy.require("cpu")
        found = members(policy, self.hierarchy)
        owner = Owner(self.hierarchy, self.root)
        return found, make_plan(
            policy,
            found,
            self.hierarchy,
            owner,
            sys_block=self.sys_block,
            generations=self.generations(),
        )

    def generations(self) -> bool:
        """Whether this kernel reclaims by generations (admin-guide/mm/multigen_lru.rst)."""
        with suppress(OSError, ValueError):
            text = (self.root / "sys/kernel/mm/lru_gen/enabled").read_text()
            return bool(int(text, 16) & 1)
        return False


@dataclass
class Applied:
    """What `apply` did: written, there already, refused with reasons; members by class."""

    members: dict[ClassName, list[str]]
    written: list[Step] = field(default_factory=list)
    kept: list[Step] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)


def apply(policy: Policy, place: Place) -> Applied:
    """Write the static layer of `policy`, noting every write first.

    What an earlier policy wrote and this one does not want is restored. Raises QosError when
    nothing could be written, UnsupportedError when the hierarchy cannot serve.
    """
    with place.journal.locked():
        return apply_locked(policy, place)


def apply_locked(policy: Policy, place: Place, *, keep: frozenset[Target] = frozenset()) -> Applied:
    """As `apply`, for one who holds the lock; `keep` is not restored though it is not planned."""
    found, plan = place.plan(policy)
    journal = place.journal
    done = Applied(found, refused=list(plan.refusals))
    if not any(found.values()):
        raise QosError(
            f"{policy.source}: nothing on this machine matches",
            hint="`tegu qos explain` shows what was looked for",
        )
    wanted = plan.targets() | keep
    former = {e.target for e in journal.entries()}
    if former - wanted:
        done.restored = journal.undo(only=lambda t: t not in wanted).restored
    for step in plan.steps:
        try:
            if step.target.read() != step.target.canonical(step.value):
                for target, value in step.also:
                    journal.note(target, target.read() or "", value, step.why)
            written = journal.write(step.target, step.value, step.why)
            (done.written if written else done.kept).append(step)
        except FileNotFoundError:
            done.refused.append(Refusal(str(step.target), "it is not there"))
        except OSError as e:
            done.refused.append(Refusal(str(step.target), _reason(e)))
    failed = done.refused[len(plan.refusals) :]
    if failed and not done.written and not former:
        first = failed[0]
        raise QosError(f"nothing could be set: {first.what}: {first.why}")
    return done


def _reason(error: OSError) -> str:
    reasons = {
        16: "the kernel refuses: processes are in a group that hands controllers down",
        30: "the hierarchy is read-only",
        13: "permission denied",
        1: "the kernel does not permit it",
    }
    return reasons.get(error.errno or 0, error.strerror or str(error))


def undo(place: Place, *, force: bool = False) -> Restored:
    """Restore everything that was written here; see Journal.undo."""
    with place.journal.locked():
        return place.journal.undo(force=force)
