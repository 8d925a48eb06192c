"""A box from within: from the clone to the moment when a foreign program takes over.

Runs in the first process of the box's namespaces. Order matters: mounts first, then what takes
the right to mount away; nothing of the host stays open; only then does it take orders.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # what signal wraps, without enum
import _socket
import fcntl
import os
import resource
import select
from collections.abc import Sequence

from tegu.linux import confine, landlock, libc
from tegu.sandbox import init, wireless

__all__ = ["CONTROL", "Order", "World", "become", "start"]

CONTROL = 60
_RULES = 61
_HIGH = 64
"""Above all that a program is given, and within the lowest limit on descriptors."""
_NOSUID_NODEV = libc.MS_NOSUID | libc.MS_NODEV
_DIRECTORIES = (("dev", 0o755), ("proc", 0o555), ("run", 0o755), ("sys", 0o555), ("tmp", 0o1777))


class World:
    """What all boxes of a template have in common; made once by the zygote."""

    __slots__ = ("binds", "filters", "keep", "rules")

    def __init__(
        self,
        filters: tuple[bytes, ...],
        rules: int,
        binds: tuple[str, ...],
        keep: tuple[str, ...],
    ) -> None:
        self.filters = filters
        """The compiled system call filters."""
        self.rules = rules
        """Descriptor of the Landlock rule set; -1 where the kernel has none."""
        self.binds = binds
        """Paths of the template that are mounts of their own, read-only in every box."""
        self.keep = keep
        """Capabilities that root in a box keeps, over the box's own namespaces."""


class Order:
    """What the supervisor wants a box to be like; the fields of its message to the zygote."""

    __slots__ = (
        "disk",
        "files",
        "hostname",
        "inodes",
        "name",
        "processes",
        "read_only",
        "spare_networks",
    )

    def __init__(self, words: list[str]) -> None:
        self.name, self.spare_networks = words[1], int(words[2])
        self.disk, self.inodes = words[3], words[4]
        self.read_only = words[5] == "1"
        self.hostname = words[6]
        self.files, self.processes = int(words[7]), int(words[8])


def start(world: World, order: Order, control: int, go_r: int, go_w: int) -> None:
    """Become the first process of a box; never returns."""
    step = "starting"
    link = None
    try:
        os.close(go_w)
        if os.read(go_r, 1) != b"1":
            os._exit(1)
        step = "clearing descriptors"
        link = _only_these(control, world.rules)
        os.setsid()
        step = "mounting the root"
        _mount(world, order)
        step = "giving up privileges"
        host_name(order.hostname)
        _confine(world, order)
        step = "taking orders"
        _take_orders(link)
    except BaseException as e:  # noqa: BLE001 - a clone must never return into the zygote
        if link is not None:
            _report(link, step, e)
    os._exit(1)


def host_name(name: str) -> None:
    """sethostname(2)."""
    data = name.encode()
    libc.call("sethostname", data, len(data), what="hostname")


def _report(link: _socket.socket, step: str, e: BaseException) -> None:
    reason = e.strerror if isinstance(e, OSError) and e.strerror else f"{type(e).__name__}: {e}"
    where = f" ({e.filename})" if isinstance(e, OSError) and isinstance(e.filename, str) else ""
    number = e.errno or 0 if isinstance(e, OSError) else 0
    try:
        wireless.tell(link, "error", step, str(number), f"{reason}{where}")
    except OSError:
        os._exit(1)


def _only_these(control: int, rules: int) -> _socket.socket:
    """Leave nothing open but /dev/null as 0 to 2, the control socket and the rule set."""
    high_control = _up(control)
    high_rules = _up(rules) if rules >= 0 else -1
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.dup2(high_control, CONTROL, inheritable=False)
    if high_rules >= 0:
        os.dup2(high_rules, _RULES, inheritable=False)
    libc.close_range(3, CONTROL - 1)
    libc.close_range((_RULES if high_rules >= 0 else CONTROL) + 1)
    return _socket.socket(fileno=CONTROL)


def _up(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH)


def _mount(world: World, order: Order) -> None:
    libc.mount(
        "tmpfs",
        "/b",
        "tmpfs",
        _NOSUID_NODEV,
        f"mode=0755,size={order.disk},nr_inodes={order.inodes}",
    )
    for name in ("r", "u", "w"):
        os.mkdir(f"/b/{name}")  # noqa: PTH102
    os.mkdir("/b/shm", 0o1777)  # noqa: PTH102
    os.chmod("/b/shm", 0o1777)  # noqa: PTH101
    if order.read_only:
        libc.mount("/ro", "/b/r", "", libc.MS_BIND | libc.MS_REC)
        for name in ("tmp", "run"):
            os.mkdir(f"/b/{name}")  # noqa: PTH102
            os.chmod(f"/b/{name}", 0o1777 if name == "tmp" else 0o755)  # noqa: PTH101
            libc.mount(f"/b/{name}", f"/b/r/{name}", "", libc.MS_BIND)
    else:
        libc.mount(
            "overlay",
            "/b/r",
            "overlay",
            _NOSUID_NODEV,
            "userxattr,lowerdir=/t,upperdir=/b/u,workdir=/b/w",
        )
        for name, mode in _DIRECTORIES:
            try:
                os.mkdir(f"/b/r/{name}", mode)  # noqa: PTH102
                os.chmod(f"/b/r/{name}", mode)  # noqa: PTH101
            except FileExistsError:
                pass
        for path in world.binds:
            libc.mount(f"/ro{path}", f"/b/r{path}", "", libc.MS_BIND | libc.MS_REC)
    libc.mount("/dev", "/b/r/dev", "", libc.MS_BIND | libc.MS_REC)
    libc.mount("/b/shm", "/b/r/dev/shm", "", libc.MS_BIND)
    libc.mount(
        "devpts",
        "/b/r/dev/pts",
        "devpts",
        libc.MS_NOSUID | libc.MS_NOEXEC,
        "newinstance,ptmxmode=0666,mode=0620",
    )
    libc.mount("proc", "/b/r/proc", "proc", _NOSUID_NODEV | libc.MS_NOEXEC)
    os.chdir("/b/r")
    libc.pivot_root(".", ".")
    libc.umount2(".", libc.MNT_DETACH)
    os.chdir("/")


def _confine(world: World, order: Order) -> None:
    # Processes are counted for each user id in a box (Linux 5.14).
    for what, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, order.files),
        (resource.RLIMIT_NPROC, order.processes),
        (resource.RLIMIT_MEMLOCK, 65536),
    ):
        resource.setrlimit(what, (most, most))
    confine.no_new_privileges()
    confine.keep_capabilities(world.keep, bounding=False)
    confine.undumpable()
    if world.rules >= 0:
        _restrict_files()
        os.close(_RULES)
    for program in world.filters:
        confine.load_filter(program)


def _restrict_files() -> None:
    """As the zygote's rule set does, but that files may be moved from one directory to another.

    That a rule must allow, for a directory that is there: the root of this very box.
    """
    abi = landlock.abi()
    if abi < 2:
        landlock.restrict(_RULES)
        return
    scoped = landlock.SCOPE_SIGNALS | landlock.SCOPE_ABSTRACT_SOCKETS if abi >= 6 else 0
    rules = landlock.ruleset(landlock.FS_DEVICES | landlock.FS_REFER, scoped=scoped)
    landlock.allow_beneath(rules, "/", landlock.FS_REFER)
    landlock.restrict(rules)
    os.close(rules)


def _take_orders(link: _socket.socket) -> None:
    if not select.select([link], [], [], 0)[0]:
        init.rehearse()
    data, fds = wireless.receive(link)
    if not data:
        os._exit(0)
    words = wireless.split(data)  # from the supervisor, through a socket that only it holds
    if words[0] == "become":
        become(words, fds)
    init.serve(link, words, fds)


def become(words: list[str], fds: Sequence[int]) -> None:
    """Replace this process by the program that an order names, with `fds` as its 0, 1, 2, 3 ..."""
    cwd, argv, env = init.program(words)
    os.chdir(cwd)
    high = [_up(fd) for fd in fds]
    libc.close_range(3, on_exec=True)
    for target, fd in enumerate(high):
        os.dup2(fd, target)
    for number in (_signal.SIGINT, _signal.SIGPIPE, _signal.SIGXFSZ):
        _signal.signal(number, _signal.SIG_DFL)  # Python has its own ideas about these
    init.become_user(init.user_of(words))
    os.execvpe(argv[0], argv, env)
