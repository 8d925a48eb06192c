"""What every probe is: a question, what it needs of the kernel, how its data are read and shown."""

from __future__ import annotations

import inspect
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from tegu.errors import UnsupportedError
from tegu.linux.libbpf import BpfMap, KernelTypes
from tegu.probe.groups import CgroupNames
from tegu.probe.recording import Record, Recording
from tegu.probe.report import Table
from tegu.probe.symbols import Symbols

if TYPE_CHECKING:
    from tegu.probe.session import Session

__all__ = [
    "WHO",
    "Names",
    "Need",
    "Settings",
    "Sums",
    "Tool",
    "slots_of",
    "text",
    "top_rows",
    "unpack_sums",
    "unpack_who",
]

WHO = "QII16s"
"""struct who of bpf/tegu.bpf.h: cgroup, tid, tgid, comm."""

STACK_DEPTH = 32
"""As in bpf/tegu.bpf.h."""

_SUMS = struct.Struct("<QQQ")

CONFIG = struct.Struct("<QQQIIIIQ")
"""struct config of bpf/tegu.bpf.h."""


@dataclass(frozen=True)
class Settings:
    """What to look for. Times in nanoseconds but for `seconds`; None: the tool's own choice."""

    seconds: float | None = 10.0
    """How long to look; None: until told to stop."""
    threshold_ns: int | None = None
    """What takes as long becomes an event of its own, with stacks."""
    cgroup: str | None = None
    """Only this control group and those below it."""
    pid: int = 0
    """Only this process; 0: all."""
    hertz: int = 99
    """Samples per second and processor."""


class Need(NamedTuple):
    """Something of the kernel that a tool cannot do without."""

    kind: str
    """"tracepoint", "iterator", "function", "enum", or "member" (`struct.member`)."""
    name: str

    def missing(self, types: KernelTypes) -> str:
        """Return what the kernel lacks, in words; nothing when it is there."""
        if self.kind == "tracepoint":
            there = types.has_tracepoint(self.name)
        elif self.kind == "iterator":
            there = types.has_iterator(self.name)
        elif self.kind == "function":
            there = types.has("func", self.name)
        elif self.kind == "enum":
            there = types.has("enum", self.name)
        else:
            name, _, member = self.name.partition(".")
            there = member in types.members(name)
        return "" if there else f"this kernel has no {self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class Sums:
    """struct sums of bpf/tegu.bpf.h; times in nanoseconds."""

    count: int
    total_ns: int
    max_ns: int


class Names(NamedTuple):
    """What numbers of the kernel mean on this machine."""

    groups: CgroupNames
    symbols: Symbols


class Tool:
    """Base of the probes; each is one question. A subclass's docstring is its help."""

    name: ClassVar[str]
    group: ClassVar[str]
    """Of the question: cpu, memory, io, net, process, system."""
    question: ClassVar[str]
    facility: ClassVar[str]
    overhead: ClassVar[str]
    """As measured; says where."""
    object_name: ClassVar[str]
    needs: ClassVar[tuple[Need, ...]] = ()
    controller: ClassVar[str] = "cpu"
    """Whose hierarchy says which control group a task belongs to, where version 1 is mounted."""
    threshold_ns: ClassVar[int | None] = None
    """The usual threshold; None: there is none to set."""
    floor_ns: ClassVar[int] = 0
    """What takes less is counted but not attributed."""
    sampled: ClassVar[bool] = False
    """Whether `--hertz` means anything."""
    instant: ClassVar[bool] = False
    """Whether one look is all: no time to wait."""

    selects: ClassVar[bool] = True
    """Whether `--cgroup` and `--pid` mean anything."""
    stacks: ClassVar[bool] = False
    """Whether `stacks_of` has something for a flame graph."""
    example: ClassVar[str] = ""
    """For the end of the help; empty: the bare command."""

    @classmethod
    def description(cls) -> str:
        """Return the whole help text: docstring, facility, overhead."""
        # One line to a paragraph: the terminal decides where it ends.
        paragraphs = inspect.cleandoc(cls.__doc__ or cls.question).split("\n\n")
        about = "\n\n".join(" ".join(p.split()) for p in paragraphs)
        return f"{about}\n\nRests on {cls.facility}.\n\nOverhead: {cls.overhead}."

    def check(self, types: KernelTypes) -> None:
        """Raise UnsupportedError when this kernel lacks what the tool needs."""
        for need in self.needs:
            reason = need.missing(types)
            if reason:
                raise UnsupportedError(reason)

    def left_out(self, types: KernelTypes) -> Sequence[str]:
        """Return programs that this kernel does without."""
        return ()

    def extra(self, settings: Settings) -> int:
        """Return what `config.extra` is to be."""
        return 0

    def attach(self, session: Session) -> None:
        """Attach all programs; tools with other ways override it."""
        for program in session.programs:
            session.object.attach(program)

    def tick(self, session: Session) -> None:
        """Called some times a second while the probe runs."""

    def decode(self, data: bytes, names: Names) -> Record:
        """Return what one record of the ring buffer means; tools without events need none."""
        raise NotImplementedError

    def summarize(self, session: Session) -> Record:
        """Read the maps: everything that was aggregated in the kernel."""
        raise NotImplementedError

    def lines(self, event: Record) -> list[str]:
        """Return an event in words, its stack indented below it."""
        raise NotImplementedError

    def stacks_of(self, recording: Recording) -> list[tuple[list[str], float]]:
        """Return stacks, outermost frame first, each with its weight, for a flame graph."""
        raise NotImplementedError

    def tables(self, recording: Recording, top: int) -> list[Table]:
        """Return what the summary says, each table at most `top` rows where that makes sense."""
        raise NotImplementedError


def slots_of(source: BpfMap) -> list[int]:
    """Return a histogram that is a per-CPU array of counters."""
    return [sum(struct.unpack("<Q", v)[0] for v in values) for _, values in sorted(source.items())]


def unpack_sums(values: Sequence[bytes]) -> Sums:
    """Return the `struct sums` of one key: one value, or one for each processor."""
    counts, totals, longest = zip(*map(_SUMS.unpack, values), strict=True)
    return Sums(sum(counts), sum(totals), max(longest))


def text(raw: bytes) -> str:
    """Return a string of the kernel without what follows its end.

    Any program may name itself as it likes; what a terminal would obey becomes a question mark.
    """
    found = raw.split(b"\0", 1)[0].decode(errors="replace")
    return "".join(c if c.isprintable() else "?" for c in found)


def unpack_who(values: Sequence[int | bytes], names: Names) -> Record:
    """Return a `struct who`, unpacked by `WHO`."""
    cgroup, tid, tgid, comm = values
    assert isinstance(cgroup, int) and isinstance(comm, bytes)
    return {"comm": text(comm), "tid": tid, "pid": tgid, "cgroup": names.groups.name(cgroup)}


def top_rows(entries: Sequence[Mapping[str, object]], key: str, top: int) -> list[Record]:
    """Return the `top` entries with the largest `key`."""

    def size(entry: Mapping[str, object]) -> float:
        value = entry[key]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{key} is no number")
        return value

    return [dict(e) for e in sorted(entries, key=size, reverse=True)[:top]]
