"""Kernel modules of a tree: which are needed, in which order, and which device asks for which.

The files read are those that depmod(8) writes into usr/lib/modules/VERSION, formats as in
modules.dep(5), depmod.d(5) and kmod's source.
"""

from __future__ import annotations

import lzma
import shutil
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

from tegu.errors import BuildError, UnsupportedError
from tegu.process import run

__all__ = ["Module", "ModuleTree", "canonical"]

_ELF = b"\x7fELF"
_MAX_DEPTH = 64


def canonical(name: str) -> str:
    """Return a module's name as the kernel prints it: `xen-blkfront.ko.xz` is `xen_blkfront`."""
    return name.rpartition("/")[2].partition(".ko")[0].replace("-", "_")


@dataclass(frozen=True, slots=True)
class Module:
    """A loadable module: `needs` are the names that must be loaded before it, in order."""

    name: str
    path: Path
    needs: tuple[str, ...]


class ModuleTree:
    """The modules of kernel `version` in the tree `root`.

    Raises BuildError when the tree has no such kernel or depmod's files are missing or damaged.
    """

    def __init__(self, root: Path, version: str) -> None:
        self.version = version
        self.directory = root / "usr/lib/modules" / version
        if not self.directory.is_dir():
            raise BuildError(
                f"the tree has no modules for kernel {version} (usr/lib/modules/{version})",
                hint="is the kernel's package installed in it?",
            )

    def _lines(self, name: str, *, required: bool = False) -> Iterator[str]:
        path = self.directory / name
        try:
            text = path.read_text(encoding="utf-8", errors="surrogateescape")
        except FileNotFoundError:
            if required:
                raise BuildError(
                    f"kernel {self.version}: {name} is missing", hint=f"run depmod {self.version}"
                ) from None
            return
        for line in text.splitlines():
            if line and not line.startswith("#"):
                yield line

    @cached_property
    def builtin(self) -> frozenset[str]:
        """Names of what is part of the kernel image."""
        return frozenset(canonical(line) for line in self._lines("modules.builtin"))

    @cached_property
    def _dependencies(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        found: dict[str, tuple[str, tuple[str, ...]]] = {}
        for line in self._lines("modules.dep", required=True):
            path, colon, rest = line.partition(":")
            if not colon:
                raise BuildError(f"kernel {self.version}: modules.dep is damaged: {line[:60]!r}")
            found[canonical(path)] = (path, tuple(canonical(d) for d in rest.split()))
        return found

    @cached_property
    def _soft(self) -> dict[str, tuple[str, ...]]:
        """What must be loaded first although no symbol says so; `post:` is treated alike."""
        found: dict[str, tuple[str, ...]] = {}
        for line in self._lines("modules.softdep"):
            words = line.split()
            if len(words) > 2 and words[0] == "softdep":
                wanted = tuple(w for w in words[2:] if w not in ("pre:", "post:"))
                name = canonical(words[1])
                found[name] = found.get(name, ()) + wanted
        return found

    @cached_property
    def _aliases(self) -> list[tuple[str, str]]:
        rows = []
        for line in self._lines("modules.alias"):
            words = line.split()
            if len(words) == 3 and words[0] == "alias":
                rows.append((words[1], canonical(words[2])))
        return rows

    @cached_property
    def _builtin_aliases(self) -> frozenset[str]:
        path = self.directory / "modules.builtin.modinfo"
        if not path.is_file():
            return frozenset()
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
        fields = (field.partition("=") for field in text.split("\0"))
        return frozenset(value for key, _, value in fields if key.endswith(".alias"))

    def has(self, name: str) -> bool:
        """Say whether this kernel has `name` at all, built in or as a module."""
        return canonical(name) in self.builtin or canonical(name) in self._dependencies

    def provides(self, name: str) -> bool:
        """Say whether `name` is built into the kernel, by its own name or by an alias."""
        return canonical(name) in self.builtin or name in self._builtin_aliases

    def closure(self, wanted: Iterable[str], *, optional: Iterable[str] = ()) -> list[Module]:
        """Return `wanted` with all they need, each after its needs; built-ins are left out.

        `optional` names are passed over when this kernel has no such module. Raises BuildError for
        a wanted module that does not exist, naming the nearest.
        """
        order: dict[str, Module] = {}
        for name in wanted:
            if not self.has(name):
                near = get_close_matches(canonical(name), self._dependencies, n=1)
                raise BuildError(
                    f"kernel {self.version} has no module {name}",
                    hint=f"did you mean {near[0]}?" if near else "see kernel.modules",
                )
            self._add(canonical(name), order, 0)
        for name in optional:
            if self.has(name):
                self._add(canonical(name), order, 0)
        return list(order.values())

    def _add(self, name: str, order: dict[str, Module], depth: int) -> None:
        if name in order or name in self.builtin:
            return
        if depth > _MAX_DEPTH:
            raise BuildError(f"kernel {self.version}: modules depend on each other in a circle")
        path, hard = self._dependencies[name]
        needs: list[str] = []
        for need in hard:
            if need not in self._dependencies and need not in self.builtin:
                raise BuildError(
                    f"kernel {self.version}: modules.dep is damaged: {name} needs {need},"
                    " which is not listed"
                )
            needs.append(need)
        for need in self._soft.get(name, ()):
            needs += self._resolve(need)
        for need in needs:
            self._add(need, order, depth + 1)
        loadable = tuple(dict.fromkeys(n for n in needs if n not in self.builtin))
        order[name] = Module(name, self.directory / path, loadable)

    def _resolve(self, name: str) -> list[str]:
        """Return the modules behind a name or an alias; none when the kernel has it built in."""
        if self.provides(name):
            return []
        if canonical(name) in self._dependencies:
            return [canonical(name)]
        found = [module for pattern, module in self._aliases if fnmatchcase(name, pattern)]
        return list(dict.fromkeys(found))

    def device_patterns(self, names: Iterable[str], buses: Iterable[str]) -> list[tuple[str, str]]:
        """Return (pattern, module) for devices on `buses` that ask for one of `names`, sorted."""
        keep, prefixes = set(names), tuple(f"{bus}:" for bus in buses)
        rows = {
            (pattern, module)
            for pattern, module in self._aliases
            if module in keep and (pattern.startswith(prefixes) or pattern.startswith("acpi*:"))
        }
        return sorted(rows)

    def read(self, module: Module) -> bytes:
        """Return a module as an ELF file, decompressed; raises BuildError when it is damaged."""
        path = module.path
        try:
            data = path.read_bytes()
        except OSError as e:
            raise BuildError(f"cannot read the kernel module {path}: {e.strerror}") from e
        try:
            data = _decompress(path, data)
        except (lzma.LZMAError, zlib.error, EOFError, ValueError) as e:
            raise BuildError(f"the kernel module {path} is damaged: {e}") from e
        if not data.startswith(_ELF):
            raise BuildError(f"the kernel module {path} is damaged: it is not an ELF file")
        return data


def _decompress(path: Path, data: bytes) -> bytes:
    match path.suffix:
        case ".xz":
            return lzma.decompress(data)
        case ".gz":
            return zlib.decompress(data, wbits=31)
        case ".zst":
            return _unzstd(path, data)
        case _:
            return data


def _unzstd(path: Path, data: bytes) -> bytes:
    try:
        import zstandard
    except ModuleNotFoundError:
        return _unzstd_by_program(path)
    try:
        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    except zstandard.ZstdError as e:
        raise ValueError(str(e)) from e


def _unzstd_by_program(path: Path) -> bytes:
    import tempfile

    if shutil.which("zstd") is None:
        raise UnsupportedError(
            f"{path.name} needs zstd to be read", hint="install zstd or python3-zstandard"
        )
    with tempfile.TemporaryFile() as out:
        run(["zstd", "-dc", path], stdout=out)
        out.seek(0)
        return out.read()
