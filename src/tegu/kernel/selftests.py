"""The kernel's own tests (kselftest), built from the very source that the kernel is built from.

`selftests.toml` beside the recipe says which: whole collections, built and installed by the
kernel's makefiles (Documentation/dev-tools/kselftest.rst), or named programs of one where all of
it would need more than a kernel build does.
"""

from __future__ import annotations

import re
import shutil
import stat
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tegu.errors import BuildError, DefinitionError
from tegu.kernel.kbuild import PLACE, Kbuild
from tegu.process import run

__all__ = ["Collection", "install_selftests", "library_packages", "read_selftests"]

_BELOW = "tools/testing/selftests"
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+/-]*")
_LIST = "kselftest-list.txt"


@dataclass(frozen=True, slots=True)
class Collection:
    """Tests of one directory of tools/testing/selftests.

    `needs` are options without which it is left out. With `programs` or `scripts` only these are
    its tests, with `helpers` (programs) and `files` that they use; else all of its makefile's.
    `modules` are directories with a module that the tests load, `make` variables for its makefile.
    """

    name: str
    needs: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    helpers: tuple[str, ...] = ()
    scripts: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    make: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        return not (self.programs or self.scripts)

    def missing(self, config: Mapping[str, str]) -> list[str]:
        """Return the options that it needs and `config` has not built in."""
        return [n for n in self.needs if config.get(n) != "y"]


def read_selftests(path: Path) -> list[Collection]:
    """Read `selftests.toml`; no file: no tests. Raises DefinitionError for what is wrong."""
    if not path.exists():
        return []
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise DefinitionError(f"{path}: {e}") from e
    tables = raw.get("collection", {})
    if set(raw) - {"collection"} or not isinstance(tables, dict):
        raise DefinitionError(f"{path}: there are only tables [collection.NAME]")
    return [_collection(path, name, table) for name, table in sorted(tables.items())]


def _collection(path: Path, name: str, table: Any) -> Collection:
    where = f"{path}: collection.{name}"
    if not isinstance(table, dict) or not _WORD.fullmatch(name) or ".." in name:
        raise DefinitionError(f"{where}: it must be a table named after a directory")
    known = {f.name for f in fields(Collection)} - {"name"}
    lists: dict[str, tuple[str, ...]] = {}
    for key, value in table.items():
        if key not in known:
            raise DefinitionError(f"{where}.{key}: there is no such key")
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise DefinitionError(f"{where}.{key}: must be a list of strings")
        for word in value:
            sound = "=" in word if key == "make" else _WORD.fullmatch(word) and ".." not in word
            if not sound:
                raise DefinitionError(f"{where}.{key}: {word!r} cannot be meant")
        lists[key] = tuple(value)
    return Collection(name, **lists)


def install_selftests(
    kbuild: Kbuild, tests: Sequence[Collection], config: Mapping[str, str], root: Path
) -> None:
    """Build `tests` and install them below `root`, with the kernel's own run_kselftest.sh.

    A collection whose options `config` lacks is left out. The kernel must have been built in the
    tree before, when there are modules among the tests. Raises BuildError.
    """
    wanted = [c for c in tests if not c.missing(config)]
    if not wanted:
        return
    kbuild.make("headers")
    whole = [c for c in wanted if c.whole]
    kbuild.make(
        *("-C", _BELOW, f"TARGETS={' '.join(c.name for c in whole)}", "FORCE_TARGETS=1"),
        *(f"KDIR={PLACE}", f"KSFT_INSTALL_PATH={root}", "install"),
    )
    with (root / _LIST).open("a") as names:
        for collection in wanted:
            if not collection.whole:
                _install_part(kbuild, collection, root / collection.name)
                for test in (*collection.programs, *collection.scripts):
                    names.write(f"{collection.name}:{Path(test).name}\n")
    for path in sorted(p for p in root.rglob("*") if p.is_file() and not p.is_symlink()):
        if path.suffix == ".ko":
            run(["strip", "--strip-debug", path], timeout=60)
            kbuild.sign(path)
        elif is_program(path):
            run(["strip", "--strip-unneeded", path], timeout=60)


def _install_part(kbuild: Kbuild, collection: Collection, target: Path) -> None:
    directory = f"{_BELOW}/{collection.name}"
    source = kbuild.tree / directory
    output = f"{PLACE}/{directory}"
    programs = [*collection.programs, *collection.helpers]
    if programs:
        kbuild.make(
            *("-C", directory, f"OUTPUT={output}", *collection.make),
            *(f"{output}/{name}" for name in programs),
        )
    for name in collection.modules:
        kbuild.make(f"M={directory}/{name}", "modules")
    built = [f"{m}/{m}.ko" for m in collection.modules]
    for name in [*programs, *collection.scripts, *collection.files, *built]:
        path = source / name
        if not path.is_file():
            raise BuildError(
                f"{directory} has no {name}",
                hint="selftests.toml names it; this version of the kernel may have renamed it",
            )
        copy = target / (Path(name).name if name in built else name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)


def is_program(path: Path) -> bool:
    """Say whether `path` is an executable ELF file."""
    if not path.stat().st_mode & stat.S_IXUSR:
        return False
    with path.open("rb") as f:
        return f.read(4) == b"\x7fELF"


# What Debian calls the packages of the libraries that the tests are linked with.
_LIBRARIES = {
    "ld-linux-x86-64.so.2": "",
    "ld-linux-aarch64.so.1": "",
    "libc.so.6": "",
    "libcap.so.2": "libcap2",
    "libelf.so.1": "libelf1t64 | libelf1",
    "libm.so.6": "",
    "libz.so.1": "zlib1g",
}
_NEEDED = re.compile(r"\(NEEDED\).*\[(.+)\]")
_GLIBC = re.compile(r"Name: GLIBC_(\d+(?:\.\d+)+)")


def library_packages(root: Path) -> list[str]:
    """Return what the programs below `root` depend on, as in a package's Depends.

    From their dynamic sections (elf(5)): the libraries, and the newest version of the C library
    whose symbols they use. BuildError for a library that nobody has given a package.
    """
    found: set[str] = set()
    newest: tuple[int, ...] = ()
    for path in _programs(root):
        text = run(["readelf", "-d", "-V", "-W", path], timeout=60).stdout
        for name in _NEEDED.findall(text):
            if name not in _LIBRARIES:
                raise BuildError(f"{path.name} needs {name}, which no package is known for")
            found.add(_LIBRARIES[name])
        for version in _GLIBC.findall(text):
            newest = max(newest, tuple(map(int, version.split("."))))
    needed = [f"libc6 (>= {'.'.join(map(str, newest))})"] if newest else []
    return needed + sorted(found - {""})


def _programs(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink() and is_program(path):
            yield path
