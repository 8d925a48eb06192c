"""The parts that translate: mount options, limits, device rules, filters, the command line."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tegu.errors import TeguError, UnsupportedError, UsageError
from tegu.linux import libc, mountapi
from tegu.oci import arguments, seccomp
from tegu.oci.cgroups import Layout
from tegu.oci.devicerules import Rule, device_lines, program, rules
from tegu.oci.fields import ConfigError
from tegu.oci.lifecycle import signal_number
from tegu.oci.options import parse
from tegu.oci.resources import Write, first_version, second_version, weight_from_shares
from tegu.oci.sysctl import namespace_of

# -- mount options


def test_options_of_a_bind() -> None:
    found = parse(["rbind", "ro", "nosuid", "rslave", "noatime"], "", "m")
    assert found.bind
    assert found.recursive
    assert found.flags == mountapi.MOUNT_ATTR_RDONLY | mountapi.MOUNT_ATTR_NOSUID
    assert found.propagation == [(libc.MS_SLAVE, True)]
    assert found.atime == 0x10
    assert found.data == {}


def test_options_of_a_file_system() -> None:
    found = parse(["nosuid", "mode=755", "size=65536k", "newinstance", "ro", "rw"], "tmpfs", "m")
    assert not found.bind
    assert found.flags == mountapi.MOUNT_ATTR_NOSUID
    assert found.data == {"mode": "755", "size": "65536k", "newinstance": None}


def test_recursive_restrictions() -> None:
    assert parse(["rbind", "rro"], "bind", "m").rflags == mountapi.MOUNT_ATTR_RDONLY


@pytest.mark.parametrize("word", ["idmap", "ridmap", "idmap=x", "remount"])
def test_refused_options(word: str) -> None:
    with pytest.raises(UnsupportedError, match=f"m: {word}"):
        parse(["bind", word], "", "m")


def test_a_bind_has_no_data() -> None:
    with pytest.raises(ConfigError, match="size=1k: not an option of a bind mount"):
        parse(["bind", "size=1k"], "", "m")


# -- limits


def test_second_version() -> None:
    found = second_version(
        {
            "memory": {"limit": 1000, "swap": 1500, "reservation": 10},
            "cpu": {"shares": 1024, "quota": 50000, "period": 100000, "cpus": "0-1"},
            "pids": {"limit": 5},
            "blockIO": {
                "weight": 1000,
                "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 7}],
            },
            "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
            "unified": {"memory.high": "900"},
        }
    )
    assert {(w.files[0], w.text) for w in found} == {
        ("memory.max", "1000"),
        ("memory.swap.max", "500"),
        ("memory.low", "10"),
        ("cpu.weight", "39"),
        ("cpu.max", "50000 100000"),
        ("cpuset.cpus", "0-1"),
        ("pids.max", "5"),
        ("io.bfq.weight", "1000"),
        ("io.weight", "default 10000"),
        ("io.max", "8:0 rbps=7"),
        ("hugetlb.2MB.max", "0"),
        ("hugetlb.2MB.rsvd.max", "0"),
        ("memory.high", "900"),
    }
    assert second_version({"pids": {"limit": -1}}) == [
        Write("pids.limit", "pids", "pids.max", "max")
    ]


def test_first_version() -> None:
    found = first_version(
        {"memory": {"limit": 1000, "swap": -1}, "cpu": {"shares": 512, "quota": -1}}
    )
    assert [(w.files[0], w.text) for w in found] == [
        ("memory.limit_in_bytes", "1000"),
        ("memory.memsw.limit_in_bytes", "-1"),
        ("cpu.shares", "512"),
        ("cpu.cfs_quota_us", "-1"),
    ]


@pytest.mark.parametrize(
    ("resources", "field"),
    [
        ({"memory": {"swappiness": 10}}, "memory.swappiness"),
        ({"memory": {"disableOOMKiller": True}}, "memory.disableOOMKiller"),
        ({"cpu": {"realtimeRuntime": 10}}, "cpu.realtimeRuntime"),
        ({"network": {"classID": 1}}, "network.classID"),
        ({"blockIO": {"leafWeight": 10}}, "blockIO.leafWeight"),
    ],
)
def test_what_version_two_has_no_file_for(resources: dict[str, Any], field: str) -> None:
    with pytest.raises(UnsupportedError, match=f"linux.resources.{field}: cgroup version 2"):
        second_version(resources)


@pytest.mark.parametrize(
    ("resources", "field"),
    [
        ({"memory": {"swap": 10}}, "memory.swap: needs memory.limit"),
        ({"memory": {"swap": 10, "limit": 20}}, "memory.swap: is less"),
        ({"hugepageLimits": [{"pageSize": "big"}]}, "hugepageLimits.pageSize"),
        ({"unified": {"../x.y": "1"}}, "unified.../x.y"),
        ({"unified": {"cgroup.procs": "1"}}, "unified.cgroup.procs"),
    ],
)
def test_limits_that_make_no_sense(resources: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=f"linux.resources.{field}"):
        second_version(resources)


@given(st.integers(-(2**40), 2**40))
def test_weights_are_in_range(shares: int) -> None:
    assert 1 <= weight_from_shares(shares) <= 10000


# -- device rules

STANDARD = [{"allow": False, "access": "rwm"}, {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rw"}]  # fmt: skip  # noqa: E501


def test_lines_of_version_one() -> None:
    lines = device_lines(rules(STANDARD))
    assert lines[:2] == [("devices.deny", "a"), ("devices.allow", "c 10:229 rw")]
    assert ("devices.allow", "c 136:* rwm") in lines
    assert device_lines([(True, "a", 1, -1, "r")]) == [
        ("devices.allow", "b 1:* r"),
        ("devices.allow", "c 1:* r"),
    ]


def test_wrong_rules_are_named() -> None:
    with pytest.raises(ConfigError, match=r"linux.resources.devices\[0\].type"):
        rules([{"type": "x"}])
    with pytest.raises(ConfigError, match=r"linux.resources.devices\[0\].access"):
        rules([{"access": "rx"}])


def run_program(code: bytes, kind: int, access: int, major: int, minor: int) -> int:
    """Interpret the few eBPF instructions that `program` uses (bpf(2), struct bpf_insn)."""
    context = {0: access << 16 | kind, 4: major, 8: minor}
    r = [0] * 11
    insns = [struct.unpack_from("<BBhi", code, i) for i in range(0, len(code), 8)]
    at = 0
    while True:
        op, registers, off, imm = insns[at]
        dst, src = registers & 15, registers >> 4
        at += 1
        if op == 0x61:
            assert src == 1
            r[dst] = context[off]
        elif op == 0xBC:
            r[dst] = r[src]
        elif op == 0x54:
            r[dst] &= imm
        elif op == 0x74:
            r[dst] >>= imm
        elif op == 0xB7:
            r[dst] = imm
        elif op == 0x56:
            at += off if r[dst] != imm else 0
        elif op == 0x16:
            at += off if r[dst] == imm else 0
        elif op == 0x95:
            return r[0]
        else:
            raise AssertionError(hex(op))


def expected(found: list[Rule], kind: str, access: set[str], major: int, minor: int) -> bool:
    """What the rules say: of those that speak of the request, the last one counts."""
    for allow, of, a, b, letters in reversed(found):
        if of in ("a", kind) and a in (-1, major) and b in (-1, minor):
            if allow and access <= set(letters):
                return True
            if not allow and access & set(letters):
                return False
    return True


RULES = st.lists(
    st.tuples(
        st.booleans(),
        st.sampled_from("abc"),
        st.sampled_from([-1, 0, 1, 2]),
        st.sampled_from([-1, 0, 1, 2]),
        st.sets(st.sampled_from("rwm"), min_size=1).map("".join),
    ),
    max_size=6,
)


@given(
    RULES,
    st.sampled_from("bc"),
    st.sets(st.sampled_from("rwm"), min_size=1),
    st.integers(0, 2),
    st.integers(0, 2),
)
def test_the_program_of_version_two_says_the_same(
    found: list[Rule], kind: str, access: set[str], major: int, minor: int
) -> None:
    bits = sum({"m": 1, "r": 2, "w": 4}[a] for a in access)
    got = run_program(program(found), {"b": 1, "c": 2}[kind], bits, major, minor)
    assert bool(got) == expected(found, kind, access, major, minor)


# -- the layout of control groups

FIRST = """\
30 20 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
33 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
"""
SECOND = "30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n"


def test_layouts() -> None:
    hybrid = Layout(FIRST, "2:cpu,cpuacct:/a\n1:name=systemd:/b\n0::/c\n")
    assert not hybrid.second
    assert hybrid.place("/x/../y") == {
        "cpu": "/sys/fs/cgroup/cpu,cpuacct/y",
        "cpuacct": "/sys/fs/cgroup/cpu,cpuacct/y",
        "name=systemd": "/sys/fs/cgroup/systemd/y",
    }
    assert hybrid.place("y")["cpu"] == "/sys/fs/cgroup/cpu,cpuacct/a/y"
    second = Layout(SECOND, "0::/user.slice\n")
    assert second.second
    assert second.place("../../../etc") == {"": "/sys/fs/cgroup/etc"}


# -- filters


def test_a_filter_is_compiled() -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 38,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_AARCH64"],
        "syscalls": [
            {"names": ["read", "write", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
            {
                "names": ["personality"],
                "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}],
            },
        ],
    }
    code = seccomp.compile_profile(profile)
    assert len(code) % 8 == 0
    assert len(code) > 64


@given(st.dictionaries(st.sampled_from(["names", "action", "errnoRet", "args"]), st.none()))
def test_broken_filters_are_refused_in_a_line(rule: dict[str, Any]) -> None:
    rule = {k: v for k, v in rule.items() if v is not None}
    with pytest.raises(TeguError, match=r"linux.seccomp.syscalls\[0\]"):
        seccomp.compile_profile({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]})


# -- settings, signals


@pytest.mark.parametrize(
    ("name", "namespace"),
    [
        ("net.ipv4.ip_forward", "network"),
        ("net/ipv4/conf/eth0.1/forwarding", "network"),
        ("kernel.shmmax", "ipc"),
        ("fs.mqueue.msg_max", "ipc"),
        ("kernel.hostname", "uts"),
        ("kernel.core_pattern", ""),
        ("vm.swappiness", ""),
        ("network.x", ""),
    ],
)
def test_namespaces_of_settings(name: str, namespace: str) -> None:
    assert namespace_of(name) == namespace


def test_signals() -> None:
    assert [signal_number(t) for t in ("9", "KILL", "SIGKILL", "sigterm")] == [9, 9, 9, 15]
    assert signal_number("RTMIN+1") == signal_number("SIGRTMIN+1")
    for text in ("", "0", "65", "NOPE", "-9", "RTMIN+99"):
        with pytest.raises(UsageError, match="no such signal"):
            signal_number(text)


# -- the command line


def test_as_containerd_calls() -> None:
    words = "--root /r --log /l --log-format json create --bundle /b --pid-file /p --no-pivot id"
    top, name, options, others = arguments.parse(words.split())
    assert top == {"--root": ["/r"], "--log": ["/l"], "--log-format": ["json"]}
    assert name == "create"
    assert options == {"--bundle": ["/b"], "--pid-file": ["/p"], "--no-pivot": [""]}
    assert others == ["id"]


def test_as_programs_in_go_write_options() -> None:
    _, _, options, others = arguments.parse(["kill", "--all=true", "id", "9"])
    assert (options, others) == ({"--all": ["true"]}, ["id", "9"])
    assert arguments.parse(["delete", "-force", "id"])[2] == {"--force": [""]}
    assert arguments.parse(["delete", "--force=false", "id"])[2] == {}


def test_what_follows_the_id_of_exec_is_the_programs() -> None:
    _, _, options, others = arguments.parse(["exec", "-e", "A=1", "id", "ls", "-t", "--env"])
    assert options == {"--env": ["A=1"]}
    assert others == ["id", "ls", "-t", "--env"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fly"], "no such command: fly"),
        (["create", "--wings", "id"], "no such option: --wings"),
        (["create", "--bundle"], "--bundle: needs DIR"),
        (["create"], "create: missing words"),
        (["state", "a", "b"], "state: too many words"),
        (["delete", "--force=maybe", "a"], "--force: true or false"),
    ],
)
def test_wrong_words(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        arguments.parse(words)


@pytest.mark.parametrize("name", ["", *arguments.COMMANDS])
def test_every_help_has_an_example(name: str) -> None:
    assert "\nExample: " in arguments.help_text(name)
