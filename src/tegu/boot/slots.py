"""The immutable layout: two slots for a read-only root, of which one runs.

A *slot image* is a directory with four files: `root.erofs`, its dm-verity hash tree `root.verity`,
the unified kernel image `boot.efi` whose command line has the root hash, and `slot.json`, which
describes them. On the disk a slot is two partitions, found by the hash tree's top: a slot that is
not whole has none. Which slot starts is decided by the names of the unified images on the ESP, by
systemd-boot's boot counting (systemd-boot(7), "Boot counting"):

    EFI/Linux/NAME-GENERATION-VERSION.efi          proved well
    EFI/Linux/NAME-GENERATION-VERSION+1-0.efi      to be tried once
    EFI/Linux/NAME-GENERATION-VERSION+0-1.efi      tried, or left behind: only when nothing else is

The newest generation starts. The `.osrel` section of these images has no version, because
systemd-boot would sort by that first.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field, replace
from typing import Any
from uuid import UUID

from tegu.boot.loader import KERNELS
from tegu.boot.verity import BLOCK, Verity, tree_size
from tegu.errors import VerifyError

__all__ = [
    "FILES",
    "FORMAT",
    "PLACES",
    "SLOTS",
    "BootName",
    "Places",
    "SlotFile",
    "SlotImage",
    "slot_osrel",
    "verity_of",
    "verity_words",
]

FORMAT = "tegu-slot-1"
FILES = {"root": "root.erofs", "tree": "root.verity", "boot": "boot.efi"}
SLOTS = ("a", "b")
PLACES = "usr/lib/tegu/slots.json"
"""Where an image says what its disk is like."""

_HASH = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+~-]{0,63}")
_MOST = 1 << 42  # bytes; a size beyond it is nonsense


@dataclass(frozen=True, slots=True)
class SlotFile:
    """One file of a slot image: `size` in bytes, `sha256` in hex."""

    file: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class SlotImage:
    """What slot.json says. `created` is in seconds since the epoch; `packages` name to version."""

    name: str
    version: str
    architecture: str
    created: int
    verity: Verity
    root: SlotFile
    tree: SlotFile
    boot: SlotFile
    packages: dict[str, str] = field(default_factory=dict)

    def dump(self) -> str:
        """Return slot.json; the same value, the same text."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=True) + "\n"

    @classmethod
    def parse(cls, text: str | bytes, what: str = "slot.json") -> SlotImage:
        """Read slot.json; raises VerifyError naming `what` when it is not what `dump` writes."""
        try:
            raw: Any = json.loads(text)
            if not isinstance(raw, dict) or raw.pop("format", None) != FORMAT:
                raise ValueError(f"it is not of the format {FORMAT}")
            verity = raw.pop("verity")
            packages = raw.pop("packages")
            root, tree, boot = (_file(raw.pop(key), FILES[key]) for key in FILES)
            image = cls(
                **raw,
                root=root,
                tree=tree,
                boot=boot,
                verity=Verity(**verity),
                packages={_text(k): _text(v) for k, v in packages.items()},
            )
            image._check()
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
            raise VerifyError(f"{what} describes no slot image: {e}") from e
        return image

    def _check(self) -> None:
        verity = self.verity
        if not _NAME.fullmatch(_text(self.name)):
            raise ValueError(f"the name {self.name!r}")
        if not _VERSION.fullmatch(_text(self.version)):
            raise ValueError(f"the version {self.version!r}")
        _text(self.architecture)
        _whole(self.created)
        if not _HASH.fullmatch(_text(verity.root_hash)):
            raise ValueError(f"the root hash {verity.root_hash!r}")
        if not re.fullmatch(r"(?:[0-9a-f]{2}){1,256}", _text(verity.salt)):
            raise ValueError("the salt")
        if _whole(verity.blocks) < 2 or self.root.size != verity.blocks * BLOCK:
            raise ValueError("the root's size is not that of its blocks")
        if self.tree.size != tree_size(self.root.size):
            raise ValueError("the hash tree's size is not that of the root's")


def _file(raw: Any, name: str) -> SlotFile:
    made = SlotFile(**raw)
    if made.file != name:
        raise ValueError(f"the file {made.file!r} where {name} belongs")
    if not 0 < _whole(made.size) <= _MOST or not _HASH.fullmatch(_text(made.sha256)):
        raise ValueError(f"size or SHA-256 of {name}")
    return made


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 4096:
        raise ValueError(f"{value!r:.60} is no text")
    return value


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r:.60} is no number")
    return value


@dataclass(frozen=True, slots=True)
class Places:
    """The disk of the layout: GUIDs of partitions; `slots` are (root, hash tree) of a and b.

    `created` is the timestamp of the image that says so (seconds).
    """

    name: str
    version: str
    architecture: str
    created: int
    esp: str
    data: str
    slots: tuple[tuple[str, str], tuple[str, str]]

    def dump(self) -> str:
        """Return the text of PLACES."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def parse(cls, text: str) -> Places:
        """Read it; raises VerifyError."""
        try:
            raw: Any = json.loads(text)
            a, b = ((str(UUID(r)), str(UUID(t))) for r, t in raw.pop("slots"))
            esp, data = (str(UUID(raw.pop(key))) for key in ("esp", "data"))
            return cls(**raw, esp=esp, data=data, slots=(a, b))
        except (ValueError, TypeError, KeyError, AttributeError) as e:
            raise VerifyError(f"/{PLACES} is damaged: {e}") from e

    def words(self) -> list[str]:
        """Return the words of the kernel's command line that name the partitions."""
        pairs = ",".join(f"{root}:{tree}" for root, tree in self.slots)
        return [f"tegu.slots={pairs}", f"tegu.data={self.data}"]


def verity_words(verity: Verity) -> list[str]:
    """Return the word of the kernel's command line that the root is checked by."""
    return [f"tegu.verity={verity.root_hash}:{verity.salt}:{verity.blocks}"]


def verity_of(cmdline: str) -> Verity | None:
    """Return what a kernel's command line says of the root; None when it says nothing."""
    for word in cmdline.split():
        match = re.fullmatch(r"tegu\.verity=([0-9a-f]{64}):([0-9a-f]+):([0-9]{1,12})", word)
        if match is not None:
            return Verity(match[1], match[2], int(match[3]))
    return None


def slot_osrel(text: str) -> str:
    """Return os-release(5) without what systemd-boot would sort by before the file's name."""
    kept = ("NAME=", "PRETTY_NAME=", "ID=", "ID_LIKE=", "HOME_URL=")
    return "".join(f"{line}\n" for line in text.splitlines() if line.startswith(kept))


@dataclass(frozen=True, slots=True)
class BootName:
    """The name of a slot's unified image on the ESP. `left` None: not counted, proved well."""

    name: str
    generation: int
    version: str
    left: int | None = None
    done: int = 0

    @property
    def path(self) -> str:
        """Path on the ESP."""
        counter = "" if self.left is None else f"+{self.left}-{self.done}"
        version = re.sub(r"[^0-9A-Za-z.-]", "_", self.version)  # a + would begin the counter
        return f"{KERNELS}/{self.name}-{self.generation}-{version}{counter}.efi"

    @classmethod
    def parse(cls, file: str, name: str) -> BootName | None:
        """Return what the file name `file` says, None when it is none of the system `name`."""
        match = re.fullmatch(
            rf"{re.escape(name)}-(\d{{1,9}})-([0-9A-Za-z._-]+?)(?:\+(\d{{1,9}})(?:-(\d{{1,9}}))?)?\.efi",
            file,
        )
        if match is None:
            return None
        left = None if match[3] is None else int(match[3])
        return cls(name, int(match[1]), match[2], left, int(match[4] or 0))

    def counted(self, left: int | None) -> BootName:
        """Return the name with another counter."""
        return replace(self, left=left, done=0)
