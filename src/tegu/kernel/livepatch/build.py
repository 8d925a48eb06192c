"""`build_livepatch`: from source patches to a live-patch module for an installed kernel."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tegu.errors import BuildError, UnsupportedError, UsageError, VerifyError
from tegu.files import write_atomic
from tegu.kernel.build import LOGS, built_sources, configured, fetched, read_signing_key
from tegu.kernel.fragments import parse_config
from tegu.kernel.kbuild import Kbuild
from tegu.kernel.livepatch.compare import Change, compare
from tegu.kernel.livepatch.elf import ElfObject
from tegu.kernel.livepatch.extract import Extract, extract
from tegu.kernel.livepatch.layout import changed_layouts
from tegu.kernel.livepatch.locate import Place, SymbolMap, locate
from tegu.kernel.livepatch.module import Replaced, kbuild_text, main_source, mark_relocations
from tegu.kernel.livepatch.package import write_package
from tegu.kernel.livepatch.pieces import Piece, take_apart
from tegu.kernel.livepatch.sources import files_of, units
from tegu.kernel.livepatch.target import Target
from tegu.kernel.patches import apply_patch
from tegu.kernel.recipe import Recipe
from tegu.kernel.source import source_of
from tegu.kernel.toolchain import require_toolchain, toolchain_versions
from tegu.process import run

if TYPE_CHECKING:
    from tegu.store import Store

__all__ = ["Livepatch", "build_livepatch", "make_parts", "module_name"]

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_DIRECTORY = "tegu-livepatch"
# One section for each function and variable, and nothing else that is not as in the kernel.
_SECTIONS = "-ffunction-sections -fdata-sections"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Livepatch:
    """A live patch that was built: the module's name, what it replaces, the package with it.

    `functions` are `FILE:NAME` of what is replaced, `added` and `data` of what is new.
    """

    name: str
    module: Path
    package: Path
    release: str
    functions: tuple[str, ...]
    added: tuple[str, ...]
    data: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """What comes of one source file: its extract, and which functions it replaces where."""

    source: str
    extract: Extract
    replaced: tuple[Replaced, ...]


def module_name(name: str) -> str:
    """Return the kernel's name of the live patch `name`; UsageError when it cannot have one."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be the name of a live patch",
            hint="a lower-case letter, then letters, digits and _, at most 40 in all",
        )
    return f"livepatch_{name}"


def build_livepatch(
    patches: Sequence[Path],
    name: str,
    target: Target,
    recipe: Recipe,
    store: Store,
    out: Path,
    *,
    version: str = "1",
    jobs: int | None = None,
    sign_key: Path | None = None,
    offline: bool = False,
    say: Say | None = None,
) -> Livepatch:
    """Build a module that makes `target` behave as if `patches` had been in its source.

    The patches are applied in order to the source of `recipe`, which `target` must have been built
    from. The module replaces every live patch that is loaded. Written to `out` are the module and
    a package with it. Raises UnsupportedError for what cannot be changed while the kernel runs,
    VerifyError when recipe and kernel do not belong together, BuildError when a patch does not
    apply or compile.
    """
    tell = say or _silent
    module = module_name(name)
    if not patches:
        raise UsageError("no patch was named")
    files = [f for p in patches for f in files_of(p)]
    _same_kernel(recipe, target)
    if sign_key is not None:
        read_signing_key(sign_key)
    require_toolchain()
    source = source_of(recipe, store, offline=offline)
    with store.shared(), store.scratch() as scratch:
        made = configured(
            recipe,
            fetched(source, store, offline=offline, say=tell),
            store,
            scratch,
            log=store.small(LOGS, f"{recipe.release}-{module}.log"),
            jobs=jobs,
            sign_key=sign_key,
            say=tell,
        )
        kbuild = made.kbuild
        _same_config(kbuild.tree, target)
        tell("prepare")
        kbuild.make("prepare", "modules_prepare")
        (kbuild.tree / "Module.symvers").write_text(target.symvers)
        sources = units(dict.fromkeys(files), kbuild.tree, built_sources(store, target.release))
        parts = make_parts(kbuild, target, sources, patches, tell)
        if not parts:
            raise UsageError(
                "the patch changes no code of this kernel",
                hint="comments, or what its configuration leaves out",
            )
        tell("link")
        data = _link(kbuild, module, parts, target, patches)
        if sign_key is not None:
            data = _sign(kbuild, data, module)
        facts = {
            "name": name,
            "module": module,
            "release": target.release,
            "kernel": target.version,
            "build": target.build,
            "version": version,
            "functions": [f"{r.source}:{r.name}" for p in parts for r in p.replaced],
            "added": [f"{p.source}:{n}" for p in parts for n in p.extract.added],
            "data": [f"{p.source}:{n}" for p in parts for n in p.extract.data],
            "patches": [
                {"file": p.name, "sha256": hashlib.sha256(p.read_bytes()).hexdigest()}
                for p in patches
            ],
            "signed": sign_key is not None,
            "sha256": hashlib.sha256(data).hexdigest(),
            "tools": toolchain_versions(),
        }
        text = json.dumps(facts, indent=1, sort_keys=True) + "\n"
        tell("write the package")
        written = write_package(
            out, name, version, target, data, text, patches, timestamp=made.timestamp
        )
        path = out / f"{module}.ko"
        write_atomic(path, data)
        return Livepatch(
            name,
            path,
            written,
            target.release,
            tuple(r.name for p in parts for r in p.replaced),
            tuple(n for p in parts for n in p.extract.added),
            tuple(n for p in parts for n in p.extract.data),
        )


def _silent(text: str) -> None:
    """Report nothing."""


def _same_kernel(recipe: Recipe, target: Target) -> None:
    if recipe.release != target.release:
        raise VerifyError(
            f"the recipe makes {recipe.release}, the kernel to patch is {target.release}",
            hint="name the recipe that the kernel was built from with --recipe",
        )
    if target.config.get("LIVEPATCH") != "y":
        raise UnsupportedError(f"{target.release} was built without CONFIG_LIVEPATCH")
    if target.config.get("X86_KERNEL_IBT") != "y":
        # objtool then checks each object by itself; ours would come to the link unchecked.
        raise UnsupportedError(
            f"{target.release} was built without CONFIG_X86_KERNEL_IBT, which lets objtool see the "
            "linked module"
        )


def _same_config(tree: Path, target: Target) -> None:
    ours = parse_config((tree / ".config").read_text())
    # What signs modules decides about no code.
    differs = sorted(
        o
        for o in ours.keys() | target.config.keys()
        if ours.get(o, "n") != target.config.get(o, "n") and not o.startswith(_SIGNING)
    )
    if differs:
        first = differs[0]
        raise VerifyError(
            f"the recipe's configuration is not the kernel's: {first} is "
            f"{ours.get(first, 'n')}, there it is {target.config.get(first, 'n')}"
            + (f" ({len(differs) - 1} more differ)" if len(differs) > 1 else ""),
            hint="use the recipe and the compiler that the kernel was built with",
        )


_SIGNING = ("MODULE_SIG_ALL", "MODULE_SIG_KEY")


def make_parts(
    kbuild: Kbuild, target: Target, sources: Sequence[str], patches: Sequence[Path], say: Say
) -> list[Part]:
    """Compile `sources` before and after `patches` and return what the live patch needs of each."""
    before = [s for s in sources if (kbuild.tree / s).is_file()]
    missing = sorted(set(sources) - set(before))
    if missing:
        raise UnsupportedError(f"{missing[0]} is not in the kernel's source")
    say(f"compile {len(sources)} files as they are")
    kbuild.make(*(f"{s[:-2]}.o" for s in sources))
    commands = {s: _command(kbuild.tree, s) for s in sources}
    for source in sources:
        kbuild.shell(_sectioned(commands[source], source, "before"))
    for patch in patches:
        apply_patch(patch.absolute(), kbuild.tree)
    say(f"compile {len(sources)} files patched")
    parts: list[Part] = []
    for number, source in enumerate(sources):
        kbuild.shell(_sectioned(commands[source], source, "after"))
        say(f"compare {source}")
        old, new = (_object(kbuild.tree, source, w) for w in ("before", "after"))
        change = compare(take_apart(old, source), take_apart(new, source))
        if not change.functions:
            if change.added:
                raise UnsupportedError(
                    f"{source}: the patch adds {', '.join(change.added)}, but no function that is "
                    "there comes to use it"
                )
            continue
        layouts = changed_layouts(old, new)
        if layouts:
            raise UnsupportedError(
                f"{source}: the patch changes the layout of {', '.join(layouts)}",
                hint="the kernel has such objects in memory already; use a shadow variable "
                "(klp_shadow_alloc)",
            )
        parts.append(_part(kbuild.tree, source, change, target, f"klp_new_{number}_"))
    return parts


def _object(tree: Path, source: str, when: str) -> Path:
    return tree / f"{source[:-2]}.klp-{when}.o"


def _command(tree: Path, source: str) -> str:
    """Return the command line that kbuild noted for an object (scripts/Kbuild.include)."""
    directory, _, name = source[:-2].rpartition("/")
    noted = tree / directory / f".{name}.o.cmd"
    for line in noted.read_text().splitlines():
        key, equals, command = line.partition(" := ")
        if equals and key.startswith("savedcmd_"):
            if "-DMODULE" in command.split():
                raise UnsupportedError(
                    f"{source} is part of a module; only what is built into the kernel can be "
                    "patched",
                    hint="ship a new module, and reload it",
                )
            return command
    raise BuildError(f"{noted.name} does not say how {source} was compiled")


def _sectioned(command: str, source: str, when: str) -> str:
    plain, stem = f"-o {source[:-2]}.o", source[:-2]
    if command.count(plain) != 1 or ";" in command or "&&" in command:
        raise UnsupportedError(f"{source} is compiled in an unusual way")
    # The list of files it reads stays that of the object itself.
    command = re.sub(r"-Wp,-MMD,\S+ ", "", command)
    return command.replace(plain, f"{_SECTIONS} -o {stem}.klp-{when}.o")


def _part(tree: Path, source: str, change: Change, target: Target, prefix: str) -> Part:
    plain = ElfObject.parse((tree / f"{source[:-2]}.o").read_bytes(), source)
    names = _Names(locate(plain, target.symbols, source), target, source)
    made = extract(change, prefix, original=names.original, outside=names.outside)
    pieces = change.original.pieces
    replaced = []
    for name, entry in made.entries.items():
        place = names.place(pieces[name])
        replaced.append(Replaced(source, name, place.position, entry))
    return Part(source, made, tuple(replaced))


class _Names:
    """How a live patch names what the kernel has."""

    def __init__(self, addresses: dict[str, int], target: Target, source: str) -> None:
        self.addresses = addresses
        self.symbols: SymbolMap = target.symbols
        self.exported = target.exported
        self.source = source

    def place(self, piece: Piece) -> Place:
        """Return which symbol of the kernel a piece of the original object is."""
        name = piece.name
        if name in self.addresses:
            return self.symbols.at(name, self.addresses[name])
        if name not in self.symbols:
            raise UnsupportedError(
                f"{self.source}: the installed kernel has no symbol {name}",
                hint="the compiler has put it elsewhere there, or dropped it",
            )
        if len(self.symbols.addresses(name)) == 1:
            return Place(name, 0)
        raise UnsupportedError(
            f"{self.source}: the kernel has several symbols {name}, and which of them is meant "
            "cannot be told"
        )

    def original(self, piece: Piece) -> str:
        if piece.is_global and piece.name in self.exported:
            return piece.name
        return _mark(self.place(piece))

    def outside(self, name: str) -> str:
        return name if name in self.exported else _mark(self.symbols.outside(name))


def _mark(place: Place) -> str:
    return f".klp.sym.vmlinux.{place.name},{place.position}"


def _link(
    kbuild: Kbuild, module: str, parts: Sequence[Part], target: Target, patches: Sequence[Path]
) -> bytes:
    """Link the parts with the code that registers them, as kbuild links an external module."""
    directory = kbuild.tree / _DIRECTORY
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    names = []
    for number, part in enumerate(parts):
        names.append(f"part{number}")
        (directory / f"part{number}.o_shipped").write_bytes(part.extract.obj.to_bytes())
        # modpost reads from it which sources an object was made of: of none that has a version.
        (directory / f".part{number}.o.cmd").write_text("\n")
    functions = [r for p in parts for r in p.replaced]
    description = f"live patch of {target.release}: {', '.join(p.name for p in patches)}"
    (directory / "main.c").write_text(
        main_source(functions, description, release=target.release, build=target.build)
    )
    (directory / "Kbuild").write_text(kbuild_text(module, names))
    said = kbuild.make(f"M={_DIRECTORY}", "KBUILD_MODPOST_WARN=1", "modules")
    path = directory / f"{module}.ko"
    run(["strip", "--strip-debug", path], timeout=60)
    data = path.read_bytes()
    if ElfObject.parse(data, module).section(".orc_unwind") is None:
        # Without it the kernel cannot tell who still runs the old functions, and never finishes.
        why = next((x.strip() for x in said.splitlines() if "objtool: " in x), "no reason given")
        raise BuildError(
            f"objtool could not make unwind data for {module}: {why.partition('objtool: ')[2]}",
            hint=f"all of its output is in {kbuild.log}",
        )
    return mark_relocations(data, module, dict.fromkeys(target.exported))


def _sign(kbuild: Kbuild, data: bytes, module: str) -> bytes:
    path = kbuild.tree / _DIRECTORY / f"{module}.signed"
    path.write_bytes(data)
    kbuild.sign(path)
    return path.read_bytes()
