"""Python byte code, compiled once per package and kept in the store.

Debian compiles at installation, every time, in every image. The result depends on the source
file and the interpreter only, so here it is a derived part of the package.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from tegu.errors import BuildError
from tegu.image.merge import PathMap
from tegu.image.sandbox import sandbox
from tegu.image.unpack import Unpacked
from tegu.linux import bind
from tegu.store import Store

__all__ = ["link_byte_code"]

KIND = "bytecode-1"

# Runs under the interpreter of the system being built. One process per package, forked from one
# that has loaded the compiler: every package is compiled from the same starting state, so that
# the bytes do not depend on what else is compiled (marshal marks shared objects).
_COMPILER = """
import json, os, py_compile, sys
from importlib.util import cache_from_source

def one(key, files):
    for name in files:
        target = "/out/" + key + cache_from_source("/" + name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        try:
            py_compile.compile(
                "/" + name, target, "/" + name, doraise=True,
                invalidation_mode=py_compile.PycInvalidationMode.TIMESTAMP)
            os.utime(target, (os.stat("/" + name).st_mtime,) * 2)
        except (py_compile.PyCompileError, OSError, ValueError):
            pass  # some files are meant for another Python, or are templates

job = json.load(sys.stdin)
running = 0
for key, files in job["packages"]:
    if running == job["workers"]:
        if os.wait()[1]:
            sys.exit("a compiler process failed")
        running -= 1
    if os.fork() == 0:
        one(key, files)
        os._exit(0)
    running += 1
while running:
    if os.wait()[1]:
        sys.exit("a compiler process failed")
    running -= 1
"""


def _interpreter(packages: Sequence[Unpacked]) -> tuple[str, str] | None:
    """Return (program, digest of what it is made of), or None without Python."""
    found = [p for p in packages if re.fullmatch(r"python3\.\d+-minimal", p.package.name)]
    if not found:
        return None
    program = found[0].package.name.removesuffix("-minimal")
    library = f"lib{program}-"
    parts = [p.package.sha256 for p in packages if p.package.name.startswith(library)]
    digest = hashlib.sha256("".join([found[0].package.sha256, *sorted(parts)]).encode())
    return f"/usr/bin/{program}", digest.hexdigest()


def _sources(package: Unpacked, version: str) -> list[str]:
    wanted = (f"usr/lib/{version}/", "usr/lib/python3/dist-packages/")
    return [
        e.path
        for e in package.entries
        if e.kind == "f" and e.path.endswith(".py") and e.path.startswith(wanted)
    ]


def link_byte_code(
    store: Store,
    packages: Sequence[Unpacked],
    tree: Path,
    scratch: Path,
    *,
    timestamp: int,
    below: Sequence[Path] = (),
    interpreter_of: Sequence[Unpacked] = (),
) -> list[str]:
    """Link byte code for all modules of `packages` into the merged `tree`.

    `below` are layers that `tree` lies upon, `interpreter_of` the packages in them, among which the
    interpreter is found. Returns the names of the packages that had to be compiled.
    """
    interpreter = _interpreter([*packages, *interpreter_of])
    if interpreter is None:
        return []
    program, made_of = interpreter
    version = Path(program).name
    jobs: list[tuple[str, Unpacked, list[str]]] = []
    for package in packages:
        sources = _sources(package, version)
        if sources:
            # The code names its source's time, which the lock's date may cap.
            capped = any((package.root / s).stat().st_mtime > timestamp for s in sources)
            text = f"{package.package.sha256} {made_of}" + (f" {timestamp}" if capped else "")
            jobs.append((hashlib.sha256(text.encode()).hexdigest(), package, sources))
    missing = [job for job in jobs if store.tree(KIND, job[0]) is None]
    if missing:
        _compile(store, missing, program, [tree, *below], scratch, timestamp)
    everything = [*packages, *interpreter_of]
    links = {e.path: e.target for p in everything for e in p.entries if e.kind == "l"}
    paths = PathMap(links)
    for key, _, _ in jobs:
        made = store.tree(KIND, key)
        if made is None:
            raise BuildError(f"byte code {key} vanished from the store")
        _link(made, tree, paths)
    return sorted(package.package.name for _, package, _ in missing)


def _compile(
    store: Store,
    jobs: Sequence[tuple[str, Unpacked, list[str]]],
    program: str,
    layers: Sequence[Path],
    scratch: Path,
    timestamp: int,
) -> None:
    out = scratch / "bytecode"
    out.mkdir()
    mountpoint = scratch / "bytecode-root"
    (mountpoint / "out").mkdir(parents=True)
    for name in ("run", "tmp", "proc", "dev"):
        (mountpoint / name).mkdir()
    with sandbox([mountpoint, *layers], scratch, upper=None, timestamp=timestamp) as box:
        bind(out, box.root / "out")
        ordered = sorted(jobs, key=lambda job: (-len(job[2]), job[0]))
        task = {
            "workers": os.cpu_count() or 1,
            "packages": [[key, files] for key, _, files in ordered],
        }
        box.run([program, "-I", "-S", "-c", _COMPILER], stdin=json.dumps(task), timeout=900)
    for key, package, _ in jobs:
        made = out / key
        made.mkdir(exist_ok=True)
        with store.new_tree(KIND, key) as target:
            (target / "package").write_text(f"{package.package.name} {package.package.version}\n")
            made.rename(target / "root")


def _link(made: Path, tree: Path, paths: PathMap) -> None:
    base = os.fspath(made / "root")
    target = os.fspath(tree)
    for directory, _, files in os.walk(base):
        if not files:
            continue
        relative = paths.directory(os.path.relpath(directory, base))
        os.makedirs(f"{target}/{relative}", exist_ok=True)  # noqa: PTH103
        for name in files:
            os.link(f"{directory}/{name}", f"{target}/{relative}/{name}")
