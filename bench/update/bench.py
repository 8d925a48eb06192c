"""How many bytes does a machine fetch to come from one image to the next?

Two images of Tegu's server profile: of the distribution's last point release, and of what it is
now with updates and security fixes. Once with all packages that differ, once with the old kernel
kept. Beside the delta: the whole image, the changed packages, content-defined chunks (casync), and
`zstd --patch-from` on the whole tree, each made and applied by whole commands.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.common import Bar, BenchResult, Usage, machine, measure

from tegu.errors import UnsupportedError
from tegu.process import require
from tegu.process import run as execute

__all__ = ["run"]

_TEGU = (sys.executable, "-m", "tegu")
_APPLY = (
    "import sys; from pathlib import Path; from tegu.host.upgrade.delta import apply;"
    " apply(*map(Path, sys.argv[1:]))"
)
_SHIPPED = Path(__file__).parents[2] / "distro" / "tegu.toml"
_FULL, _PATCH, _OURS = "whole image, zstd -19", "zstd -19 --patch-from", "Tegu"


@dataclass(frozen=True, slots=True)
class Image:
    """An image of the server profile: its tar, its tree, and its packages (name to lock entry)."""

    tar: Path
    tree: Path
    packages: dict[str, dict[str, object]]


@dataclass(frozen=True, slots=True)
class Way:
    """One way to update: bytes fetched, what making and applying cost (None: not measured)."""

    name: str
    fetched: int
    make: Usage | None = None
    apply: Usage | None = None


def run(quick: bool) -> BenchResult:
    """Measure both cases; `quick` only the one in which the kernel changes as well.

    Takes about ten minutes of CPU time for each case, most of it zstd's, and 3 GiB of memory.
    """
    if os.geteuid() != 0:
        raise UnsupportedError("trees with their owners are unpacked here: run it as root")
    require("zstd", package="zstd")
    about = machine()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tegu-bench"
    cache.mkdir(parents=True, exist_ok=True)
    ways: dict[str, list[Way]] = {}
    with tempfile.TemporaryDirectory(prefix="update-", dir=cache) as scratch:
        home = Path(scratch)
        old = _built(home / "old", ["trixie"])
        suites = ["trixie", "trixie-updates", "trixie-security"]
        cases = {"kernel too": _built(home / "new", suites)}
        if not quick:
            kernel = str(old.packages["linux-image-cloud-amd64"]["version"])
            cases["same kernel"] = _built(home / "same", suites, kernel=kernel)
        for name, new in cases.items():
            place = home / name.replace(" ", "-")
            place.mkdir()
            ways[f"{len(_changed(old, new))} packages, {name}"] = _ways(place, old, new)
    notes = [
        f"Of {len(old.packages)} packages. Seconds are CPU time of the whole process tree. What apt"
        " and dpkg do with packages is not measured.",
    ]
    if shutil.which("casync") is None:
        notes.append("Chunks were not measured: casync is not installed.")
    return BenchResult("update", about, _rows(ways), _bars(ways), notes)


def _built(home: Path, suites: Sequence[str], *, kernel: str | None = None) -> Image:
    """Build the server profile of those suites and unpack its tree."""
    home.mkdir()
    lines = [f'include = ["{_SHIPPED}"]', "[base]", f"suites = {list(suites)!r}"]
    lines += ["[image]", 'formats = ["tar"]']
    if kernel is not None:
        lines += ["[packages.pin]", f'linux-image-cloud-amd64 = "{kernel}"']
    (home / "tegu.toml").write_text("\n".join(lines) + "\n")
    execute([*_TEGU, "build", "--profile", "server", "-o", home / "out"], cwd=home, timeout=3600)
    (tar,) = (home / "out").glob("*.tar")
    tree = home / "tree"
    tree.mkdir()
    execute(
        ["tar", "-xpf", tar, "-C", tree, "--xattrs", "--xattrs-include=*", "--numeric-owner"],
        timeout=900,
    )
    lock = tomllib.loads((home / "tegu.server.lock").read_text())
    return Image(tar, tree, {p["name"]: p for p in lock["system"]})


def _changed(old: Image, new: Image) -> list[dict[str, object]]:
    before = {str(p["sha256"]) for p in old.packages.values()}
    return [p for p in new.packages.values() if p["sha256"] not in before]


def _ways(place: Path, old: Image, new: Image) -> list[Way]:
    packages = sum(int(str(p["size"])) for p in _changed(old, new))
    ways = [_full(place, new), Way("changed .debs", packages)]
    if shutil.which("casync") is not None:
        ways.append(_chunks(place, old, new))
    return [*ways, _patch(place, old, new), _ours(place, old, new)]


def _full(place: Path, new: Image) -> Way:
    packed, out = place / "full.zst", place / "full.tar"
    make = measure(["zstd", "-19", "-T1", "-q", new.tar, "-o", packed])
    apply = measure(["zstd", "-dq", packed, "-o", out])
    out.unlink()
    return Way(_FULL, packed.stat().st_size, make, apply)


def _chunks(place: Path, old: Image, new: Image) -> Way:
    """Chunks of the tree that the old tree's store has not, compressed, and the index."""
    measure(["casync", "make", f"--store={place / 'old.castr'}", place / "old.caidx", old.tree])
    index, store = place / "new.caidx", place / "new.castr"
    make = measure(["casync", "make", f"--store={store}", index, new.tree])
    had = {p.name for p in (place / "old.castr").rglob("*.cacnk")}
    chunks = [p for p in store.rglob("*.cacnk") if p.name not in had]
    target = place / "chunks"
    apply = measure(["casync", "extract", f"--store={store}", index, target])
    shutil.rmtree(target)
    size = sum(p.stat().st_size for p in chunks) + index.stat().st_size
    return Way("chunks, casync", size, make, apply)


def _patch(place: Path, old: Image, new: Image) -> Way:
    packed, out = place / "patch.zst", place / "patched.tar"
    window = max(27, max(old.tar.stat().st_size, new.tar.stat().st_size).bit_length())
    options = ["-q", f"--long={window}", f"--patch-from={old.tar}"]
    make = measure(["zstd", "-19", "-T1", *options, new.tar, "-o", packed])
    apply = measure(["zstd", "-d", *options, packed, "-o", out])
    execute(["cmp", new.tar, out], timeout=900)
    out.unlink()
    return Way(_PATCH, packed.stat().st_size, make, apply)


def _ours(place: Path, old: Image, new: Image) -> Way:
    delta, target = place / "tegu.tgd", place / "target"
    make = measure([*_TEGU, "release", "delta", old.tree, new.tree, "-o", delta])
    apply = measure([sys.executable, "-c", _APPLY, old.tree, delta, target])
    shutil.rmtree(target)  # apply itself has held it against the new tree's digest
    return Way(_OURS, delta.stat().st_size, make, apply)


def _rows(ways: dict[str, list[Way]]) -> list[dict[str, object]]:
    return [
        {
            "case": case,
            "way": way.name,
            "MB fetched": way.fetched / 1e6,
            "of the whole": way.fetched / _named(found, _FULL).fetched,
            "make s": way.make.cpu if way.make else None,
            "apply s": way.apply.cpu if way.apply else None,
            "make MiB": way.make.peak_mib if way.make else None,
            "apply MiB": way.apply.peak_mib if way.apply else None,
        }
        for case, found in ways.items()
        for way in found
    ]


def _named(ways: Sequence[Way], name: str) -> Way:
    return next(w for w in ways if w.name == name)


def _bars(ways: dict[str, list[Way]]) -> list[Bar]:
    bars = []
    for case, found in ways.items():
        ours = _named(found, _OURS).fetched
        whole, patch = _named(found, _FULL).fetched, _named(found, _PATCH).fetched
        bars.append(Bar.at_most(f"{case}: Tegu / whole image, bytes", ours / whole, 0.08))
        bars.append(Bar.at_most(f"{case}: Tegu / --patch-from, bytes", ours / patch, 1.0))
    return bars
