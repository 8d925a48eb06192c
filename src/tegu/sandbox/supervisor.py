"""The resident supervisor: keeps zygotes and ready boxes, answers clients on a UNIX socket.

It runs as process 1 of its own pid namespace (tegu.sandbox.keeper), single-threaded on asyncio.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tegu.errors import SandboxError, TeguError, UnsupportedError
from tegu.linux.cgroups import Group, Groups
from tegu.sandbox import doctor
from tegu.sandbox.box import Box
from tegu.sandbox.gvisor.spawn import OVERHEAD as GVISOR_OVERHEAD
from tegu.sandbox.gvisor.spawn import THREADS, Gvisors
from tegu.sandbox.inuse import InUse
from tegu.sandbox.native import find_launcher, open_launcher
from tegu.sandbox.nursery import MAX_TEMPLATES, Zygote
from tegu.sandbox.pool import Pool
from tegu.sandbox.spec import BoxSpec, Limits
from tegu.sandbox.template import Template, find_template
from tegu.sandbox.users import Users
from tegu.sandbox.vm.spawn import KINDS, Machines, reap_orphans
from tegu.sandbox.vm.spawn import OVERHEAD as MACHINE_OVERHEAD

if TYPE_CHECKING:
    from tegu.sandbox.net.networks import Networks

__all__ = ["Supervisor", "main"]

_TEND_EVERY = 5.0
_FILL_AFTER = 0.006
_ZYGOTE_IDLE = 60.0
"""Seconds after which the zygote of a directory is let go unless it is used."""
_INODES_PER_BYTE = 1 / 4096
_NO_NETWORK = {
    "process": "it shares this machine's network, and so may make no sockets at all",
    "microvm": "its machine has no network device",
    "microvm-tcg": "its machine has no network device",
    "gvisor": "its kernel has a network stack of its own, without a device",
}
"""Classes without networks, and why."""
_OVERHEAD = {**dict.fromkeys(KINDS, MACHINE_OVERHEAD), "gvisor": GVISOR_OVERHEAD}
"""Bytes that what holds a box may take beside its limit."""


class Supervisor:
    """Boxes by name, zygotes by template, pools by what their boxes have in common."""

    def __init__(
        self, *, privileged: bool, warm: int, keeper: int, launcher: int | None = None
    ) -> None:
        self.privileged = privileged
        self.launcher = launcher
        self.boxes: dict[str, Box] = {}
        self.groups = Groups.find(keeper)
        self.started = 0
        self.since = time.time()
        self.last_use = time.monotonic()
        self._warm = warm
        state = os.environ.get("TEGU_SANDBOX_STATE")
        place = Path(state) if state and os.access(state, os.W_OK) else None
        self.machines = Machines(place)
        self.gvisors = Gvisors(place)
        self._users = Users(privileged=privileged)
        self._trees = InUse()
        self._zygotes: dict[str, Zygote] = {}
        self._starting: dict[str, asyncio.Task[Zygote]] = {}
        self._pools: dict[tuple[object, ...], Pool] = {}
        self._loop = asyncio.get_running_loop()
        self._filling = False
        self._closing = False
        self.thread = ThreadPoolExecutor(1, "groups")
        """Where what waits for the whole machine is done."""
        self.templates: dict[str, Template] = {}
        """Templates that are made of others, by names that no directory has."""
        self.held: set[str] = set()
        """Whose ids are in use beside those of templates: see `slot`."""
        self._slots: dict[str, int] = {}
        self._next = 0
        self._networks: Networks | None = None

    def networks(self) -> Networks:
        """Return what gives boxes networks and ports; loaded when the first is asked for."""
        if self._networks is None:
            from tegu.sandbox.net.networks import Networks

            self._networks = Networks(privileged=self.privileged)
        return self._networks

    def reachable(self, box: Box) -> dict[str, Any]:
        """Return a box's published ports, and what its network refused it of late."""
        return {} if self._networks is None else self._networks.about(box)

    def prepared(self, spec: BoxSpec) -> bool:
        """Whether boxes like `spec` can be made at once."""
        if spec.kind == "process":
            return True
        if spec.kind == "gvisor":
            return self.gvisors.ready
        return spec.kind not in KINDS and self.zygote_now(spec.template) is not None

    async def prepare(self, spec: BoxSpec) -> None:
        """Start the zygote, or boot the microVM, that boxes like `spec` are copies of."""
        if spec.kind in KINDS:
            await self.machines.prepare(spec)
        elif spec.kind == "gvisor":
            await self.gvisors.prepare()
        elif spec.kind != "process":
            await self.zygote(spec.template)

    def zygote_now(self, template: str) -> Zygote | None:
        """Return the zygote of a template if it is ready."""
        zygote = self._zygotes.get(template)
        return zygote if zygote is not None and zygote.alive else None

    def zygotes(self) -> dict[str, str]:
        """Return how the zygote of each template works: "compiled" or "python"."""
        return {name: z.runs_as for name, z in self._zygotes.items() if z.alive}

    async def zygote(self, template: str) -> Zygote:
        """Return the zygote of a template, started when need be; one start for all who wait."""
        ready = self.zygote_now(template)
        if ready is not None:
            return ready
        task = self._starting.get(template)
        if task is None:
            task = self._loop.create_task(self._start_zygote(template))
            self._starting[template] = task
            task.add_done_callback(lambda _: self._starting.pop(template, None))
        return await asyncio.shield(task)

    def placed(self, spec: BoxSpec) -> BoxSpec:
        """Return a box's description with its template's own path, and forget a zygote of what was
        there before: a template that is replaced in place starts boxes of the new one."""
        if spec.template == "host":
            return spec
        path = os.path.realpath(spec.template)
        old = self._zygotes.get(path)
        if old is not None:
            try:
                about = Path(path).stat()
                same = (about.st_dev, about.st_ino) == old.identity
            except OSError:
                same = False
            if not same:
                self.drop_zygote(path)
        return spec if path == spec.template else replace(spec, template=path)

    def drop_zygote(self, template: str) -> None:
        """Let a zygote go, if there is one, and the boxes made ahead; those in use live on."""
        if template not in self._zygotes:
            return
        for key in [key for key in self._pools if key[0] == template]:
            self._pools.pop(key).empty()
        self._zygotes.pop(template).stop()

    def slot(self, template: str) -> int:
        """Return the template's number, from which its ids on the host follow; raises SandboxError
        when all are taken."""
        used = {z.template.name for z in self._zygotes.values()}
        used |= {b.spec.template for b in self.boxes.values()} | set(self._starting) | self.held
        self._slots = {name: n for name, n in self._slots.items() if name in used}
        taken = set(self._slots.values())
        free = next(n for n in range(MAX_TEMPLATES + 1) if n not in taken)
        slot = self._slots.setdefault(template, free)
        if slot >= MAX_TEMPLATES:
            raise SandboxError(
                f"template {template}: {MAX_TEMPLATES} others are in use",
                hint="one becomes free when no box of it runs, a minute after its last start",
            )
        return slot

    async def _start_zygote(self, template: str) -> Zygote:
        found = self.templates.get(template) or find_template(template)
        slot = self.slot(template)
        zygote = Zygote(
            found,
            slot,
            privileged=self.privileged,
            groups=self.groups,
            launcher=self.launcher,
        )
        await zygote.start()
        self._zygotes[template] = zygote
        return zygote

    def check(self, spec: BoxSpec) -> None:
        """Raise UnsupportedError when this host cannot give what is asked for."""
        doctor.require(spec.kind)
        if spec.network != "none" or spec.publish:
            self._check_network(spec)
        spec = self._fitting(spec)
        self.check_limits(spec.limits.memory, spec.limits.cpus)

    def check_ports(self, spec: BoxSpec) -> None:
        """Raise UnsupportedError when boxes of a class have no network of their own."""
        why = _NO_NETWORK.get(spec.kind)
        if why is not None:
            raise UnsupportedError(f"a network or ports for class {spec.kind}: {why}")

    def _check_network(self, spec: BoxSpec) -> None:
        self.check_ports(spec)
        if spec.network != "none":
            self.networks().check()

    def _fitting(self, spec: BoxSpec) -> BoxSpec:
        """Return what of a box the host has to limit: a guest's own memory is its limit."""
        if spec.kind == "process":
            self._users.check(spec)
        if spec.kind == "gvisor" and not self.groups.provider("pids"):
            why = self.groups.why.get("pids", "no cgroups")
            raise UnsupportedError(f"class gvisor: nothing here bounds its processes: {why}")
        if spec.kind in KINDS:
            return replace(spec, limits=replace(spec.limits, memory=None))
        if spec.snapshot:
            raise UnsupportedError(f"a {spec.kind} cannot continue a snapshot")
        return spec

    def check_limits(self, memory: int | None, cpus: float | None) -> None:
        """Raise UnsupportedError when this host cannot limit bytes or processors as asked."""
        for controller, value in (("memory", memory), ("cpu", cpus)):
            if value is not None and not self.groups.provider(controller):
                raise UnsupportedError(f"a limit on {controller}: {self.groups.why[controller]}")

    def make(self, spec: BoxSpec) -> Box:
        """Have a box cloned by its template's zygote, which must be ready."""
        if self._closing:
            raise SandboxError("the supervisor is ending")
        if spec.kind != "container":
            return self._make_process(spec)
        zygote = self.zygote_now(spec.template)
        if zygote is None:
            raise SandboxError(f"template {spec.template}: its zygote has ended")
        box = self._new_box(spec)
        limits = spec.limits
        order = (
            str(limits.disk),
            str(max(1024, int(limits.disk * _INODES_PER_BYTE))),
            str(int(spec.read_only)),
            spec.hostname,
            str(limits.files),
            str(limits.pids),
        )
        fds = [box.other_end.fileno()]
        try:
            # Version 2 groups cost a clone nothing, so every box has one where they are.
            if self.groups.provider("pids") == "cgroup v2":
                box.group = self.groups.create(
                    box.name,
                    memory=limits.memory,
                    cpus=limits.cpus,
                    pids=limits.pids,
                    cloner=zygote.user,
                )
                if box.group.fd is not None:
                    fds.append(box.group.fd)
            zygote.ask(box.name, order, fds, box)
        except BaseException as e:
            reason = e.message if isinstance(e, TeguError) else str(e)
            box.stillborn(reason)
            raise
        if self.groups.provider("pids") == "cgroup v1":
            box.gate = lambda passed: self._count(box, limits.pids, passed)
        return box

    def _new_box(self, spec: BoxSpec) -> Box:
        self._next += 1
        box = Box(f"b{self._next:x}-{os.urandom(3).hex()}", spec, self._ended)
        self.boxes[box.name] = box
        return box

    def _make_process(self, spec: BoxSpec) -> Box:
        """Start what holds a microVM, a gVisor or a confined process, in a group of its own where
        version 2 is."""
        box = self._new_box(spec)
        try:
            pids = spec.limits.pids + THREADS * (spec.kind == "gvisor")
            if spec.kind in KINDS:
                self.machines.start(box)
            elif spec.kind == "gvisor":
                if self.groups.provider("pids") == "cgroup v1":
                    box.gate = lambda passed: self._count(box, pids, passed)
                self.gvisors.start(box)
            else:
                self._users.start(box)
            if self.groups.provider("pids") == "cgroup v2":
                memory = spec.limits.memory
                box.group = self.groups.create(
                    box.name,
                    memory=memory and memory + _OVERHEAD.get(spec.kind, 0),
                    cpus=spec.limits.cpus,
                    pids=None if spec.kind in KINDS else pids,
                )
                if box.pid:
                    box.group.attach(box.pid)
                else:
                    box.gate = lambda passed: self._admit(box, passed)
        except BaseException as e:
            if box.pid:
                box.kill()
            else:
                box.stillborn(e.message if isinstance(e, TeguError) else str(e))
            raise
        return box

    def _admit(self, box: Box, passed: Callable[[SandboxError | None], None]) -> None:
        """Put a microVM's new process into its version 2 group."""
        try:
            assert box.group is not None
            box.group.attach(box.pid)
        except OSError as e:
            passed(SandboxError(f"box {box.name}: its limits: {e.strerror}"))
        else:
            passed(None)

    def _count(self, box: Box, pids: int, passed: Callable[[SandboxError | None], None]) -> None:
        """Put a new box into a version 1 group that bounds its processes, whoever they run as.

        In a thread: a move into such a group waits for all processors, now and then a tenth of a
        second, in which no other box shall wait.
        """

        def attach() -> Group:
            group = self.groups.create(box.name, memory=None, cpus=None, pids=pids)
            try:
                group.attach(box.pid)
            except BaseException:
                group.remove()
                raise
            return group

        def attached(done: asyncio.Future[Group]) -> None:
            error = done.exception()
            if error is None:
                box.join(done.result())
                passed(None)
            else:
                passed(SandboxError(f"box {box.name}: a limit on pids: {error}"))

        self._loop.run_in_executor(self.thread, attach).add_done_callback(attached)

    def take(self, spec: BoxSpec) -> Box:
        """Return a new box: a ready one if there is, else one that is being cloned."""
        self.check(spec)
        self.started += 1
        self.last_use = time.monotonic()
        pool = self._pool(spec)
        box = pool.take() if pool is not None else None
        if pool is not None and not self._filling:
            self._filling = True
            self._loop.call_later(_FILL_AFTER, self._fill)
        if box is None:
            box = self.make(spec)
        try:
            self._trees.hold(spec.template, box.name)  # one made ahead does not keep it
        except OSError as e:
            box.kill()
            raise SandboxError(f"template {spec.template}: {e.strerror}") from e
        return box

    def limit(self, box: Box, spec: BoxSpec) -> bool:
        """Put a box under the limits of version 1 groups, if any are asked for and v2 has not.

        Returns whether the box's process must be there first (call again then): nothing may run in
        it before it is counted. Raises OSError or UnsupportedError.
        """
        limits = spec.limits
        more = limits.memory is not None or limits.cpus is not None
        if spec.kind in KINDS:
            more = bool(
                (limits.memory and self.groups.provider("memory")) or limits.cpus is not None
            )
        pids = self.groups.provider("pids")
        if pids == "cgroup v2" or not (more or pids):
            return False
        if not box.ready:
            return True
        if more:
            memory = limits.memory and limits.memory + _OVERHEAD.get(spec.kind, 0)
            group = self.groups.create(box.name, memory=memory, cpus=limits.cpus, pids=None)
            group.attach(box.pid)
            box.join(group)
        return False

    def _pool(self, spec: BoxSpec) -> Pool | None:
        """Return the pool whose boxes fit: those that are asked for as they come."""
        limits = spec.limits
        if spec.kind != "container":
            return None
        plain = spec.timeout is None and (limits.memory is None and limits.cpus is None)
        second = self.groups.provider("pids") == "cgroup v2"
        if not self._warm or (second and not plain) or spec.timeout is not None:
            return None
        base = Limits(pids=limits.pids, files=limits.files, disk=limits.disk)
        kind = BoxSpec(spec.template, spec.kind, base, None, spec.read_only, spec.hostname)
        key = (spec.template, spec.kind, base, spec.read_only, spec.hostname)
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = Pool(lambda: self.make(kind), self._warm)
        return pool

    def _fill(self) -> None:
        if self._closing:
            return
        more = False
        for pool in list(self._pools.values()):
            try:
                more = pool.fill() or more
            except TeguError:
                continue  # the next start meets the same error, and there it is told
        self._filling = more
        if more:
            self._loop.call_later(_FILL_AFTER, self._fill)

    def _ended(self, box: Box) -> None:
        self.boxes.pop(box.name, None)
        self._trees.release(box.spec.template, box.name)
        if box.spec.kind == "process":
            self._users.ended(box)
        if box.state == "dead" and box.owner is None:
            for pool in self._pools.values():
                pool.drop(box)

    def in_use(self) -> list[Box]:
        """Return the boxes that belong to someone or run something."""
        return [b for b in self.boxes.values() if b.state in ("busy", "live")]

    def ready(self) -> int:
        """Return how many boxes are held ready."""
        return sum(len(p) for p in self._pools.values())

    async def tend(self, idle_exit: float | None, stop: asyncio.Event, busy: Any) -> None:
        """Shrink pools and, if so told, end after `idle_exit` seconds without use."""
        while not stop.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(
                    stop.wait(), min(_TEND_EVERY, idle_exit) if idle_exit else _TEND_EVERY
                )
            reap_orphans()
            for key, pool in list(self._pools.items()):
                pool.shrink()
                if not pool.wanted:
                    del self._pools[key]
            if self._networks is not None:
                self._networks.tend()
            for name, zygote in list(self._zygotes.items()):
                if name != "host" and time.monotonic() - zygote.last_use > _ZYGOTE_IDLE:
                    self.drop_zygote(name)
            idle = time.monotonic() - self.last_use
            if idle_exit and idle > idle_exit and not self.in_use() and not busy():
                stop.set()

    async def close(self) -> None:
        """Kill all boxes, wait until nothing is left of them, and let the zygotes go."""
        self._closing = True
        deadline = time.monotonic() + 10
        while self.boxes and time.monotonic() < deadline:
            # Each time: a start that was under way may still have made one.
            for box in list(self.boxes.values()):
                box.kill()
            await asyncio.sleep(0.005)
        for zygote in self._zygotes.values():
            zygote.stop()
        if self._networks is not None:
            self._networks.stop()
        self.thread.shutdown()
        self.groups.close()


async def _serve(
    listener: socket.socket,
    warm: int,
    idle: float | None,
    ready: int | None,
    keeper: int,
    *,
    privileged: bool,
    launcher: int | None,
) -> None:
    from tegu.sandbox.service import Service

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    supervisor = Supervisor(privileged=privileged, warm=warm, keeper=keeper, launcher=launcher)
    service = Service(supervisor, listener, stop)
    if ready is not None:
        # Not earlier: process 1 of a namespace does not even get signals that it does not handle.
        os.write(ready, b"1")
        os.close(ready)
    try:
        await supervisor.tend(idle, stop, service.busy)
    finally:
        service.close()
        await supervisor.close()


def _launcher() -> int | None:
    path = find_launcher()
    try:
        return None if path is None else open_launcher(path)
    except OSError as e:
        print(f"tegu: without the compiled launcher: {e}", file=sys.stderr)
        return None


def main(arguments: list[str]) -> None:
    """Serve on a listening socket; arguments as tegu.sandbox.keeper passes them."""
    listening, warm, idle, ready, keeper, compiled, privileged = arguments
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each box takes two
    listener = socket.socket(fileno=int(listening))
    os.set_inheritable(listener.fileno(), False)
    listener.setblocking(False)
    seconds = None if idle == "None" else float(idle)
    try:
        tell = None if ready == "None" else int(ready)
        served = _serve(
            listener,
            int(warm),
            seconds,
            tell,
            int(keeper),
            privileged=privileged == "1",
            launcher=_launcher() if compiled == "True" else None,
        )
        asyncio.run(served)
    except TeguError as e:
        print(f"tegu: {e.message}", file=sys.stderr)
        sys.exit(e.exit_code)
