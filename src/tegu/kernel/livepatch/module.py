"""The module around the replaced functions: its source, and what is done to it after the link."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tegu.errors import BuildError
from tegu.kernel.livepatch.elf import SHN_LIVEPATCH, ElfObject, LivepatchRelocs

__all__ = ["Replaced", "kbuild_text", "main_source", "mark_relocations"]

MARK = ".klp.sym."


@dataclass(frozen=True, slots=True)
class Replaced:
    """A function that is replaced: where it was, and the global name of what replaces it."""

    source: str
    name: str
    position: int
    entry: str


def kbuild_text(module: str, parts: Iterable[str]) -> str:
    """Return the Kbuild file of a module made of main.c and the objects `parts`."""
    objects = " ".join(f"{p}.o" for p in parts)
    return f"obj-m := {module}.o\n{module}-y := main.o {objects}\n"


def main_source(
    functions: Iterable[Replaced], description: str, *, release: str, build: str
) -> str:
    """Return the C source that registers the functions with the kernel (linux/livepatch.h).

    `release` and `build` are the kernel's `uname -r` and `-v`: with CONFIG_MODVERSIONS the module
    loader itself compares no more than the checksums of exported symbols.
    """
    rows = list(functions)
    declared = "\n".join(f"extern void {r.entry}(void);" for r in rows)
    filled = "\n".join(
        f"\t{{ .old_name = {json.dumps(r.name)}, .new_func = {r.entry}, "
        f".old_sympos = {r.position} }},"
        for r in rows
    )
    return _MAIN.format(
        declared=declared,
        filled=filled,
        description=json.dumps(description),
        release=json.dumps(release),
        build=json.dumps(build),
    )


_MAIN = """// SPDX-License-Identifier: GPL-2.0
#include <linux/kernel.h>
#include <linux/livepatch.h>
#include <linux/module.h>
#include <linux/string.h>
#include <linux/utsname.h>

{declared}

static struct klp_func funcs[] = {{
{filled}
\t{{ }}
}};

static struct klp_object objects[] = {{
\t{{ .funcs = funcs }},
\t{{ }}
}};

/* Cumulative: it takes the place of every live patch that is loaded. */
static struct klp_patch patch = {{
\t.mod = THIS_MODULE,
\t.objs = objects,
\t.replace = true,
}};

static int __init start(void)
{{
\tif (strcmp(init_uts_ns.name.release, {release}) ||
\t    strcmp(init_uts_ns.name.version, {build})) {{
\t\tpr_err("%s: for the kernel %s %s\\n", THIS_MODULE->name, {release}, {build});
\t\treturn -ENOEXEC;
\t}}
\treturn klp_enable_patch(&patch);
}}

/* The kernel calls it only when the patch is disabled and nobody runs its code. */
static void __exit stop(void)
{{
}}

module_init(start);
module_exit(stop);
MODULE_DESCRIPTION({description});
MODULE_LICENSE("GPL");
MODULE_INFO(livepatch, "Y");
"""


def mark_relocations(data: bytes, module: str, exported: Mapping[str, object]) -> bytes:
    """Turn references to `.klp.sym.*` into the kernel's own kind, and return the module.

    Documentation/livepatch/module-elf-format.rst: their symbols get SHN_LIVEPATCH, their
    relocations stand in sections of their own, one for each section that they change. `exported`
    has the names that the module loader finds; BuildError for any other that is undefined.
    """
    obj = ElfObject.parse(data, module)
    used = {id(r.symbol) for s in obj.sections for r in s.relocs}
    symbols = []
    for symbol in obj.symbols:
        if symbol.undefined and symbol.name.startswith(MARK):
            if id(symbol) not in used:
                continue
            symbol.special = SHN_LIVEPATCH
        elif symbol.undefined and symbol.name and symbol.name not in exported:
            raise BuildError(f"{module}: nothing in the kernel defines {symbol.name}")
        symbols.append(symbol)
    obj.symbols = symbols
    for section in obj.sections:
        by_owner: dict[str, LivepatchRelocs] = {}
        kept = []
        for reloc in section.relocs:
            if reloc.symbol.special != SHN_LIVEPATCH:
                kept.append(reloc)
                continue
            # Only the kernel itself is patched so far: all its symbols are there from the start.
            owner = reloc.symbol.name.removeprefix(MARK).partition(".")[0]
            by_owner.setdefault(owner, LivepatchRelocs(owner, section, [])).relocs.append(reloc)
        section.relocs = kept
        obj.livepatch += by_owner.values()
    return obj.to_bytes()
