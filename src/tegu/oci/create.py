"""Making a container: the runtime's side of `create`, and `start`.

runtime.md, "Lifecycle". The first process does the work (tegu.oci.child); this side does what needs
the host: id maps, control groups, hooks, limits.
"""

from __future__ import annotations

import _socket
import json
import os
import pwd
import signal
from contextlib import suppress

from tegu.errors import TeguError, UnsupportedError
from tegu.linux import mountapi
from tegu.oci import mounts, terminal
from tegu.oci.cgroups import Cgroups, Layout
from tegu.oci.child import Plan, first_process, only_descriptors, stay_alone
from tegu.oci.config import NAMESPACES, Config, load
from tegu.oci.fields import ConfigError
from tegu.oci.hooks import run_hooks
from tegu.oci.process import Identity, apply_from_outside
from tegu.oci.spawn import born, map_ids, open_namespaces
from tegu.oci.state import Container, OciError, now, start_time, write_whole
from tegu.oci.wire import Wire, pair

TYPE_CHECKING = False  # see __init__.py
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Request", "create", "destroy", "start"]

_ASSUMED = "/oci-"  # not "tegu-": those are the sandbox supervisor's to sweep


class Request:
    """What the caller of `create` wants besides config.json."""

    def __init__(self) -> None:
        self.bundle = "."
        self.pid_file = ""
        self.console_socket = ""
        self.console: _socket.socket | None = None
        self.preserve = 0
        self.pivot = True
        self.keyring = True
        self.manager = "cgroupfs"
        """cgroupfs, systemd or disabled."""
        self.warn: Callable[[str], None] = lambda _: None


def create(container: Container, request: Request) -> int:
    """Make `container`; returns the pid of its first process, which waits for `start`.

    Whatever fails, nothing of it is left. Raises TeguError.
    """
    config = load(request.bundle)
    options = mounts.plan(config)
    identity = Identity(config.process, config.linux)
    _check_terminal(config, request)
    container.make()
    try:
        with container:
            maker = [os.getpid(), start_time(os.getpid())]
            container.save(
                id=container.name,
                bundle=config.bundle,
                rootfs=os.path.normpath(config.rootfs),
                created=now(),
                owner=_user(),
                annotations=config.raw.get("annotations", {}),
                maker=maker,
                preserve=request.preserve,
                manager=request.manager,
            )
            write_whole(container.path("config.json"), json.dumps(config.raw))
            plan = Plan(config, options, identity)
            return _create(container, plan, request)
    except BaseException:
        container.remove()
        raise


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _check_terminal(config: Config, request: Request) -> None:
    wanted = config.process.get("terminal", False)
    if wanted and not request.console_socket and request.console is None:
        raise OciError(
            "process.terminal: nobody takes the terminal",
            hint="give --console-socket, or use `run` without --detach",
        )
    if request.console_socket and not wanted:
        raise OciError("--console-socket: process.terminal is not set")


def _create(container: Container, plan: Plan, request: Request) -> int:
    config = plan.config
    plan.name = container.name
    plan.preserve, plan.pivot, plan.keyring = request.preserve, request.pivot, request.keyring
    plan.console = request.console
    if request.console_socket:
        plan.console = terminal.connect(request.console_socket)
    plan.listener = _listen(container)
    with suppress(PermissionError):  # a user's first process does it, in its own namespaces
        plan.sources = mounts.clone_sources(config, plan.options)
    joined = open_namespaces(config)
    groups, manager = _groups(container, config, request)
    container.save(cgroups=groups.paths)
    ours, theirs = pair()
    plan.groups = groups.paths
    if not groups.paths and manager is None:
        _show_only(plan)
    plan.state = container.state("creating")
    pid = 0

    def child() -> None:
        keep = [theirs.fileno(), *range(3, 3 + plan.preserve)]
        keep += [s.fileno() for s in (plan.listener, plan.console) if s is not None]
        keep += plan.sources.all() if plan.sources else []
        only_descriptors(keep)
        first_process(plan, theirs)

    try:
        flags = 0
        for name, (flag, _) in NAMESPACES.items():
            if config.is_new(name) and name != "cgroup":
                flags |= flag
        if not config.is_new("user"):
            # Before others can see it, as in a pid namespace that is shared. In a new user
            # namespace its ids must be written first, by whoever may look into it.
            stay_alone()
        pid = born(flags, joined, child, config.linux.get("timeOffsets"))
        theirs.close()
        if manager is not None:
            groups.paths = plan.groups = manager(pid)
        _raise_up(container, plan, groups, pid, ours, request)
    except BaseException:
        if pid:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        groups.kill()
        groups.remove()
        raise
    finally:
        for fd in plan.sources.all() if plan.sources else []:
            os.close(fd)
        for _, fd in joined:
            os.close(fd)
        ours.close()
        plan.listener.close()
    return pid


def _raise_up(
    container: Container, plan: Plan, groups: Cgroups, pid: int, wire: Wire, request: Request
) -> None:
    """Lead the first process from its birth to the state `created`."""
    config = plan.config
    if config.is_new("user"):
        map_ids(pid, config)
    if groups.paths:
        groups.add(pid)
    # Its account begins here; device rules come with the limits, before it makes any node.
    _limit(groups, config, request)
    container.saved.update(pid=pid, start=start_time(pid))
    state = plan.state | {"pid": pid}
    wire.tell("go", json.dumps([pid, plan.groups]))
    _hear(wire, "mounted", request)
    for name in ("prestart", "createRuntime"):
        run_hooks(name, config.hooks(name), state)
    wire.tell("go")
    _hear(wire, "ready", request)
    apply_from_outside(pid, config.process)
    wire.tell("go")
    _hear(wire, "done", request)
    if request.pid_file:
        write_whole(request.pid_file, str(pid), 0o644)
    container.save(pid=pid, start=start_time(pid))


def _hear(wire: Wire, wanted: str, request: Request) -> None:
    while True:
        word, text = wire.hear()
        if word == wanted:
            return
        if word != "warning":
            raise OciError(text or "the container's first process was killed")
        request.warn(text)


def _listen(container: Container) -> _socket.socket:
    s = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    directory = os.open(container.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # An address has 108 bytes; a root and an id may have more.
        s.bind(f"/proc/self/fd/{directory}/start.sock")
        s.listen(8)
    finally:
        os.close(directory)
    return s


# -- control groups


def _wants_limits(config: Config) -> bool:
    resources = config.linux.get("resources", {})
    return any(v for k, v in resources.items() if k != "devices")


def _groups(
    container: Container, config: Config, request: Request
) -> tuple[Cgroups, Callable[[int], dict[str, str]] | None]:
    """Make the container's groups; with systemd what makes them once there is a process."""
    path = config.linux.get("cgroupsPath", "")
    if request.manager == "disabled":
        if _wants_limits(config):
            raise UnsupportedError("linux.resources: control groups are disabled")
        return Cgroups({}), None
    if request.manager == "systemd":
        from tegu.oci.systemd import scope

        def made(pid: int) -> dict[str, str]:
            name, paths = scope(path, container.name, pid)
            container.save(cgroups=paths, unit=name)
            return paths

        return Cgroups({}), made
    if path.count(":") == 2 and "/" not in path:
        raise ConfigError(f"linux.cgroupsPath: {path}: slice:prefix:name needs --systemd-cgroup")
    try:
        return Cgroups.make(path or _ASSUMED + container.name, Layout.here()), None
    except UnsupportedError:
        # A user without groups of its own gets none, as long as nothing was to be limited.
        privileged = os.geteuid() == 0 and _of_the_host()
        if _wants_limits(config) or (path and privileged):
            raise
        request.warn("no control groups may be made here: the container has none")
        return Cgroups({}), None


def _show_only(plan: Plan) -> None:
    """Let a container without groups see those that it is in, read-only: they are its caller's."""
    for mount, option in zip(plan.config.mounts, plan.options, strict=True):
        if mount.get("type") in mounts.CGROUP and not option.bind:
            plan.groups = Layout.here().place("")
            option.flags |= mountapi.MOUNT_ATTR_RDONLY


def _of_the_host() -> bool:
    """Whether this process's user ids are the host's own (no user namespace)."""
    with open("/proc/self/uid_map") as f:
        return f.read().split() == ["0", "0", "4294967295"]


def _limit(groups: Cgroups, config: Config, request: Request) -> None:
    resources = config.linux.get("resources", {})
    if not groups.paths:
        return
    # In a user namespace no device can be made or opened that the host did not hand in.
    devices = _of_the_host() and "user" not in config.namespaces
    groups.limit(resources, devices=devices)


# -- start, delete


def start(container: Container, warn: Callable[[str], None]) -> None:
    """Let a created container's program start. Raises OciError with why it did not."""
    with container:
        status = container.status()
        if status != "created":
            raise OciError(f"cannot start {container.name}: it is {status}, not created")
        s = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
        directory = os.open(container.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            s.connect(f"/proc/self/fd/{directory}/start.sock")
            s.send(b"start")
            answer = s.recv(16384).decode(errors="replace")
        except OSError as e:
            raise OciError(f"cannot start {container.name}: {(e.strerror or '').lower()}") from e
        finally:
            os.close(directory)
            s.close()
        with suppress(FileNotFoundError):
            os.unlink(container.path("start.sock"))
        container.save(started=True)
        if answer:
            raise OciError(answer.partition(" ")[2])
        config = container.config()
        state = container.state()
    try:
        run_hooks("poststart", config.hooks("poststart"), state)
    except TeguError as e:
        warn(e.message)  # the specification: logged, and the lifecycle goes on


def destroy(container: Container, warn: Callable[[str], None], *, force: bool = False) -> None:
    """Remove a container that has ended; with `force` also one that has not. Raises OciError."""
    with container:
        status = container.status()
        if status not in ("stopped", "created") and not force:
            raise OciError(
                f"cannot delete container {container.name} that is not stopped: {status}",
                hint="kill it first, or use --force",
            )
        groups = Cgroups.of(container.saved.get("cgroups", {}))
        if status != "stopped":
            _end(container, groups)
        groups.kill()
        if not groups.remove():
            raise OciError(f"cannot remove the control groups of {container.name}: not empty")
        state = container.state("stopped")
        with suppress(TeguError):
            hooks = container.config().hooks("poststop")
            for i, hook in enumerate(hooks):
                try:
                    run_hooks(f"poststop[{i}]", [hook], state)
                except TeguError as e:
                    warn(e.message)
        container.remove()


def _end(container: Container, groups: Cgroups) -> None:
    import select

    try:
        fd = container.open_pid()
    except OciError:
        return
    try:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        if groups.frozen():
            groups.freeze(False)
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        if not poll.poll(10_000):
            raise OciError(f"{container.name} does not end after SIGKILL")
    finally:
        os.close(fd)
