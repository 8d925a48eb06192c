"""Any host that can be reached by SSH."""

from __future__ import annotations

import re
import time
from types import TracebackType
from typing import Self

from tegu.errors import MachineError, UnsupportedError, UsageError
from tegu.lab.directory import remove_directory, short_directory
from tegu.lab.ssh import Address, OverSsh, Ssh, reboot

__all__ = ["SshMachine"]

# No part may begin with a dash: ssh would take it for an option.
_TARGET = re.compile(
    r"(?:ssh://)?(?:([^@/\s-][^@/\s]*)@)?(\[[0-9A-Fa-f:.]+\]|[^-@:/\s][^@:/\s]*)(?::(\d{1,5}))?/?"
)


class SshMachine(OverSsh):
    """A host reached with the user's own ssh configuration, keys and known hosts."""

    def __init__(self, address: Address, *, name: str | None = None) -> None:
        self.address = address
        self._name = name or str(address)
        self._directory = short_directory()
        self._ssh = Ssh(self._name, address, self._directory)

    @classmethod
    def parse(cls, target: str) -> SshMachine:
        """Return the machine at `[ssh://][USER@]HOST[:PORT]`; UsageError when it is no address."""
        match = _TARGET.fullmatch(target)
        if match is None:
            raise UsageError(f"not an SSH address: {target!r}", hint="ssh://[USER@]HOST[:PORT]")
        user, host, port = match.groups()
        return cls(Address(host.strip("[]"), int(port) if port else None, user))

    @property
    def ssh(self) -> Ssh:
        """The way in."""
        return self._ssh

    @property
    def name(self) -> str:
        """The name it was given, or else its address."""
        return self._name

    @property
    def has_network(self) -> bool:
        """Always."""
        return True

    def start(self) -> None:
        """Look that a command can be run within a minute."""
        self.wait_for_ssh(60)

    def console(self) -> str:
        """Always empty: SSH shows no console."""
        return ""

    def wait_for_console(self, pattern: str, *, timeout: float = 60, after: int = 0) -> str:
        """UnsupportedError: SSH shows no console."""
        raise UnsupportedError(f"{self.name} is reached by SSH, which shows no console")

    def wait_for_exit(self, timeout: float = 60) -> None:
        """Wait until the host no longer answers on SSH, which is all that can be seen from here."""
        deadline = time.monotonic() + timeout
        self.ssh.close()
        while self.ssh.answers():
            if time.monotonic() >= deadline:
                raise MachineError(f"{self.name} still answered after {timeout:g} s")
            self.ssh.close()
            time.sleep(1)

    def reboot(self, timeout: float = 300) -> float:
        """Reboot cleanly and wait until commands can be run again; return the seconds taken."""
        return reboot(self.ssh, timeout)

    def power_off(self, timeout: float = 120) -> float:
        """Power off by systemd and wait until the host is silent; return the seconds taken."""
        started = time.monotonic()
        done = self.ssh.run("systemctl --no-block poweroff", root=True)
        if done.exit_code != 0:
            raise MachineError(f"{self.name} refuses to power off: {done.stderr.strip()}")
        self.wait_for_exit(timeout)
        return time.monotonic() - started

    def kill(self) -> None:
        """UnsupportedError: the power of a remote host is not in our hands."""
        raise UnsupportedError(f"the power of {self.name} cannot be taken away by SSH")

    def release(self) -> None:
        """Close the shared connection."""
        self.ssh.close()
        remove_directory(self._directory)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
