"""A template's zygote: a small process that already stands in a template and clones boxes off it.

The supervisor starts one per template with `python -I -S`. It enters a user namespace of its own,
builds the tree that boxes begin from, compiles nothing, and then answers each request with one
clone3. Boxes are children of the supervisor (CLONE_PARENT), so they outlive a zygote that fails.
It imports the least it can: every page it touches is copied for each box.
"""

from __future__ import annotations

import _socket
import fcntl
import gc
import marshal
import os
import select
import sys
from typing import Any

from tegu.linux import confine, landlock, libc, loopback, mountapi
from tegu.linux.clone import clone3
from tegu.sandbox import inside, wireless
from tegu.sandbox.devices import attach_devices

__all__ = ["lay", "main"]

_BOX_NAMESPACES = (
    libc.CLONE_NEWUSER
    | libc.CLONE_NEWNS
    | libc.CLONE_NEWPID
    | libc.CLONE_NEWIPC
    | libc.CLONE_NEWUTS
    | libc.CLONE_NEWCGROUP
)
# In two ranges: a user's own id and subordinate ids are two, and a range may not span them.
_ALL_IDS = b"0 0 1\n1 1 65535"
_PAUSE = 8  # milliseconds


def main(control: int) -> None:
    """Serve the supervisor on the descriptor `control` until it goes away."""
    libc.close_range(control + 1)
    link = _socket.socket(fileno=control)
    try:
        plan, world = _enter(link)
    except OSError as e:
        wireless.tell(link, "error", f"{e.filename or 'zygote'}: {e.strerror}")
        return
    if plan["launcher"] is not None:
        _hand_over(plan["launcher"], link, world)
    libc.preload()
    gc.collect()
    gc.freeze()
    gc.disable()
    wireless.tell(link, "ready", "python")
    _serve(link, world)


def _enter(link: _socket.socket) -> tuple[dict[str, Any], inside.World]:
    libc.unshare(libc.CLONE_NEWUSER)
    wireless.tell(link, "mapme")
    data, fds = wireless.receive(link)
    if not data:
        raise SystemExit(0)
    # The supervisor, which wrote this, is the same program: marshal is safe from it.
    with open(fds.pop(0), "rb") as f:  # noqa: PTH123
        f.seek(0)
        plan: dict[str, Any] = marshal.load(f)
    if plan["launcher"] is not None:
        plan["launcher"] = fds[plan["launcher"]]
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    os.setgroups([])
    os.umask(0o022)
    # Changing ids made this process undumpable, and its /proc/PID root's; boxes' id maps are
    # written there. A box makes itself undumpable again before anything foreign runs.
    libc.prctl(4, 1)  # PR_SET_DUMPABLE
    libc.unshare(libc.CLONE_NEWNS)
    libc.mount("", "/", "", libc.MS_REC | libc.MS_PRIVATE)
    _build(plan, fds)
    abi = landlock.abi()
    rules = -1
    if abi:
        scoped = landlock.SCOPE_SIGNALS | landlock.SCOPE_ABSTRACT_SOCKETS if abi >= 6 else 0
        rules = landlock.ruleset(landlock.FS_DEVICES, scoped=scoped)
    world = inside.World(
        filters=tuple(plan["filters"]),
        rules=rules,
        binds=tuple(plan["binds"]),
        keep=tuple(plan["keep"]),
    )
    return plan, world


def _hand_over(launcher: int, link: _socket.socket, world: inside.World) -> None:
    """Become the compiled launcher (native/box.c); returns if this machine cannot run it."""
    masks = sum(1 << confine.CAPABILITIES.index(name) for name in world.keep)
    told = masks.to_bytes(8, sys.byteorder) + len(world.filters).to_bytes(4, sys.byteorder)
    for program in world.filters:
        told += len(program).to_bytes(4, sys.byteorder) + program
    told += b"".join(os.fsencode(path) + b"\0" for path in world.binds)
    file = os.memfd_create("world", os.MFD_CLOEXEC)
    os.write(file, told)
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64) for fd in (link.fileno(), file)]
    if world.rules >= 0:
        high.append(fcntl.fcntl(world.rules, fcntl.F_DUPFD_CLOEXEC, 64))
    program_file = fcntl.fcntl(launcher, fcntl.F_DUPFD_CLOEXEC, 64)
    for target, fd in enumerate(high, start=3):
        os.dup2(fd, target)
    try:
        os.execve(program_file, ["tegu-box"], {})
    except OSError:
        libc.close_range(64)
        os.close(4)
        world.rules = 5 if world.rules >= 0 else -1


def _build(plan: dict[str, Any], fds: list[int]) -> None:
    """Make the tree that boxes are cloned with.

    /t is the template without further mounts (an overlay refuses a layer with locked mounts in
    it), /ro the same with them, /dev what it says, /b is where a box mounts what is its own, /proc
    the supervisor's.
    """
    stage = "/tmp"  # any directory that is always there; covered here only, never changed
    libc.mount("tmpfs", stage, "tmpfs", libc.MS_NOSUID | libc.MS_NODEV, "mode=0755,size=16m")
    for name in ("t", "ro", "dev", "b", "proc"):
        os.mkdir(f"{stage}/{name}")  # noqa: PTH102 - pathlib is not loaded here
    root = f"{stage}/t"
    if plan["root"] is not None:
        mountapi.attach(fds[plan["root"]], root)
    for path, kind, content in plan["skeleton"]:
        lay(root + path, kind, content)
    libc.mount(root, f"{stage}/ro", "", libc.MS_BIND)
    for path, index in plan["mounts"]:
        mountapi.attach(fds[index], f"{stage}/ro{path}")
    mountapi.set_attributes(f"{stage}/ro", mountapi.MOUNT_ATTR_RDONLY)
    made = plan["devices"]
    attach_devices(f"{stage}/dev", None if made is None else fds[made])
    for fd in fds:
        if fd != plan["launcher"]:
            os.close(fd)
    # The supervisor's own: a box may mount a new /proc only where a whole one is in view.
    libc.mount("/proc", f"{stage}/proc", "", libc.MS_BIND)
    os.chdir(stage)
    libc.pivot_root(".", ".")
    libc.umount2(".", libc.MNT_DETACH)
    os.chdir("/")
    # Nothing that boxes share can be written to by one of them.
    mountapi.set_attributes("/", mountapi.MOUNT_ATTR_RDONLY)


def lay(path: str, kind: str, content: Any) -> None:
    """Make one entry of a template's skeleton (tegu.sandbox.template)."""
    if kind == "dir":
        os.makedirs(path, mode=int(content, 8), exist_ok=True)  # noqa: PTH103
        os.chmod(path, int(content, 8))  # noqa: PTH101
    elif kind == "link":
        os.symlink(content, path)  # noqa: PTH211
    else:
        with open(path, "wb") as f:  # noqa: PTH123
            f.write(content)


def _serve(link: _socket.socket, world: inside.World) -> None:
    spare: list[int] = []
    wanted = 0
    poll = select.poll()
    poll.register(link, select.POLLIN)
    while True:
        # Network namespaces are made ahead, but not while a box may be starting.
        if len(spare) < wanted and not poll.poll(_PAUSE):
            spare.append(_network())
            continue
        data, fds = wireless.receive(link)
        if not data:
            return
        order = inside.Order(wireless.split(data))
        wanted = order.spare_networks
        try:
            _clone(link, world, order, fds, spare)
        except OSError as e:
            wireless.tell(link, "failed", order.name, f"{e.filename}: {e.strerror}")
        finally:
            for fd in fds:
                os.close(fd)


def _network() -> int:
    """Return a descriptor of a new network namespace in which nothing but loopback is up."""
    libc.unshare(libc.CLONE_NEWNET)
    loopback.loopback_up()
    return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _clone(
    link: _socket.socket,
    world: inside.World,
    order: inside.Order,
    fds: list[int],
    spare: list[int],
) -> None:
    # The box's network namespace belongs to this zygote's user namespace, not to the box's own:
    # root in a box has no power over it.
    network = spare.pop() if spare else _network()
    libc.setns(network, libc.CLONE_NEWNET)
    os.close(network)
    go_r, go_w = os.pipe()
    try:
        cgroup = fds[1] if len(fds) > 1 else None
        child = clone3(_BOX_NAMESPACES, cgroup=cgroup, as_sibling=True)
        if child.pid == 0:
            inside.start(world, order, fds[0], go_r, go_w)  # never returns
        try:
            for name in ("uid_map", "gid_map"):
                fd = os.open(f"/proc/{child.pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
                try:
                    os.write(fd, _ALL_IDS)
                finally:
                    os.close(fd)
            os.write(go_w, b"1")
            reason = ""
        except OSError as e:
            # Without the word the box ends by itself; the supervisor waits for it.
            reason = f"{e.filename}: {e.strerror}"
        wireless.tell(link, "born", order.name, str(child.pid), reason, fds=[child.pidfd])
        os.close(child.pidfd)
    finally:
        os.close(go_r)
        os.close(go_w)
