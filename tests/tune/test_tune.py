"""Profiles, what they write and restore, and when a proof is one."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tegu.errors import DefinitionError, TuneError
from tegu.linux.settings import FileTarget
from tegu.tune import (
    Machine,
    Setting,
    apply,
    load_profile,
    look,
    profile_names,
    prove,
    undo,
    workload,
)
from tegu.tune.profile import find_profile, refuse_denied
from tegu.tune.prove import Sample, judge, receipt

SETTING = """
[[setting]]
kind = "{kind}"
key = "{key}"
value = "{value}"
reason = "because"
source = "somewhere"
correctness = "it must be so"
"""
HUGE = "/sys/kernel/mm/transparent_hugepage/enabled"
JOURNALD = "/etc/systemd/journald.conf.d/70-tune.conf"
PROFILE = (
    SETTING.format(kind="sysctl", key="net.ipv4.tcp_mtu_probing", value="1")
    + SETTING.format(kind="sysctl", key="vm.overcommit_memory", value="1")
    + SETTING.format(kind="sysfs", key="/sys/block/*/queue/read_ahead_kb", value="128")
    + SETTING.format(
        kind="sysfs", key="/sys/kernel/mm/transparent_hugepage/enabled", value="madvise"
    )
    + SETTING.format(
        kind="file", key="/etc/systemd/journald.conf.d/70-tune.conf", value="[Journal]\\n"
    )
    + SETTING.format(kind="boot", key="cryptomgr.notests", value="")
)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    root = tmp_path / "root"
    for name, text in {
        "proc/sys/net/ipv4/tcp_mtu_probing": "0\n",
        "proc/sys/vm/overcommit_memory": "0\n",
        "proc/cmdline": "quiet console=ttyS0\n",
        "sys/block/vda/queue/read_ahead_kb": "4096\n",
        "sys/block/vdb/queue/read_ahead_kb": "128\n",
        "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Machine(root)


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    path = tmp_path / "p.toml"
    path.write_text(PROFILE.replace('value = ""', 'value = "1"'))
    return path


def snapshot(machine: Machine) -> dict[str, str]:
    files = (p for p in machine.root.rglob("*") if p.is_file() and "tegu" not in p.parts)
    return {str(p): p.read_text().strip() for p in files}


def test_apply_and_undo(machine: Machine, profile: Path) -> None:
    before = snapshot(machine)
    done = apply(load_profile(profile), machine)
    assert not done.conflicts
    assert done.refused == ["boot:cryptomgr.notests = 1: " + done.refused[0].partition(": ")[2]]
    assert "boot parameter" in done.refused[0]
    assert len(done.written) == 4
    kept = (machine.root / "etc/sysctl.d/70-tegu-tune.conf").read_text()
    assert "net.ipv4.tcp_mtu_probing = 1\n" in kept
    assert "read_ahead_kb" in (machine.root / "etc/tmpfiles.d/tegu-tune.conf").read_text()
    again = apply(load_profile(profile), machine)
    assert not again.written and not again.conflicts and not again.files
    undo(machine)
    assert snapshot(machine) == before


def test_conflicts_are_left_alone(machine: Machine, profile: Path) -> None:
    other = machine.root / "etc/sysctl.d/99-mine.conf"
    other.parent.mkdir(parents=True)
    other.write_text("# mine\nnet/ipv4/tcp_mtu_probing = 2\n")
    (machine.root / "var/lib/kubelet").mkdir(parents=True)
    foreign = machine.root / "etc/systemd/journald.conf.d/70-tune.conf"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("[Journal]\nStorage=none\n")
    done = apply(load_profile(profile), machine)
    words = "\n".join(done.conflicts)
    assert "99-mine.conf sets it to 2" in words
    assert "the kubelet sets it at each start" in words
    assert "the file is somebody else's" in words
    assert (machine.root / "proc/sys/net/ipv4/tcp_mtu_probing").read_text() == "0\n"
    assert "Storage=none" in foreign.read_text()
    kept = machine.root / "etc/sysctl.d/70-tegu-tune.conf"
    assert not kept.exists()


def test_verify_sees_what_differs(machine: Machine, profile: Path) -> None:
    states = {f.target: f.holds for f in look(load_profile(profile), machine)}
    root = machine.root
    assert states[str(root / "sys/block/vdb/queue/read_ahead_kb")]
    assert not states[str(root / "sys/block/vda/queue/read_ahead_kb")]
    assert states[str(root / "sys/kernel/mm/transparent_hugepage/enabled")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", "x: there is no such key"),
        ("[[setting]]\nkind='sysctl'", "key: must be a text"),
        (SETTING.format(kind="sysctl", key="vm.x y", value="1"), "is no sysctl key"),
        (SETTING.format(kind="sysfs", key="/sys/../etc/shadow", value="1"), "is no sysfs key"),
        (SETTING.format(kind="file", key="/root/.ssh/x", value="1"), "is no file key"),
        (SETTING.format(kind="magic", key="a", value="1"), "kind: must be one of"),
        (SETTING.format(kind="sysctl", key="vm.drop_caches", value="3"), "deny-list"),
        (SETTING.format(kind="sysctl", key="kernel.kptr_restrict", value="0"), "deny-list"),
        (SETTING.format(kind="boot", key="mitigations", value="off"), "deny-list"),
        (
            SETTING.format(kind="sysctl", key="vm.swappiness", value="1").replace(
                'correctness = "it must be so"', ""
            ),
            "neither a receipt nor a correctness reason",
        ),
        (SETTING.format(kind="sysctl", key="vm.swappiness", value="1") * 2, "is there twice"),
        ("include = ['self']", "includes itself"),
        ("include = 'x'", "must be a list"),
    ],
)
def test_profiles_that_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "self.toml"
    path.write_text(text)
    with pytest.raises(DefinitionError) as error:
        load_profile(path)
    assert words in error.value.message and "\n" not in error.value.message


RECEIPT = """[[setting]]
kind = "sysctl"
key = "vm.swappiness"
value = 100
reason = "r"
source = "s"
[setting.receipt]
workload = "w"
kernel = "k"
gain = {gain}
noise = {noise}
pairs = {pairs}
date = "d"
"""


@pytest.mark.parametrize(
    ("gain", "noise", "pairs", "good"),
    [(0.2, 0.01, 3, True), (0.04, 0.0, 3, False), (0.2, 0.3, 3, False), (0.2, 0.01, 2, False)],
)
def test_receipts(tmp_path: Path, gain: float, noise: float, pairs: int, good: bool) -> None:
    path = tmp_path / "p.toml"
    path.write_text(RECEIPT.format(gain=gain, noise=noise, pairs=pairs))
    if good:
        assert load_profile(path).settings["sysctl:vm.swappiness"].value == "100"
    else:
        with pytest.raises(DefinitionError, match="proves nothing"):
            load_profile(path)


def test_what_is_shipped_can_be_loaded() -> None:
    names = profile_names()
    assert set(names) >= {
        "cloud-default",
        "container-host",
        "database",
        "low-latency",
        "small-instance",
        "web",
    }
    for name in names:
        profile = load_profile(find_profile(name))
        assert profile.about
        for setting in profile.settings.values():
            assert setting.receipt or setting.correctness
    with pytest.raises(TuneError, match="there is no profile 'none'"):
        find_profile("none")


def runs(a: list[float], b: list[float], **guards: tuple[float, float]) -> str:
    def samples(values: list[float], side: int) -> list[Sample]:
        return [Sample(v, {n: g[side] for n, g in guards.items()}) for v in values]

    return judge(samples(a, 0), samples(b, 1), "lower")[3]


def test_the_verdict() -> None:
    assert runs([100, 101, 99], [80, 81, 79]) == ""
    assert "is not above 5%" in runs([100, 101, 99], [97, 97, 97])
    assert "within the noise" in runs([100, 130, 90], [80, 80, 80])
    assert "cpu became 3.0% worse" in runs([100, 101, 99], [80, 81, 79], cpu=(100, 103))
    assert runs([100, 101, 99], [80, 81, 79], cpu=(100, 101.9)) == ""
    with pytest.raises(TuneError, match="measures nothing"):
        runs([0, 1, 1], [1, 1, 1])


FIGURES = st.lists(st.floats(min_value=1e-3, max_value=1e6), min_size=3, max_size=9)


@given(FIGURES)
def test_a_against_itself_is_never_kept(values: list[float]) -> None:
    samples = [Sample(v, {}) for v in values]
    assert judge(samples, samples, "lower")[3] != ""


@given(FIGURES, st.randoms(use_true_random=False))
def test_noise_is_hardly_kept(values: list[float], random: object) -> None:
    """B is A in another order: what is kept then must at least beat the whole spread of A."""
    other = [*values[1:], values[0]]
    gain, noise, _, why = judge(
        [Sample(v, {}) for v in values], [Sample(v, {}) for v in other], "higher"
    )
    assert why or gain > noise


def trial(tmp_path: Path, value: str = "1") -> tuple[Setting, FileTarget]:
    path = tmp_path / "knob"
    path.write_text("0\n")
    return Setting("sysctl", "vm.knob", value, "r", "s"), FileTarget(path)


def test_a_proof(tmp_path: Path) -> None:
    setting, target = trial(tmp_path)
    seen: list[str] = []

    def measure() -> Sample:
        seen.append(target.read() or "")
        return Sample({"0": 0.2, "1": 0.045}[seen[-1]], {"cpu": 1.0})

    proof = prove(setting, target, measure, name="400 KB")
    assert seen == ["0", "1", "1", "0", "0", "1"]  # ABBAAB
    assert proof.kept and proof.gain == pytest.approx(0.775)
    assert target.read() == "0"
    path = tmp_path / "p.toml"
    text = receipt(proof, ["./transfer", "400 KB"])
    path.write_text(text + 'reason = "r"\nsource = "s"\n')
    found = load_profile(path).settings["sysctl:vm.knob"].receipt
    assert found is not None and found.command == "./transfer '400 KB'"


def test_a_proof_that_fails_restores(tmp_path: Path) -> None:
    setting, target = trial(tmp_path)
    numbers = itertools.count()

    def measure() -> Sample:
        if next(numbers) == 1:
            raise TuneError("the workload failed")
        return Sample(1, {})

    with pytest.raises(TuneError, match="the workload failed"):
        prove(setting, target, measure)
    assert target.read() == "0"


def test_what_cannot_be_proved(tmp_path: Path) -> None:
    setting, target = trial(tmp_path)
    good = lambda: Sample(1, {})  # noqa: E731
    with pytest.raises(TuneError, match="deny-list"):
        prove(Setting("sysctl", "vm.drop_caches", "3", "", ""), target, good)
    with pytest.raises(TuneError, match="2 pairs prove nothing"):
        prove(setting, target, good, pairs=2)
    with pytest.raises(TuneError, match="is 0 already"):
        prove(trial(tmp_path, "0")[0], target, good)
    with pytest.raises(TuneError, match="this kernel has no"):
        prove(setting, FileTarget(tmp_path / "none"), good)


def test_workloads() -> None:
    def told(text: str) -> Sample:
        return workload([sys.executable, "-c", f"print({text!r})"])()

    found = told('noise\n{"metric": 2.5, "guards": {"cpu": 1}}')
    assert found == Sample(2.5, {"cpu": 1.0})
    for bad in ("", "x", "[]", '{"metric": "1"}', '{"metric": NaN}', '{"metric": -1}'):
        with pytest.raises(TuneError, match="does not end with a line"):
            told(bad)
    with pytest.raises(TuneError, match="the workload failed"):
        workload(["/bin/false"])()


@given(st.text(max_size=30))
def test_denied_or_not(name: str) -> None:
    refuse_denied(f"sysctl:net.ipv4.tcp_{name}") if not name.startswith("syncookies") else None


def test_json(tmp_path: Path) -> None:
    setting, target = trial(tmp_path)
    values = itertools.cycle([2.0, 1.0])
    proof = prove(setting, target, lambda: Sample(next(values), {}))
    assert not proof.kept
    assert json.loads(json.dumps(proof.to_json()))["a"] == [2.0, 1.0, 2.0]
