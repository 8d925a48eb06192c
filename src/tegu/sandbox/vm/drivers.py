"""Which machine monitor runs a class of microVMs on this host, or why none can."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

from tegu.errors import TeguError, UnsupportedError
from tegu.sandbox.native import find_guest
from tegu.sandbox.vm import qemu
from tegu.sandbox.vm.driver import Driver

__all__ = ["driver_for", "why_not"]


def driver_for(kind: str, state: Path | None = None) -> Driver:
    """Return the driver of the class `kind`; what is known of it is kept in `state`.

    Raises UnsupportedError.
    """
    path, version = qemu.find_binary(state)
    return qemu.Qemu(path, version, "tcg" if kind == "microvm-tcg" else "kvm")


def why_not(kind: str) -> str:
    """Return why this host cannot run microVMs of the class `kind`, or nothing."""
    try:
        _confirm(kind)
    except UnsupportedError as e:
        return e.message.removeprefix("unsupported: ") + (f" ({e.hint})" if e.hint else "")
    except TeguError as e:
        return e.message
    return ""


@cache
def _confirm(kind: str) -> None:
    """Raise UnsupportedError unless all is there; once it is, it is not looked for again."""
    from tegu.sandbox.vm import kernel

    reason = qemu.supported()
    if reason:
        raise UnsupportedError(reason)
    if find_guest() is None:
        raise UnsupportedError(
            "the guests' first process was not compiled (no C compiler when Tegu was built)"
        )
    for program, package in (("mkfs.erofs", "erofs-utils"), ("mkfs.ext4", "e2fsprogs")):
        if shutil.which(program, path="/usr/sbin:/sbin:/usr/bin:/bin") is None:
            raise UnsupportedError(f"{program} is not installed (package {package})")
    driver_for(kind)
    kernel.find_kernel()
    reason = _why_no_kvm() if kind == "microvm" else ""
    if reason:
        raise UnsupportedError(reason)


@cache
def _why_no_kvm() -> str:
    """Start a small guest that does what kernels do, with a deadline (tegu.emulator.kvm)."""
    from tegu.emulator import check_kvm, facts_for, find_qemu, partial_modules

    facts = facts_for("x86-64")
    try:
        kvm = check_kvm(facts, find_qemu(facts))
    except TeguError as e:
        return e.message
    if kvm.works:
        return ""
    if not kvm.present:
        return f"no KVM: {kvm.reason}"
    modules = "".join(f"; {name} is loaded" for name in partial_modules())
    return f"KVM is present but broken: {kvm.reason}{modules}"
