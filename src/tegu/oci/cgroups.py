"""A container's control groups: made, limited, filled, frozen, emptied and removed.

Version 2 where it is the host's only one; else the controllers of version 1, each in its own
hierarchy. linux.cgroupsPath: config-linux.md, "Control groups".
"""

from __future__ import annotations

import errno
import os
import signal
import time
from contextlib import suppress

from tegu.errors import UnsupportedError
from tegu.oci import devicerules
from tegu.oci.fields import ConfigError
from tegu.oci.resources import first_version, second_version

TYPE_CHECKING = False  # see __init__.py
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from tegu.oci.resources import Write

__all__ = ["Cgroups", "Layout"]


class Layout:
    """Where the host's hierarchies are mounted, and which group this process is in.

    `mounts` and `own` are by controller; "" is version 2.
    """

    __slots__ = ("mounts", "own")

    def __init__(self, mountinfo: str, cgroup: str) -> None:
        self.mounts: dict[str, str] = {}
        self.own: dict[str, str] = {}
        for line in cgroup.splitlines():
            _, names, path = line.split(":", 2)
            for name in names.split(","):
                self.own[name] = path
        for line in mountinfo.splitlines():
            before, _, after = line.partition(" - ")
            kind, _, options = after.split(" ", 2)
            place = before.split()[4]
            if kind == "cgroup2":
                self.mounts.setdefault("", place)
            elif kind == "cgroup":
                for name in options.split(" ")[-1].split(","):
                    if name in self.own and name:
                        self.mounts.setdefault(name, place)

    @classmethod
    def here(cls) -> Layout:
        """Read the layout that this process sees."""
        with open("/proc/self/mountinfo") as a, open("/proc/self/cgroup") as b:
            return cls(a.read(), b.read())

    @property
    def second(self) -> bool:
        """Whether version 2 has the controllers (no version 1 controller is mounted)."""
        return "" in self.mounts and all(n.startswith("name=") or not n for n in self.mounts)

    def place(self, path: str) -> dict[str, str]:
        """Return the directory of each controller for linux.cgroupsPath `path`."""
        found: dict[str, str] = {}
        for name, mount in self.mounts.items():
            if (not name) != self.second:
                continue  # the version 2 of a hybrid has no controllers: nothing to do there
            base = "/" if path.startswith("/") else self.own.get(name, "/")
            inside = os.path.normpath("/" + os.path.join(base, path).lstrip("/"))
            found[name] = mount + inside
        return found


class Cgroups:
    """The groups of one container: `paths` by controller, "" alone for version 2."""

    __slots__ = ("paths",)

    def __init__(self, paths: dict[str, str]) -> None:
        self.paths = paths

    @classmethod
    def of(cls, saved: dict[str, str]) -> Cgroups:
        """Return what `paths` of an earlier one says."""
        return cls(dict(saved))

    @property
    def second(self) -> bool:
        """Whether this is version 2."""
        return "" in self.paths

    # -- making

    @classmethod
    def make(cls, path: str, layout: Layout) -> Cgroups:
        """Make the groups at linux.cgroupsPath `path`.

        Raises ConfigError when processes are there already, UnsupportedError when none may be
        made.
        """
        places = layout.place(path)
        if not places:
            raise UnsupportedError("linux.cgroupsPath: no control groups are mounted here")
        made = cls({})
        try:
            for name, directory in places.items():
                made.paths[name] = directory
                if not name:
                    _hand_down(layout.mounts[""], directory)
                os.makedirs(directory, exist_ok=True)
                if name == "cpuset":
                    _inherit(layout.mounts[name], directory)
                if any(True for _ in _processes(directory)):
                    del made.paths[name]
                    raise ConfigError(f"linux.cgroupsPath: {directory} already holds processes")
        except OSError as e:
            made.remove()
            reason = (e.strerror or "error").lower()
            raise UnsupportedError(f"linux.cgroupsPath: cannot make {directory}: {reason}") from e
        except BaseException:
            made.remove()
            raise
        return made

    def limit(self, resources: dict[str, Any], *, devices: bool) -> None:
        """Apply linux.resources; `devices` says whether device rules are ours to make.

        Raises UnsupportedError or ConfigError by the field's name.
        """
        writes = second_version(resources) if self.second else first_version(resources)
        for write in self._memory_order(writes):
            self._write(write)
        found = devicerules.rules(resources.get("devices", []))
        if not found or not devices:
            return
        try:
            if self.second:
                devicerules.attach_program(self.paths[""], devicerules.program(found))
            elif "devices" in self.paths:
                for file, line in devicerules.device_lines(found):
                    _put(f"{self.paths['devices']}/{file}", line)
            else:
                raise UnsupportedError("linux.resources.devices: no cgroup controller for it")
        except OSError as e:
            reason = (e.strerror or "error").lower()
            raise UnsupportedError(f"linux.resources.devices: {reason}") from e

    def _memory_order(self, writes: list[Write]) -> list[Write]:
        """Put version 1's limit on memory and swap first when it rises: it may not be the less."""
        swap = [w for w in writes if w.files[0] == "memory.memsw.limit_in_bytes"]
        if swap and "memory" in self.paths:
            with suppress(OSError, ValueError):
                now = int(_get(f"{self.paths['memory']}/{swap[0].files[0]}"))
                if int(swap[0].text) < 0 or int(swap[0].text) > now:
                    return swap + [w for w in writes if w is not swap[0]]
        return writes

    def _write(self, write: Write) -> None:
        directory = self.paths.get("" if self.second else write.controller)
        if directory is None:
            raise UnsupportedError(f"{write.field}: no cgroup controller {write.controller} here")
        for name in write.files:
            try:
                _put(f"{directory}/{name}", write.text)
                return
            except FileNotFoundError:
                continue
            except PermissionError as e:
                # A file that is not there cannot be made in a control group either.
                if os.path.exists(f"{directory}/{name}"):
                    raise UnsupportedError(f"{write.field}: not permitted") from e
            except OSError as e:
                reason = (e.strerror or "error").lower()
                raise ConfigError(f"{write.field}: {name} = {write.text}: {reason}") from e
        if not write.optional:
            raise UnsupportedError(f"{write.field}: no {' or '.join(write.files)} on this host")

    def add(self, pid: int) -> None:
        """Move a process in."""
        for directory in dict.fromkeys(self.paths.values()):
            _put(f"{directory}/cgroup.procs", str(pid))

    # -- living with it

    def processes(self) -> list[int]:
        """Return the pids of all processes in the groups, also below them."""
        found: dict[int, None] = {}
        for directory in self._one():
            found.update(dict.fromkeys(_processes(directory)))
        return list(found)

    def _one(self) -> list[str]:
        """Return one directory that holds all of the container's processes."""
        for name in ("", "freezer", "devices", "pids", "memory"):
            if name in self.paths:
                return [self.paths[name]]
        return list(self.paths.values())[:1]

    def number(self, controller: str, second: str, first: str) -> int:
        """Return the number in the file `second` or (version 1) `first`; 0 without one."""
        directory = self.paths.get("" if self.second else controller)
        with suppress(OSError, ValueError):
            return int(_get(f"{directory}/{second if self.second else first}"))
        return 0

    def keyed(self, name: str) -> dict[str, int]:
        """Return the lines "KEY NUMBER" of a file, by key."""
        directory = self.paths.get("" if self.second else name.partition(".")[0])
        found: dict[str, int] = {}
        with suppress(OSError, ValueError):
            for line in _get(f"{directory}/{name}").splitlines():
                key, _, value = line.rpartition(" ")
                found[key] = int(value)
        return found

    def freeze(self, frozen: bool) -> None:
        """Stop all processes where they are, or let them go on. Raises UnsupportedError."""
        if self.second:
            _put(f"{self.paths['']}/cgroup.freeze", str(int(frozen)))
            self._await(lambda: self._event("frozen") == frozen)
        elif "freezer" in self.paths:
            file = f"{self.paths['freezer']}/freezer.state"
            word = "FROZEN" if frozen else "THAWED"
            _put(file, word)
            self._await(lambda: _get(file).strip() == word)
        else:
            raise UnsupportedError("pausing: the container has no control group to freeze")

    def _event(self, name: str) -> bool:
        return f"{name} 1" in _get(f"{self.paths['']}/cgroup.events").splitlines()

    @staticmethod
    def _await(done: Any) -> None:
        for attempt in range(2000):
            if done():
                return
            time.sleep(0.001 * min(attempt, 10))
        raise UnsupportedError("pausing: a process does not stop")

    def frozen(self) -> bool:
        """Whether all is stopped."""
        with suppress(OSError):
            if self.second:
                return _get(f"{self.paths['']}/cgroup.freeze").strip() == "1"
            if "freezer" in self.paths:
                return _get(f"{self.paths['freezer']}/freezer.state").strip() != "THAWED"
        return False

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to all processes in the groups; SIGKILL until there are none."""
        if self.second and number == signal.SIGKILL:
            with suppress(OSError):
                _put(f"{self.paths['']}/cgroup.kill", "1")
                return
        for _ in range(100 if number == signal.SIGKILL else 1):
            pids = self.processes()
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            if not pids or number != signal.SIGKILL:
                return
            time.sleep(0.005)

    def remove(self) -> bool:
        """Remove the groups and all below them; false when processes stay in them."""
        whole = True
        for directory in dict.fromkeys(self.paths.values()):
            whole = _remove(directory) and whole
        return whole


def _get(path: str) -> str:
    with open(path) as f:
        return f.read()


def _put(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _hand_down(mount: str, directory: str) -> None:
    """Offer every controller of version 2 in the groups from `mount` down to above `directory`."""
    parts = directory.removeprefix(mount).strip("/").split("/")
    at = mount
    for part in parts:
        offered = _get(f"{at}/cgroup.controllers").split()
        active = _get(f"{at}/cgroup.subtree_control").split()
        for name in set(offered) - set(active):
            # One that cannot be had is missed only by the limit that needs it.
            with suppress(OSError):
                _put(f"{at}/cgroup.subtree_control", f"+{name}")
        at = f"{at}/{part}"
        with suppress(FileExistsError):
            os.mkdir(at, 0o755)


def _inherit(mount: str, directory: str) -> None:
    """Fill cpuset.cpus and .mems from above: a process can enter no group where they are empty."""
    parts = directory.removeprefix(mount).strip("/").split("/")
    at = mount
    for part in parts:
        below = f"{at}/{part}"
        for name in ("cpuset.cpus", "cpuset.mems"):
            if not _get(f"{below}/{name}").strip():
                _put(f"{below}/{name}", _get(f"{at}/{name}").strip())
        at = below


def _processes(directory: str) -> Iterator[int]:
    for at, _, _ in os.walk(directory):
        with suppress(OSError):
            for line in _get(f"{at}/cgroup.procs").split():
                yield int(line)


def _remove(directory: str) -> bool:
    for at, _, _ in os.walk(directory, topdown=False):
        for attempt in range(200):
            try:
                os.rmdir(at)
                break
            except FileNotFoundError:
                break
            except OSError as e:
                if e.errno != errno.EBUSY:
                    return False
                time.sleep(0.001 * min(attempt, 10))
        else:
            return False
    return True
