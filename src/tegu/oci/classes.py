"""How strongly a container is held: by this runtime's own namespaces, or by gVisor.

The annotation `io.tegu.class` says it, or `--class` of the runtime's name. A gVisor container is
handed to runsc, whose command line is this one's: each later command finds by a file in the
container's directory that it is runsc's.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress

from tegu.errors import UnsupportedError, UsageError
from tegu.oci.config import checked, read_json
from tegu.oci.state import Container, OciError, write_whole

TYPE_CHECKING = False  # see __init__.py
if TYPE_CHECKING:
    from typing import Any

    from tegu.oci.arguments import Values

__all__ = ["ANNOTATION", "CLASSES", "GVisor", "read_annotations", "wanted_class"]

ANNOTATION = "io.tegu.class"
CLASSES = ("container", "gvisor")
_ELSEWHERE = ("microvm", "microvm-tcg", "process", "tee")
_MARK = "runsc"
_PLAIN_SYSCTL = {"net.ipv4.ping_group_range": "0 0"}
"""What podman sets everywhere. gVisor has no such setting, and lets nobody open such sockets."""
_SHARED = {
    "create": ("--bundle", "--pid-file", "--console-socket"),
    "run": ("--bundle", "--pid-file", "--console-socket", "--detach"),
    "start": (),
    "state": (),
    "kill": ("--all",),
    "delete": ("--force",),
    "exec": (
        *("--process", "--detach", "--console-socket", "--pid-file", "--cwd", "--env", "--user"),
        *("--additional-gids", "--cap"),
    ),
    "ps": ("--format",),
    "pause": (),
    "resume": (),
    "events": ("--stats", "--interval"),
}
"""Options that runsc has by the same name. Others are refused by name."""
_SWITCHES = ("--detach", "--all", "--force", "--stats")
_MEANINGLESS = ("--no-new-keyring", "--json")
"""There are no keyrings in gVisor; --json is another word for --format."""
_FORWARDED = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1")


def wanted_class(annotations: object, default: str) -> str:
    """Return the class that a container is to have; `default` is the runtime's own, or "".

    Raises UsageError and UnsupportedError by the annotation's name: it may be stronger than the
    runtime's class, and never weaker.
    """
    said = annotations.get(ANNOTATION) if isinstance(annotations, dict) else None
    if said is None:
        return default or "container"
    if said in _ELSEWHERE:
        raise UnsupportedError(
            f"annotations[{ANNOTATION!r}]: {said}: this runtime makes containers and gVisor "
            "containers only",
            hint="`tegu sandbox create --class` has it",
        )
    if said not in CLASSES:
        raise UsageError(f"annotations[{ANNOTATION!r}]: {said!r} is none of {', '.join(CLASSES)}")
    if default == "gvisor" and said != "gvisor":
        raise UsageError(
            f"annotations[{ANNOTATION!r}]: {said} is weaker than this runtime's class, gvisor"
        )
    return str(said)


class GVisor:
    """A container that runsc keeps, and the runsc that keeps it: its state lies in ROOT-runsc."""

    def __init__(self, container: Container, top: Values, *, systemd: bool) -> None:
        self.container = container
        self._systemd = systemd
        self._top = top
        self._network = ""

    @property
    def here(self) -> bool:
        """Whether the container is one of runsc's."""
        return os.path.exists(self.container.path(_MARK))

    def _noted(self) -> str:
        try:
            with open(self.container.path(_MARK), encoding="ascii") as f:
                return f.read().strip() or "none"
        except (OSError, ValueError) as e:
            raise OciError(f"{self.container.name}: its directory is damaged: {e}") from e

    def _command(self, name: str, options: Values, others: list[str]) -> list[str]:
        runsc = _find("runsc")
        if not runsc:
            raise UnsupportedError(
                "class gvisor: runsc is not installed", hint="install the package runsc"
            )
        # Applied inside as well; and what is written is written where the caller can see it.
        words = [runsc, f"--root={self.container.root}-runsc", "--oci-seccomp"]
        words.append("--overlay2=none")
        words.append(f"--network={self._network or self._noted()}")
        top = [o for o in ("--log", "--log-format") if o in self._top]
        words += [f"{option}={self._top[option][-1]}" for option in top]
        if self._systemd:
            words.append("--systemd-cgroup")
        words.append(name)
        for option, values in options.items():
            if option in _MEANINGLESS or values == ["0"] == options.get("--preserve-fds"):
                continue
            if option not in _SHARED[name]:
                raise UnsupportedError(f"{name}: {option}: gVisor has no such thing")
            words += [option if option in _SWITCHES else f"{option}={v}" for v in values]
        if name == "exec" and others[1:2] == ["--"]:
            del others[1]
        return [*words, *others]

    def check(self, bundle: str) -> None:
        """Refuse by the field's name what our table refuses, and what gVisor would ignore.

        Raises ConfigError and UnsupportedError.
        """
        config = checked(read_json(os.path.join(bundle, "config.json")), bundle).raw
        linux = config.get("linux") or {}
        networks = [n for n in linux.get("namespaces", []) if n.get("type") == "network"]
        if not networks:
            raise UnsupportedError(
                "linux.namespaces: the host's network, which a container of the class gvisor "
                "does not get"
            )
        # A new one has a loopback only, which gVisor has by itself.
        self._network = "sandbox" if networks[0].get("path") else "none"
        process = config.get("process") or {}
        for name, value in (linux.get("sysctl") or {}).items():
            if _PLAIN_SYSCTL.get(name) != value:
                raise UnsupportedError(f"linux.sysctl[{name!r}]: gVisor has settings of its own")
        for field, value in (
            ("process.apparmorProfile", process.get("apparmorProfile")),
            ("process.selinuxLabel", process.get("selinuxLabel")),
            ("process.scheduler", process.get("scheduler")),
            ("process.ioPriority", process.get("ioPriority")),
            ("linux.personality", linux.get("personality")),
            ("linux.timeOffsets", linux.get("timeOffsets")),
            ("domainname", config.get("domainname")),
        ):
            if value:
                raise UnsupportedError(f"{field}: gVisor would ignore it")
        for n, device in enumerate(linux.get("devices") or []):
            raise UnsupportedError(
                f"linux.devices[{n}]: {device.get('path')}: gVisor shows none of the host's devices"
            )

    def make(self, name: str, options: Values, others: list[str]) -> int:
        """`create` and `run`: note whose the container is, and have runsc make it."""
        command = self._command(name, options, others)
        self.container.make()
        try:
            write_whole(self.container.path(_MARK), self._network + "\n")
            code = _wait(command)
        except BaseException:
            self.container.remove()
            raise
        if code != 0 or (name == "run" and "--detach" not in options):
            self.container.remove()
        return code

    def pass_on(self, name: str, options: Values, others: list[str]) -> int:
        """Any later command, by runsc. Raises UnsupportedError for what it has not."""
        if name not in _SHARED:
            raise UnsupportedError(f"{name}: a container of the class gvisor has no such command")
        if name == "pause" and self.state().get("status") != "running":
            raise OciError(f"container not running: {self.container.name}")  # runsc would panic
        code = _wait(self._command(name, options, others))
        if name == "delete" and code == 0:
            self.container.remove()
        return code

    def state(self) -> dict[str, Any]:
        """Return what runsc says of it, as `state` would. Raises OciError when it says nothing."""
        from tegu.process import CommandError, run

        command = self._command("state", {}, [self.container.name])
        try:
            found: dict[str, Any] = json.loads(run(command, timeout=60).stdout)
        except (CommandError, ValueError) as e:
            raise OciError(f"{self.container.name}: runsc: {e}") from e
        return {"rootfs": "", "created": "", "owner": "", **found}


def read_annotations(bundle: str) -> object:
    """Return what a bundle's configuration, not yet checked, says under `annotations`."""
    config = read_json(os.path.join(bundle, "config.json"))
    return config.get("annotations") if isinstance(config, dict) else None


def _find(program: str) -> str:
    for directory in (*os.environ.get("PATH", os.defpath).split(":"), "/usr/bin"):
        path = os.path.join(directory, program)
        if os.path.isabs(path) and os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    return ""


def _wait(command: list[str]) -> int:
    """Run runsc with our streams; signals that end us are its to take."""
    import signal

    pid = os.posix_spawn(command[0], command, os.environ)

    def forward(number: int, _: object) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)

    before = {n: signal.signal(n, forward) for n in (getattr(signal, f) for f in _FORWARDED)}
    try:
        _, status = os.waitpid(pid, 0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
