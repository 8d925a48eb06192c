"""The running machine's slots: which one runs, where the other is, the boot files of both."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tegu.boot.slots import PLACES, SLOTS, BootName, Places, verity_of
from tegu.boot.uki import section_data
from tegu.boot.verity import Verity
from tegu.errors import BuildError, UpgradeError
from tegu.host.esp import locked_esp

__all__ = ["BootFile", "SlotMachine", "slot_machine"]

_RUNS = "run/tegu/slot"  # left by the initrd


@dataclass(frozen=True, slots=True)
class BootFile:
    """A unified image of a slot on the ESP: its name, where it is, the root that it starts."""

    name: BootName
    path: Path
    verity: Verity

    def renamed(self, name: BootName) -> None:
        """Give the file another name, and bring that to the disk."""
        if name == self.name:
            return
        target = self.path.with_name(Path(name.path).name)
        self.path.rename(target)
        _sync(target.parent)

    def remove(self) -> None:
        """Remove the file, and bring that to the disk."""
        self.path.unlink()
        _sync(self.path.parent)


@dataclass(frozen=True, slots=True)
class SlotMachine:
    """A machine of the immutable layout: `current` is the slot that runs, `running` its root.

    Everything is below `root`, so that tests can do without a machine.
    """

    places: Places
    current: str
    running: Verity
    root: Path = Path("/")

    @property
    def other(self) -> str:
        """The slot that does not run."""
        return SLOTS[1 - SLOTS.index(self.current)]

    def devices(self, slot: str) -> tuple[Path, Path]:
        """Return the partitions of a slot: root and hash tree."""
        root, tree = self.places.slots[SLOTS.index(slot)]
        folder = self.root / "dev/disk/by-partuuid"
        for guid in (root, tree):
            if not (folder / guid).exists():
                raise UpgradeError(
                    f"slot {slot} has no partition {guid}", hint="look at lsblk -o NAME,PARTUUID"
                )
        return folder / root, folder / tree

    def esp(self) -> AbstractContextManager[Path]:
        """Mount the ESP for as long as the block runs."""
        return locked_esp(self.root, self.places.esp)

    def boot_files(self, esp: Path) -> list[BootFile]:
        """Return the unified images of slots, newest generation first; damaged ones are left out.

        FAT does not know half a rename: of two names for one generation the counted one goes.
        """
        found: dict[int, BootFile] = {}
        for path in sorted((esp / "EFI/Linux").glob("*.efi")):
            name = BootName.parse(path.name, self.places.name)
            if name is None:
                continue
            try:
                line = section_data(path.read_bytes(), ".cmdline") or b""
            except (BuildError, OSError):
                continue
            verity = verity_of(line.decode(errors="replace").rstrip("\0"))
            if verity is None:
                continue
            twin = found.get(name.generation)
            if twin is None or name.left is None:
                found[name.generation] = BootFile(name, path, verity)
        return [found[number] for number in sorted(found, reverse=True)]

    def own(self, files: list[BootFile]) -> BootFile:
        """Return the boot file of what runs; raises UpgradeError when it is gone."""
        for file in files:
            if file.verity == self.running:
                return file
        raise UpgradeError("the ESP has no boot file of the slot that runs", hint="bootctl list")

    def others(self, files: list[BootFile]) -> list[BootFile]:
        """Return the boot files of what does not run."""
        return [f for f in files if f.verity != self.running]


def slot_machine(root: Path = Path("/")) -> SlotMachine | None:
    """Return what runs here, None when it is no machine of the immutable layout.

    Raises VerifyError when the image's own description is damaged.
    """
    try:
        current = (root / _RUNS).read_text().strip()
    except FileNotFoundError:
        return None
    verity = verity_of((root / "proc/cmdline").read_text())
    if current not in SLOTS or verity is None:
        raise UpgradeError(f"/{_RUNS} and the kernel's command line do not fit together")
    try:
        places = Places.parse((root / PLACES).read_text())
    except FileNotFoundError as e:
        raise UpgradeError(f"this machine runs from a slot and has no /{PLACES}") from e
    return SlotMachine(places, current, verity, root)


@contextmanager
def opened_device(path: Path, flags: int) -> Iterator[int]:
    """Open a partition of a slot; the kernel refuses one that is in use (O_EXCL, open(2))."""
    exclusive = os.O_EXCL if path.is_block_device() and flags & os.O_ACCMODE else 0
    try:
        fd = os.open(path, flags | exclusive | os.O_CLOEXEC)
    except OSError as e:
        raise UpgradeError(f"cannot open {path}: {e.strerror}") from e
    try:
        yield fd
    finally:
        os.close(fd)


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
