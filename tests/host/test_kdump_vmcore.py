"""Cores: which form, whole or cut off, and the log inside an ELF one that is made here."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tegu.errors import TeguError
from tegu.host.kdump.vmcore import core_kind, elf_log, parse_vmcoreinfo

BASE = 0xFFFF_8880_0000_0000
DESCS, INFOS, TEXTS, RING = 0x2000, 0x3000, 0x4000, 0x1000
BITS, TEXT_BITS = 4, 8
FINALIZED = 2 << 62
INFO = """\
OSRELEASE=6.12.0
SYMBOL(prb)={prb:x}
OFFSET(printk_ringbuffer.desc_ring)=0
OFFSET(printk_ringbuffer.text_data_ring)=48
OFFSET(prb_desc_ring.count_bits)=0
OFFSET(prb_desc_ring.descs)=8
OFFSET(prb_desc_ring.infos)=16
OFFSET(prb_desc_ring.head_id)=24
OFFSET(prb_desc_ring.tail_id)=32
OFFSET(prb_data_ring.size_bits)=0
OFFSET(prb_data_ring.data)=8
OFFSET(atomic_long_t.counter)=0
OFFSET(prb_desc.state_var)=0
OFFSET(prb_desc.text_blk_lpos)=8
OFFSET(prb_data_blk_lpos.begin)=0
OFFSET(prb_data_blk_lpos.next)=8
OFFSET(printk_info.text_len)=16
OFFSET(printk_info.ts_nsec)=8
SIZE(prb_desc)=24
SIZE(printk_info)=88
"""


def ring(messages: list[tuple[int, bytes]], *, first: int = 0) -> bytes:
    """Return 32 KiB of memory with a log as the kernel lays it out: a block of text begins with
    its descriptor's id, is padded to 8 bytes, and moves to the start rather than wrap."""
    memory = bytearray(0x8000)
    struct.pack_into("<Q", memory, 0, BASE + RING)
    size, position = 1 << TEXT_BITS, 0
    ident = first
    for ident, (stamp, text) in enumerate(messages, start=first):
        length = 8 + (len(text) + 7 & ~7)
        begin = position
        if begin // size != (begin + length - 1) // size:
            position = (begin // size + 1) * size
            at = 0
        else:
            at = begin % size
        end = position + length
        position = end
        slot = ident % (1 << BITS)
        struct.pack_into("<QQQ", memory, DESCS + slot * 24, FINALIZED | ident, begin, end)
        struct.pack_into("<QQH", memory, INFOS + slot * 88, ident, stamp, len(text))
        struct.pack_into("<Q", memory, TEXTS + at, ident)
        memory[TEXTS + at + 8 : TEXTS + at + 8 + len(text)] = text
    struct.pack_into("<QQQ", memory, RING, BITS, BASE + DESCS, BASE + INFOS)
    struct.pack_into("<QQ", memory, RING + 24, ident, first)
    struct.pack_into("<QQ", memory, RING + 48, TEXT_BITS, BASE + TEXTS)
    return bytes(memory)


def core(memory: bytes, info: str = INFO.format(prb=BASE)) -> bytes:
    """Return an ELF core with one note and one segment of memory."""
    desc = info.encode()
    note = struct.pack("<III", 11, len(desc), 0) + b"VMCOREINFO\0\0"
    note += desc + bytes(-len(desc) % 4)
    start = 64 + 2 * 56
    load = -(-(start + len(note)) // 4096) * 4096
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = ident + struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    notes = struct.pack("<IIQQQQQQ", 4, 0, start, 0, 0, len(note), len(note), 4)
    loads = struct.pack("<IIQQQQQQ", 1, 7, load, BASE, 0, len(memory), len(memory), 4096)
    body = header + notes + loads + note
    return body + bytes(load - len(body)) + memory


def test_a_log(tmp_path: Path) -> None:
    path = tmp_path / "vmcore"
    path.write_bytes(core(ring([(1_500_000, b"one"), (61_000_002_000, b"two\nlines\x1b")])))
    assert core_kind(path) == "elf"
    assert elf_log(path) == "[    0.001500] one\n[   61.000002] two\n[   61.000002] lines?\n"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=4),
    st.integers(0, 2**40),
)
def test_any_messages_come_back(tmp_path: Path, texts: list[bytes], first: int) -> None:
    clean = [t.translate(bytes(97 + b % 26 for b in range(256))) for t in texts]
    path = tmp_path / "vmcore"
    path.write_bytes(core(ring([(n, t) for n, t in enumerate(clean)], first=first)))
    assert elf_log(path).split("\n")[:-1] == [f"[    0.000000] {t.decode()}" for t in clean]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(0, 0x9000), st.binary(max_size=16), st.booleans())
def test_damage_is_one_clear_line(tmp_path: Path, at: int, junk: bytes, cut: bool) -> None:
    data = bytearray(core(ring([(1, b"one"), (2, b"two")])))
    data[at : at + len(junk)] = junk
    path = tmp_path / "vmcore"
    path.write_bytes(bytes(data[:at] if cut else data))
    try:
        core_kind(path)
        elf_log(path)
    except TeguError as e:
        assert "\n" not in e.message


def test_what_is_cut_off_is_said(tmp_path: Path) -> None:
    path = tmp_path / "vmcore"
    whole = core(ring([(1, b"one")]))
    for size in (100, 3000, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(TeguError, match="cut off"):
            core_kind(path)
    path.write_bytes(b"")
    with pytest.raises(TeguError, match="not a kernel's core"):
        core_kind(path)


def test_makedumpfiles_forms(tmp_path: Path) -> None:
    path = tmp_path / "vmcore"
    head = bytearray(b"KDUMP   " + bytes(4096 - 8))
    path.write_bytes(head)
    assert core_kind(path) == "kdump"
    path.write_bytes(head[:100])
    with pytest.raises(TeguError, match="cut off after 100 bytes"):
        core_kind(path)
    struct.pack_into("<I", head, 424, 8)
    path.write_bytes(head)
    with pytest.raises(TeguError, match="incomplete"):
        core_kind(path)
    flat = b"makedumpfile\0".ljust(4096, b"\0") + struct.pack(">qq", 0, 4) + b"data"
    path.write_bytes(flat)
    with pytest.raises(TeguError, match="end mark"):
        core_kind(path)
    path.write_bytes(flat + struct.pack(">qq", -1, -1))
    assert core_kind(path) == "flattened"


@given(st.binary(max_size=200))
def test_any_vmcoreinfo_is_read(data: bytes) -> None:
    parse_vmcoreinfo(data)
