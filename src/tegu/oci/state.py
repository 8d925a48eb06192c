"""What is known of a container between two commands: a directory ROOT/ID with a lock.

state.json   what `state` tells, and the process's start time (a pid alone is used again)
config.json  the configuration as it was when the container was made
start.sock   where a container that waits for `start` listens; gone when it was started
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from contextlib import suppress

from tegu.errors import TeguError, UsageError
from tegu.oci.config import Config, checked, read_json

TYPE_CHECKING = False  # see __init__.py
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

__all__ = [
    "Container",
    "OciError",
    "containers",
    "default_root",
    "now",
    "start_time",
    "write_whole",
]

OCI_VERSION = "1.2.0"
_ID = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+.-")


class OciError(TeguError):
    """A container could not be made, reached or ended."""


def default_root() -> str:
    """Return where state is kept without --root: root's /run/tegu-oci, else below XDG_RUNTIME_DIR.

    Raises UsageError for a user without XDG_RUNTIME_DIR.
    """
    own = os.environ.get("XDG_RUNTIME_DIR")
    if os.geteuid() == 0 and not (own and os.environ.get("USER", "root") != "root"):
        return "/run/tegu-oci"
    if not own:
        raise UsageError("no place for state: XDG_RUNTIME_DIR is not set", hint="give --root")
    return os.path.join(own, "tegu-oci")


def now() -> str:
    """Return the time as RFC 3339 wants it, in UTC with microseconds."""
    t = time.time_ns() // 1000
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(t // 10**6)) + f".{t % 10**6:06d}Z"


def write_whole(path: str, data: str, mode: int = 0o600) -> None:
    """Write a small file that is whole or not there (tegu.files loads too much for us)."""
    temporary = f"{path}.{os.getpid()}"
    with suppress(FileNotFoundError):
        os.unlink(temporary)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(temporary, flags, mode), "w") as f:
            f.write(data)
        os.rename(temporary, path)
    except OSError as e:
        with suppress(OSError):
            os.unlink(temporary)
        raise OciError(f"cannot write {path}: {e.strerror}") from e


def start_time(pid: int) -> int | None:
    """Return when `pid` started (proc_pid_stat(5), field 22), None when it is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            rest = f.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if rest[0] in (b"Z", b"X") else int(rest[19])


class Container:
    """A container's directory; locked while this object is entered."""

    def __init__(self, root: str, name: str) -> None:
        if not name or name in (".", "..") or not set(name) <= _ID or len(name) > 255:
            raise UsageError(f"container id {name!r}: letters, digits and _+.- only")
        self.name = name
        self.root = root
        self.directory = os.path.join(root, name)
        self.saved: dict[str, Any] = {}
        self._lock = -1

    # -- making, locking, removing

    def make(self) -> None:
        """Make the directory. Raises OciError when there is a container of this name."""
        try:
            os.makedirs(self.root, mode=0o700, exist_ok=True)
            os.mkdir(self.directory, 0o700)
        except FileExistsError:
            raise OciError(f"container with id exists: {self.name}") from None
        except OSError as e:
            raise OciError(f"cannot make {self.directory}: {e.strerror}") from e

    def __enter__(self) -> Container:
        try:
            self._lock = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            raise OciError(f"container does not exist: {self.name}") from None
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            if os.fstat(self._lock).st_nlink == 0:
                raise OciError(f"container does not exist: {self.name}")
            self.read()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        os.close(self._lock)
        self._lock = -1

    def read(self) -> None:
        """Read what is known, also without the lock. Raises OciError when there is no such one."""
        if not os.path.isdir(self.directory):
            raise OciError(f"container does not exist: {self.name}")
        path = self.path("state.json")
        with suppress(FileNotFoundError), open(path, encoding="utf-8") as f:
            try:
                self.saved = json.load(f)
            except ValueError as e:
                raise OciError(f"{path} is damaged: {e}", hint="delete --force") from e

    def path(self, name: str) -> str:
        """Return the path of a file in the directory."""
        return os.path.join(self.directory, name)

    def save(self, **more: Any) -> None:
        """Write down what is known, and `more`."""
        self.saved.update(more)
        write_whole(self.path("state.json"), json.dumps(self.saved))

    def remove(self) -> None:
        """Remove the directory and what is in it."""
        try:
            for name in os.listdir(self.directory):
                with suppress(FileNotFoundError):
                    os.unlink(self.path(name))
            os.rmdir(self.directory)
        except FileNotFoundError:
            return
        except OSError as e:
            raise OciError(f"cannot remove {self.directory}: {e.strerror}") from e

    # -- what is known

    def config(self) -> Config:
        """Return the configuration that the container was made with."""
        return checked(read_json(self.path("config.json")), self.saved.get("bundle", "/"))

    def pid(self) -> int:
        """Return the pid of the first process, 0 when it is gone."""
        pid: int = self.saved.get("pid", 0)
        return pid if pid and start_time(pid) == self.saved.get("start") else 0

    def status(self) -> str:
        """Return creating, created, running, paused or stopped."""
        if "pid" not in self.saved:
            maker = self.saved.get("maker", [0, 0])
            return "creating" if start_time(maker[0]) == maker[1] else "stopped"
        if not self.pid():
            return "stopped"
        if not self.saved.get("started"):
            return "created"
        from tegu.oci.cgroups import Cgroups

        return "paused" if Cgroups.of(self.saved.get("cgroups", {})).frozen() else "running"

    def state(self, status: str | None = None) -> dict[str, Any]:
        """Return the state as the specification shapes it (runtime.md), and what runc adds."""
        status = status or self.status()
        pid = self.saved.get("pid", 0) if status not in ("stopped", "creating") else 0
        found: dict[str, Any] = {
            "ociVersion": OCI_VERSION,
            "id": self.name,
            "status": status,
            "pid": pid,
            "bundle": self.saved.get("bundle", ""),
            "rootfs": self.saved.get("rootfs", ""),
            "created": self.saved.get("created", ""),
            "owner": self.saved.get("owner", ""),
        }
        if self.saved.get("annotations"):
            found["annotations"] = self.saved["annotations"]
        return found

    def open_pid(self) -> int:
        """Return a pidfd of the first process. Raises OciError when it is gone."""
        pid = self.saved.get("pid", 0)
        fd = -1
        try:
            if pid:
                fd = os.pidfd_open(pid)
                # The descriptor is of the process meant only if that one still runs afterwards.
                if self.pid() == pid:
                    return fd
                os.close(fd)
        except OSError as e:
            if e.errno not in (errno.ESRCH, errno.EINVAL):
                raise
        raise OciError(f"container not running: {self.name}")


def containers(root: str) -> list[Container]:
    """Return the containers of `root`, by name."""
    try:
        names = sorted(os.listdir(root))
    except FileNotFoundError:
        return []
    except OSError as e:
        raise OciError(f"cannot list {root}: {e.strerror}") from e
    return [Container(root, n) for n in names if set(n) <= _ID and n not in (".", "..")]
