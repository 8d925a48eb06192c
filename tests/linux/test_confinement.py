"""The kernel's newer interfaces, each tried in a process of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tegu.errors import UnsupportedError
from tegu.linux import cgroups, confine, landlock, libc, mountapi, openat, run_isolated
from tegu.linux.clone import clone3
from tegu.linux.seccomp import Compare, Policy, Rule, compile_filter


def in_child(work: Callable[[], int]) -> int:
    """Run `work` in a fork and return its exit code (or minus the signal)."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = work()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_clone3_gives_a_pid_and_a_descriptor() -> None:
    def work() -> int:
        child = clone3(libc.CLONE_NEWUSER | libc.CLONE_NEWPID)
        if child.pid == 0:
            os._exit(7 if os.getpid() == 1 else 8)
        done = os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED)
        assert done is not None
        return done.si_status

    assert in_child(work) == 7


def test_clone3_as_a_sibling() -> None:
    parent = os.getpid()
    reader, writer = os.pipe()

    def work() -> int:
        child = clone3(0, as_sibling=True)
        if child.pid == 0:
            os._exit(3 if os.getppid() == parent else 4)
        os.write(writer, str(child.pid).encode())
        return 0

    assert in_child(work) == 0
    sibling = int(os.read(reader, 16))
    os.close(reader)
    os.close(writer)
    assert os.waitstatus_to_exitcode(os.waitpid(sibling, 0)[1]) == 3


def test_filters_refuse_by_argument_and_add_up() -> None:
    refuse = compile_filter(Policy([Rule(["getppid"], error=13)], otherwise=None))
    only_1 = compile_filter(
        Policy([Rule(["getpgid"], error=1, when=[Compare(0, "&", 1, mask=0xFF)])], otherwise=None)
    )

    def work() -> int:
        confine.no_new_privileges()
        confine.load_filter(refuse)
        confine.load_filter(only_1)
        os.getpgid(0)
        try:
            os.getpgid(1)
        except PermissionError:
            return 0 if os.getppid() == -13 else 1  # libc does not expect it to fail
        return 2

    assert in_child(work) == 0


def test_landlock_denies_what_no_rule_allows(tmp_path: Path) -> None:
    if landlock.abi() == 0:
        pytest.skip("this kernel has no Landlock")
    (tmp_path / "yes").mkdir()
    (tmp_path / "yes/file").write_text("x")
    (tmp_path / "no").write_text("x")

    def work() -> int:
        rules = landlock.ruleset(landlock.FS_READ | landlock.FS_WRITE)
        landlock.allow_beneath(rules, str(tmp_path / "yes"), landlock.FS_READ)
        confine.no_new_privileges()
        landlock.restrict(rules)
        assert os.read(os.open(tmp_path / "yes/file", os.O_RDONLY), 1) == b"x"
        for path, flags in (
            ("no", os.O_RDONLY),
            ("yes/file", os.O_WRONLY),
            ("yes/new", os.O_CREAT),
        ):
            try:
                os.open(tmp_path / path, flags)
            except PermissionError:
                continue
            return 1
        return 0

    assert in_child(work) == 0


def test_landlock_scopes_signals() -> None:
    if landlock.abi() < 6:
        pytest.skip("this kernel's Landlock has no scopes")
    target = os.getpid()

    def work() -> int:
        confine.no_new_privileges()
        landlock.restrict(landlock.ruleset(landlock.FS_DEVICES, scoped=landlock.SCOPE_SIGNALS))
        try:
            os.kill(target, 0)
        except PermissionError:
            return 0
        return 1

    assert in_child(work) == 0


def test_openat2_stays_in_its_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "file").write_text("inside")
    (tmp_path / "file").write_text("outside")
    (root / "up").symlink_to("../file")
    (root / "abs").symlink_to("/file")
    fd = os.open(root, os.O_PATH)
    for path in ("file", "/file", "../file", "up", "abs", "../../../file"):
        opened = openat.open_in_root(fd, path, os.O_RDONLY)
        assert os.read(opened, 99) == b"inside"
        os.close(opened)
    os.close(fd)
    proc = os.open("/proc", os.O_PATH)
    with pytest.raises(OSError, match="symbolic links"):
        openat.open_in_root(proc, "self/root/etc", os.O_RDONLY)
    os.close(proc)


def test_detached_mounts(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "target").mkdir()
    (tmp_path / "source/file").write_text("x")

    def work(_: object) -> str:
        fd = mountapi.detached(str(tmp_path / "source"), read_only=True)
        mountapi.attach(fd, str(tmp_path / "target"))
        os.close(fd)
        assert (tmp_path / "target/file").read_text() == "x"
        try:
            (tmp_path / "target/new").touch()
        except OSError as e:
            return e.strerror or ""
        return "written"

    assert "Read-only" in run_isolated(work)
    assert not (tmp_path / "target/file").exists()


def test_a_new_mount_is_filled_before_it_is_seen(tmp_path: Path) -> None:
    def work(_: object) -> bytes:
        fd = mountapi.new_mount("tmpfs", {"mode": "0755", "size": "64k"})
        file = os.open("name", os.O_WRONLY | os.O_CREAT, dir_fd=fd)
        os.write(file, b"content")
        os.close(file)
        mountapi.attach(fd, str(tmp_path))
        os.close(fd)
        return (tmp_path / "name").read_bytes()

    assert run_isolated(work) == b"content"
    assert list(tmp_path.iterdir()) == []


def test_capabilities_are_dropped_for_good() -> None:
    def work(_: object) -> str:
        confine.keep_capabilities(["chown", "kill"])
        status = Path("/proc/self/status").read_text()
        return " ".join(
            line.split()[1] for line in status.splitlines() if line.startswith(("CapPrm", "CapBnd"))
        )

    mask = f"{1 << 0 | 1 << 5:016x}"
    assert run_isolated(work) == f"{mask} {mask}"


def test_unknown_capabilities_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="not in tuple"):
        confine.keep_capabilities(["fly"])


def test_limits_without_a_controller_are_refused() -> None:
    groups = cgroups.Groups(why={"memory": "no cgroup controller for it on this host"})
    with pytest.raises(UnsupportedError, match="a limit on memory: no cgroup controller"):
        groups.create("x", memory=1 << 20, cpus=None, pids=None)


def test_a_group_holds_a_process_and_is_removed() -> None:
    groups = cgroups.Groups.find()
    try:
        if not groups.provider("memory"):
            pytest.skip(f"no memory controller here: {groups.why['memory']}")
        group = groups.create("one", memory=64 << 20, cpus=None, pids=None)
        pid = os.fork()
        if pid == 0:
            signal.pause()
            os._exit(0)
        if groups.provider("memory") == "cgroup v1":
            group.attach(pid)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert not group.out_of_memory()
        directories = set(group.directories.values())
        assert directories
        assert all(d.is_dir() for d in directories)
        group.remove()
        assert not any(d.exists() for d in directories)
    finally:
        groups.close()
    assert not any(base.exists() for base in groups.bases.values())


def _second_version() -> Path:
    """Return this process's group of version 2, if groups can be made in it."""
    own = cgroups._hierarchies().get("")
    if own is None or not os.access(own, os.W_OK):
        pytest.skip("no cgroup v2 that this user may change")
    return own


def test_clone3_starts_in_a_group() -> None:
    group = _second_version() / f"tegutest-{os.getpid()}"
    group.mkdir()
    try:
        fd = os.open(group, os.O_RDONLY | os.O_DIRECTORY)

        def work() -> int:
            child = clone3(0, cgroup=fd)
            if child.pid == 0:
                os._exit(5 if group.name in Path("/proc/self/cgroup").read_text() else 6)
            return os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])

        assert in_child(work) == 5
        os.close(fd)
    finally:
        group.rmdir()


def test_a_process_steps_aside_in_a_delegated_group_only() -> None:
    group = _second_version() / f"tegutest-{os.getpid()}"
    group.mkdir()
    try:

        def work() -> int:
            (group / "cgroup.procs").write_text(str(os.getpid()))
            if cgroups.step_aside():
                return 1
            os.setxattr(group, "user.delegate", b"1")
            if not cgroups.step_aside():
                return 2
            inside = Path("/proc/self/cgroup").read_text()
            return 0 if f"{group.name}/tegu-keeper" in inside else 3

        assert in_child(work) == 0
    finally:
        if (group / "tegu-keeper").exists():
            (group / "tegu-keeper").rmdir()
        group.rmdir()
