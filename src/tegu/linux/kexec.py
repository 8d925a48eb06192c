"""The capture kernel: memory reserved for it, loading it, unloading it, giving the memory back.

kexec_file_load(2); /sys/kernel/kexec_crash_size and kexec_crash_loaded as in
Documentation/ABI/testing/sysfs-kernel-kexec-kdump; crashkernel= as in
Documentation/admin-guide/kdump/kdump.rst.
"""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

from tegu.errors import BuildError, TeguError, UnsupportedError
from tegu.linux import libc

__all__ = [
    "crash_loaded",
    "crash_size",
    "image_memory",
    "load_crash_kernel",
    "release_crash_memory",
    "unload_crash_kernel",
]

# linux/kexec.h
_UNLOAD = 1
_ON_CRASH = 2
_NO_INITRAMFS = 4

_SYS = Path("/sys/kernel")
_NO_KEXEC = "this kernel was built without crash dumps (CONFIG_CRASH_DUMP, CONFIG_KEXEC_FILE)"


def crash_size(sys: Path = _SYS) -> int:
    """Return the bytes that are reserved for a capture kernel; 0 when there are none.

    Raises UnsupportedError when the kernel was built without crash dumps.
    """
    try:
        return int((sys / "kexec_crash_size").read_text())
    except FileNotFoundError:
        raise UnsupportedError(_NO_KEXEC) from None


def crash_loaded(sys: Path = _SYS) -> bool:
    """Say whether a capture kernel is loaded; raises UnsupportedError as `crash_size`."""
    try:
        return (sys / "kexec_crash_loaded").read_text().strip() == "1"
    except FileNotFoundError:
        raise UnsupportedError(_NO_KEXEC) from None


def image_memory(image: bytes) -> int:
    """Return the bytes of memory that a kernel image takes while it unpacks itself and starts.

    `image` is the first KiB or more of the file. x86: `init_size` of the setup header
    (Documentation/arch/x86/boot.rst, offset 0x260); arm64: `image_size`
    (Documentation/arch/arm64/booting.rst, offset 16). Raises BuildError for any other file.
    """
    if image[0x202:0x206] == b"HdrS" and len(image) >= 0x264:
        (size,) = struct.unpack_from("<I", image, 0x260)
    elif image[0x38:0x3C] == b"ARM\x64":
        (size,) = struct.unpack_from("<Q", image, 16)
    else:
        raise BuildError("the capture kernel is not a kernel image (no HdrS, no ARM64 header)")
    return int(size)


def load_crash_kernel(kernel: Path, initrd: Path, cmdline: str) -> None:
    """Load `kernel` and `initrd` into the reserved memory, to be started when this kernel crashes.

    The kernel itself adds `elfcorehdr=` to `cmdline`. Replaces what was loaded before. Raises
    TeguError with the kernel's reason.
    """
    text = cmdline.encode() + b"\0"
    with kernel.open("rb") as k, initrd.open("rb") as i:
        _load(k.fileno(), i.fileno(), len(text), text, _ON_CRASH)


def unload_crash_kernel() -> None:
    """Unload the capture kernel; it is no error when none is loaded."""
    _load(-1, -1, 0, None, _UNLOAD | _ON_CRASH | _NO_INITRAMFS)


_REASONS = {
    errno.EPERM: "the kernel forbids it (kernel.kexec_load_disabled=1, lockdown, or not root)",
    errno.EADDRNOTAVAIL: "the reserved memory is too small for it",
    errno.ENOMEM: "the reserved memory is too small for it",
    errno.ENOEXEC: "the file is not a kernel that this one can start",
    errno.EKEYREJECTED: "its signature is not accepted",
    errno.ENODATA: "it is not signed and this kernel wants a signature",
    errno.EBUSY: "another program is loading one at this moment",
}


def _load(kernel: int, initrd: int, length: int, cmdline: bytes | None, flags: int) -> None:
    try:
        libc.syscall("kexec_file_load", kernel, initrd, length, cmdline, flags)
    except OSError as e:
        if e.errno == errno.ENOSYS:
            raise UnsupportedError("this kernel has no kexec_file_load(2)") from e
        reason = _REASONS.get(e.errno or 0, os.strerror(e.errno or 0))
        verb = "unload" if flags & _UNLOAD else "load"
        raise TeguError(f"cannot {verb} the capture kernel: {reason}") from e


def release_crash_memory(sys: Path = _SYS) -> int:
    """Give the reserved memory back to the running system; return the bytes.

    A capture kernel must not be loaded. What is given back cannot be reserved again before the
    next boot. Raises TeguError when the kernel refuses.
    """
    before = crash_size(sys)
    if before == 0:
        return 0
    try:
        (sys / "kexec_crash_size").write_text("0\n")
    except OSError as e:
        if e.errno == errno.ENOENT:
            raise TeguError("cannot give the memory back: a capture kernel is loaded in it") from e
        raise TeguError(f"cannot give the reserved memory back: {e.strerror}") from e
    return before - crash_size(sys)
