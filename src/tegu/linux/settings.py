"""What is written to: a value in a kernel file, or a property of a systemd unit.

Each target reads its value in a canonical form, so that "is it still what we wrote" has an answer:
files round (memory.low to pages), print other keys beside ours (io.max), or mark one of several
names ([none] bfq).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tegu.errors import SettingError
from tegu.files import write_atomic
from tegu.linux.cgroup2 import write_once
from tegu.process import CommandError, run

__all__ = ["ABSENT", "FileTarget", "Form", "PropertyTarget", "Target", "target_from"]

Form = Literal["flat", "bytes", "keyed", "member", "choice", "content"]
_FORMS = ("flat", "bytes", "keyed", "member", "choice", "content")
ABSENT = "-"
_PAGE = os.sysconf("SC_PAGE_SIZE")
_CONTROL = Path("/run/systemd/system.control")
_IO_LIMITS = ("rbps", "wbps", "riops", "wiops")
_PROTECTIONS = ("MemoryLow", "MemoryMin")


@dataclass(frozen=True)
class FileTarget:
    """One value of the file `path`.

    `form`: flat is the whole file; bytes a number that the kernel rounds to pages, or max; keyed
    the line that begins with `key` (io.max, io.weight); member whether `key` is in the list
    (cgroup.subtree_control: "+" or "-"); choice the name in brackets (queue/scheduler); content an
    ordinary file as a whole, `=` and its text, or `-` when there is none.
    """

    path: Path
    form: Form = "flat"
    key: str = ""

    def __str__(self) -> str:
        return f"{self.path}{f' {self.key}' if self.key else ''}"

    def read(self) -> str | None:
        """Return the value in canonical form; None when the file is gone."""
        try:
            text = self.path.read_text()
        except FileNotFoundError:
            return ABSENT if self.form == "content" else None
        except OSError as e:
            if e.errno == 19:  # ENODEV: the group was removed while its file was open
                return None
            raise SettingError(f"cannot read {self.path}: {e.strerror}") from e
        except UnicodeDecodeError as e:
            raise SettingError(f"cannot read {self.path}: it is not text") from e
        if self.form == "content":
            return f"={text}"
        text = text.strip()
        if self.form == "keyed":
            for line in text.splitlines():
                name, _, rest = line.partition(" ")
                if name == self.key:
                    return self.canonical(rest)
            return ""
        if self.form == "member":
            return "+" if self.key in text.split() else "-"
        if self.form == "choice":
            chosen = re.search(r"\[([^\]]*)\]", text)
            return chosen[1] if chosen else text
        return self.canonical(text)

    def canonical(self, value: str) -> str:
        """Return `value` as `read` would after it was written."""
        if self.form == "content":
            return value
        value = " ".join(value.split())
        if self.form == "bytes" and value.isdigit():
            return str(int(value) // _PAGE * _PAGE)
        if self.path.name == "io.max":
            # Keys left out are left alone; a line of nothing but max is not printed at all.
            limits = dict(word.partition("=")[::2] for word in value.split())
            full = [f"{k}={limits.get(k, 'max')}" for k in _IO_LIMITS]
            return "" if all(w.endswith("=max") for w in full) else " ".join(full)
        return value

    def write(self, value: str) -> None:
        """Write a canonical value; raises OSError, FileNotFoundError when the group is gone."""
        if self.form == "content":
            if value == ABSENT:
                self.path.unlink(missing_ok=True)
            else:
                write_atomic(self.path, value[1:])
            return
        if self.form == "member":
            write_once(self.path, f"{value}{self.key}")
        elif self.form == "keyed":
            write_once(self.path, f"{self.key} {value or self._nothing()}")
        else:
            write_once(self.path, value, nonblocking=self.path.name == "memory.high")

    def _nothing(self) -> str:
        """Return what makes a key's line go away (cgroup-v2.rst)."""
        if self.path.name == "io.max":
            return " ".join(f"{k}=max" for k in _IO_LIMITS)
        return "enable=0" if self.path.name == "io.cost.qos" else "default"

    def to_json(self) -> dict[str, str]:
        """Return what `target_from` takes."""
        return {"path": str(self.path), "form": self.form, "key": self.key}


@dataclass(frozen=True)
class PropertyTarget:
    """A resource property of a unit, set at run time (systemctl set-property --runtime).

    systemd writes its own values again at any daemon-reload: what it manages can only be changed
    through it (systemd.resource-control(5)).
    """

    unit: str
    name: str

    def __str__(self) -> str:
        return f"{self.unit} {self.name}"

    @property
    def drop_in(self) -> Path:
        """The file in which systemd keeps what was set at run time."""
        return _CONTROL / f"{self.unit}.d" / f"50-{self.name}.conf"

    def read(self) -> str | None:
        """Return the property as systemctl prints it; "" when it is not set, None without unit."""
        name = "CPUQuotaPerSecUSec" if self.name == "CPUQuota" else self.name
        done = run(["systemctl", "show", self.unit, "-p", "LoadState", "-p", name], timeout=30)
        shown = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
        if shown.get("LoadState") not in ("loaded", "merged"):
            return None
        value = shown.get(name, "")
        if name != self.name and value != "infinity":
            return f"{_seconds(value) * 100:g}%"
        return self.canonical(value)

    def canonical(self, value: str) -> str:
        """Return `value` as `read` would after it was set."""
        if value in ("[not set]", "18446744073709551615"):
            return ""
        if value == "infinity":
            return value if self.name in _PROTECTIONS else ""
        if self.name in _PROTECTIONS and value == "0":
            return ""
        if self.name.startswith("Memory") and value.isdigit():
            return str(int(value) // _PAGE * _PAGE)
        return value

    def write(self, value: str) -> None:
        """Set the property; "" is its default."""
        try:
            run(["systemctl", "set-property", "--runtime", self.unit, f"{self.name}={value}"])
        except CommandError as e:
            raise OSError(5, e.message, str(self)) from e

    def kept(self) -> str | None:
        """Return the drop-in as it is; None when there is none."""
        try:
            return self.drop_in.read_text()
        except FileNotFoundError:
            return None

    def restore_kept(self, text: str | None) -> None:
        """Put the drop-in back as it was; systemd then reads its files again."""
        if self.kept() == text:
            return
        if text is None:
            self.drop_in.unlink(missing_ok=True)
            if self.drop_in.parent.is_dir() and not any(self.drop_in.parent.iterdir()):
                self.drop_in.parent.rmdir()
        else:
            write_atomic(self.drop_in, text)
        run(["systemctl", "daemon-reload"], timeout=120)

    def to_json(self) -> dict[str, str]:
        """Return what `target_from` takes."""
        return {"unit": self.unit, "name": self.name}


def _seconds(text: str) -> float:
    """Return seconds of a time span as systemd prints it: 1s 500ms."""
    units = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}
    found = re.findall(r"([0-9.]+)(us|ms|s|min)", text)
    return sum(float(number) * units[unit] for number, unit in found)


Target = FileTarget | PropertyTarget


def target_from(raw: dict[str, Any]) -> Target:
    """Return the target that `to_json` described; raises KeyError or ValueError."""
    if "unit" in raw:
        return PropertyTarget(str(raw["unit"]), str(raw["name"]))
    form = raw["form"]
    if form not in _FORMS:
        raise ValueError(f"no such form: {form}")
    return FileTarget(Path(raw["path"]), form, str(raw["key"]))
