"""Control groups: limits and accounts for a set of processes, version 2 or version 1.

cgroups(7), Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/. Version 2 is used where it has
the controllers; else each controller of version 1 on its own. A limit that neither offers is
reported as such by `Groups.provider`, and refused by `Groups.create`: never ignored.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tegu.errors import UnsupportedError

__all__ = ["Group", "Groups", "step_aside", "sweep"]

_PREFIX = "tegu-"
_ASIDE = "tegu-keeper"
_PERIOD = 100_000  # microseconds, the default of cpu.max
_PATIENCE = 5.0
"""Seconds that removing all groups of a supervisor waits for killed processes, in all."""
_MOST_SPARE = 64
_V2_CONTROLLERS = ("cpu", "memory", "pids")


def _hierarchies() -> dict[str, Path]:
    """Return where this process's own group is: "" for version 2, and controllers of version 1."""
    own: dict[str, str] = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            own[name] = path
    found: dict[str, Path] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        rest = fields[fields.index("-") + 1 :]
        if rest[0] not in ("cgroup", "cgroup2"):
            continue
        names = [""] if rest[0] == "cgroup2" else rest[2].split(",")
        root, mountpoint = fields[3], Path(fields[4])
        for name in names:
            if name in own and name not in found:
                inside = own[name].removeprefix(root if root != "/" else "")
                group = mountpoint / inside.lstrip("/")
                # A container may show the mount from another root than /proc/self/cgroup names.
                found[name] = group if group.is_dir() else mountpoint
    return found


@dataclass
class Group:
    """One set of processes: `directories` by controller, and `fd` of the version 2 directory."""

    name: str
    directories: dict[str, Path]
    fd: int | None = None
    spare: list[Path] | None = None
    """Where an empty version 1 group of processes goes, to be used again."""

    def attach(self, pid: int) -> None:
        """Move a process in (version 1; a clone starts in the version 2 group already)."""
        for directory in set(self.directories.values()):
            _write(directory / "cgroup.procs", str(pid))

    def usage(self) -> dict[str, int]:
        """Return what is accounted for here: memory and memory_peak (bytes), pids, cpu_us and
        throttled_us (microseconds of processor time used, and withheld by the limit)."""
        found: dict[str, int] = {}
        for controller, key, names in (
            ("memory", "memory", ("memory.current", "memory.usage_in_bytes")),
            ("memory", "memory_peak", ("memory.peak", "memory.max_usage_in_bytes")),
            ("pids", "pids", ("pids.current",)),
        ):
            directory = self.directories.get(controller)
            for name in names:
                if directory is not None:
                    with suppress(OSError, ValueError):
                        found[key] = int((directory / name).read_text())
        found.update(self._processor())
        return found

    def _processor(self) -> dict[str, int]:
        directory = self.directories.get("cpu")
        found: dict[str, int] = {}
        if directory is None:
            return found
        with suppress(OSError, ValueError):
            for line in (directory / "cpu.stat").read_text().splitlines():
                key, _, value = line.partition(" ")
                if key == "usage_usec":
                    found["cpu_us"] = int(value)
                elif key == "throttled_usec":
                    found["throttled_us"] = int(value)
                elif key == "throttled_time":  # version 1, in nanoseconds
                    found["throttled_us"] = int(value) // 1000
        return found

    def out_of_memory(self) -> bool:
        """Whether the kernel killed something here for lack of memory."""
        directory = self.directories.get("memory")
        if directory is None:
            return False
        for name in ("memory.events", "memory.oom_control"):
            with suppress(OSError):
                for line in (directory / name).read_text().splitlines():
                    key, _, value = line.partition(" ")
                    if key == "oom_kill":
                        return value.strip() != "0"
        return False

    def remove(self) -> bool:
        """Remove the group; false while processes that were killed are still on their way out."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None
        if self.spare is not None and len(self.spare) < _MOST_SPARE and "pids" in self.directories:
            self.spare.append(self.directories.pop("pids"))
        for controller, directory in list(self.directories.items()):
            if _try_remove(directory):
                del self.directories[controller]
        return not self.directories


@dataclass
class Groups:
    """This process's place to make groups in; `root` is its name there."""

    bases: dict[str, Path] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    lock: list[int] = field(default_factory=list)
    spare: dict[int, list[Path]] = field(default_factory=dict)
    """Version 1 groups by how many processes they allow: making one and removing it takes longer
    than all else that the supervisor does for a box."""
    made: int = 0

    @classmethod
    def find(cls, owner: int | None = None) -> Groups:
        """Look for controllers that this process may use; makes its directories in them.

        They are named after the pid `owner` (default: this process).
        """
        found = cls()
        try:
            hierarchies = _hierarchies()
        except OSError as e:
            hierarchies = {}
            found.why = dict.fromkeys(_V2_CONTROLLERS, f"no cgroups: {e.strerror}")
        name = f"{_PREFIX}{owner or os.getpid()}-{time.monotonic_ns():x}"
        second = hierarchies.get("")
        if second is not None:
            aside = second.name == _ASIDE
            found._try_second(second.parent if aside else second, name)
        for controller in _V2_CONTROLLERS:
            if controller in found.bases:
                continue
            base = hierarchies.get(controller)
            if base is None:
                found.why.setdefault(controller, "no cgroup controller for it on this host")
                continue
            try:
                found._make(base / name)
            except OSError as e:
                found.why[controller] = f"{base} may not be written to ({e.strerror})"
                continue
            found.bases[controller] = base / name
            found.versions[controller] = 1
        return found

    def _make(self, directory: Path) -> None:
        while True:
            directory.mkdir(exist_ok=True)
            try:
                fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # another one's `sweep` was faster than our lock
            fcntl.flock(fd, fcntl.LOCK_EX)  # says that its owner lives: see `sweep`
            if directory.is_dir() and directory.stat().st_ino == os.fstat(fd).st_ino:
                self.lock.append(fd)
                return
            os.close(fd)

    def _try_second(self, own: Path, name: str) -> None:
        try:
            offered = (own / "cgroup.controllers").read_text().split()
            wanted = [c for c in _V2_CONTROLLERS if c in offered]
            if not wanted:
                return
            base = own / name
            self._make(base)
            _write(own / "cgroup.subtree_control", " ".join(f"+{c}" for c in wanted))
            _write(base / "cgroup.subtree_control", " ".join(f"+{c}" for c in wanted))
        except OSError as e:
            reason = e.strerror
            if e.errno == errno.EBUSY:
                reason = "it holds processes; run this as a service with Delegate=yes"
            for controller in _V2_CONTROLLERS:
                self.why[controller] = f"{own}: {reason}"
            return
        for controller in wanted:
            self.bases[controller] = base
            self.versions[controller] = 2

    def provider(self, controller: str) -> str:
        """Return "cgroup v2", "cgroup v1", or "" when `why[controller]` says why not."""
        version = self.versions.get(controller)
        return f"cgroup v{version}" if version else ""

    def create(
        self,
        name: str,
        *,
        memory: int | None,
        cpus: float | None,
        pids: int | None,
        cloner: int | None = None,
    ) -> Group:
        """Make a group with these limits (bytes, processors, processes).

        `cloner` is a user who may start processes in it (version 2). Raises UnsupportedError when
        a limit has no controller here.
        """
        wanted = {"memory": memory, "cpu": cpus, "pids": pids}
        for controller, value in wanted.items():
            if value is not None and controller not in self.bases:
                raise UnsupportedError(f"a limit on {controller}: {self.why[controller]}")
        group = Group(name, {})
        try:
            for controller, value in wanted.items():
                base = self.bases.get(controller)
                if base is None or (value is None and self.versions[controller] == 1):
                    continue  # each version 1 controller costs milliseconds: only when limited
                if controller == "pids" and value is not None and self.versions["pids"] == 1:
                    self._counted(group, int(value))
                    continue
                directory = base / name
                directory.mkdir(exist_ok=True)
                group.directories[controller] = directory
                if value is not None:
                    self._limit(directory, controller, value)
                if cloner is not None and self.versions[controller] == 2:
                    os.chown(directory / "cgroup.procs", cloner, -1)
            second = [c for c in group.directories if self.versions[c] == 2]
            if second:
                group.fd = os.open(
                    group.directories[second[0]], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
                )
        except BaseException:
            group.remove()
            raise
        return group

    def _counted(self, group: Group, pids: int) -> None:
        """Give `group` a version 1 group of processes: one that was used before, or a new one."""
        group.spare = self.spare.setdefault(pids, [])
        if group.spare:
            group.directories["pids"] = group.spare.pop()
            return
        self.made += 1
        directory = self.bases["pids"] / f"pids-{pids}-{self.made}"
        directory.mkdir()
        group.directories["pids"] = directory
        self._limit(directory, "pids", pids)

    def _limit(self, directory: Path, controller: str, value: float) -> None:
        if self.versions[controller] == 2:
            if controller == "memory":
                _write(directory / "memory.max", str(int(value)))
                with suppress(FileNotFoundError):  # kernels without swap
                    _write(directory / "memory.swap.max", "0")
                with suppress(FileNotFoundError):
                    _write(directory / "memory.oom.group", "1")
            elif controller == "cpu":
                _write(directory / "cpu.max", f"{int(value * _PERIOD)} {_PERIOD}")
            else:
                _write(directory / "pids.max", str(int(value)))
        elif controller == "memory":
            _write(directory / "memory.limit_in_bytes", str(int(value)))
            with suppress(OSError):  # only with swap accounting
                _write(directory / "memory.memsw.limit_in_bytes", str(int(value)))
        elif controller == "cpu":
            _write(directory / "cpu.cfs_period_us", str(_PERIOD))
            _write(directory / "cpu.cfs_quota_us", str(int(value * _PERIOD)))
        else:
            _write(directory / "pids.max", str(int(value)))

    def allow_clones(self) -> None:
        """Let processes below our base start others in groups below it that they may write to.

        A clone into a group needs to write to the group's cgroup.procs and to that of the nearest
        common ancestor (cgroup-v2.rst, "Delegation Containment"); who is not below cannot come in.
        """
        for base in self._second():
            (base / "cgroup.procs").chmod(0o666)

    def join(self, pid: int, name: str) -> None:
        """Move a helper that clones into our groups below the same base (version 2)."""
        for base in self._second():
            (base / name).mkdir(exist_ok=True)
            _write(base / name / "cgroup.procs", str(pid))

    def _second(self) -> set[Path]:
        return {b for c, b in self.bases.items() if self.versions[c] == 2}

    def close(self) -> None:
        """Remove everything that was made here."""
        end = time.monotonic() + _PATIENCE
        for base in set(self.bases.values()):
            _remove_tree(base, end)
        for fd in self.lock:
            os.close(fd)
        self.lock.clear()


def step_aside() -> bool:
    """Move this process into a group below its own, if that one was delegated to it (version 2).

    A group that hands controllers down may hold no process itself (cgroup-v2.rst, "No Internal
    Process Constraint"). A service manager marks what it delegates with an extended attribute
    (systemd.io/CGROUP_DELEGATION). Returns whether it moved.
    """
    try:
        own = _hierarchies().get("")
        if own is None or not _delegated(own):
            return False
        (own / _ASIDE).mkdir(exist_ok=True)
        _write(own / _ASIDE / "cgroup.procs", str(os.getpid()))
    except OSError:
        return False
    return True


def _delegated(group: Path) -> bool:
    for name in ("trusted.delegate", "user.delegate"):
        with suppress(OSError):
            if os.getxattr(group, name) == b"1":
                return True
    return False


def sweep() -> int:
    """Remove what supervisors that are gone have left behind; returns how many directories."""
    removed = 0
    end = time.monotonic() + _PATIENCE
    try:
        hierarchies = _hierarchies()
    except OSError:
        return 0
    for own in set(hierarchies.values()):
        for directory in _stale(own.parent if own.name == _ASIDE else own):
            _remove_tree(directory, end)
            removed += 1
    return removed


def _stale(own: Path) -> Iterator[Path]:
    for directory in list(own.glob(f"{_PREFIX}*-*")):
        try:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield directory
        except BlockingIOError:
            continue
        finally:
            os.close(fd)


def _remove_tree(base: Path, end: float) -> None:
    for child in [p for p in base.glob("*") if p.is_dir()]:
        _remove_tree(child, end)
    _remove(base, end)


def _remove(directory: Path, end: float) -> None:
    """rmdir(2), patient until `end` (time.monotonic) with processes that are on their way out."""
    pause = 0.001
    while not _try_remove(directory) and time.monotonic() < end:
        time.sleep(pause)
        pause = min(2 * pause, 0.05)


def _try_remove(directory: Path) -> bool:
    """rmdir(2); false while there are processes in it."""
    try:
        directory.rmdir()
    except OSError as e:
        return e.errno != errno.EBUSY
    return True


def _write(path: Path, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as e:
        raise OSError(e.errno, e.strerror, str(path)) from e
    finally:
        os.close(fd)
