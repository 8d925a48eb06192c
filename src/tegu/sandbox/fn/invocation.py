"""One invocation from within: what a fork of the zygote gives up, and the calls that it answers.

A call is `call`, its id, tenant, seconds left, how the event comes ("json", "bytes", and with
"-file" in a descriptor) and the event; the answer is `answer`, an outcome, how the value comes,
seconds of user and system time, and the value. Fields are parted by NUL; the last holds anything.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # what signal wraps, without enum
import _socket
import gc
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import module_from_spec
from types import CodeType, FunctionType, ModuleType
from typing import Any

from tegu.linux import confine, landlock, libc
from tegu.sandbox import wireless
from tegu.sandbox.fn.code import Finder
from tegu.sandbox.fn.hygiene import renew
from tegu.sandbox.fn.zygote import CODE

__all__ = [
    "FIRST_USER",
    "INLINE",
    "Context",
    "Shared",
    "converse",
    "enter",
    "prepare",
    "tmp_options",
]

INLINE = 60_000
"""Bytes of an event or a result that go in the message; more go in a file in memory."""
FIRST_USER = 1000
"""Of the users that invocations run as; others for those that run at the same time."""
_CONTROL = 3
_MOST_TRACE = 16_000
_PR_SET_DUMPABLE = 4
_CO_COROUTINE = 0x80  # inspect.CO_COROUTINE
_NOSUID_NODEV = libc.MS_NOSUID | libc.MS_NODEV


class Shared:
    """What all invocations of a version have in common; made once by the zygote."""

    def __init__(self, world: dict[str, Any], rules: int) -> None:
        self.world = world
        self.rules = rules
        self.handler: Callable[..., Any] | None = None
        self.takes_context = False
        self.entry: tuple[ModuleType, CodeType] | None = None
        """The handler's module as it is before its code has run, and that code."""


class Context:
    """What a handler may ask about its invocation, when it takes a second argument."""

    def __init__(self, number: str, function: str, version: str, tenant: str, left: float) -> None:
        self.invocation_id = number
        self.function = function
        self.version = version
        self.tenant = tenant
        self._end = time.monotonic() + left

    def remaining(self) -> float:
        """Return the seconds that are left."""
        return max(0.0, self._end - time.monotonic())


def prepare(shared: Shared, finder: Finder, *, early: bool) -> str:
    """Make the function's code importable, and import it if `early`; returns what went wrong."""
    finder.install(CODE)
    if early:
        return _load(shared)
    # Made here, so that an invocation need not: a page that a fork writes to is a page copied.
    name = str(shared.world["handler"]).partition(":")[0]
    spec = None if "." in name else finder.find_spec(name)
    if spec is not None:
        code, origin, package = finder.modules[name]
        if not package:
            module = module_from_spec(spec)
            module.__dict__["__builtins__"] = __builtins__
            module.__file__ = origin
            shared.entry = module, code
    return ""


def _load(shared: Shared) -> str:
    """Find the handler; returns what went wrong, or ""."""
    module, _, name = str(shared.world["handler"]).partition(":")
    try:
        found = getattr(_module(shared, module), name)
    except BaseException as e:  # noqa: BLE001 - whatever it is, it belongs into the answer
        if not _missing_handler(e, module, name):
            _print_trace(e)
        return f"cannot load {module}:{name}: {_in_words(e)}"
    found = getattr(found, "__wrapped__", found)
    if not callable(found):
        return f"cannot load {module}:{name}: it is no function"
    count, awaitable = _shape(found)
    shared.takes_context = count >= 2
    shared.handler = _awaited(found) if awaitable else found
    return ""


def _module(shared: Shared, name: str) -> ModuleType:
    if shared.entry is None:
        return import_module(name)
    module, code = shared.entry
    sys.modules[name] = module
    exec(code, module.__dict__)
    return module


def _missing_handler(e: BaseException, module: str, name: str) -> bool:
    if isinstance(e, ModuleNotFoundError):
        return e.name == module
    return isinstance(e, AttributeError) and e.name == name


def _awaited(found: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        import asyncio

        return asyncio.run(found(*arguments))

    return call


def _shape(found: Callable[..., Any]) -> tuple[int, bool]:
    """Return how many arguments a handler takes by position, and whether it is a coroutine's."""
    if type(found) is FunctionType:  # without the inspect module, which touches many pages
        return found.__code__.co_argcount, bool(found.__code__.co_flags & _CO_COROUTINE)
    import inspect

    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):
        return 1, False
    count = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
    return count, inspect.iscoroutinefunction(found)


def enter(shared: Shared, link: int, log: int, network: int, user: int) -> None:
    """Give up in a new fork all that the zygote may do; ends the process when that fails.

    The calls' socket is descriptor 3 then. native/fork.c does the same.
    """
    step = "starting"
    try:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, [])
        step = "network"
        libc.setns(network, libc.CLONE_NEWNET)
        step = "mounting"
        _mount(shared.world)
        if shared.rules >= 0:
            landlock.restrict(shared.rules)
        step = "descriptors"
        _only_these(link, log)
        link = _CONTROL
        step = "giving up privileges"
        _confine(shared, user)
    except BaseException as e:  # noqa: BLE001 - a fork must never return into the zygote
        _give_up(link, f"{step}: {_in_words(e)}")


def converse(shared: Shared) -> None:
    """Answer calls; never returns."""
    try:
        renew()
        gc.enable()
        _serve(shared, _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, _CONTROL))
    except BaseException as e:  # noqa: BLE001 - a fork must never return into the zygote
        _give_up(_CONTROL, f"taking calls: {_in_words(e)}")


def _give_up(link: int, reason: str) -> None:
    try:
        os.write(
            link, b"\0".join((b"answer", b"start_failed", b"text", b"0", b"0", reason.encode()))
        )
    finally:
        os._exit(1)


def tmp_options(world: dict[str, Any]) -> str:
    """Return the options of the file system that an invocation writes to."""
    return f"mode=1777,size={world['disk']},nr_inodes={world['inodes']}"


def _mount(world: dict[str, Any]) -> None:
    libc.mount("tmpfs", "/tmp", "tmpfs", _NOSUID_NODEV, tmp_options(world))
    libc.mount("/tmp", "/dev/shm", "", libc.MS_BIND)
    libc.mount("proc", "/proc", "proc", _NOSUID_NODEV | libc.MS_NOEXEC)
    os.chdir(CODE)


def _only_these(link: int, log: int) -> None:
    """Leave nothing open but /dev/null as 0, the log as 1 and 2, and the calls' socket."""
    null = os.open("/dev/null", os.O_RDWR)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.dup2(link, _CONTROL, inheritable=False)
    libc.close_range(_CONTROL + 1)


def _confine(shared: Shared, user: int) -> None:
    world = shared.world
    for what, most in (
        (resource.RLIMIT_NOFILE, world["files"]),
        (resource.RLIMIT_NPROC, world["pids"]),
    ):
        resource.setrlimit(what, (most, most))
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    confine.keep_capabilities((), bounding=False)
    # The change of user hid this process's own /proc/self from it.
    libc.prctl(_PR_SET_DUMPABLE, 1)
    confine.load_filter(world["filter"])


def _serve(shared: Shared, link: _socket.socket) -> None:
    while True:
        data, fds = wireless.receive(link)
        if not data:
            os._exit(0)
        _, number, tenant, left, kind, rest = data.split(b"\0", 5)
        if kind.endswith(b"-file"):
            kind, rest = kind[:-5], _content(fds[0])
        for fd in fds:
            os.close(fd)
        words = (number.decode(), tenant.decode(errors="surrogateescape"), float(left))
        outcome, how, value = _call(shared, kind.decode(), rest, words)
        try:
            _answer(link, outcome, how, value)
        except OSError:
            os._exit(1)


def _content(fd: int) -> bytes:
    parts = []
    offset = 0
    while part := os.pread(fd, 1 << 20, offset):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


def _call(
    shared: Shared, kind: str, event: bytes, words: tuple[str, str, float]
) -> tuple[str, str, bytes]:
    """Return outcome, how the value comes, and the value."""
    if shared.handler is None:
        problem = _load(shared)
        if problem:
            return "start_failed", "text", problem.encode(errors="replace")
    if kind == "check":
        return "ok", "json", b"null"
    assert shared.handler is not None
    number, tenant, left = words
    try:
        arguments: list[Any] = [json.loads(event) if kind == "json" else event]
        if shared.takes_context:
            world = shared.world
            arguments.append(Context(number, world["name"], world["version"], tenant, left))
        value = shared.handler(*arguments)
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 0 if e.code is None else 1
        said = "" if e.code is None or isinstance(e.code, int) else f": {e.code}"
        _flush()
        return "exited", "text", f"it called sys.exit with {code}{said}".encode(errors="replace")
    except BaseException as e:  # noqa: BLE001 - whatever it is, it is the answer
        _flush()
        return "raised", "json", _described(e)
    _flush()
    return _serialised(value)


def _serialised(value: Any) -> tuple[str, str, bytes]:
    if isinstance(value, bytes | bytearray | memoryview):
        return "ok", "bytes", bytes(value)
    try:
        # As JSON has it (RFC 8259): no NaN, no Infinity, and UTF-8.
        return "ok", "json", json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError, MemoryError, AttributeError) as e:
        what = f"its result is no JSON and no bytes: {_in_words(e)}"
        return "not_serialisable", "text", what.encode(errors="replace")


def _answer(link: _socket.socket, outcome: str, how: str, value: bytes) -> None:
    own = resource.getrusage(resource.RUSAGE_SELF)
    rest = resource.getrusage(resource.RUSAGE_CHILDREN)
    user, system = own.ru_utime + rest.ru_utime, own.ru_stime + rest.ru_stime
    head = ["answer", outcome, how, f"{user:.6f}", f"{system:.6f}"]
    if len(value) <= INLINE:
        _tell(link, head, value)
        return
    fd = os.memfd_create("result", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    rest_of = memoryview(value)
    while rest_of:
        rest_of = rest_of[os.write(fd, rest_of) :]
    import fcntl

    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    head[2] = how + "-file"
    _tell(link, head, b"", [fd])
    os.close(fd)


def _tell(link: _socket.socket, head: Sequence[str], rest: bytes, fds: Sequence[int] = ()) -> None:
    data = "\0".join(head).encode() + b"\0" + rest
    if fds:
        rights = b"".join(fd.to_bytes(4, sys.byteorder) for fd in fds)
        link.sendmsg([data], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
    else:
        link.send(data)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # noqa: BLE001 - it may be closed, or anything: the author's
            continue


def _in_words(e: BaseException) -> str:
    try:
        text = str(e)
    except Exception:  # noqa: BLE001 - an exception may fail to say itself
        text = "(it cannot be put into words)"
    return f"{type(e).__name__}: {text}"[:4000] if text else type(e).__name__


def _trace(e: BaseException) -> str:
    import traceback

    try:
        lines = traceback.format_exception(type(e), e, e.__traceback__, limit=-40)
    except Exception:  # noqa: BLE001 - see above
        lines = [_in_words(e)]
    own = os.path.dirname(__file__)  # noqa: PTH120
    lines = [line for line in lines if f'File "{own}/' not in line]
    return "".join(lines)[-_MOST_TRACE:]


def _print_trace(e: BaseException) -> None:
    print(_trace(e), file=sys.stderr, flush=True)


def _described(e: BaseException) -> bytes:
    words = _in_words(e)
    name, _, message = words.partition(": ")
    data = {"type": name, "message": message, "traceback": _trace(e)}
    return json.dumps(data, ensure_ascii=True).encode()
