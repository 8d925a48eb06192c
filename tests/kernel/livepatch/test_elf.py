"""Objects read and written: what comes out must be what went in, to the linker too."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernel.livepatch.conftest import SECTIONS, Compile

from tegu.errors import BuildError
from tegu.kernel.livepatch.elf import (
    SHF_ALLOC,
    SHN_LIVEPATCH,
    SHT_NOBITS,
    STB_GLOBAL,
    STB_LOCAL,
    ElfObject,
    LivepatchRelocs,
    Reloc,
    Section,
    Symbol,
)

PROGRAM = """
#include <stdio.h>
static int counter = 40;
static const char *words[] = {"one", "two"};
int zeros[100];
__attribute__((noinline)) int next(void) { return ++counter; }
int main(void) { next(); printf("%s %d %d\\n", words[1], next(), zeros[99]); return 0; }
"""


@pytest.mark.parametrize("flags", [(), SECTIONS])
def test_a_rewritten_object_links_and_runs(
    compile_c: Compile, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    made = compile_c("program", PROGRAM, *flags)
    again = tmp_path / "again.o"
    again.write_bytes(ElfObject.parse(made.read_bytes()).to_bytes())
    program = tmp_path / "program"
    subprocess.run(["gcc", "-no-pie", "-o", str(program), str(again)], check=True)
    done = subprocess.run([str(program)], check=True, capture_output=True, text=True)
    assert done.stdout == "two 42 0\n"
    assert ElfObject.parse(again.read_bytes()).to_bytes() == again.read_bytes()


def test_livepatch_relocations_survive(tmp_path: Path) -> None:
    symbol = Symbol(".klp.sym.vmlinux.counter,2", special=SHN_LIVEPATCH)
    text = Section(".text.ask", flags=6, data=bytes(16), align=16)
    table = Section("__jump_table", flags=3, data=bytes(16), align=8)
    obj = ElfObject(62, 0, [text, table], [symbol])
    obj.livepatch = [
        LivepatchRelocs("vmlinux", s, [Reloc(4, 2, symbol, -4)]) for s in (text, table)
    ]
    path = tmp_path / "x.ko"
    path.write_bytes(obj.to_bytes())
    again = ElfObject.parse(path.read_bytes())
    assert [k.owner for k in again.livepatch] == ["vmlinux", "vmlinux"]
    assert again.livepatch[0].relocs[0].symbol.special == SHN_LIVEPATCH
    shown = subprocess.run(
        ["readelf", "-SW", str(path)], check=True, capture_output=True, text=True
    ).stdout
    # Documentation/livepatch/module-elf-format.rst: alloc, info, and its own flag.
    (line,) = (x for x in shown.splitlines() if ".klp.rela.vmlinux.text.ask" in x)
    assert "AIo" in line
    assert ".klp.rela.vmlinux.__jump_table" in shown


NAMES = st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=1, max_size=12)


@st.composite
def objects(draw: st.DrawFn) -> ElfObject:
    sections = [
        Section(
            draw(NAMES),
            flags=SHF_ALLOC,
            data=draw(st.binary(max_size=40)),
            align=2 ** draw(st.integers(0, 6)),
        )
        for _ in range(draw(st.integers(1, 5)))
    ]
    if draw(st.booleans()):
        sections.append(Section(".bss", SHT_NOBITS, 3, nobits=draw(st.integers(0, 99))))
    symbols = [
        Symbol(
            draw(NAMES),
            draw(st.sampled_from([None, *sections])),
            draw(st.integers(0, 2**64 - 1)),
            draw(st.integers(0, 2**32)),
            draw(st.sampled_from([STB_LOCAL, STB_GLOBAL])),
        )
        for _ in range(draw(st.integers(1, 6)))
    ]
    for section in sections:
        if section.size and section.kind != SHT_NOBITS:
            section.relocs = [
                Reloc(
                    draw(st.integers(0, section.size - 1)),
                    draw(st.integers(0, 40)),
                    draw(st.sampled_from(symbols)),
                    draw(st.integers(-(2**63), 2**63 - 1)),
                )
                for _ in range(draw(st.integers(0, 3)))
            ]
    return ElfObject(62, 0, sections, symbols)


def facts(obj: ElfObject) -> object:
    return (
        [
            (
                *(s.name, s.kind, s.flags, s.data, s.size, s.align),
                [(r.offset, r.kind, r.symbol.name, r.symbol.value, r.addend) for r in s.relocs],
            )
            for s in obj.sections
        ],
        sorted((s.name, s.value, s.size, s.bind, s.section is None) for s in obj.symbols),
    )


@given(objects())
def test_what_is_written_is_read(obj: ElfObject) -> None:
    assert facts(ElfObject.parse(obj.to_bytes())) == facts(obj)


@settings(max_examples=200)
@given(objects(), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6))
def test_damage_is_one_clear_error(obj: ElfObject, changes: list[tuple[int, int]]) -> None:
    data = bytearray(obj.to_bytes())
    for at, value in changes:
        data[at % len(data)] = value
    try:
        ElfObject.parse(bytes(data), "damaged.o")
    except BuildError as e:
        assert e.message.startswith("damaged.o is no object that can be read")


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"!<arch>\n" + bytes(200), bytes(64)])
def test_what_is_no_object(data: bytes) -> None:
    with pytest.raises(BuildError, match="no object that can be read"):
        ElfObject.parse(data)
