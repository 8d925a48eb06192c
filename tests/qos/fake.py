"""A cgroup hierarchy and a block device as plain files, with the rules that matter here.

`events` counts every change of the outside world (a note in the journal, a write to a file), so
that a test can end a process before or after any of them.
"""

from __future__ import annotations

import os
import re
import signal
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tegu.linux import settings as settings_module
from tegu.linux.cgroup2 import Hierarchy
from tegu.qos import Journal, Place

FILES = {
    "cpu.weight": "100\n",
    "cpu.idle": "0\n",
    "cpu.max": "max 100000\n",
    "memory.low": "0\n",
    "memory.min": "0\n",
    "memory.high": "max\n",
    "memory.current": "104857600\n",
    "io.weight": "default 100\n",
    "io.bfq.weight": "default 100\n",
    "io.max": "",
    "cpu.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
}


@dataclass
class Fake:
    """The tree, and where to die: `die_at` counts events, `after` says on which side."""

    top: Path
    place: Place
    events: int = 0
    die_at: int = 0
    die_after: bool = False
    refuse: dict[str, int] = field(default_factory=dict)

    def group(self, name: str) -> Path:
        """Make a group and those above it."""
        path = self.place.hierarchy.root
        for part in name.strip("/").split("/"):
            path /= part
            if not path.is_dir():
                path.mkdir()
                for file, text in FILES.items():
                    (path / file).write_text(text)
                (path / "cgroup.controllers").write_text("cpu io memory\n")
                (path / "cgroup.subtree_control").write_text("cpu io memory\n")
        return path

    def snapshot(self) -> dict[str, str]:
        """Return every file of the tree and its text."""
        return {
            str(p.relative_to(self.top)): p.read_text()
            for p in sorted(self.top.rglob("*"))
            if p.is_file() and "run" not in p.relative_to(self.top).parts[:1]
        }

    def event(self) -> None:
        """Count; die here if this is the one."""
        self.events += 1
        if self.events == self.die_at and not self.die_after:
            os.kill(os.getpid(), signal.SIGKILL)

    def done(self) -> None:
        """Die here, if that was it."""
        if self.events == self.die_at and self.die_after:
            os.kill(os.getpid(), signal.SIGKILL)

    def write(self, path: Path, text: str, *, nonblocking: bool = False) -> None:
        """What the kernel makes of a write."""
        if path.name in self.refuse:
            raise OSError(self.refuse[path.name], os.strerror(self.refuse[path.name]), str(path))
        if not path.exists():
            raise FileNotFoundError(2, "No such file or directory", str(path))
        self.event()
        if path.name == "cgroup.subtree_control":
            words = set(path.read_text().split())
            words = words | {text[1:]} if text[0] == "+" else words - {text[1:]}
            path.write_text(" ".join(sorted(words)) + "\n")
        elif path.name in ("io.max", "io.weight", "io.bfq.weight", "io.cost.qos"):
            key, _, value = text.partition(" ")
            kept = [w for w in path.read_text().splitlines() if not w.startswith(f"{key} ")]
            gone = value.count("=max") == 4 or value in ("default", "enable=0")
            path.write_text("".join(f"{w}\n" for w in [*kept, *([] if gone else [text])]))
        elif path.name == "scheduler":
            names = path.read_text().replace("[", "").replace("]", "").split()
            path.write_text(" ".join(f"[{n}]" if n == text else n for n in names) + "\n")
            self._tunables(path.parent / "iosched", text)
        else:
            if path.name == "cpu.weight" and (path.parent / "cpu.idle").read_text() == "1\n":
                raise OSError(22, "Invalid argument", str(path))
            before = path.read_text()
            path.write_text(text + "\n")
            if path.name == "cpu.idle" and before != text + "\n":
                (path.parent / "cpu.weight").write_text("0\n" if text == "1" else "100\n")
        self.done()

    @staticmethod
    def _tunables(directory: Path, scheduler: str) -> None:
        for file in directory.glob("*"):
            file.unlink()
        values = {
            "bfq": {"slice_idle": "8", "low_latency": "1"},
            "mq-deadline": {"read_expire": "500"},
        }
        for name, value in values.get(scheduler, {}).items():
            (directory / name).write_text(value + "\n")


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    root = tmp_path / "cgroup"
    root.mkdir()
    (root / "cgroup.controllers").write_text("cpu io memory\n")
    (root / "cgroup.subtree_control").write_text("cpu io memory\n")
    (root / "io.cost.qos").write_text("")
    disk = tmp_path / "block/vda"
    (disk / "queue/iosched").mkdir(parents=True)
    for name, text in {
        "size": "2048",
        "dev": "254:0",
        "queue/scheduler": "none [mq-deadline] bfq",
        "queue/rotational": "1",
        "queue/iosched/read_expire": "123",
    }.items():
        (disk / name).write_text(text + "\n")
    journal = Journal(tmp_path / "run")
    made = Fake(tmp_path, Place(Hierarchy(root), journal, tmp_path / "block", tmp_path / "root"))
    monkeypatch.setattr(settings_module, "write_once", made.write)
    note = Journal.note

    def noted(self: Journal, *args: object) -> None:
        made.event()
        note(self, *args)  # type: ignore[arg-type]
        made.done()

    monkeypatch.setattr(Journal, "note", noted)
    return made


def in_child(work: object) -> int:
    """Run `work()` in a forked child; return its wait status."""
    assert callable(work)
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitpid(pid, 0)[1]


def chosen(text: str) -> str:
    """Return the name in brackets."""
    found = re.search(r"\[(.*?)\]", text)
    assert found
    return found[1]


__all__ = ["Fake", "chosen", "fake", "in_child"]
