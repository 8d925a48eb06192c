"""`build_kernel`: from a recipe to packages, kept in the store under the hash of all that went in.

A second build of the same recipe with the same tools is a look-up; after a change, ccache (also in
the store) spares compiling what did not change.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tegu.errors import BuildError, DefinitionError, UnsupportedError, UsageError
from tegu.files import write_atomic
from tegu.kernel.config_check import Miss, compare_config, refuse_misses, refuse_unknown
from tegu.kernel.fragments import Option, merged_text
from tegu.kernel.kbuild import Kbuild
from tegu.kernel.package import write_packages
from tegu.kernel.payload import header_entries, image_entries, selftest_entries
from tegu.kernel.recipe import Recipe
from tegu.kernel.selftests import read_selftests
from tegu.kernel.source import source_of
from tegu.kernel.symbols import read_symbols
from tegu.kernel.toolchain import require_toolchain, toolchain_versions
from tegu.kernel.tree import make_tree, source_time
from tegu.packages import SourcePackage, fetch_source

if TYPE_CHECKING:
    from tegu.store import Store

__all__ = ["Built", "Checked", "build_kernel", "built_sources", "check_config", "last_built"]

log = logging.getLogger(__name__)

KIND = "kernels-1"
CCACHE = "ccache-1"
LOGS = "kernel-logs-1"
_VERSION = 2  # of what this module decides about the result; part of the key
# The others that decide about it, whose text is part of the key.
_CODE = (
    *("fragments", "kbuild", "package", "patches", "payload", "selftests", "tree"),
    "../packages/deb_write",
)
_FACTS = "kernel.json"
_SOURCES = "sources.txt"
_TESTS = "selftests.toml"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Built:
    """A kernel that was built: its `release` (uname -r) and its packages, the image first.

    `seconds` is the wall time of the build, `cached` says that it was in the store already;
    `config` are the values of `.config`, `tools` the versions of what it was built with.
    """

    release: str
    version: str
    packages: tuple[Path, ...]
    seconds: float
    cached: bool
    config: dict[str, str]
    tools: dict[str, str]


@dataclass(frozen=True, slots=True)
class Configured:
    """A source tree that is configured: how to build it, and what did not take."""

    kbuild: Kbuild
    misses: list[Miss]
    timestamp: int


def build_kernel(
    recipe: Recipe,
    store: Store,
    *,
    jobs: int | None = None,
    sign_key: Path | None = None,
    offline: bool = False,
    mirrors: Sequence[str] = (),
    say: Say | None = None,
) -> Built:
    """Build the packages of `recipe`; returns where they are in the store.

    `sign_key` is a PEM file with a private key and its certificate; modules are signed with it and
    the kernel trusts it. `jobs` defaults to the number of CPUs; `mirrors` are tried for the source
    before the distribution's. Raises UnsupportedError (tools are missing), FetchError, VerifyError
    (the source), DefinitionError (an option or a patch of the recipe), BuildError (a patch or an
    option did not take, the compiler failed).
    """
    tell = say or _silent
    if recipe.architecture != "x86-64":
        raise UnsupportedError(
            f"a kernel for {recipe.architecture} has never been built with these fragments",
            hint="`tegu kernel config check --architecture` configures it; building comes with "
            "machines to test it on",
        )
    require_toolchain(recipe.facts.prefix)
    tell("look for the source")
    package = source_of(recipe, store, offline=offline, mirrors=mirrors)
    tests = read_selftests(recipe.path.parent / _TESTS)
    tools = toolchain_versions()
    key = _key(recipe, package, tools, sign_key)
    with store.shared(), store.locked(f"kernel-{key}"):
        if (there := store.tree(KIND, key)) is not None:
            return _read(there, cached=True)
        started = time.monotonic()
        with store.scratch() as scratch:
            made = configured(
                recipe,
                fetched(package, store, offline=offline, say=tell),
                store,
                scratch,
                log=store.small(LOGS, f"{recipe.release}-{key[:12]}.log"),
                jobs=jobs,
                sign_key=sign_key,
                say=tell,
            )
            refuse_misses(made.misses)
            kbuild = made.kbuild
            tell("compile")
            kbuild.make(
                recipe.facts.target, *(["modules"] if kbuild.has_modules() else []), say=tell
            )
            tell("gather modules")
            image = image_entries(kbuild, scratch)
            tell("gather headers")
            headers = header_entries(kbuild, scratch)
            tell("build tests")
            selftests = selftest_entries(kbuild, tests, scratch)
            tell("write packages")
            with store.new_tree(KIND, key) as tree:
                written = write_packages(
                    recipe,
                    tree,
                    image=image,
                    headers=headers,
                    selftests=selftests,
                    copyright_text=(kbuild.tree / "debian" / "copyright").read_bytes(),
                    timestamp=made.timestamp,
                )
                facts = {
                    "release": recipe.release,
                    "version": recipe.deb_version,
                    "packages": [p.name for p in written],
                    "seconds": round(time.monotonic() - started, 1),
                    "config": kbuild.config(),
                    "tools": tools,
                }
                write_atomic(tree / _SOURCES, "".join(f"{s}\n" for s in compiled(kbuild.tree)))
                write_atomic(tree / _FACTS, json.dumps(facts, indent=1, sort_keys=True))
        there = store.tree(KIND, key)
        assert there is not None, "new_tree leaves it there"
        return _read(there, cached=False)


@dataclass(frozen=True, slots=True)
class Checked:
    """What `check_config` found: the text of `.config`, and the options that did not take."""

    config: str
    misses: list[Miss]


def check_config(
    recipe: Recipe,
    store: Store,
    *,
    offline: bool = False,
    mirrors: Sequence[str] = (),
    say: Say | None = None,
) -> Checked:
    """Configure the source of `recipe` and compare the result with its fragments."""
    require_toolchain(recipe.facts.prefix)
    package = source_of(recipe, store, offline=offline, mirrors=mirrors)
    # A log of its own: a build of the same release may be running.
    log = store.small(LOGS, f"{recipe.release}-config-{os.getpid()}.log")
    with store.shared(), store.scratch() as scratch:
        source = fetched(package, store, offline=offline, say=say)
        made = configured(recipe, source, store, scratch, log=log, say=say)
        log.unlink(missing_ok=True)
        return Checked((made.kbuild.tree / ".config").read_text(), made.misses)


@dataclass(frozen=True, slots=True)
class Source:
    """A source package whose files are here, by name."""

    package: SourcePackage
    files: dict[str, Path]


def fetched(
    package: SourcePackage, store: Store, *, offline: bool = False, say: Say | None = None
) -> Source:
    """Bring the files of `package` into the store, saying how much of them has come."""
    tell = say or _silent
    tell("fetch the source")
    total = sum(f.size for f in package.files)
    come = 0

    def progress(name: str, size: int) -> None:
        nonlocal come
        come += size
        if total:
            tell(f"fetch the source: {min(100, come * 100 // total)} %")

    return Source(package, fetch_source(package, store, progress, offline=offline))


def configured(
    recipe: Recipe,
    source: Source,
    store: Store,
    scratch: Path,
    *,
    log: Path,
    jobs: int | None = None,
    sign_key: Path | None = None,
    say: Say | None = None,
) -> Configured:
    """Return a tree in `scratch`, patched and configured, and say what did not take."""
    tell = say or _silent
    tree = scratch / "linux"
    make_tree(recipe, source.package, source.files, tree, tell)
    symbols = read_symbols(tree, recipe.facts.srcarch)
    refuse_unknown(recipe.options, symbols)
    options = recipe.options
    if sign_key is not None:
        key = tree / "certs" / "tegu.pem"
        key.touch(mode=0o600)
        shutil.copyfile(sign_key, key)
        options = {**options, **_signing("certs/tegu.pem")}
    fragment = scratch / "fragment.config"
    fragment.write_text(merged_text(options))
    timestamp = source_time(tree)
    kbuild = kbuild_of(recipe, tree, store, timestamp=timestamp, jobs=jobs, log=log)
    tell("configure")
    kbuild.configure(fragment)
    if (said := kbuild.output("kernelrelease")) != recipe.release:
        raise BuildError(
            f"the kernel calls itself {said}, the recipe {recipe.release}",
            hint="an option or a patch changes its version: CONFIG_LOCALVERSION must be empty, "
            "CONFIG_LOCALVERSION_AUTO off",
        )
    return Configured(kbuild, compare_config(options, kbuild.config(), symbols), timestamp)


def kbuild_of(
    recipe: Recipe, tree: Path, store: Store, *, timestamp: int, jobs: int | None, log: Path
) -> Kbuild:
    """Return the build of `tree` with the store's ccache, or $CCACHE_DIR; `log` starts empty."""
    log.unlink(missing_ok=True)
    return Kbuild(
        recipe,
        tree,
        timestamp=timestamp,
        cache=Path(os.environ.get("CCACHE_DIR") or store.root / CCACHE),
        jobs=jobs or os.cpu_count() or 1,
        log=log,
    )


def compiled(tree: Path) -> list[str]:
    """Return the source files and headers that a finished build has read, sorted.

    Kbuild notes them in `.NAME.cmd` for each object, and for what is preprocessed otherwise
    (linker scripts, device trees).
    """
    found: set[str] = set()
    for path in tree.rglob(".*.cmd"):
        for word in path.read_text(errors="replace").split():
            if word.endswith((".c", ".h", ".S")) and not word.startswith(("/", "$", "-")):
                found.add(word)
    return sorted(w for w in found if "generated/" not in w and (tree / w).is_file())


def built_sources(store: Store, release: str) -> frozenset[str] | None:
    """Return what the last build of `release` compiled; None when the store has none."""
    tree = _newest(store, release)
    return None if tree is None else frozenset((tree / _SOURCES).read_text().split())


def last_built(store: Store, release: str | None = None) -> Path | None:
    """Return the image package (of `release`) that was built or asked for last; None for none."""
    tree = _newest(store, release)
    return None if tree is None else _read(tree, cached=True).packages[0]


def _newest(store: Store, release: str | None) -> Path | None:
    # By when it was last asked for (Store.tree notes it): after going back to an earlier recipe
    # that is the one in use, whenever it was built.
    trees = [
        (path.parent.stat().st_mtime, path.parent)
        for path in (store.root / KIND).glob(f"*/{_FACTS}")
        if release in (None, json.loads(path.read_text())["release"])
    ]
    return max(trees, default=(0.0, None))[1]


def _silent(text: str) -> None:
    """Report nothing."""


def _signing(path: str) -> dict[str, Option]:
    reason = "asked for with --sign-key"
    return {
        "MODULE_SIG_ALL": Option("MODULE_SIG_ALL", "y", reason, "--sign-key", 0),
        "MODULE_SIG_KEY": Option("MODULE_SIG_KEY", f'"{path}"', reason, "--sign-key", 0),
    }


def _key(
    recipe: Recipe, package: SourcePackage, tools: dict[str, str], sign_key: Path | None
) -> str:
    """Hash all that decides about the bits."""
    digest = hashlib.sha256(f"tegu kernel {_VERSION}\n".encode())
    lines = [
        recipe.release,
        recipe.deb_version,
        recipe.architecture,
        *(f"{f.name} {f.sha256}" for f in package.files),
        *(f"{name} {text}" for name, text in sorted(tools.items())),
        merged_text(recipe.options),
    ]
    digest.update("\n".join(lines).encode())
    for name in _CODE:
        digest.update((Path(__file__).parent / f"{name}.py").read_bytes())
    tests = recipe.path.parent / _TESTS
    digest.update(tests.read_bytes() if tests.exists() else b"")
    for patch in recipe.patches:
        digest.update(patch.path.read_bytes())
    if sign_key is not None:
        pem = read_signing_key(sign_key)
        digest.update(b"signed " + pem)
    return digest.hexdigest()


def read_signing_key(path: Path) -> bytes:
    """Return the PEM text of a private key with its certificate.

    Raises UsageError when it cannot be read, DefinitionError when one of the two is missing.
    """
    try:
        pem = path.read_bytes()
    except OSError as e:
        raise UsageError(f"cannot read the key {path}: {e.strerror}") from e
    if b"PRIVATE KEY-----" not in pem or b"-----BEGIN CERTIFICATE-----" not in pem:
        raise DefinitionError(
            f"{path}: not a private key with its certificate",
            hint="openssl req -new -x509 -newkey rsa:3072 -nodes -days 3650 -subj /CN=kernel "
            "-keyout key.pem -out cert.pem && cat key.pem cert.pem > both.pem",
        )
    return pem


def _read(tree: Path, *, cached: bool) -> Built:
    facts = json.loads((tree / _FACTS).read_text())
    return Built(
        release=facts["release"],
        version=facts["version"],
        packages=tuple(tree / name for name in facts["packages"]),
        seconds=facts["seconds"],
        cached=cached,
        config=facts["config"],
        tools=facts["tools"],
    )
