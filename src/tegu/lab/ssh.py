"""Commands and files through the system's own ssh and scp, with everything ephemeral kept apart.

The options are those of ssh_config(5). One connection is made and shared (ControlMaster), because
a handshake with an emulated machine takes seconds.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tegu.errors import MachineError
from tegu.lab.knock import knock
from tegu.lab.machine import Command, Result, shell_words
from tegu.process import CommandError, require, run

__all__ = ["Address", "OverSsh", "Ssh", "make_key", "reboot"]

log = logging.getLogger(__name__)

_CONNECT = 20  # seconds for TCP and the handshake; an emulated machine under load needs several
_PART = 8  # a machine that has taken n seconds to start gets n/8 for a handshake, if that is more


@dataclass(frozen=True, slots=True)
class Address:
    """Where and as whom to log in; None leaves a choice to the user's own ssh_config.

    With `known_hosts` the host's key is taken at the first contact and must stay the same: that
    file belongs to one machine and goes with it.
    """

    host: str
    port: int | None = None
    user: str | None = None
    identities: tuple[Path, ...] = ()
    known_hosts: Path | None = None

    def __str__(self) -> str:
        return (
            (f"{self.user}@" if self.user else "")
            + self.host
            + (f":{self.port}" if self.port else "")
        )


class Ssh:
    """A way to one machine.

    `directory` is for the shared connection's socket. `dead` says why the machine is gone, or
    returns None while it lives; `last` says where a machine that does not answer has got to.
    """

    def __init__(
        self,
        name: str,
        address: Address,
        directory: Path,
        dead: Callable[[], str | None] = lambda: None,
        last: Callable[[], str] = lambda: "",
    ) -> None:
        self.name = name
        self.address = address
        self._control = directory / "ssh"
        self._dead = dead
        self._last = last
        self._connect: float = _CONNECT

    def options(self) -> list[str]:
        """Return the options that ssh and scp share."""
        address = self.address
        settings = {
            "BatchMode": "yes",
            "ConnectTimeout": f"{self._connect:.0f}",
            "ServerAliveInterval": "10",
            "ServerAliveCountMax": "3",
            "ControlMaster": "auto",
            "ControlPath": _quoted(self._control),
            "ControlPersist": "120",
            "LogLevel": "ERROR",
        }
        if address.known_hosts is not None:
            settings |= {
                "UserKnownHostsFile": _quoted(address.known_hosts),
                "GlobalKnownHostsFile": "/dev/null",
                "StrictHostKeyChecking": "accept-new",
                "UpdateHostKeys": "no",
                "HashKnownHosts": "no",
            }
        if address.identities:
            settings |= {"IdentitiesOnly": "yes", "IdentityAgent": "none"}
        if address.user is not None:
            settings["User"] = address.user
        if address.port is not None:
            settings["Port"] = str(address.port)
        out = ["-F", "/dev/null"] if address.known_hosts is not None else []
        for identity in address.identities:
            out += ["-i", str(identity)]
        for key, value in settings.items():
            out += ["-o", f"{key}={value}"]
        return out

    def argv(self, *extra: str) -> list[str]:
        """Return the ssh command line up to and with the host."""
        return [
            require("ssh", package="openssh-client"),
            *self.options(),
            *extra,
            self.address.host,
        ]

    def interactive(
        self, command: Sequence[str] = (), *, terminal: bool | None = None
    ) -> list[str]:
        """Return a command line for a person: a login shell, or `command`."""
        flags = [] if terminal is None else ["-t" if terminal else "-T"]
        return [*self.argv(*flags), *(["--", *command] if command else [])]

    def run(
        self, command: Command, *, root: bool = False, timeout: float = 60, stdin: str | None = None
    ) -> Result:
        """Run `command` to its end. MachineError when it could not be run to its end."""
        line = shell_words(command, sudo=root and self.address.user != "root")
        shown = line if len(line) <= 60 else line[:57] + "..."
        try:
            done = run(
                [*self.argv("-T"), "--", line], check=False, timeout=timeout, stdin=stdin or ""
            )
        except CommandError as e:
            raise self._lost(f"`{shown}` did not end within {timeout:g} s") from e
        if done.returncode == 255 and not self._reachable():
            why = _last_line(done.stderr) or "the connection was lost"
            raise self._lost(f"the connection broke while `{shown}` ran: {why}")
        return Result(done.returncode, done.stdout, done.stderr, done.seconds)

    def copy(self, source: str, target: str, *, timeout: float) -> None:
        """Copy with scp; one of the two is `remote(path)`."""
        scp = require("scp", package="openssh-client")
        try:
            run([scp, "-q", "-r", "-p", *self.options(), "--", source, target], timeout=timeout)
        except CommandError as e:
            said = _last_line(e.completed.stderr) if e.completed else e.message
            raise self._lost(f"cannot copy {source} to {target}: {said}") from e

    def remote(self, path: str) -> str:
        """Return `path` of the machine as scp wants it."""
        host = f"[{self.address.host}]" if ":" in self.address.host else self.address.host
        return f"{host}:{path}"

    def wait(self, timeout: float) -> float:
        """Wait until a command can be run; return the seconds taken.

        Raises MachineError at the deadline, or at once when the machine is dead.
        """
        started = time.monotonic()
        deadline = started + timeout
        pause = 0.25
        last = "no answer"
        while True:
            reason = self._dead()
            if reason is not None:
                raise MachineError(f"{self.name} {reason}")
            left = deadline - time.monotonic()
            if left <= 0:
                raise MachineError(
                    f"{self.name} did not answer on SSH within {timeout:g} s ({last}){self.where()}"
                )
            greeting = self._greeting(left, started)
            self._connect = max(self._connect, (time.monotonic() - started) / _PART)
            if greeting is None:
                attempt = self._attempt(min(left + 1, self._connect * 2))
                if attempt is None:
                    return time.monotonic() - started
                last = attempt
                self._refuse_hopeless(attempt)
                # The user may not be there yet. sshd punishes failures in quick succession
                # (PerSourcePenalties, sshd_config(5)), and a handshake is dear under emulation.
                pause = min(max(1.0, pause * 2), 5)
            else:
                last = greeting
            time.sleep(min(pause, max(0.0, deadline - time.monotonic())))

    def answers(self) -> bool:
        """True when a command can be run now."""
        return self._attempt(self._connect * 2) is None

    def where(self) -> str:
        """Return where the machine has got to, as the end of a sentence."""
        last = self._last()
        return f"; {last}" if last else ""

    def close(self) -> None:
        """End the shared connection, if there is one."""
        if self._control.exists():
            with suppress(CommandError):
                run(self.argv("-O", "exit"), check=False, timeout=10)

    def _greeting(self, timeout: float, started: float) -> str | None:
        """Return None when a server greets (RFC 4253, 4.2), else why not; cheap and quick."""
        address = self.address
        if address.known_hosts is None or address.port is None:
            return None  # the user's ssh_config may go by proxies: only ssh itself can tell
        return knock(
            *(address.host, address.port, b"SSH-", timeout, lambda: self._dead() is not None),
            waited=time.monotonic() - started,
        )

    def _attempt(self, timeout: float) -> str | None:
        try:
            done = run([*self.argv("-T"), "--", "true"], check=False, timeout=timeout)
        except CommandError:
            return "the handshake takes too long"
        return None if done.returncode == 0 else _last_line(done.stderr) or "the login failed"

    def _refuse_hopeless(self, said: str) -> None:
        if "Host key verification failed" not in said:
            return
        if self.address.known_hosts is not None:
            raise MachineError(
                f"{self.name} shows another SSH host key than before",
                hint=f"if that is right: remove {self.address.known_hosts}",
            )
        raise MachineError(
            f"the SSH host key of {self.address} is not known or has changed",
            hint=f"log in once by hand: ssh {self.address.host}",
        )

    def _reachable(self) -> bool:
        return self._dead() is None and self.answers()

    def _lost(self, what: str) -> MachineError:
        # A dying emulator closes its sockets a moment before it is gone.
        end = time.monotonic() + 0.5
        while (reason := self._dead()) is None and time.monotonic() < end:
            time.sleep(0.05)
        return MachineError(f"{self.name} {reason}: {what}" if reason else f"{self.name}: {what}")


def make_key(path: Path, comment: str) -> str:
    """Make an ed25519 key at `path` (and `path`.pub); return the public key."""
    keygen = require("ssh-keygen", package="openssh-client")
    run([keygen, "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path], timeout=30)
    return Path(f"{path}.pub").read_text().strip()


def reboot(ssh: Ssh, timeout: float) -> float:
    """Reboot a systemd machine and wait until it is another boot that answers; return the seconds.

    Boots are told apart by /proc/sys/kernel/random/boot_id (random(4)).
    """
    started = time.monotonic()
    deadline = started + timeout
    before = _boot_id(ssh)
    try:
        # Detached, so that the connection is closed before the network goes away.
        ssh.run("systemctl --no-block reboot", root=True, timeout=min(60, timeout))
    except MachineError as e:
        log.info("while asking for a reboot: %s", e.message)  # it may be faster than its answer
    ssh.close()
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise MachineError(f"{ssh.name} did not reboot within {timeout:g} s{ssh.where()}")
        ssh.wait(left)
        try:
            if _boot_id(ssh) != before:
                return time.monotonic() - started
        except MachineError as e:
            log.debug("while it goes down: %s", e.message)
        ssh.close()
        time.sleep(0.5)


def _boot_id(ssh: Ssh) -> str:
    done = ssh.run("cat /proc/sys/kernel/random/boot_id", timeout=60)
    if done.exit_code != 0:
        raise MachineError(f"{ssh.name} has no boot id: {_last_line(done.stderr)}")
    return done.stdout.strip()


def _quoted(path: Path) -> str:
    return f'"{path}"'.replace("%", "%%")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


class OverSsh(ABC):
    """What machines that are reached by SSH have in common (see Machine)."""

    @property
    @abstractmethod
    def ssh(self) -> Ssh:
        """The way in."""

    def wait_for_ssh(self, timeout: float = 300) -> float:
        """Wait until commands can be run; return the seconds. MachineError says why not."""
        return self.ssh.wait(timeout)

    def run(
        self,
        command: Command,
        *,
        root: bool = False,
        timeout: float = 60,
        stdin: str | None = None,
    ) -> Result:
        """Run `command` to its end; see Machine.run."""
        return self.ssh.run(command, root=root, timeout=timeout, stdin=stdin)

    def copy_in(self, source: Path, target: str, *, timeout: float = 300) -> None:
        """Copy a file or directory of ours to `target` on the machine."""
        self.ssh.copy(str(source), self.ssh.remote(target), timeout=timeout)

    def copy_out(self, source: str, target: Path, *, timeout: float = 300) -> None:
        """Copy `source` of the machine to a path of ours."""
        self.ssh.copy(self.ssh.remote(source), str(target), timeout=timeout)
