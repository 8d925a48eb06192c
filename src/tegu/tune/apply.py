"""Applying a profile: live values and the files that keep them over a reboot; all of it undone.

What somebody else has set is never overwritten silently: it is a conflict, reported and left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tegu.errors import TuneError, UnsupportedError
from tegu.linux.journal import Journal, Restored
from tegu.linux.settings import FileTarget, Form
from tegu.tune.profile import Profile, Setting

__all__ = ["Applied", "Found", "Machine", "apply", "look", "undo"]

KUBELET = (
    "vm.overcommit_memory",
    "vm.panic_on_oom",
    "kernel.panic",
    "kernel.panic_on_oops",
    "kernel.keys.root_maxkeys",
    "kernel.keys.root_maxbytes",
)
"""The kubelet writes these at each start (its protectKernelDefaults refuses other values)."""


@dataclass(frozen=True)
class Machine:
    """Where settings are applied: below `root`, with the journal that outlives a reboot."""

    root: Path = Path("/")

    @property
    def journal(self) -> Journal:
        """The journal of tune."""
        return Journal(self.root / "var/lib/tegu", "tune")

    def sysctl(self, key: str) -> Path:
        """Return the file of a sysctl key; a part with slashes (an interface) has them as dots."""
        return self.root / "proc/sys" / key.replace(".", "/")


@dataclass(frozen=True)
class Found:
    """A setting beside the machine: its value now (None: not there), and who else sets it."""

    setting: Setting
    target: str
    now: str | None
    conflict: str = ""

    @property
    def holds(self) -> bool:
        """Whether the value is the profile's."""
        return self.now == " ".join(self.setting.value.split())


@dataclass
class Applied:
    """What `apply` did, by setting name."""

    written: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)


def look(profile: Profile, machine: Machine) -> list[Found]:
    """Return every setting of the profile as it stands on this machine."""
    ours = {str(e.target) for e in machine.journal.entries()}
    return [f for s in profile.settings.values() for f in _found(s, machine, ours)]


def _found(setting: Setting, machine: Machine, ours: set[str]) -> Iterator[Found]:
    if setting.kind == "boot":
        yield Found(setting, "/proc/cmdline", _parameter(setting.key, machine))
        return
    if setting.kind == "file":
        path = machine.root / setting.key[1:]
        text = path.read_text() if path.is_file() else None
        foreign = text is not None and str(path) not in ours and text != setting.value
        why = "the file is somebody else's" if foreign else ""
        now = None if text is None else " ".join(text.split())
        yield Found(setting, str(path), now, why)
        return
    for target in targets(setting, machine):
        now = target.read()
        conflict = ""
        if str(target) not in ours and now != target.canonical(setting.value):
            conflict = _set_elsewhere(setting, machine)
        yield Found(setting, str(target), now, conflict)


def targets(setting: Setting, machine: Machine) -> list[FileTarget]:
    """Return the kernel's files for a sysctl or sysfs setting; a `*` may mean several."""
    if setting.kind == "sysctl":
        return [FileTarget(machine.sysctl(setting.key))]
    name = setting.key[1:]
    paths = sorted(machine.root.glob(name)) if "*" in name else [machine.root / name]
    return [FileTarget(p, _form(p)) for p in paths]


def _form(path: Path) -> Form:
    try:
        return "choice" if "[" in path.read_text() else "flat"
    except (OSError, UnicodeDecodeError):
        return "flat"


def _parameter(key: str, machine: Machine) -> str | None:
    try:
        words = (machine.root / "proc/cmdline").read_text().split()
    except OSError:
        return None
    values = [w.partition("=")[2] for w in words if w.partition("=")[0] == key]
    return values[-1] if values else None


def _set_elsewhere(setting: Setting, machine: Machine) -> str:
    """Return who sets another value; "" when nobody does."""
    if setting.kind != "sysctl":
        return ""
    kubelet = (machine.root / "var/lib/kubelet").is_dir()
    if kubelet and setting.key in KUBELET:
        return "the kubelet sets it at each start"
    for directory in ("etc/sysctl.d", "run/sysctl.d", "usr/local/lib/sysctl.d"):
        for path in sorted((machine.root / directory).glob("*.conf")):
            value = _sysctl_file(path, setting.key)
            if path.name != SYSCTL_FILE.name and value not in (None, setting.value):
                return f"{path} sets it to {value}"
    value = _sysctl_file(machine.root / "etc/sysctl.conf", setting.key)
    if value not in (None, setting.value):
        return f"{machine.root / 'etc/sysctl.conf'} sets it to {value}"
    return ""


def _sysctl_file(path: Path, key: str) -> str | None:
    """Return the value of `key` in a file of sysctl.d(5)."""
    found = None
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    for line in lines:
        name, equals, value = line.strip().lstrip("-").partition("=")
        if equals and not line.startswith(("#", ";")) and name.strip().replace("/", ".") == key:
            found = " ".join(value.split())
    return found


SYSCTL_FILE = Path("etc/sysctl.d/70-tegu-tune.conf")
TMPFILES = Path("etc/tmpfiles.d/tegu-tune.conf")


def apply(profile: Profile, machine: Machine) -> Applied:
    """Write the profile: live, and for the next boot; every former value is noted first.

    Boot parameters are never written here: they belong to the definition.
    Raises TuneError when nothing at all could be written.
    """
    done = Applied()
    journal = machine.journal
    sysctl: list[str] = []
    tmpfiles: list[str] = []
    with journal.locked():
        for found in look(profile, machine):
            setting = found.setting
            shown = f"{setting.name} = {setting.value}"
            if found.conflict:
                done.conflicts.append(f"{shown}: {found.conflict}")
                continue
            try:
                _one(found, machine, journal, done, shown)
            except (OSError, UnsupportedError) as e:
                reason = e.strerror if isinstance(e, OSError) else e.message
                done.refused.append(f"{shown}: {reason}")
                continue
            if setting.kind == "sysctl":
                sysctl.append(f"{setting.key} = {setting.value}")
            elif setting.kind == "sysfs":
                tmpfiles.append(f"w- {setting.key} - - - - {setting.value}")
        head = f"# Written by `tegu tune apply {profile.name}`; `tegu tune undo` removes it.\n"
        for name, lines in ((SYSCTL_FILE, sysctl), (TMPFILES, list(dict.fromkeys(tmpfiles)))):
            target = FileTarget(machine.root / name, "content")
            text = "=" + head + "".join(f"{line}\n" for line in lines)
            if lines and journal.write(target, text, profile.name):
                done.files.append(str(target.path))
    if done.refused and not done.written and not done.kept:
        raise TuneError(f"nothing could be set: {done.refused[0]}")
    return done


def _one(found: Found, machine: Machine, journal: Journal, done: Applied, shown: str) -> None:
    setting = found.setting
    if setting.kind == "boot":
        if not found.holds:
            raise UnsupportedError("a boot parameter: it belongs into the definition's cmdline")
        done.kept.append(shown)
        return
    target = FileTarget(Path(found.target), _form(Path(found.target)))
    value = setting.value
    if setting.kind == "file":
        target, value = FileTarget(Path(found.target), "content"), f"={setting.value}"
    elif found.now is None:
        raise UnsupportedError("this kernel has no such key")
    (done.written if journal.write(target, value, setting.reason) else done.kept).append(shown)


def undo(machine: Machine, *, force: bool = False) -> Restored:
    """Restore every former value and remove what was added; see Journal.undo."""
    with machine.journal.locked():
        return machine.journal.undo(force=force)
