"""One run of a probe: load, attach, read in batches, sum up, release."""

from __future__ import annotations

import os
import platform
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tegu.errors import UnsupportedError
from tegu.linux import libc
from tegu.linux.libbpf import BpfMap, BpfObject, KernelTypes, RingBuffer
from tegu.probe.groups import CgroupNames, Selection
from tegu.probe.objects import object_data
from tegu.probe.reading import Reading
from tegu.probe.recording import FORMAT, Record
from tegu.probe.symbols import Symbols
from tegu.probe.tool import CONFIG, Names, Settings, Tool

__all__ = ["Session", "availability", "watch"]

_POLL_SECONDS = 0.1
_TRIM_SECONDS = 5.0
_MOST_AT_ONCE = 200
_MOST_PENDING = 20_000
_NICE = -10
"""Of the reader: it does little, and on an overloaded machine it must not wait for its turn."""


class Session:
    """A probe in the kernel, from attach to release; use it as a context manager."""

    def __init__(self, tool: Tool, settings: Settings) -> None:
        """Load and attach; raises UnsupportedError with what this machine lacks."""
        self.tool = tool
        self.settings = settings
        self.names = Names(CgroupNames(tool.controller), Symbols())
        self._pending: deque[bytes] = deque()
        self._dropped = 0
        self._ring: RingBuffer | None = None
        data = object_data(tool.object_name)
        with KernelTypes() as types:
            tool.check(types)
            left_out = set(tool.left_out(types))
        try:
            self.object = BpfObject(data)
        except OSError as e:
            raise UnsupportedError(f"libbpf cannot read the probe: {e}") from e
        try:
            self._start(left_out)
        except BaseException:
            self.close()
            raise

    def _start(self, left_out: set[str]) -> None:
        settings, tool = self.settings, self.tool
        chosen = Selection(0, 0)
        if settings.cgroup:
            chosen = self.names.groups.select(settings.cgroup)
            if chosen.level == 0:
                chosen = Selection(0, 0)  # the root: everything
        threshold = settings.threshold_ns
        if threshold is None:
            threshold = tool.threshold_ns or 0
        self.threshold_ns = threshold
        self.object.configure(
            ".rodata.config",
            CONFIG.pack(
                threshold,
                min(tool.floor_ns, threshold),
                chosen.id,
                chosen.level,
                self.names.groups.hierarchy,
                settings.pid,
                os.getpid(),
                tool.extra(settings),
            ),
        )
        for program in left_out:
            self.object.leave_out(program)
        self.object.load()
        self.programs = [p for p in self.object.programs() if p not in left_out]
        self._ring = RingBuffer(self.object.map("events"), self._take)
        tool.attach(self)
        libc.trim_memory()  # the kernel's types, read twice by now

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Detach and free; may be called twice."""
        if self._ring is not None:
            self._ring.close()
            self._ring = None
        self.object.close()

    def map(self, name: str) -> BpfMap:
        """Return a map of the program."""
        return self.object.map(name)

    def _take(self, data: bytes) -> None:
        if len(self._pending) < _MOST_PENDING:
            self._pending.append(data)
        else:
            self._dropped += 1

    def lost(self) -> int:
        """Return how many events found no room, could not be followed, or were not read in time."""
        values = self.map("lost").get(struct.pack("<I", 0))
        in_kernel: int = sum(struct.unpack("<Q", v)[0] for v in values)
        return in_kernel + self._dropped + len(self._pending)

    def events(self, *, last: bool = False) -> Iterator[Record]:
        """Take what is in the ring buffer; it is emptied again before each event is named.

        What comes meanwhile waits for the next call: on an overloaded machine this must end too.
        The `last` time all that there is now is taken, however long that is, and nothing later.
        """
        assert self._ring is not None
        self._ring.consume()
        for _ in range(len(self._pending) if last else min(len(self._pending), _MOST_AT_ONCE)):
            if not last:
                self._ring.consume()
            yield {
                "type": "event",
                "tool": self.tool.name,
                **self.tool.decode(self._pending.popleft(), self.names),
            }


def watch(tool: Tool, settings: Settings, stop: threading.Event) -> Iterator[Record]:
    """Run a probe and yield its records: header, events as they come, summary, end.

    It ends after `settings.seconds`, or soon after `stop` is set. Raises UnsupportedError.
    """
    if isinstance(tool, Reading):
        yield from _read(tool, settings, stop)
        return
    with _ahead(), Session(tool, settings) as session:
        yield _header(tool, settings, session.threshold_ns)
        # The kernel's stamps are of CLOCK_MONOTONIC; a reader wants the time of day.
        offset = time.time() - time.monotonic()
        if not tool.instant:
            # Reading the kernel's symbols takes a moment, in which events must not be lost.
            threading.Thread(target=_prepare, args=(session,), daemon=True).start()
        began = trimmed = time.monotonic()
        while not stop.is_set():
            if time.monotonic() - trimmed > _TRIM_SECONDS:
                trimmed = time.monotonic()
                libc.trim_memory()  # programs' symbols leave as much behind as they take
            left = _POLL_SECONDS
            if tool.instant:
                left = 0
            elif settings.seconds is not None:
                left = began + settings.seconds - time.monotonic()
            tool.tick(session)
            for event in session.events():
                yield _stamped(event, offset)
            if left <= 0:
                break
            stop.wait(min(_POLL_SECONDS, left))
        seconds = time.monotonic() - began
        summary = tool.summarize(session)
        for event in session.events(last=True):
            yield _stamped(event, offset)
        lost = session.lost()
        yield {"type": "summary", "tool": tool.name, **summary}
        yield {"type": "end", "seconds": round(seconds, 3), "lost": lost}


def _header(tool: Tool, settings: Settings, threshold_ns: int) -> Record:
    return {
        "type": "header",
        "tegu_probe": FORMAT,
        "tool": tool.name,
        "host": platform.node(),
        "kernel": platform.release(),
        "started": time.time(),
        "threshold_ns": threshold_ns,
        "cgroup": settings.cgroup,
        "pid": settings.pid or None,
        "seconds": settings.seconds,
    }


def _read(tool: Reading, settings: Settings, stop: threading.Event) -> Iterator[Record]:
    """Look, wait, look again; there is nothing that could be lost."""
    reason = tool.unavailable()
    if reason:
        raise UnsupportedError(reason)
    began = time.monotonic()
    first = last = tool.look(settings)
    yield _header(tool, settings, settings.threshold_ns or tool.threshold_ns or 0)
    while not (tool.instant or stop.is_set()):
        left = _POLL_SECONDS
        if settings.seconds is not None:
            left = began + settings.seconds - time.monotonic()
        for event in tool.between():
            yield {"type": "event", "tool": tool.name, "time": round(time.time(), 6), **event}
        if left <= 0:
            break
        stop.wait(min(_POLL_SECONDS, left))
    seconds = time.monotonic() - began
    if not tool.instant:
        last = tool.look(settings)
    yield {"type": "summary", "tool": tool.name, **tool.compare(first, last, seconds)}
    yield {"type": "end", "seconds": round(seconds, 3), "lost": 0}


def _prepare(session: Session) -> None:
    session.names.symbols.prepare()
    libc.trim_memory()


@contextmanager
def _ahead() -> Iterator[None]:
    """Let this process go before others, where it may."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, min(before, _NICE))
    try:
        yield
    finally:
        with suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, before)


def _stamped(event: Record, offset: float) -> Record:
    if "at_ns" in event:
        event["time"] = round(event.pop("at_ns") / 1e9 + offset, 6)
    return event


def availability(tool: Tool) -> str:
    """Say why the tool does not work here; nothing when it was loaded and attached."""
    if isinstance(tool, Reading):
        return tool.unavailable()
    try:
        Session(tool, Settings()).close()
    except UnsupportedError as e:
        return e.message.removeprefix("unsupported: ")
    return ""
