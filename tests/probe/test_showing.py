"""Names of addresses, names of groups, tables and flame graphs."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tegu.errors import UsageError
from tegu.probe.flame import flame_graph
from tegu.probe.groups import CgroupNames
from tegu.probe.report import bucket_name, duration, histogram, quantile
from tegu.probe.symbols import KernelSymbols, Symbols, elf_functions
from tegu.probe.tool import text
from tegu.probe.tools.exits import how_it_ended
from tegu.probe.tools.offcpu import state_name


@pytest.mark.parametrize(
    ("ns", "words"),
    [(0, "0 ns"), (999, "999 ns"), (1500, "1.50 us"), (12_345_678, "12.3 ms"), (2e9, "2.00 s")],
)
def test_durations(ns: float, words: str) -> None:
    assert duration(ns) == words


@settings(deadline=None)
@given(st.floats(min_value=0, max_value=1e15))
def test_durations_are_short(ns: float) -> None:
    number, unit = duration(ns).split()
    assert unit in ("ns", "us", "ms", "s") and float(number) >= 0


def test_histograms_leave_out_empty_ends_only() -> None:
    table = histogram("t", [0, 0, 4, 0, 1, 0])
    assert [r[1] for r in table.rows] == [4, 0, 1]
    assert table.rows[0][0] == bucket_name(2) == "4.00 us - 8.00 us"
    assert not histogram("t", [0] * 32).rows
    assert quantile([0, 0, 99, 1], 0.99) == 8000
    assert quantile([], 0.5) == 0


def test_kernel_symbols(tmp_path: Path) -> None:
    file = tmp_path / "kallsyms"
    file.write_text(
        "ffffffff81000000 T _text\nffffffff81000100 t inner\nffffffff81000180 d data\n"
        "ffffffffc0000000 t helper\t[module]\n"
    )
    symbols = KernelSymbols(file)
    assert symbols.name(0xFFFFFFFF81000190) == "inner"
    assert symbols.name(0xFFFFFFFFC0000010) == "helper [module]"
    assert symbols.name(5) == "[unknown]"
    file.write_text("0000000000000000 T a\n0000000000000000 T b\n")
    assert KernelSymbols(file).name(1 << 63) == "[unknown]"


def test_a_process_names_its_own_functions(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    source = tmp_path / "p.c"
    source.write_text(
        "#include <stdio.h>\n#include <unistd.h>\n"
        "int wanted(void) { return 42; }\n"
        'int main(void) { printf("%p\\n", (void *)wanted); fflush(stdout); pause(); return 0; }\n'
    )
    program = tmp_path / "p"
    subprocess.run([compiler, "-O0", "-o", program, source], check=True)
    with subprocess.Popen([program], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        address = int(child.stdout.readline(), 16)
        symbols = Symbols()
        named = symbols.user(child.pid, [address + 2, 1])
        child.kill()
    assert named == ["wanted", "[unknown]"]


@settings(deadline=None)
@given(st.binary(max_size=400) | st.binary(max_size=300).map(lambda b: b"\x7fELF\x02\x01" + b))
def test_no_file_breaks_the_elf_reader(data: bytes) -> None:
    try:
        elf_functions(data)
    except ValueError:
        pass
    except MemoryError:  # pragma: no cover - would be a defect, and says so
        pytest.fail("took a length for granted")


def test_damaged_elf_of_a_real_program() -> None:
    data = Path("/bin/true").read_bytes()
    addresses, names, segments = elf_functions(data)
    assert len(addresses) == len(names) and segments
    broken = data[:40] + struct.pack("<Q", 1 << 62) + data[48:]
    with pytest.raises(ValueError, match="damaged"):
        elf_functions(broken)


def test_flame_graphs_are_well_formed_and_whole() -> None:
    stacks = [(["app", "<main>", "work"], 3.0), (["app", "<main>"], 1.0), (["b & c"], 4.0)]
    root = ElementTree.fromstring(flame_graph(stacks, title='a "b" <c>'))
    space = "{http://www.w3.org/2000/svg}"
    titles = [e.text or "" for e in root.iter(f"{space}title")]
    assert "all: 8 (100.00 %)" in titles
    assert "<main>: 4 (50.00 %)" in titles
    assert "work: 3 (37.50 %)" in titles
    assert "b & c: 4 (50.00 %)" in titles


@settings(deadline=None)
@given(st.lists(st.tuples(st.lists(st.text(), max_size=6), st.floats(0, 1e9)), max_size=8))
def test_no_stack_breaks_the_flame_graph(stacks: list[tuple[list[str], float]]) -> None:
    ElementTree.fromstring(flame_graph(stacks, title="t"))


def test_names_cannot_speak_to_the_terminal() -> None:
    assert text(b"a\x1b[2Jb\n\0rest") == "a?[2Jb?"


def mountinfo(tmp_path: Path, *lines: str) -> str:
    file = tmp_path / "mountinfo"
    file.write_text("".join(f"{line}\n" for line in lines))
    return str(file)


def test_groups_of_version_two(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    (root / "a" / "b").mkdir(parents=True)
    (root / "cgroup.controllers").write_text("cpu memory io\n")
    names = CgroupNames(
        "cpu", mounts=mountinfo(tmp_path, f"30 1 0:26 / {root} rw - cgroup2 cgroup2 rw")
    )
    inner = root / "a" / "b"
    assert names.hierarchy == 0
    assert names.name(inner.stat().st_ino) == "/a/b"
    assert names.name(root.stat().st_ino) == "/"
    assert names.name(1) == "#1"
    assert names.select("/a/b") == names.select(str(inner)) == (inner.stat().st_ino, 2)
    with pytest.raises(UsageError, match="no such cgroup"):
        names.select("/a/c")


def test_version_one_where_only_it_accounts(tmp_path: Path) -> None:
    second, first = tmp_path / "unified", tmp_path / "cpu"
    second.mkdir()
    first.mkdir()
    (second / "cgroup.controllers").write_text("\n")
    mounts = mountinfo(
        tmp_path,
        f"30 1 0:26 / {second} rw - cgroup2 cgroup2 rw",
        f"31 1 0:27 / {first} rw - cgroup cgroup rw,cpu",
    )
    assert CgroupNames("cpu", mounts=mounts).root == first
    assert CgroupNames("cpu", mounts=mounts).hierarchy == 1
    assert CgroupNames("unified", mounts=mounts).root == second


def test_ends_and_states_have_their_usual_names() -> None:
    assert how_it_ended(0) == "exit 0"
    assert how_it_ended(3 << 8) == "exit 3"
    assert how_it_ended(9) == "killed by SIGKILL"
    assert how_it_ended(11 | 0x80) == "killed by SIGSEGV, core dumped"
    assert [state_name(s) for s in (0, 1, 2, 0x402, 4)] == ["R", "S", "D", "I", "T"]
