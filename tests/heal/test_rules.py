"""Rules on looks made by hand: what must be found, whom it must name, and what must not be."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.heal.build import group, look, process

from tegu.heal import RULES, Finding, Look, find_rule
from tegu.heal.clock import Clock
from tegu.heal.filesystems import FileSystem
from tegu.heal.resolver import Server
from tegu.heal.snapshot import Disk, Snapshot
from tegu.heal.units import Unit
from tegu.linux.kernel_log import Event
from tegu.linux.mountinfo import Mount, Namespace
from tegu.linux.sockdiag import TcpSocket


def found(rule: str, seen: Look) -> list[Finding]:
    return list(find_rule(rule).check(seen))


@pytest.mark.parametrize("name", RULES)
def test_an_empty_look_has_no_finding(name: str) -> None:
    rule = find_rule(name)
    seen = look(
        flows=[], time_wait=[], clock=Clock(True, 0.0), log_lines={}, first=Snapshot(wall=1.0),
        last=Snapshot(wall=11.0),
    )  # fmt: skip
    assert list(rule.check(seen)) == []
    assert rule.name == name and rule.reference and rule.signals and rule.question.endswith("?")


def test_throttled() -> None:
    stat = {"cpu_dot_max__quota": 10000, "cpu_dot_max__period": 100000}
    before = group("/a.service", **stat)
    after = group(
        "/a.service",
        **stat,
        cpu_dot_stat__nr_periods=100,
        cpu_dot_stat__nr_throttled=90,
        cpu_dot_stat__throttled_usec=8_000_000,
    )
    (one,) = found("cpu_throttle", look([before], [after]))
    assert one.culprit is not None and one.culprit.unit == "a.service"
    short = group(
        "/a.service",
        **stat,
        cpu_dot_stat__nr_periods=100,
        cpu_dot_stat__nr_throttled=90,
        cpu_dot_stat__throttled_usec=900_000,
    )
    assert not found("cpu_throttle", look([before], [short]))
    seldom = group("/a.service", **stat, cpu_dot_stat__nr_periods=100, cpu_dot_stat__nr_throttled=9)
    assert not found("cpu_throttle", look([before], [seldom]))


def _busy(used: dict[str, int], waits: dict[str, int]) -> Look:
    before = [group(p) for p in used]
    after = [
        group(p, cpu=waits.get(p, 0) * 1_000_000, cpu_dot_stat__usage_usec=used[p] * 1_000_000)
        for p in used
    ]
    first, last = Snapshot(cpu={"user": 0.0, "idle": 0.0}), Snapshot(cpu={"user": 10.0})
    return look(before, after, first=first, last=last)


def test_a_noisy_neighbour_and_a_big_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    seen = _busy({"/noisy.service": 9, "/web.service": 1}, {"/web.service": 8})
    (one,) = found("cpu_neighbour", seen)
    assert one.culprit is not None and one.culprit.name == "/noisy.service"
    assert [v.name for v in one.victims] == ["/web.service"]
    alone = _busy({"/build.service": 10, "/idle.service": 0}, {"/build.service": 9})
    assert not found("cpu_neighbour", alone)


def test_thrash_is_the_limits_fault_or_the_neighbours() -> None:
    mib = 1 << 20
    before = [group("/t.service", refaults=0)]
    after = [
        group(
            "/t.service",
            memory=4_000_000,
            refaults=5000,
            memory_dot_current=63 * mib,
            memory_dot_max=64 * mib,
        )
    ]
    (one,) = found("cache_thrash", look(before, after))
    assert one.remedy == "raise-memory"
    assert not found("memory_neighbour", look(before, after))
    shared = [
        group("/s.slice", memory_dot_current=199 * mib, memory_dot_max=200 * mib),
        group("/s.slice/big.service", memory_dot_current=150 * mib),
        group("/s.slice/web.service", memory_dot_current=40 * mib, refaults=0),
    ]
    later = [
        *shared[:2],
        group(
            "/s.slice/web.service",
            memory=3_000_000,
            memory_dot_current=40 * mib,
            refaults=9000,
        ),
    ]
    (one,) = found("memory_neighbour", look(shared, later))
    assert one.culprit is not None and one.culprit.name == "/s.slice/big.service"
    assert [v.name for v in one.victims] == ["/s.slice/web.service"]


def test_zombies_are_counted_where_they_are() -> None:
    key = "cgroup_dot_stat__nr_dying_descendants"
    groups = [
        group("/", **{key: 400}),
        group("/a.slice", **{key: 390}),
        group("/a.slice/b.service", **{key: 5}),
    ]
    for one in groups:
        one.__dict__["memory"] = {"file": 8 << 20, "shmem": 7 << 20} if one.path != "/" else {}
    (finding,) = found("zombie_cgroups", look(groups))
    assert finding.culprit is not None and finding.culprit.name == "/a.slice"
    assert not found("zombie_cgroups", look([group("/", **{key: 30})]))


def test_a_device_that_stays_suspended(tmp_path: Path) -> None:
    where = tmp_path / "sys/block/dm-0/dm"
    where.mkdir(parents=True)
    (where / "suspended").write_text("1\n")
    (where / "name").write_text("data\n")
    still = Snapshot(disks={"dm-0": Disk(1, 1, 1, 1, 1, 1)})
    (one,) = found("suspended_device", look(first=still, last=still, root=tmp_path))
    assert one.target == {"device": "data"} and one.severity == "critical"
    works = Snapshot(disks={"dm-0": Disk(9, 1, 1, 1, 1, 1)})
    assert not found("suspended_device", look(first=still, last=works, root=tmp_path))


def test_slow_above_but_not_below(tmp_path: Path) -> None:
    (tmp_path / "sys/block/dm-0/slaves/sda").mkdir(parents=True)
    quick, slow = Disk(10, 10, 0, 0, 0, 10), Disk(10, 3000, 0, 0, 0, 3000)
    none = Disk(0, 0, 0, 0, 0, 0)
    first = Snapshot(disks={"dm-0": none, "sda": none})
    upper = Snapshot(disks={"dm-0": slow, "sda": quick})
    (one,) = found("slow_device", look(first=first, last=upper, root=tmp_path))
    assert one.culprit is not None and one.culprit.name == "dm-0"
    queue = Snapshot(disks={"dm-0": Disk(1000, 300_000, 0, 0, 64, 9000), "sda": quick})
    assert not found("slow_device", look(first=first, last=queue, root=tmp_path))
    both = Snapshot(disks={"dm-0": slow, "sda": slow})
    (one,) = found("slow_device", look(first=first, last=both, root=tmp_path))
    assert one.culprit is not None and one.culprit.name == "sda"


def _event(kind: str, ago: float, **about: str) -> Event:
    return Event(kind, time.clock_gettime(time.CLOCK_MONOTONIC) - ago, "text", about)


def test_kills_that_go_on_and_kills_that_are_over() -> None:
    about = {"limit": "/a.service", "comm": "x", "pid": "7", "constraint": "CONSTRAINT_MEMCG"}
    loop = [_event("oom", ago, **about) for ago in (9, 6, 3)]
    (one,) = found("oom_loop", look([group("/a.service")], log=loop))
    assert one.remedy == "raise-memory" and one.culprit is not None
    assert not found("oom_loop", look(log=loop[:2]))
    over = [_event("oom", ago, **about) for ago in (290, 289, 288)]
    assert not found("oom_loop", look(log=over))


def test_old_errors_of_a_device_are_not_told(tmp_path: Path) -> None:
    for name in ("sda", "fd0"):
        (tmp_path / "sys/class/block" / name).mkdir(parents=True)

    def errors(ago: float, device: str) -> list[Finding]:
        seen = look(root=tmp_path, log=[_event("io-error", ago, device=device)])
        return found("failing_device", seen)

    assert errors(5, "sda")
    assert not errors(900, "sda")
    assert not errors(5, "fd0")
    assert not errors(5, "sdb")  # it is gone


def test_zombies_fill_the_tasks() -> None:
    after = Snapshot(
        processes={p: process(p, "dead", "Z", parent=10) for p in range(20, 90)}
        | {10: process(10, "server")}
    )
    full = group("/a.service", pids_dot_current=72, pids_dot_max=80)
    seen = look([full], last=after)
    seen.group_of = lambda pid: "/a.service"  # type: ignore[method-assign]
    (one,) = found("pid_limit", seen)
    assert one.remedy == "restart-unit" and one.culprit is not None and one.culprit.pid == 10
    free = group("/a.service", pids_dot_current=40, pids_dot_max=80)
    assert not found("pid_limit", look([free], last=after))


def test_a_leaked_mount_and_a_container() -> None:
    root = Mount("254:1", "/", "/", "ext4", "/dev/vda1")
    data = Mount("7:0", "/", "/mnt", "ext4", "/dev/loop0")
    held = [Namespace(1, 1, (root,)), Namespace(2, 50, (root, data))]
    (one,) = found("mount_leak", look(namespaces=held))
    assert one.target["mountpoint"] == "/mnt" and one.target["pid"] == 50
    own_root = Mount("0:50", "/", "/", "overlay", "overlay")
    container = [Namespace(1, 1, (root,)), Namespace(2, 50, (own_root, data))]
    assert not found("mount_leak", look(namespaces=container))
    piled = [Namespace(1, 1, (root, *[data] * 60))]
    (one,) = found("mount_leak", look(namespaces=piled))
    assert one.culprit is not None and one.culprit.name == "/mnt"


def test_name_servers() -> None:
    dead = Server("192.0.2.1", "/etc/resolv.conf", False, "no answer")
    alive = Server("192.0.2.2", "/etc/resolv.conf", True)
    (one,) = found("dead_dns", look(servers=[dead, alive]))
    assert one.severity == "warning" and not one.remedy
    stub = Server("127.0.0.53", "/etc/resolv.conf", False, "no answer")
    (one,) = found("dead_dns", look(servers=[stub, alive]))
    assert one.severity == "critical" and one.remedy == "restart-unit"


def test_clocks() -> None:
    (one,) = found("clock_jump", look(clock=Clock(False, -3600.0), last=Snapshot(wall=10.0)))
    assert one.title == "the clock is 3600 s ahead" and one.remedy == "set-clock"
    ten = Snapshot(wall=10.0)
    assert not found("clock_jump", look(clock=Clock(True, -3600.0), last=ten))
    assert not found("clock_jump", look(clock=Clock(False, 1.0), last=ten))


def test_units_that_are_kept() -> None:
    many = [Unit(f"job@{n}.service", "loaded", "failed", "failed") for n in range(60)]
    one_more = Unit("web.service", "loaded", "failed", "failed")
    (leak,) = found("unit_leak", look(units=[*many, one_more]))
    assert leak.target["pattern"] == "job@*.service"
    (failed,) = found("failed_unit", look(units=[*many, one_more]))
    assert failed.culprit is not None and failed.culprit.name == "web.service"
    assert failed.severity == "notice"


def test_ports_in_time_wait(tmp_path: Path) -> None:
    def closed(port: int) -> TcpSocket:
        return TcpSocket(6, ("192.0.2.1", port), ("192.0.2.2", 80), 9, 0, 0, 2, b"")

    base = tmp_path / "proc/sys/net/ipv4"
    base.mkdir(parents=True)
    for name, value in (("ip_local_port_range", "20000 20099"), ("tcp_timestamps", "1")):
        (base / name).write_text(value)
    parts = {"root": tmp_path, "last": Snapshot(net={"TcpExt.TW": 1})}
    full = [closed(20000 + n) for n in range(95)]
    (base / "tcp_tw_reuse").write_text("2")
    (one,) = found("ports_exhausted", look(time_wait=full, **parts))
    assert one.culprit is not None and one.culprit.name == "192.0.2.2:80"
    assert not found("ports_exhausted", look(time_wait=full[:50], **parts))
    (base / "tcp_tw_reuse").write_text("1")
    assert not found("ports_exhausted", look(time_wait=full, **parts))


def test_full_disks(tmp_path: Path) -> None:
    def disk(free: int, inodes_free: int) -> FileSystem:
        return FileSystem(str(tmp_path), "ext4", "8:1", "/dev/x", 100 << 20, free, 1000,
                          inodes_free)  # fmt: skip

    (one,) = found("disk_full", look(filesystems=[disk(1 << 20, 900)]))
    assert one.rule == "disk_full"
    assert not found("disk_full", look(filesystems=[disk(9 << 20, 900)]))
    (tmp_path / "spool").mkdir()
    for n in range(5):
        (tmp_path / f"spool/{n}").touch()
    (one,) = found("inodes_full", look(filesystems=[disk(50 << 20, 1)]))
    assert one.culprit is not None and one.culprit.name == str(tmp_path / "spool")
