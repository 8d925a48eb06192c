"""Tiny guests that answer one question: does an accelerator run a kernel's kind of code?

Each is the assembled form of the source beside it (`x86-64.S`, `arm64.S`); a test assembles the
sources again and compares. A guest writes `ANSWER` to the console and then powers off or resets.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

__all__ = ["ANSWER", "GUESTS"]

ANSWER: Final = "tegu: guest runs"
"""What a guest says, on a line of its own, once all of it has worked."""

GUESTS: Final[Mapping[str, bytes]] = MappingProxyType(
    {
        "x86-64": bytes.fromhex("""
        02b0ad1b00000100fe4f51e40000100000001000000000000000000020001000fabc00002000bf0000200031
        c0b900100000f3abc7050000200003102000c7050010200003202000c7050020200083000000c70508202000
        83002000b8000020000f22d8b8200600000f22e0b9800000c00f320d000100000f30b8330000800f22c00f01
        1560011000ea90001000080066b810008ed08ed88ec0b80700000031c90fa20fbae3087315ba03000000b805
        000000c4e2e9f7c04883f828757ab828000000660f6ec0660ffec0660f7ec083f8507564488d3d61000000bb
        0032200066893bc743020800008ec1ef1066897b060f011d6e000000b011e620b020e621b004e621b001e621
        b0fee621b034e643b0a9e640b004e64031edfbf483fd0a72f9488d354800000066baf803ac84c07403eeebf8
        b0fee664faf4ebfcffc550b020e6205848cf66900000000000000000ffff0000009aaf00ffff00000092cf00
        1700480110000f020030200000000000746567753a2067756573742072756e730a00
        """),
        "arm64": bytes.fromhex("""
        1320a1d241e03bd542e03bd55f0001ebc0ffff5443010010641440386400003464020039fdffff170080b052
        00018072020000d47f2003d5ffffff17746567753a2067756573742072756e730a00
        """),
    }
)
"""By architecture: a file for QEMU's `-kernel`."""
