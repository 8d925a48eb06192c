"""A container's first process, from its birth in new namespaces until it becomes the program.

It starts as a fork of `tegu-oci create`: all that it imports must be loaded before (this module's
imports), for after pivot_root the interpreter's files are out of reach.
"""

from __future__ import annotations

import _socket
import json
import os
import stat
from contextlib import suppress

from tegu.errors import TeguError
from tegu.linux import confine, libc, mountapi
from tegu.linux.loopback import loopback_up
from tegu.oci import devices, mounts, terminal
from tegu.oci.hooks import run_hooks
from tegu.oci.options import PROPAGATION
from tegu.oci.paths import PROC_SUPER_MAGIC, ensure
from tegu.oci.process import Identity, enter_directory, find_program, start
from tegu.oci.state import OciError
from tegu.oci.sysctl import write_sysctls

TYPE_CHECKING = False  # see __init__.py
if TYPE_CHECKING:
    from typing import Any

    from tegu.oci.config import Config
    from tegu.oci.options import Options
    from tegu.oci.wire import Wire

__all__ = ["Plan", "become", "first_process", "give_streams", "only_descriptors", "stay_alone"]

_JOIN_SESSION_KEYRING = 1


class Plan:
    """All that the first process needs to know."""

    def __init__(self, config: Config, options: list[Options], identity: Identity) -> None:
        self.config = config
        self.options = options
        self.identity = identity
        self.name = ""
        self.state: dict[str, Any] = {}
        self.sources: mounts.Sources | None = None
        self.groups: dict[str, str] = {}
        self.console: _socket.socket | None = None
        self.listener: _socket.socket | None = None
        self.preserve = 0
        self.pivot = True
        self.keyring = True


def only_descriptors(keep: list[int]) -> None:
    """Close all descriptors from 3 on but `keep` (whatever the caller had open, we do not need)."""
    first = 3
    for fd in sorted(set(keep)):
        if fd >= first:
            if fd > first:
                libc.close_range(first, fd - 1)
            first = fd + 1
    libc.close_range(first)


def stay_alone() -> None:
    """Keep the container's processes out of this one while it is still the runtime."""
    confine.undumpable()


def first_process(plan: Plan, wire: Wire) -> None:
    """Make the container around this process, wait for `start`, become the program.

    Never returns. Until the program starts, failures are told over `wire`, then to `start`.
    """
    other = wire.tell
    try:
        waiting = _settle(plan, wire)
        wire.close()
        conversation = _await_start(plan)

        def other(word: str, text: str = "") -> None:
            with suppress(OSError):
                conversation.send(f"{word} {text}".encode())

        run_hooks("startContainer", plan.config.hooks("startContainer"), plan.state)
        program, env = waiting
        libc.close_range(3 + plan.preserve, on_exec=True)
        start(plan.identity, program, env)
    except TeguError as e:
        other("error", e.message)
    except OSError as e:
        what = f" ({e.filename})" if e.filename else ""
        other("error", f"{(e.strerror or str(e)).lower()}{what}")
    except BaseException as e:  # noqa: BLE001 - a forked child must not return into the caller
        other("error", f"internal failure: {type(e).__name__}: {e}")
    finally:
        os._exit(1)


def _settle(plan: Plan, wire: Wire) -> tuple[str, dict[str, str]]:
    """Everything until the container is created; returns the program's path and environment."""
    config, identity = plan.config, plan.identity
    plan.state["pid"], plan.groups = json.loads(wire.await_word("go"))
    stay_alone()
    os.setsid()
    if plan.keyring:
        with suppress(OSError):  # kernels without keyrings, or a full quota
            name = f"_ses.{plan.name}".encode()
            libc.syscall("keyctl", _JOIN_SESSION_KEYRING, name)
    if config.is_new("cgroup"):
        libc.unshare(libc.CLONE_NEWCGROUP)
    sources, proc, null = _mount(plan)
    root = sources.root
    identity.see_host(proc)
    wire.tell("mounted")
    wire.await_word("go")
    run_hooks("createContainer", config.hooks("createContainer"), plan.state)
    inner = _console(plan, root)
    mounts.finish(config, root, null)
    os.close(ensure(root, identity.cwd, directory=True))
    if config.raw["root"].get("readonly"):
        mountapi.set_attributes(root, mountapi.MOUNT_ATTR_RDONLY)
    _change_root(plan, root)
    for fd in (root, proc, null):
        os.close(fd)
    wire.tell("ready")
    wire.await_word("go")
    if inner >= 0:
        terminal.take(inner, identity.uid)
    else:
        give_streams(identity.uid)
    return become(identity, wire)


def _mount(plan: Plan) -> tuple[mounts.Sources, int, int]:
    config = plan.config
    # What is mounted from here on is seen by nobody else; what the host unmounts goes here too.
    libc.mount("", "/", "", libc.MS_REC | libc.MS_SLAVE)
    sources = plan.sources or mounts.clone_sources(config, plan.options)
    place = os.open(config.rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    mountapi.attach(sources.root, place)
    os.close(place)
    if "user" in config.namespaces:
        with suppress(PermissionError):
            os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        stay_alone()  # a change of user takes it back
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if libc.file_system(proc) != PROC_SUPER_MAGIC:
        raise OciError("the host's /proc is no procfs")
    null = devices.host_null()
    if name := config.raw.get("hostname"):
        _name("sethostname", "hostname", name)
    if name := config.raw.get("domainname"):
        _name("setdomainname", "domainname", name)
    if config.is_new("network"):
        loopback_up()
    write_sysctls(proc, config.linux.get("sysctl", {}), config.namespaces)
    before = os.umask(0)
    try:
        mounts.attach_all(config, plan.options, sources, plan.groups)
        for fd in sources.binds.values():
            os.close(fd)
        devices.make_devices(config, sources.root)
    finally:
        os.umask(before)
    return sources, proc, null


def _name(call: str, field: str, value: str) -> None:
    try:
        data = value.encode()
        libc.call(call, data, len(data), what=field)
    except OSError as e:
        raise OciError(f"{field}: {value}: {(e.strerror or '').lower()}") from e


def _console(plan: Plan, root: int) -> int:
    """Make the terminal and hand it over; returns its inner side, -1 when there is none."""
    if not plan.identity.process.get("terminal"):
        return -1
    if plan.console is None:
        raise OciError("process.terminal: nobody takes the terminal: give --console-socket")
    size = plan.identity.process.get("consoleSize", {})
    outer, inner, name = terminal.open_terminal(root, size)
    devices.show_console(root, inner)
    terminal.hand_over(plan.console, outer, name)
    os.close(outer)
    plan.console.close()
    return inner


def give_streams(uid: int) -> None:
    """Let the container's user open its own streams again (/dev/stdout), as with a terminal."""
    for fd in (0, 1, 2):
        with suppress(OSError):
            st = os.fstat(fd)
            if stat.S_ISFIFO(st.st_mode) and st.st_uid != uid:
                os.fchown(fd, uid, -1)


def _change_root(plan: Plan, root: int) -> None:
    os.fchdir(root)
    if plan.pivot:
        libc.pivot_root(".", ".")
        libc.umount2(".", libc.MNT_DETACH)
    else:
        # For a root that pivot_root(2) cannot leave, such as an initramfs.
        libc.mount(".", "/", "", _MS_MOVE)
        os.chroot(".")
    os.chdir("/")
    word = plan.config.linux.get("rootfsPropagation", "")
    if word:
        recursive = libc.MS_REC if word not in PROPAGATION else 0
        libc.mount(
            "", "/", "", PROPAGATION[word.removeprefix("r") if recursive else word] | recursive
        )


_MS_MOVE = 8192


def become(identity: Identity, wire: Wire) -> tuple[str, dict[str, str]]:
    """Take on user and capabilities, in the container; returns the program and its environment."""
    env = identity.environment()
    # As root first: a directory may be closed to the user who is to work in it.
    enter_directory(identity.cwd)
    left_out = identity.become()
    if identity.unknown or left_out:
        names = ", ".join([*identity.unknown, *(f"CAP_{n.upper()}" for n in left_out)])
        wire.tell("warning", f"process.capabilities: left out: {names}")
    program = find_program(identity.args[0], env)
    wire.tell("done")
    return program, env


def _await_start(plan: Plan) -> _socket.socket:
    """Wait on the container's socket until someone says "start"."""
    listener = plan.listener
    if listener is None:
        raise OciError("internal failure: no socket to wait at")
    while True:
        fd, _ = listener._accept()  # type: ignore[attr-defined]
        conversation = _socket.socket(fileno=fd)
        with suppress(OSError):
            if conversation.recv(64) == b"start":
                listener.close()
                return conversation
        conversation.close()
