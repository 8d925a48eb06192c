"""`tegu-oci`: parses its command line, calls the rest of the room, prints."""

from __future__ import annotations

import json
import os
import sys

from tegu.errors import TeguError, UnsupportedError, UsageError
from tegu.oci import arguments
from tegu.oci.state import OCI_VERSION, Container, OciError, default_root, now

TYPE_CHECKING = False  # see __init__.py
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from tegu.oci.arguments import Values
    from tegu.oci.create import Request

__all__ = ["main"]


class Log:
    """Where warnings and errors go: the standard error, and the file of --log."""

    def __init__(self) -> None:
        self.file = ""
        self.json = False
        self.shown = False

    def write(self, level: str, text: str) -> None:
        """Write one line; a log that cannot be written does not change what is done."""
        if self.file:
            line = json.dumps({"level": level, "msg": text, "time": now()})
            if not self.json:
                line = f'time="{now()}" level={level} msg={json.dumps(text)}'
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            try:
                fd = os.open(self.file, flags, 0o644)
                os.write(fd, f"{line}\n".encode())
                os.close(fd)
            except OSError as e:
                print(f"tegu-oci: --log {self.file}: {e.strerror}", file=sys.stderr)
        if not self.file or level == "error":
            print(f"tegu-oci: {text}", file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """Write a warning."""
        self.write("warning", text)


def main(words: list[str]) -> int:
    """Do what the command line says; returns the exit code."""
    log = Log()
    try:
        return _main(words, log)
    except TeguError as e:
        log.write("error", e.message + (f" ({e.hint})" if e.hint else ""))
        return e.exit_code
    except BrokenPipeError:
        # Whoever read our output has gone; nothing is left to say, also not at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except OSError as e:
        what = f": {e.filename}" if e.filename else ""
        log.write("error", f"{(e.strerror or str(e)).lower()}{what}")
        return 1
    except KeyboardInterrupt:
        return 130


def _main(words: list[str], log: Log) -> int:
    top, name, options, others = arguments.parse(words)
    log.file = _last(top, "--log")
    log.json = _one_of(top, "--log-format", ("text", "json")) == "json"
    _one_of(top, "--log-level", ("warning", "debug", "info", "warn", "error"))
    if "--version" in top:
        from tegu import __version__

        print(f"tegu-oci version {__version__}\nspec: {OCI_VERSION}")
        return 0
    if not name or "--help" in options:
        print(arguments.help_text(name), end="")
        return 0 if name or "--help" in top else 2
    root = os.path.abspath(_last(top, "--root") or default_root())
    manager = _one_of(top, "--cgroup-manager", ("cgroupfs", "systemd", "disabled"))
    if "--systemd-cgroup" in top:
        manager = "systemd"
    default = _one_of(top, "--class", ("", "container", "gvisor"))
    if name in ("create", "run"):
        from tegu.oci.classes import GVisor, read_annotations, wanted_class

        bundle = os.path.abspath(_last(options, "--bundle") or ".")
        if wanted_class(read_annotations(bundle), default) == "gvisor":
            held = GVisor(Container(root, others[0]), top, systemd=manager == "systemd")
            held.check(bundle)
            return held.make(name, options, others)
    elif others and os.path.exists(os.path.join(root, others[0], "runsc")):
        from tegu.oci.classes import GVisor

        held = GVisor(Container(root, others[0]), top, systemd=manager == "systemd")
        return held.pass_on(name, options, others)
    return _COMMANDS[name](Call(root, manager, options, others, log))


class Call:
    """One command with its options."""

    def __init__(
        self, root: str, manager: str, options: Values, others: list[str], log: Log
    ) -> None:
        self.root = root
        self.manager = manager
        self.options = options
        self.others = others
        self.log = log

    def container(self) -> Container:
        """Return the container that the first word names."""
        return Container(self.root, self.others[0])

    def has(self, name: str) -> bool:
        """Whether a switch is on."""
        return name in self.options

    def last(self, name: str) -> str:
        """Return an option's value, "" when it was not given."""
        return _last(self.options, name)

    def number(self, name: str) -> int:
        """Return an option's whole number from 0, 0 when it was not given. Raises UsageError."""
        text = self.last(name) or "0"
        if not text.isdecimal() or len(text) > 9:
            raise UsageError(f"{name}: {text!r} is not a whole number from 0")
        return int(text)


def _last(values: Values, name: str) -> str:
    return values[name][-1] if name in values else ""


def _one_of(values: Values, name: str, known: tuple[str, ...]) -> str:
    value = _last(values, name) or known[0]
    if value not in known:
        raise UsageError(f"{name}: {value}: one of {', '.join(known)}")
    return value


def _request(call: Call) -> Request:
    from tegu.oci.create import Request

    request = Request()
    request.bundle = call.last("--bundle") or "."
    request.pid_file = call.last("--pid-file")
    request.console_socket = call.last("--console-socket")
    request.preserve = _preserved(call)
    request.pivot = not call.has("--no-pivot")
    request.keyring = not call.has("--no-new-keyring")
    request.manager = call.manager
    request.warn = call.log.warn
    return request


def _preserved(call: Call) -> int:
    """Return how many descriptors from 3 on are handed down; all of them must be there."""
    count = call.number("--preserve-fds")
    # systemd's protocol, which runc's callers rely on: LISTEN_FDS more, before those.
    listen = os.environ.get("LISTEN_FDS", "")
    if listen.isdecimal() and os.environ.get("LISTEN_PID") in (None, "", str(os.getpid())):
        count += int(listen)
    for fd in range(3, 3 + count):
        try:
            os.fstat(fd)
        except OSError:
            raise UsageError(f"--preserve-fds: descriptor {fd} is not open") from None
    return count


def _create(call: Call) -> int:
    from tegu.oci.create import create

    create(call.container(), _request(call))
    return 0


def _start(call: Call) -> int:
    from tegu.oci.create import start

    start(call.container(), call.log.warn)
    return 0


def _run(call: Call) -> int:
    from tegu.oci.foreground import run

    detach, keep = call.has("--detach"), call.has("--keep")
    return run(call.container(), _request(call), detach=detach, keep=keep)


def _state(call: Call) -> int:
    container = call.container()
    container.read()
    print(json.dumps(container.state(), indent=2))
    return 0


def _kill(call: Call) -> int:
    from tegu.oci.lifecycle import kill

    text = call.others[1] if len(call.others) > 1 else "TERM"
    kill(call.container(), text, everyone=call.has("--all"))
    return 0


def _delete(call: Call) -> int:
    from tegu.oci.create import destroy

    force = call.has("--force")
    container = call.container()
    if force and not os.path.isdir(container.directory):
        return 0
    destroy(container, call.log.warn, force=force)
    return 0


def _exec(call: Call) -> int:
    from tegu.oci.foreground import execute

    container = call.container()
    container.read()
    process = _process(call, container)
    return execute(
        container,
        process,
        console_socket=call.last("--console-socket"),
        pid_file=call.last("--pid-file"),
        preserve=_preserved(call),
        detach=call.has("--detach"),
        warn=call.log.warn,
    )


def _process(call: Call, container: Container) -> dict[str, Any]:
    """Return the process to start: the file's, or the container's own with changes."""
    from tegu.oci.config import check_process, load_process
    from tegu.oci.fields import check

    if call.last("--process"):
        return load_process(call.last("--process"))
    process = dict(container.config().process)
    process["args"] = call.others[1:]
    process["terminal"] = call.has("--tty")
    process["env"] = process.get("env", []) + call.options.get("--env", [])
    if call.last("--cwd"):
        process["cwd"] = call.last("--cwd")
    user = dict(process.get("user", {}))
    if call.last("--user"):
        uid, colon, gid = call.last("--user").partition(":")
        if not uid.isdecimal() or (colon and not gid.isdecimal()):
            raise UsageError(f"--user: {call.last('--user')}: as in 1000 or 1000:1000")
        user = {"uid": int(uid), "gid": int(gid or 0)}
    for gid in call.options.get("--additional-gids", []):
        if not gid.isdecimal():
            raise UsageError(f"--additional-gids: {gid}: not a number")
        user["additionalGids"] = [*user.get("additionalGids", []), int(gid)]
    process["user"] = user
    if call.has("--no-new-privs"):
        process["noNewPrivileges"] = True
    if call.last("--apparmor"):
        process["apparmorProfile"] = call.last("--apparmor")
    if call.last("--process-label"):
        process["selinuxLabel"] = call.last("--process-label")
    if more := call.options.get("--cap"):
        sets = dict(process.get("capabilities", {}))
        for name in ("bounding", "effective", "permitted"):
            sets[name] = [*sets.get(name, []), *more]
        process["capabilities"] = sets
    if not process["args"]:
        raise UsageError("exec: no command", hint="give one, or --process")
    checked: dict[str, Any] = check(process, "process")
    check_process(checked)
    return checked


def _ps(call: Call) -> int:
    from tegu.oci.lifecycle import processes

    pids = processes(call.container())
    if _format(call) == "json":
        print(json.dumps(pids))
        return 0
    from tegu.process import require, run

    table = run([require("ps", package="procps"), *(call.others[1:] or ["-ef"])]).stdout
    lines = table.splitlines()
    heads = lines[0].split() if lines else []
    if "PID" not in heads:
        raise UsageError("ps: its options leave the column PID out")
    column, wanted = heads.index("PID"), {str(p) for p in pids}
    print(lines[0])
    for line in lines[1:]:
        fields = line.split()
        if len(fields) > column and fields[column] in wanted:
            print(line)
    return 0


def _format(call: Call) -> str:
    if call.has("--json"):
        return "json"
    return _one_of(call.options, "--format", ("table", "json"))


def _list(call: Call) -> int:
    from tegu.oci.lifecycle import listing

    found = listing(call.root)
    if call.has("--quiet"):
        for state in found:
            print(state["id"])
    elif _format(call) == "json":
        print(json.dumps(found))
    else:
        rows = [("ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER")]
        keys = ("id", "pid", "status", "bundle", "created", "owner")
        rows += [tuple(str(s[k]) for k in keys) for s in found]  # type: ignore[misc]
        widths = [max(len(r[i]) for r in rows) for i in range(len(keys))]
        for row in rows:
            print("  ".join(f"{v:<{w}}" for v, w in zip(row, widths, strict=True)).rstrip())
    return 0


def _pause(call: Call) -> int:
    from tegu.oci.lifecycle import pause

    pause(call.container())
    return 0


def _resume(call: Call) -> int:
    from tegu.oci.lifecycle import resume

    resume(call.container())
    return 0


_LIMITS = {
    "--memory": ("memory", "limit"),
    "--memory-reservation": ("memory", "reservation"),
    "--memory-swap": ("memory", "swap"),
    "--cpu-share": ("cpu", "shares"),
    "--cpu-quota": ("cpu", "quota"),
    "--cpu-period": ("cpu", "period"),
    "--cpu-burst": ("cpu", "burst"),
    "--cpuset-cpus": ("cpu", "cpus"),
    "--cpuset-mems": ("cpu", "mems"),
    "--blkio-weight": ("blockIO", "weight"),
    "--pids-limit": ("pids", "limit"),
}


def _update(call: Call) -> int:
    from tegu.oci.config import read_json
    from tegu.oci.lifecycle import update

    resources: dict[str, Any] = {}
    if file := call.last("--resources"):
        resources = read_json(0 if file == "-" else file)
    else:
        for option, (group, field) in _LIMITS.items():
            if text := call.last(option):
                if option.startswith("--cpuset"):
                    value: Any = text
                elif text.removeprefix("-").isdecimal():
                    value = int(text)
                else:
                    raise UsageError(f"{option}: {text!r} is not a whole number")
                resources.setdefault(group, {})[field] = value
    if not resources:
        raise UsageError("update: no limits given")
    update(call.container(), resources)
    return 0


def _events(call: Call) -> int:
    import time

    from tegu.oci.lifecycle import stats

    container = call.container()
    text = call.last("--interval") or "5s"
    number, scale = text.removesuffix("s"), 1.0
    if text.endswith("ms"):
        number, scale = text.removesuffix("ms"), 0.001
    try:
        seconds = float(number) * scale
    except ValueError:
        seconds = 0
    if not 0 < seconds < 1e6:
        raise UsageError(f"--interval: {text}: as in 5s or 500ms")
    while True:
        print(json.dumps(stats(container)), flush=True)
        if call.has("--stats"):
            return 0
        time.sleep(seconds)
        container.read()
        if container.status() == "stopped":
            return 0


def _features(call: Call) -> int:
    from tegu.oci.lifecycle import features

    del call
    print(json.dumps(features(), indent=2))
    return 0


def _spec(call: Call) -> int:
    from tegu.oci.example import example
    from tegu.oci.state import write_whole

    path = os.path.join(call.last("--bundle") or ".", "config.json")
    if os.path.exists(path):
        raise OciError(f"{path} is there already")
    text = json.dumps(example(rootless=call.has("--rootless")), indent=2)
    write_whole(path, text + "\n", 0o644)
    return 0


def _checkpoint(call: Call) -> int:
    del call
    raise UnsupportedError("this runtime does not save or restore containers")


_COMMANDS: dict[str, Callable[[Call], int]] = {
    "create": _create,
    "start": _start,
    "run": _run,
    "state": _state,
    "kill": _kill,
    "delete": _delete,
    "exec": _exec,
    "ps": _ps,
    "list": _list,
    "pause": _pause,
    "resume": _resume,
    "update": _update,
    "events": _events,
    "features": _features,
    "spec": _spec,
    "checkpoint": _checkpoint,
    "restore": _checkpoint,
}
