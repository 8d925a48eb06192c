"""One real boot of a microVM, with a deadline: the last proof that a class works on this host.

A KVM may pass every smaller test and then hang a real kernel. The answer is kept until this host
boots anew, or its emulator or the guests' kernel change.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from tegu.errors import SandboxError, TeguError
from tegu.files import write_atomic
from tegu.sandbox.state import make_state
from tegu.sandbox.template import Template
from tegu.sandbox.vm import kernel, rootimage
from tegu.sandbox.vm.base import make_disk
from tegu.sandbox.vm.channel import Frames
from tegu.sandbox.vm.driver import BOOT_DEADLINE, Driver, Machine
from tegu.sandbox.vm.drivers import driver_for
from tegu.sandbox.vm.guest import say_hello

__all__ = ["try_boot"]

KVM_DEADLINE = 30.0
"""Seconds; a guest under a KVM that works boots in one."""
_MEMORY = 128 * 2**20


def try_boot(kind: str, state: Path, *, deadline: float | None = None) -> tuple[str, str]:
    """Return (why a guest of the class `kind` does not boot, or nothing; how long it took).

    Raises SandboxError when nothing can be kept in `state`.
    """
    try:
        make_state(state)
        driver = driver_for(kind, state)
        found = kernel.find_kernel()
        key = _key(kind, driver, found)
        known = _read(state).get(key)
        if isinstance(known, list) and len(known) == 2:
            return str(known[0]), str(known[1])
        limit = deadline or (BOOT_DEADLINE if driver.accelerator == "tcg" else KVM_DEADLINE)
        answer = _boot(driver, found, state, limit)
    except TeguError as e:
        return e.message.removeprefix("unsupported: "), ""
    except OSError as e:
        return f"{e.filename or state}: {e.strerror}", ""
    others = {k: v for k, v in _read(state).items() if k.partition(" ")[0] != kind}
    with suppress(OSError):
        write_atomic(_file(state), json.dumps({**others, key: answer}, indent=1))
    return answer


def _boot(
    driver: Driver, found: kernel.GuestKernel, state: Path, deadline: float
) -> tuple[str, str]:
    with tempfile.TemporaryDirectory(prefix=".trial-", dir=state) as name:
        place = Path(name)
        (place / "tree/bin").mkdir(parents=True)
        rootimage.make_image(Template("trial", place / "tree", (), ()), place / "root")
        (place / "initrd").write_bytes(kernel.initramfs(found))
        (place / "initrd").chmod(0o444)
        machine = Machine(
            driver=driver.name,
            version=driver.version,
            accelerator=driver.accelerator,
            memory=_MEMORY,
            cpus=1,
            kernel=str(kernel.unpack(found, state)),
            initrd=str(place / "initrd"),
            root=str(place / "root"),
            root_key="",
        )
        disk = make_disk(place / "disk", 8 * 2**20)
        try:
            began = time.monotonic()
            vm = driver.boot(machine, place / "memory", disk)
            try:
                say_hello(Frames(vm.channel), vm, began + deadline)
            except SandboxError as e:
                return f"a guest did not boot within {deadline:g} s: {e.message}", ""
            finally:
                vm.kill()
        finally:
            os.close(disk)
        return "", f"{driver.name} {driver.version}: a guest booted in " + (
            f"{time.monotonic() - began:.1f} s"
        )


def _file(state: Path) -> Path:
    return state / "trials.json"


def _read(state: Path) -> dict[str, object]:
    try:
        body = json.loads(_file(state).read_bytes())
    except (OSError, ValueError):
        return {}
    return body if isinstance(body, dict) else {}


def _key(kind: str, driver: Driver, found: kernel.GuestKernel) -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    about = found.image.stat()
    rest = (boot, driver.name, driver.version, str(found.image), about.st_mtime_ns, about.st_size)
    return f"{kind} {hashlib.sha256(repr(rest).encode()).hexdigest()[:32]}"
