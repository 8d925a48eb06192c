"""Connections of a network namespace steered to sockets that another process holds.

A program of the type BPF_PROG_TYPE_SK_LOOKUP (Documentation/bpf/prog_sk_lookup.rst, Linux 5.9)
answers "which socket?" for each new connection and datagram that is delivered in a namespace. With
a route that delivers every address locally, that is all that is sent there: a whole namespace's
traffic, without netfilter, tunnels or a stack of our own. Addresses are looked up in a map that can
be changed meanwhile; what is not in it is answered with a reset or "port unreachable", as is all
once the link is closed. Needs CAP_BPF and CAP_NET_ADMIN of the first user namespace.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from collections.abc import Sequence

from tegu.linux import libc

__all__ = ["ADMIT", "DENY", "OWN", "Addresses", "load", "steer", "try_load"]

DENY, ADMIT, OWN = 0, 1, 2
"""What is done with an address: refused, given to the steering socket, left to the namespace."""

# linux/bpf.h
_MAP_CREATE, _MAP_UPDATE, _MAP_DELETE, _PROG_LOAD, _LINK_CREATE = 0, 2, 3, 5, 28
_LPM_TRIE, _SOCKMAP = 11, 15
_NO_PREALLOC = 1
_SK_LOOKUP_PROGRAM, _SK_LOOKUP_ATTACH = 30, 36
_LOOKUP_ELEM, _SK_RELEASE, _SK_ASSIGN = 1, 86, 124
_MOST_ADDRESSES = 16384
# struct bpf_sk_lookup
_FAMILY, _PROTOCOL, _LOCAL_IP4, _LOCAL_IP6, _LOCAL_PORT = 8, 12, 40, 44, 60
_INET, _INET6, _TCP, _UDP = 2, 10, 6, 17
_MAPPED = int.from_bytes(b"\0\0\xff\xff", sys.byteorder, signed=True)
"""The third word of an IPv4 address written as IPv6 (RFC 4291, 2.5.5.2)."""
_KEY, _PORT, _WORDS = -24, -20, (-16, -12, -8, -4)
"""Where on the program's stack the key of the map is built: prefix length, protocol and port,
address."""
_WHOLE = 8 * 20


def _bpf(command: int, attributes: bytes, what: str) -> int:
    room = ctypes.create_string_buffer(attributes, len(attributes))
    return libc.syscall("bpf", command, room, len(attributes), what=what)


def _map(kind: int, key: int, value: int, entries: int, flags: int = 0) -> int:
    attributes = struct.pack("=5I", kind, key, value, entries, flags)
    return _bpf(_MAP_CREATE, attributes, "a map of BPF")


class Addresses:
    """The map of addresses, by its descriptor; who only changes it needs no rights (Linux 5.19)."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def set(self, protocol: int, port: int, network: bytes, prefix: int, what: int) -> None:
        """Say what is done with a network (16 bytes, IPv4 mapped; `prefix` counts those bits).

        Port 0 is every port for which there is no word of its own. Raises OSError.
        """
        key = _key(protocol, port, network, prefix)
        self._change(_MAP_UPDATE, key, struct.pack("=I", what))

    def remove(self, protocol: int, port: int, network: bytes, prefix: int) -> None:
        """Take a network's word back; it is no error when there is none."""
        try:
            self._change(_MAP_DELETE, _key(protocol, port, network, prefix), b"")
        except OSError as e:
            if e.errno != errno.ENOENT:
                raise

    def _change(self, command: int, key: bytes, value: bytes) -> None:
        element(command, self.fd, key, value)

    def close(self) -> None:
        """Let go of it."""
        os.close(self.fd)


def element(command: int, fd: int, key: bytes, value: bytes) -> None:
    """Change an element of a map; without a value, as when it is deleted, there must be none."""
    k, v = ctypes.create_string_buffer(key, len(key)), ctypes.create_string_buffer(value, 8)
    place = ctypes.addressof(v) if value else 0
    attributes = struct.pack("=IIQQQ", fd, 0, ctypes.addressof(k), place, 0)
    _bpf(command, attributes, "a map of BPF")


def _key(protocol: int, port: int, network: bytes, prefix: int) -> bytes:
    return struct.pack("=II", 32 + prefix, protocol << 16 | port) + network


class _Program:
    """Instructions (Documentation/bpf/standardization/instruction-set.rst), and labels in them."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, str | int, int]] = []
        self._labels: dict[str, int] = {}

    def add(self, op: int, dst: int = 0, src: int = 0, off: str | int = 0, imm: int = 0) -> None:
        self._code.append((op, dst, src, off, imm))

    def label(self, name: str) -> None:
        self._labels[name] = len(self._code)

    def load(self, dst: int, src: int, off: int) -> None:
        self.add(0x61, dst, src, off)

    def keep(self, off: int, src: int) -> None:
        self.add(0x63, 10, src, off)

    def keep_number(self, off: int, value: int) -> None:
        self.add(0x62, 10, 0, off, value)

    def map_lookup(self, fd: int) -> None:
        self.add(0x18, 1, 1, 0, fd)
        self.add(0)
        self.add(0xBF, 2, 10)
        self.add(0x07, 2, 0, 0, _KEY)
        self.call(_LOOKUP_ELEM)

    def call(self, helper: int) -> None:
        self.add(0x85, imm=helper)

    def jump_if(self, dst: int, value: int, to: str) -> None:
        self.add(0x15, dst, 0, to, value)

    def jump_unless(self, dst: int, value: int, to: str) -> None:
        self.add(0x55, dst, 0, to, value)

    def jump(self, to: str) -> None:
        self.add(0x05, off=to)

    def bytes(self) -> bytes:
        made = b""
        for at, (op, dst, src, off, imm) in enumerate(self._code):
            jump = self._labels[off] - at - 1 if isinstance(off, str) else off
            made += struct.pack("=BBhi", op, src << 4 | dst, jump, imm)
        return made


def _lookup(addresses: int, sockets: int) -> bytes:
    p = _Program()
    p.add(0xBF, 6, 1)  # register 6: the context; 8: which of the sockets
    _build_key(p)
    p.map_lookup(addresses)
    p.jump_unless(0, 0, "found")
    p.load(2, 6, _PROTOCOL)  # nothing for this port: for all
    p.add(0x67, 2, imm=16)
    p.keep(_PORT, 2)
    p.map_lookup(addresses)
    p.jump_if(0, 0, "drop")
    p.label("found")
    p.load(1, 0, 0)
    p.jump_if(1, OWN, "pass")
    p.jump_unless(1, ADMIT, "drop")
    _assign(p, sockets)
    p.label("pass")
    p.add(0xB7, 0, imm=1)
    p.add(0x95)
    p.label("drop")
    p.add(0xB7, 0, imm=0)
    p.add(0x95)
    return p.bytes()


def _build_key(p: _Program) -> None:
    """Write the key for what is looked for to the stack; other protocols go to "drop"."""
    p.load(2, 6, _FAMILY)
    p.jump_if(2, _INET6, "six")
    p.jump_unless(2, _INET, "drop")
    for at, word in zip(_WORDS, (0, 0, _MAPPED), strict=False):
        p.keep_number(at, word)
    p.load(3, 6, _LOCAL_IP4)
    p.keep(_WORDS[3], 3)
    p.add(0xB7, 8, imm=0)
    p.jump("protocol")
    p.label("six")
    for i, at in enumerate(_WORDS):
        p.load(3, 6, _LOCAL_IP6 + 4 * i)
        p.keep(at, 3)
    p.add(0xB7, 8, imm=2)
    p.label("protocol")
    p.load(2, 6, _PROTOCOL)
    p.jump_if(2, _TCP, "look")
    p.jump_unless(2, _UDP, "drop")
    p.add(0x07, 8, imm=1)
    p.label("look")
    p.add(0x67, 2, imm=16)
    p.load(3, 6, _LOCAL_PORT)
    p.add(0x4F, 2, 3)
    p.keep(_PORT, 2)
    p.keep_number(_KEY, _WHOLE)


def _assign(p: _Program, sockets: int) -> None:
    """Give it to the socket that register 8 says."""
    p.keep(_KEY, 8)
    p.map_lookup(sockets)
    p.jump_if(0, 0, "drop")
    p.add(0xBF, 7, 0)
    p.add(0xBF, 1, 6)
    p.add(0xBF, 2, 7)
    p.add(0xB7, 3)
    p.call(_SK_ASSIGN)
    p.add(0xBF, 8, 0)
    p.add(0xBF, 1, 7)
    p.call(_SK_RELEASE)
    p.jump_unless(8, 0, "drop")


def load(addresses: int, sockets: int) -> int:
    """Load the program over two maps; returns its descriptor. Raises OSError."""
    code = ctypes.create_string_buffer(program := _lookup(addresses, sockets), len(program))
    license_ = ctypes.create_string_buffer(b"Apache-2.0")
    attributes = struct.pack(
        "=IIQQIIQII16sII",
        *(_SK_LOOKUP_PROGRAM, len(program) // 8, ctypes.addressof(code)),
        *(ctypes.addressof(license_), 0, 0, 0),
        *(0, 0, b"tegu_steer", 0, _SK_LOOKUP_ATTACH),
    )
    return _bpf(_PROG_LOAD, attributes, "the program that steers connections")


def try_load() -> None:
    """Load the program and let it go: raises OSError where that cannot be done."""
    opened = [_map(_LPM_TRIE, 24, 4, 1, _NO_PREALLOC)]
    try:
        opened.append(_map(_SOCKMAP, 4, 8, 4))
        opened.append(load(*opened))
    finally:
        for fd in opened:
            os.close(fd)


def steer(network: int, sockets: Sequence[int]) -> tuple[Addresses, int]:
    """Steer what is sent in a network namespace; returns the map of addresses and the link.

    `network` is the namespace's descriptor; `sockets` are those of TCP and UDP over IPv4 and of
    TCP and UDP over IPv6, bound there. It lasts until the link is closed. Raises OSError.
    """
    opened: list[int] = []
    try:
        addresses = _map(_LPM_TRIE, 24, 4, _MOST_ADDRESSES, _NO_PREALLOC)
        opened.append(addresses)
        chosen = _map(_SOCKMAP, 4, 8, 4)
        opened.append(chosen)
        for i, fd in enumerate(sockets):
            if fd >= 0:
                element(_MAP_UPDATE, chosen, struct.pack("=I", i), struct.pack("=Q", fd))
        program = load(addresses, chosen)
        opened.append(program)
        attributes = struct.pack("=IIII", program, network, _SK_LOOKUP_ATTACH, 0)
        link = _bpf(_LINK_CREATE, attributes, "a link of BPF")
    except BaseException:
        for fd in opened:
            os.close(fd)
        raise
    for fd in opened[1:]:
        os.close(fd)
    for fd in (addresses, link):
        os.set_inheritable(fd, False)
    return Addresses(addresses), link
