"""Live patches of a machine, its kernel's files played by a directory; a guest has the real one."""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tegu.errors import LivepatchError, UnsupportedError, UsageError, VerifyError
from tegu.host import livepatch as host
from tegu.host.livepatch import Livepatches, Reverted
from tegu.host.livepatch_files import Files
from tegu.linux.modules import is_signed, modinfo

RELEASE = "6.12.107-tegu"


def module(
    path: Path, *, release: str = RELEASE, livepatch: bool = True, signed: bool = False
) -> Path:
    """Write a file with what the host half reads of a module: ELF headers and `.modinfo`."""
    name = path.stem if path.stem.startswith("livepatch_") else f"livepatch_{path.stem}"
    fields = [f"name={name}", f"vermagic={release} SMP mod_unload modversions "]
    fields += ["livepatch=Y"] if livepatch else []
    info = "".join(f"{f}\0" for f in fields).encode()
    names = b"\0.modinfo\0.shstrtab\0"
    rows = struct.pack("<IIQQQQIIQQ", *[0] * 10)
    rows += struct.pack("<IIQQQQIIQQ", 1, 1, 2, 0, 64, len(info), 0, 0, 1, 0)
    rows += struct.pack("<IIQQQQIIQQ", 10, 3, 0, 0, 64 + len(info), len(names), 0, 0, 1, 0)
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    offset = 64 + len(info) + len(names)
    header = struct.pack("<16sHHIQQQIHHHHHH", head, 1, 62, 1, 0, 0, offset, 0, 64, 0, 0, 64, 3, 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    tail = b"signature~Module signature appended~\n" if signed else b""
    path.write_bytes(header + info + names + rows + tail)
    return path


class Kernel:
    """A kernel that takes live patches, as files; `stuck` ones never finish a transition."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sys = root / "sys/kernel/livepatch"
        self.sys.mkdir(parents=True)
        self.stuck = False
        self.error = 0
        self.loads: list[str] = []
        (root / "proc/sys/kernel/random").mkdir(parents=True)
        self.boot("one")

    def boot(self, name: str) -> None:
        (self.root / "proc/sys/kernel/random/boot_id").write_text(f"{name}\n")

    def load(self, path: Path) -> None:
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        name = modinfo(path)["name"][0]
        self.loads.append(name)
        here = self.sys / name
        (here / "vmlinux/cmdline_proc_show,1").mkdir(parents=True)
        (here / "enabled").write_text("1\n")
        (here / "transition").write_text("1\n" if self.stuck else "0\n")
        (here / "force").write_text("")
        (self.root / "sys/module" / name).mkdir(parents=True)

    def unload(self, name: str) -> None:
        if (self.sys / name).exists():
            raise OSError(errno.EWOULDBLOCK, "busy")
        (self.root / "sys/module" / name).rmdir()


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel(tmp_path)

    def write(self: Livepatches, path: Path, value: str) -> None:
        """A real kernel acts on what is written."""
        if path.name == "enabled" and value == "0":
            shutil.rmtree(path.parent)
        elif path.name == "force":
            (path.parent / "transition").write_text("0\n")

    monkeypatch.setattr(host, "load_module", kernel.load)
    monkeypatch.setattr(host, "unload_module", kernel.unload)
    monkeypatch.setattr(Livepatches, "_write", write)
    return kernel


@pytest.fixture
def patches(kernel: Kernel) -> Livepatches:
    return Livepatches(kernel.root, RELEASE)


def install(root: Path, name: str, release: str = RELEASE) -> Path:
    import hashlib

    path = module(root / "usr/lib/tegu/livepatch" / release / f"{name}.ko", release=release)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    note = {"version": "2", "functions": ["fs/x.c:f"], "sha256": digest}
    path.with_suffix(".json").write_text(json.dumps(note))
    return path


def test_load_and_revert(kernel: Kernel, patches: Livepatches) -> None:
    install(kernel.root, "fix")
    done = patches.load("fix")
    assert (done.name, done.enabled, done.transition) == ("fix", True, False)
    assert done.functions == ("vmlinux:cmdline_proc_show",)
    assert patches.files.enabled(RELEASE) == "fix"
    patches.load("fix")
    assert kernel.loads == ["livepatch_fix"], "what is there is not loaded again"
    assert patches.revert("fix") == Reverted(True, None)
    assert patches.loaded() == []
    assert patches.files.enabled(RELEASE) is None
    assert patches.revert("fix") == Reverted(False, None)


def test_from_a_file_it_survives(kernel: Kernel, patches: Livepatches, tmp_path: Path) -> None:
    path = module(tmp_path / "livepatch_own.ko")
    patches.load(str(path))
    path.unlink()
    kept = patches.files.find("own", RELEASE)
    assert kept.path.is_file()
    patches.revert("own")
    assert not kept.path.exists()


def test_the_wrong_kernel(kernel: Kernel, patches: Livepatches, tmp_path: Path) -> None:
    path = module(tmp_path / "x.ko", release="6.1.0-other")
    with pytest.raises(VerifyError, match=r"for the kernel 6\.1\.0-other; this is 6\.12\.107-tegu"):
        patches.load(str(path))
    install(kernel.root, "fix", "6.1.0-other")
    with pytest.raises(VerifyError, match=r"fix is for 6\.1\.0-other; this is 6\.12\.107-tegu"):
        patches.load("fix")
    assert kernel.loads == []


def test_what_is_no_live_patch(patches: Livepatches, tmp_path: Path) -> None:
    with pytest.raises(VerifyError, match="a module, but no live patch"):
        patches.load(str(module(tmp_path / "x.ko", livepatch=False)))
    (tmp_path / "y.ko").write_bytes(b"\x7fELF")
    with pytest.raises(VerifyError, match="no kernel module"):
        patches.load(str(tmp_path / "y.ko"))
    with pytest.raises(UsageError, match="there is no module"):
        patches.load("/nowhere/z.ko")
    with pytest.raises(UsageError, match="no live patch z is installed"):
        patches.load("z")


def test_a_changed_file(kernel: Kernel, patches: Livepatches) -> None:
    path = install(kernel.root, "fix")
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(VerifyError, match="not the module that was installed"):
        patches.load("fix")


def test_signatures(kernel: Kernel, patches: Livepatches, tmp_path: Path) -> None:
    parameters = kernel.root / "sys/module/module/parameters"
    parameters.mkdir(parents=True)
    (parameters / "sig_enforce").write_text("Y\n")
    with pytest.raises(VerifyError, match=r"x\.ko is not signed"):
        patches.load(str(module(tmp_path / "x.ko")))
    signed = module(tmp_path / "s.ko", signed=True)
    assert is_signed(signed)
    for number, why in (
        (errno.ENOKEY, "a key that this kernel does not know"),
        (errno.EKEYREJECTED, "that this kernel rejects"),
        (errno.EBADMSG, "does not fit its content"),
        (errno.ENOEXEC, "not a module for this kernel"),
    ):
        kernel.error = number
        with pytest.raises(VerifyError, match=why):
            patches.load(str(signed))
    kernel.error = errno.EPERM  # as under lockdown
    with pytest.raises(VerifyError, match="that this kernel rejects"):
        patches.load(str(signed))
    kernel.error = errno.EINVAL
    with pytest.raises(LivepatchError, match=r"the kernel refused s\.ko: Invalid argument"):
        patches.load(str(signed))


def task(root: Path, tid: int, name: str, state: str) -> None:
    path = root / f"proc/{tid}/task/{tid}"
    path.mkdir(parents=True)
    (path / "patch_state").write_text(f"{state}\n")
    (path / "comm").write_text(f"{name}\n")
    (path / "stack").write_text("[<0>] do_wait+0x1/0x2\n[<0>] kernel_wait4+0x3/0x4\n")


def test_a_task_that_stalls(kernel: Kernel, patches: Livepatches) -> None:
    kernel.stuck = True
    install(kernel.root, "fix")
    task(kernel.root, 11, "sleeper", "0")
    task(kernel.root, 12, "mover", "1")
    with pytest.raises(LivepatchError) as caught:
        patches.load("fix", timeout=0)
    assert "sleeper (11)" in caught.value.message
    assert "mover" not in caught.value.message
    assert caught.value.hint == "sleeper (11): do_wait < kernel_wait4"
    assert patches.loaded() == []
    assert patches.files.enabled(RELEASE) is None
    assert patches.load("fix", timeout=0, force=True).enabled


def test_what_is_forced_back_stays_in_memory(
    kernel: Kernel, patches: Livepatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(kernel.root, "fix")
    patches.load("fix")
    task(kernel.root, 11, "sleeper", "1")
    there = kernel.sys / "livepatch_fix"

    def write(self: Livepatches, path: Path, value: str) -> None:
        if path.name == "enabled":
            path.write_text("0\n")
            (there / "transition").write_text("1\n")
        elif path.name == "force":
            shutil.rmtree(there)

    monkeypatch.setattr(Livepatches, "_write", write)
    with pytest.raises(LivepatchError, match=r"fix is still run by sleeper \(11\) after 0 s"):
        patches.revert("fix", timeout=0)
    assert patches.revert("fix", timeout=0, force=True) == Reverted(True, "livepatch_fix")

    def unload(name: str) -> None:
        raise OSError(errno.EWOULDBLOCK, "busy")

    monkeypatch.setattr(host, "unload_module", unload)
    monkeypatch.setattr(host, "_PATIENCE", 0)
    with pytest.raises(LivepatchError, match="livepatch_fix cannot be unloaded") as caught:
        patches.load("fix")
    assert "`tegu kernel livepatch enable`" in str(caught.value.hint)


def test_an_interrupted_load_is_taken_back(kernel: Kernel, patches: Livepatches) -> None:
    kernel.stuck = True
    install(kernel.root, "fix")

    def interrupt(text: str) -> None:
        if text.startswith("wait"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        patches.load("fix", say=interrupt)
    assert patches.loaded() == []
    assert patches.files.enabled(RELEASE) is None


def test_what_was_not_loaded_is_not_to_blame(kernel: Kernel, patches: Livepatches) -> None:
    kernel.error = errno.EINVAL
    install(kernel.root, "fix")
    patches.files.enable("fix", RELEASE)
    with pytest.raises(LivepatchError, match="the kernel refused"):
        patches.resume()
    kernel.boot("two")
    assert patches.files.blocked() is None


def test_a_crash_is_not_repeated(kernel: Kernel, patches: Livepatches) -> None:
    install(kernel.root, "fix")
    patches.files.enable("fix", RELEASE)
    kernel.boot("two")
    assert patches.resume() is not None
    # The machine dies here: nothing is settled, and the kernel's state is gone.
    patches._write(kernel.sys / "livepatch_fix/enabled", "0")
    kernel.unload("livepatch_fix")
    kernel.boot("three")
    with pytest.raises(LivepatchError, match="fix is not loaded: the machine did not last with it"):
        patches.resume()
    patches.files.settle_boot()
    assert patches.files.blocked() == "fix", "a boot without it says nothing about it"
    patches.load("fix")
    assert patches.files.blocked() is None


def test_a_boot_that_lasts(kernel: Kernel, patches: Livepatches) -> None:
    install(kernel.root, "fix")
    patches.files.enable("fix", RELEASE)
    patches.resume()
    patches.files.settle_boot()
    kernel.boot("two")
    assert patches.files.blocked() is None
    assert patches.resume() is not None


def test_nothing_is_enabled_for_this_kernel(kernel: Kernel) -> None:
    install(kernel.root, "fix")
    Files(kernel.root).enable("fix", RELEASE)
    assert Livepatches(kernel.root, "6.12.110-tegu").resume() is None


def test_a_kernel_without(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="CONFIG_LIVEPATCH"):
        Livepatches(tmp_path, RELEASE).loaded()


@given(st.binary(max_size=300))
def test_any_file_is_a_module_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("m") / "m.ko"
    path.write_bytes(data)
    try:
        modinfo(path)
    except VerifyError as e:
        assert "no kernel module" in e.message
    is_signed(path)
