"""Live patches of the running kernel: loaded, watched, reverted, and loaded again at boot.

The kernel moves tasks to a live patch one by one, each when it runs no function that is replaced
(Documentation/livepatch/livepatch.rst, "Consistency model"); until the last has moved the patch is
in transition. Interface: /sys/kernel/livepatch (Documentation/ABI/testing/sysfs-kernel-livepatch)
and /proc/PID/patch_state.
"""

from __future__ import annotations

import errno
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tegu.errors import LivepatchError, TeguError, UnsupportedError, UsageError, VerifyError
from tegu.host.livepatch_files import Files, Installed
from tegu.linux.modules import is_signed, load_module, modinfo, unload_module

__all__ = ["Livepatches", "Loaded", "Reverted", "StalledTask"]

_PREFIX = "livepatch_"
_PAUSE = 0.1  # seconds between looks at a transition
_PATIENCE = 10  # seconds for the kernel to let go of a module that is not used any more


@dataclass(frozen=True, slots=True)
class Loaded:
    """A live patch in the kernel: `name` without `livepatch_`, `functions` as they are patched."""

    name: str
    module: str
    enabled: bool
    transition: bool
    functions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StalledTask:
    """A task that has not moved yet: thread id, name, and where it is (functions, inmost first)."""

    tid: int
    name: str
    stack: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reverted:
    """What became of a live patch: `found` says that it was loaded, or was to be at boot.

    `left` is its module when that has to stay in memory until the next boot.
    """

    found: bool
    left: str | None


Say = Callable[[str], None]


class Livepatches:
    """The live patches of the machine at `root`, which runs the kernel `release`."""

    def __init__(self, root: Path = Path("/"), release: str | None = None) -> None:
        self.files = Files(root)
        self.release = release or platform.release()
        self._root = root
        self._sys = root / "sys/kernel/livepatch"

    # Looking

    def loaded(self) -> list[Loaded]:
        """Return what the kernel has; UnsupportedError when it cannot be patched."""
        if not self._sys.is_dir():
            raise UnsupportedError(
                "this kernel cannot be patched while it runs (CONFIG_LIVEPATCH)",
                hint="the Tegu cloud kernel can; so can Debian's on amd64",
            )
        return [self._read(p) for p in sorted(self._sys.iterdir()) if p.is_dir()]

    def _read(self, path: Path) -> Loaded:
        functions = tuple(
            sorted(
                f"{o.name}:{f.name.partition(',')[0]}"
                for o in path.iterdir()
                if o.is_dir()
                for f in o.iterdir()
                if f.is_dir()
            )
        )
        return Loaded(
            path.name.removeprefix(_PREFIX),
            path.name,
            _flag(path / "enabled"),
            _flag(path / "transition"),
            functions,
        )

    def _find(self, name: str) -> Loaded | None:
        module = name.replace("-", "_")
        return next((p for p in self.loaded() if module in (p.name, p.module)), None)

    def stalled(self) -> list[StalledTask]:
        """Return the tasks that keep a transition from ending."""
        changing = next((p for p in self.loaded() if p.transition), None)
        if changing is None:
            return []
        # A task is at 1 when it runs the patched functions, at 0 when it runs the kernel's own.
        old = "0" if changing.enabled else "1"
        tasks = []
        for path in (self._root / "proc").glob("[0-9]*/task/[0-9]*"):
            with suppress(OSError):  # it has ended meanwhile
                if (path / "patch_state").read_text().strip() == old:
                    name = (path / "comm").read_text().strip()
                    tasks.append(StalledTask(int(path.name), name, _stack(path / "stack")))
        return sorted(tasks, key=lambda t: t.tid)

    # Changing

    def load(
        self, wanted: str, *, timeout: float = 60, force: bool = False, say: Say | None = None
    ) -> Loaded:
        """Load a live patch, by the name of an installed one or the path of a module.

        Waits up to `timeout` seconds for all tasks; then the patch is taken back, or with `force`
        the tasks are moved as they are (what it replaced can then never be unloaded). It is loaded
        again at each boot of this kernel. Raises VerifyError for a module of another kernel or with
        a wrong signature, LivepatchError when the kernel refuses it or tasks stall.
        """
        self.loaded()
        path, name = self._module(wanted)
        module = self._verify(path)
        there = self._find(module)
        if there is not None and there.enabled and not there.transition:
            self._persist(path, name)
            return there
        if there is not None and there.transition:
            raise LivepatchError(
                f"{there.name} is changing already", hint="see `tegu kernel livepatch status`"
            )
        # It may be there still, replaced by a later one.
        self._unload(module)
        if say:
            say(f"load {name}")
        try:
            load_module(path)
        except OSError as e:
            raise self._refused(path, e) from e
        self._wait(module, name, timeout, force, say)
        for old in self._leftovers():
            # One that was forced cannot go; it does nothing any more.
            with suppress(LivepatchError):
                self._unload(old, patience=1)
        self._persist(path, name)
        result = self._find(module)
        if result is None:
            raise LivepatchError(f"{name} was loaded, and is gone again")
        return result

    def _module(self, wanted: str) -> tuple[Path, str]:
        if "/" in wanted or wanted.endswith(".ko"):
            path = Path(wanted)
            if not path.is_file():
                raise UsageError(f"there is no module {wanted}")
            name = path.stem.replace("-", "_").removeprefix(_PREFIX)
            return path, name
        installed = self.files.find(wanted.removeprefix(_PREFIX), self.release)
        return installed.path, installed.name

    def _verify(self, path: Path) -> str:
        """Return the module's name; refuse what is no live patch or not for this kernel."""
        fields = modinfo(path)
        if "Y" not in fields.get("livepatch", ()):
            raise VerifyError(f"{path} is a module, but no live patch")
        magic = (fields.get("vermagic") or ["?"])[0].split(" ")[0]
        if magic != self.release:
            raise VerifyError(
                f"{path.name} is for the kernel {magic}; this is {self.release}",
                hint="a live patch fits one kernel: build it for this one, or boot the other",
            )
        if self._signatures_wanted() and not is_signed(path):
            raise VerifyError(
                f"{path.name} is not signed, and this kernel loads only signed modules",
                hint="build it with --sign-key, with the key that the kernel trusts",
            )
        return (fields.get("name") or [path.stem.replace("-", "_")])[0]

    def _signatures_wanted(self) -> bool:
        if _flag(self._root / "sys/module/module/parameters/sig_enforce"):
            return True
        with suppress(OSError):
            text = (self._root / "sys/kernel/security/lockdown").read_text()
            return "[none]" not in text
        return False

    def _refused(self, path: Path, error: OSError) -> Exception:
        """Say in a line why the kernel did not take a module (kernel/module/main.c)."""
        name = path.name
        lockdown = error.errno == errno.EPERM and self._signatures_wanted()
        if lockdown or error.errno in (errno.EKEYREJECTED, errno.EBADMSG, errno.ENOKEY):
            why = {
                errno.ENOKEY: "is signed with a key that this kernel does not know",
                errno.EKEYREJECTED: "has a signature that this kernel rejects",
                errno.EBADMSG: "has a signature that does not fit its content",
            }.get(error.errno or 0, "has a signature that this kernel rejects")
            # Where signatures are enforced, unknown keys are answered like bad signatures.
            return VerifyError(
                f"{name} {why}",
                hint="its key is not one that the kernel was built to trust, or the file was "
                "changed after it was signed; the kernel's log (dmesg) says which",
            )
        if error.errno == errno.ENOEXEC:
            return VerifyError(
                f"{name} is not a module for this kernel",
                hint="the kernel's log (dmesg) says what does not fit",
            )
        if error.errno == errno.EPERM:
            return LivepatchError(f"{name} cannot be loaded: root, or module loading, is needed")
        hint = "the kernel's log (dmesg) says more"
        return LivepatchError(f"the kernel refused {name}: {error.strerror}", hint=hint)

    def _wait(self, module: str, name: str, timeout: float, force: bool, say: Say | None) -> None:
        try:
            if self._settled(module, timeout, say):
                return
        except KeyboardInterrupt:
            # Not left half done: the kernel goes back by itself.
            self._write(self._sys / module / "enabled", "0")
            raise
        tasks = self.stalled()
        if force:
            # Tasks may still run what is replaced: live patches that this one replaces can never
            # be unloaded after that (klp_force_transition).
            self._write(self._sys / module / "force", "1")
            if self._settled(module, timeout, say):
                return
        text = f"{name} was not taken by {_named(tasks)} within {timeout:g} s"
        self._write(self._sys / module / "enabled", "0")
        # Back is where most tasks are; those that had moved come as quickly as they went.
        if not self._gone(module, timeout, say):
            raise LivepatchError(f"{text}, and does not come back either", hint=_where(tasks))
        self._unload(module)
        raise LivepatchError(f"{text}; the kernel is as it was", hint=_where(tasks))

    def revert(
        self,
        name: str,
        *,
        release: str | None = None,
        timeout: float = 60,
        force: bool = False,
        say: Say | None = None,
    ) -> Reverted:
        """Take a live patch out of the kernel and do not load it at boot.

        For a `release` that does not run there is only the next boot to see to.

        Raises LivepatchError when tasks still run its functions after `timeout` seconds; it stays
        disabled then, and goes when they have moved. With `force` they are moved as they are; the
        module then stays in memory until the next boot, for they still run its functions.
        """
        plain = name.replace("-", "_").removeprefix(_PREFIX)
        forgotten = self.files.disable(plain, release or self.release)
        if release not in (None, self.release):
            return Reverted(forgotten, None)
        there = self._find(plain)
        if there is None:
            return Reverted(forgotten, None)
        if there.enabled:
            self._write(self._sys / there.module / "enabled", "0")
        if not self._gone(there.module, timeout, say):
            tasks = self.stalled()
            if force:
                self._write(self._sys / there.module / "force", "1")
            if not force or not self._gone(there.module, timeout, say):
                raise LivepatchError(
                    f"{there.name} is still run by {_named(tasks)} after {timeout:g} s",
                    hint=_where(tasks),
                )
            return Reverted(True, there.module)
        self._unload(there.module)
        return Reverted(True, None)

    # Boot

    def resume(self) -> Loaded | None:
        """Load what is enabled for the running kernel, as the machine starts; None: nothing is.

        Raises LivepatchError when the boot before crashed with a live patch.
        """
        name = self.files.enabled(self.release)
        if name is None:
            return None
        if not self.files.try_at_boot(name):
            raise LivepatchError(
                f"{self.files.blocked()} is not loaded: the machine did not last with it",
                hint=f"to try again: tegu kernel livepatch load {name}",
            )
        try:
            return self.load(name)
        except TeguError:
            # What is not in the kernel is not to blame when the machine does not last.
            if not any(p.name == name for p in self.loaded()):
                self.files.settle()
            raise

    def installed(self) -> list[Installed]:
        """Return what is on the disk, for all kernels."""
        return self.files.installed()

    def _persist(self, path: Path, name: str) -> None:
        if not any(i.path == path for i in self.files.installed()):
            self.files.keep(path, name, self.release)
        self.files.enable(name, self.release)

    # Waiting

    def _settled(self, module: str, timeout: float, say: Say | None) -> bool:
        """Wait until the patch is not in transition; False after `timeout` seconds."""
        return self._until(lambda: not _flag(self._sys / module / "transition"), timeout, say)

    def _gone(self, module: str, timeout: float, say: Say | None) -> bool:
        return self._until(lambda: not (self._sys / module).exists(), timeout, say)

    def _until(self, done: Callable[[], bool], timeout: float, say: Say | None) -> bool:
        end = time.monotonic() + timeout
        while not done():
            left = end - time.monotonic()
            if left <= 0:
                return False
            if say:
                say(f"wait for {len(self.stalled())} tasks, {left:.0f} s")
            time.sleep(min(_PAUSE, left))
        return True

    # The kernel

    def _leftovers(self) -> list[str]:
        """Return modules of ours that are loaded and patch nothing: later ones replaced them."""
        active = {p.module for p in self.loaded()}
        modules = (self._root / "sys/module").glob(f"{_PREFIX}*")
        return sorted(m.name for m in modules if m.name not in active)

    def _unload(self, module: str, *, patience: float | None = None) -> None:
        """Unload a module that is not used; the kernel may take some seconds to let it go."""
        deadline = time.monotonic() + (_PATIENCE if patience is None else patience)
        while (self._root / "sys/module" / module).is_dir():
            try:
                unload_module(module)
            except OSError as e:
                if e.errno == errno.ENOENT:
                    return
                if e.errno not in (errno.EWOULDBLOCK, errno.EBUSY) or time.monotonic() > deadline:
                    raise LivepatchError(
                        f"the module {module} cannot be unloaded: {e.strerror}",
                        hint="one that was taken out by force stays until the next boot; "
                        "`tegu kernel livepatch enable` has it loaded then",
                    ) from e
                time.sleep(_PAUSE)

    def _write(self, path: Path, value: str) -> None:
        try:
            path.write_text(value)
        except OSError as e:
            # The change that was asked for may have ended meanwhile.
            if path.exists():
                raise LivepatchError(f"{path}: {e.strerror}") from e


def _flag(path: Path) -> bool:
    try:
        return path.read_text().strip() in ("1", "Y")
    except OSError:
        return False


def _stack(path: Path) -> tuple[str, ...]:
    """Return the functions of a /proc/PID/stack; only root may read it."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return ()
    return tuple(line.split("] ", 1)[-1].partition("+")[0] for line in lines)


def _named(tasks: list[StalledTask]) -> str:
    names = [f"{t.name} ({t.tid})" for t in tasks[:3]]
    more = f" and {len(tasks) - 3} more" if len(tasks) > 3 else ""
    return ", ".join(names) + more if names else "a task"


def _where(tasks: list[StalledTask]) -> str | None:
    lines = [f"{t.name} ({t.tid}): {' < '.join(t.stack[:4])}" for t in tasks[:5] if t.stack]
    return "\n".join(lines) or None
