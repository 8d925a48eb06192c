"""The capture kernel's interfaces in the kernel, as far as they can be seen without one."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tegu.errors import BuildError, TeguError, UnsupportedError
from tegu.linux import kexec


def test_images() -> None:
    x86 = bytearray(0x300)
    x86[0x202:0x206] = b"HdrS"
    struct.pack_into("<I", x86, 0x260, 50 << 20)
    assert kexec.image_memory(bytes(x86)) == 50 << 20
    arm = bytearray(64)
    struct.pack_into("<Q", arm, 16, 40 << 20)
    arm[0x38:0x3C] = b"ARM\x64"
    assert kexec.image_memory(bytes(arm)) == 40 << 20
    for bad in (b"", b"MZ", bytes(x86[:0x240]), bytes(1000)):
        with pytest.raises(BuildError, match="not a kernel image"):
            kexec.image_memory(bad)


def test_a_kernel_without_crash_dumps(tmp_path: Path) -> None:
    for ask in (kexec.crash_size, kexec.crash_loaded, kexec.release_crash_memory):
        with pytest.raises(UnsupportedError, match="built without crash dumps"):
            ask(tmp_path)


def test_memory_is_given_back(tmp_path: Path) -> None:
    size = tmp_path / "kexec_crash_size"
    size.write_text("1024\n")
    assert kexec.release_crash_memory(tmp_path) == 1024
    assert kexec.crash_size(tmp_path) == 0
    assert kexec.release_crash_memory(tmp_path) == 0


def test_the_kernels_refusal_is_said(tmp_path: Path) -> None:
    with pytest.raises(
        TeguError, match=r"^(cannot load the capture kernel|unsupported): "
    ) as error:
        (tmp_path / "kernel").write_bytes(b"not one")
        kexec.load_crash_kernel(tmp_path / "kernel", tmp_path / "kernel", "quiet")
    assert "\n" not in error.value.message
