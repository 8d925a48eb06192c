"""The machine that all boxes of a template are restored from: booted once, saved, kept.

Everything that goes into it is in its key, so that another kernel, template, size or emulator makes
another one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tegu.errors import SandboxError, TeguError, UnsupportedError
from tegu.files import write_atomic
from tegu.process import CommandError, require, run
from tegu.sandbox.native import find_guest
from tegu.sandbox.spec import BoxSpec
from tegu.sandbox.state import appear, locked, make_state, need_room
from tegu.sandbox.template import find_template
from tegu.sandbox.vm import kernel, rootimage, snapshots
from tegu.sandbox.vm.channel import Frames
from tegu.sandbox.vm.driver import BOOT_DEADLINE, Driver, Machine
from tegu.sandbox.vm.drivers import driver_for
from tegu.sandbox.vm.guest import converse, identity, say_hello, sleep

__all__ = ["DEFAULT_MEMORY", "ensure_base", "main", "make_disk"]

DEFAULT_MEMORY = 256 * 2**20
"""Of a microVM without a limit of its own: a guest's memory is what it is made with."""
MIN_MEMORY = 96 * 2**20
_KEEP = 8
_DISK_AT_MOST = 16 * 2**20
"""Bytes that an empty file system takes."""
_MIB = 2**20


def ensure_base(spec: BoxSpec, state: Path, note: Callable[[str], None] = lambda _: None) -> Path:
    """Return the directory of the base for `spec`, booting and saving it when there is none.

    One process makes it, others wait. Raises UnsupportedError, UsageError or SandboxError.
    """
    make_state(state)
    driver = driver_for(spec.kind, state)
    memory = spec.limits.memory or DEFAULT_MEMORY
    if memory < MIN_MEMORY:
        raise UnsupportedError(
            f"memory: a microVM needs {MIN_MEMORY // _MIB} MiB at least, for a kernel of its own"
        )
    memory = (memory + 2 * _MIB - 1) // (2 * _MIB) * 2 * _MIB
    template = find_template(spec.template)
    found = kernel.find_kernel()
    image = kernel.unpack(found, state)
    archive = kernel.initramfs(found)
    initrd = state / "kernels" / f"{hashlib.sha256(archive).hexdigest()[:32]}.initrd"
    if not initrd.exists():
        write_atomic(initrd, archive, mode=0o444)
    root_key = rootimage.tree_key(template)
    root = state / "roots" / root_key[:32]
    machine = Machine(
        driver=driver.name,
        version=driver.version,
        accelerator=driver.accelerator,
        memory=memory,
        cpus=max(1, -(-int((spec.limits.cpus or 1) * 1000) // 1000)),
        kernel=str(image),
        initrd=str(initrd),
        root=str(root / "image"),
        root_key=root_key,
    )
    about = json.dumps([snapshots.FORMAT, machine.to_json(), spec.limits.disk], sort_keys=True)
    key = hashlib.sha256(about.encode()).hexdigest()[:32]
    base = state / "bases" / key
    with locked(state, "base"):
        if not root.exists():
            note(f"making a disk of template {spec.template}")
            with appear(root) as fresh:
                rootimage.make_image(template, fresh / "image")
        if (base / "manifest.json").exists():
            os.utime(base)
            return base
        note(f"booting a microVM of template {spec.template}")
        with appear(base) as fresh:
            _make(driver, machine, spec.limits.disk, fresh)
        _forget(base.parent, state / "roots")
    return base


def _make(driver: Driver, machine: Machine, disk_size: int, directory: Path) -> None:
    need_room(directory, machine.memory + _DISK_AT_MOST, "a microVM's memory")
    began = time.monotonic()
    disk = make_disk(directory / "disk", disk_size)
    try:
        vm = driver.boot(machine, directory / "memory", disk)
        try:
            frames = Frames(vm.channel)
            say_hello(frames, vm, began + BOOT_DEADLINE)
            booted = time.monotonic() - began
            converse(frames, vm, "T", identity("box", 512, 1024), "T")
            sleep(frames, vm)
            vm.save(directory)
        finally:
            vm.kill()
    finally:
        os.close(disk)
    snapshots.write(directory, machine, {"boot_seconds": round(booted, 3)})


def make_disk(path: Path, size: int) -> int:
    """Make an empty file system of `size` bytes, without journal; returns its descriptor."""
    program = require("mkfs.ext4", package="e2fsprogs")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, max(size // 4096 * 4096, 2 * _MIB))
        features = "lazy_itable_init=1,nodiscard,root_owner=0:0"
        run([program, "-q", "-F", "-m", "0", "-O", "^has_journal", "-E", features, path])
    except CommandError as e:
        os.close(fd)
        raise SandboxError(f"a box's disk cannot be made: {e.message}") from e
    except BaseException:
        os.close(fd)
        raise
    return fd


def _forget(bases: Path, roots: Path) -> None:
    """Keep the bases that were used last, and the root images that they need."""
    there = sorted(
        (d for d in bases.iterdir() if not d.name.startswith(".")),
        key=lambda d: d.stat().st_mtime,
        reverse=True,
    )
    for old in there[_KEEP:]:
        shutil.rmtree(old, ignore_errors=True)
    used = set()
    for base in (*there[:_KEEP], *bases.parent.glob("snapshots/*")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            body = json.loads((base / "manifest.json").read_bytes())
            used.add(Path(body["machine"]["root"]).parent)
    for root in roots.iterdir():
        if root not in used and not root.name.startswith("."):
            shutil.rmtree(root, ignore_errors=True)


def main(arguments: list[str]) -> None:
    """Make a base in a process of its own: prints its path, or the error, as JSON."""
    from tegu.sandbox.wire import describe

    spec = BoxSpec.from_json(json.loads(arguments[0]))
    try:
        if find_guest() is None:
            raise UnsupportedError("the guests' first process was not compiled")
        print(json.dumps({"base": str(ensure_base(spec, Path(arguments[1])))}))
    except TeguError as e:
        print(json.dumps({"error": describe(e)}))
        sys.exit(1)
    except OSError as e:
        what = f"{e.filename}: " if e.filename else ""
        error = SandboxError(f"a microVM's base cannot be made: {what}{e.strerror or e}")
        print(json.dumps({"error": describe(error)}))
        sys.exit(1)
