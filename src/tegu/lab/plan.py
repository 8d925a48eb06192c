"""A test plan as data: what to boot, what to run there, what to expect. One TOML file each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from tegu.definition import Firmware, Table
from tegu.errors import UsageError
from tegu.lab.disk import parse_size
from tegu.lab.expect import Pattern, Text
from tegu.lab.options import Bus, Network
from tegu.lab.seed import DEFAULT_USER
from tegu.lab.tap import Expected
from tegu.lab.template import names
from tegu.lab.userdata import check_user_data

__all__ = ["BUILT_IN", "Boot", "MachinePlan", "Plan", "Step", "Variable", "texts"]

BUILT_IN: Final = frozenset(
    {
        "firmware",
        "hostname",
        "known_hosts",
        "machine",
        "now",
        "ssh_host",
        "ssh_key",
        "ssh_port",
        "started",
        "user",
    }
)
"""Variables that the runner itself gives a value, machine by machine.

`now` and `started` (of the machine, at its first boot) are seconds since the epoch, of the host.
"""

Seconds = Annotated[float, Field(gt=0, le=86400)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=40)]


class Boot(Table):
    """How a machine is made and booted."""

    firmware: Firmware = "uefi"
    bus: Bus = "virtio-blk"
    memory: str = "1G"
    cpus: Annotated[int, Field(ge=1, le=64)] = 2
    """Emulated CPUs take turns where QEMU cannot run several while a kernel patches itself."""
    disk: str | None = None
    """The size of the disk; without it, the image's."""
    network: Network = "user"
    user: str = DEFAULT_USER
    hostname: str = "tegu-test"
    user_data: str | None = None
    """cloud-init user-data, as text."""
    wait: Literal["cloud-init", "ssh", "nothing"] = "cloud-init"
    """What must have happened before the first step."""
    timeout: Seconds = 600
    """For all of the start, up to what `wait` says."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        try:
            parse_size(self.memory)
            if self.disk is not None:
                parse_size(self.disk)
            if self.user_data is not None:
                check_user_data(self.user_data.encode())
        except UsageError as e:
            raise ValueError(e.message) from e
        return self


class MachinePlan(Boot):
    """One machine that the plan is run on: a name, and what is unlike `[boot]`."""

    name: Name


class Variable(Table):
    """A value that the plan uses as `{{ name }}`; without a default it must be given."""

    help: str
    default: str | None = None


class KnownTest(Table):
    """What is expected of one test of a step's TAP output instead of a pass."""

    test: Annotated[str, Field(min_length=1)]
    """Its name, without "selftests: "."""
    expected: Expected
    """"unstable": either is as good."""
    reason: Annotated[str, Field(min_length=1)]
    inner: list[str] = Field(default_factory=list)
    """Patterns of the only ones of the tests inside it that may fail; empty: any."""


class Step(Table):
    """One thing to do, and what must come of it. Exactly one of the actions is given."""

    name: Annotated[str, Field(min_length=1, max_length=120)]
    id: Name | None = None
    """What `needs` calls it."""

    run: str | None = None
    """Action: a line (or several) for /bin/sh; a variable in it becomes one quoted word."""
    reboot: Literal[True] | None = None
    """Action: reboot cleanly, wait for SSH (and cloud-init, if `boot.wait` says so)."""
    power_off: Literal[True] | None = None
    """Action: power off cleanly. Nothing can be run on the machine after it."""
    wait_console: Pattern | None = None
    """Action: wait for a line on the console."""

    on: Literal["machine", "host"] = "machine"
    """Where `run` runs: on the machine, or on the host that runs the plan."""
    root: bool = False
    """Run as root rather than as the login user."""
    stdin: str | None = None
    exit: int | list[int] = 0
    stdout: Text | None = None
    stderr: Text | None = None
    tap: bool = False
    """Standard output is TAP; each of its tests becomes a result of its own."""
    known: list[KnownTest] = Field(default_factory=list)
    """Tests that do not pass, and why; any other that does not pass fails the step."""
    console: Text | None = None
    """Of what the machine has said on its console since its last start."""
    timeout: Seconds = 60
    retries: Annotated[int, Field(ge=0, le=1000)] = 0
    """How often it is tried again until it holds."""
    delay: Annotated[float, Field(ge=0, le=3600)] = 2
    """Seconds between two tries."""
    needs: list[Name] = Field(default_factory=list)
    """Steps without whose success this one makes no sense."""
    only: list[Name] = Field(default_factory=list)
    """Machines that it is for; empty: all."""

    @property
    def action(self) -> str:
        """The action's key: "run", "reboot", "power_off" or "wait_console"."""
        return next(a for a in _ACTIONS if getattr(self, a) is not None)

    @model_validator(mode="after")
    def _sound(self) -> Self:
        given = [a for a in _ACTIONS if getattr(self, a) is not None]
        if len(given) != 1:
            raise ValueError(f"needs exactly one of {', '.join(_ACTIONS)}")
        if given != ["run"]:
            for key in ("root", "stdin", "exit", "stdout", "stderr", "tap"):
                if key in self.model_fields_set:
                    raise ValueError(f"{key} goes with `run` only")
        if self.known and not self.tap:
            raise ValueError("known goes with `tap` only")
        if len({k.test for k in self.known}) < len(self.known):
            raise ValueError("known has a test twice")
        if self.on == "host" and self.root:
            raise ValueError("what runs on the host runs as the user who runs the plan")
        return self


_ACTIONS: Final = ("run", "reboot", "power_off", "wait_console")


class Plan(Table):
    """A whole plan."""

    name: Name
    description: str = ""
    boot: Boot = Boot()
    machine: list[MachinePlan] = Field(default_factory=list)
    """The machines; none means one that is called "default"."""
    variable: dict[str, Variable] = Field(default_factory=dict)
    step: Annotated[list[Step], Field(min_length=1)]

    def machines(self) -> list[MachinePlan]:
        """Return the machines, at least one."""
        return self.machine or [MachinePlan(name="default", **self.boot.model_dump())]

    def variables(self) -> set[str]:
        """Return the names of all variables that the steps use."""
        return {n for step in self.step for text in texts(step) for n in names(text)}


def texts(step: Step) -> Iterator[str]:
    """Yield every text of a step in which variables are filled in."""
    yield from (t for t in (step.run, step.stdin, step.wait_console) if t is not None)
    for wanted in (step.stdout, step.stderr, step.console):
        if wanted is not None:
            yield from (t for t in (wanted.equals, wanted.lines) if t is not None)
            yield from (*wanted.contains, *wanted.matches, *wanted.lacks)
            yield from (a.pattern for a in wanted.only or ())
