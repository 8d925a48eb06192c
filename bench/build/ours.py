"""Tegu, through its command line only, as a user would run it."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import tempfile
from pathlib import Path

from bench.build.workload import ADDED, PACKAGES, SUITE, Case, Place, discard, restore, save
from bench.common import BenchError, Usage, measure

from tegu.packages import Lock
from tegu.process import run

__all__ = ["Tegu"]

KERNEL = "linux-image-cloud-amd64"

DEFINITION = """\
[system]
name = "bench"
version = "1"

[base]
suites = ["{suite}"]
mirror = "{mirror}"

[packages]
install = [{packages}]
tegu = false
{older}

[kernel]
package = "{kernel}"

[image]
size = "2G"
formats = ["raw"]

[[file]]
path = "/etc/bench"
content = "{content}"
"""

UPDATED = "openssh-server"
"""The package that is updated: often renewed for its security, with scripts and a service."""

UPDATED_FILE = "usr/sbin/sshd"
OLDER_DEB = "older.deb"

OLDER = f"""\
local = ["{OLDER_DEB}"]

[packages.pin]
{UPDATED} = "{{version}}"
"""

DOWNLOADS = frozenset({"VERSION", "blobs", "indexes", "locks", "partial", "tmp"})
"""What of the store is a download (packages and indexes), or no data at all."""


class Tegu:
    """Tegu: `tegu build`, which makes or renews the lock (indexes, solver) as it needs.

    Its raw disk boots under UEFI and under BIOS, so it does a little more than mkosi's.
    """

    name = "tegu"
    makes = "raw disk"

    def __init__(self, place: Place) -> None:
        self.place = place
        self.work = place.work
        self.kept = place.work.parent / "tegu.kept"
        self.env = {**os.environ, "TEGU_STORE": str(self.work / "store")}
        self.tegu = [sys.executable, "-m", "tegu"]
        self.work.mkdir(parents=True, exist_ok=True)
        self.older = ""

    def version(self) -> str:
        return run([*self.tegu, "--version"]).stdout.strip()

    def prepare(self, case: Case) -> None:
        self._define()
        if case == "cold":
            self._clear()
            return
        if not self.kept.exists():
            self._clear()
            self._build("out")
            save(self.work, self.kept, self.place.trash)
        if case == "update":
            self._prepare_update()
            return
        restore(self.work, self.kept, self.place.trash)
        if case == "warm":
            self._forget_all_but_downloads()
            (self.work / "tegu.lock").unlink()
            discard(self.work / "out", self.place.trash)

    def _prepare_update(self) -> None:
        """Build with an older version of one package, the newer one already downloaded."""
        kept = self.kept.with_name("tegu.kept.update")
        if not kept.exists():
            restore(self.work, self.kept, self.place.trash)
            self._make_older()
            # What was built from the newer version must not be found again.
            self._forget_all_but_downloads()
            self._define(older=True)
            self._build("out")
            if UPDATED not in self._differences():
                raise BenchError(f"the older {UPDATED} did not get into the lock")
            save(self.work, kept, self.place.trash)
        restore(self.work, kept, self.place.trash)

    def _make_older(self) -> None:
        """Repack one package as if it were the version before: another number, another program."""
        locked = {p.name: p for p in Lock.read(self.kept / "tegu.lock").system}[UPDATED]
        genuine = self.place.mirror.get(f"debian/{locked.filename}")
        if genuine is None:
            raise BenchError(f"the mirror no longer has {locked.filename}")
        self.older = f"{locked.version}~older"
        with tempfile.TemporaryDirectory(dir=self.work) as scratch:
            tree = Path(scratch)
            run(["dpkg-deb", "--raw-extract", genuine, tree])
            control = tree / "DEBIAN/control"
            text = re.sub(r"(?m)^Version: .*$", f"Version: {self.older}", control.read_text())
            control.write_text(text)
            with (tree / UPDATED_FILE).open("ab") as program:
                program.write(bytes(16))
            run(["dpkg-deb", "--root-owner-group", "--build", tree, self.work / OLDER_DEB])

    def _differences(self) -> set[str]:
        """Return the names of packages whose version is not the one of the kept lock."""
        before = {p.name: p.version for p in Lock.read(self.kept / "tegu.lock").system}
        now = {p.name: p.version for p in Lock.read(self.work / "tegu.lock").system}
        return {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}

    def build(self, case: Case) -> Usage:
        match case:
            case "cold" | "warm" | "unchanged":
                pass
            case "file":
                self._define(content="second")
            case "package":
                self._define(packages=(*PACKAGES, ADDED))
            case "update":
                self._define()
                used = self._build("out", update=UPDATED)
                if self._differences():
                    raise BenchError(f"tegu lock did not update {UPDATED}")
                return used
        return self._build("out")

    def _build(self, output: str, *, update: str = "") -> Usage:
        build = [*self.tegu, "build", "-f", "tegu.toml", "-o", output]
        if update:
            lock = [*self.tegu, "lock", "-f", "tegu.toml", "--update", update]
            build = ["sh", "-c", '"$@" && shift $# && exec ' + " ".join(build), "sh", *lock]
        return measure(build, env=self.env, cwd=self.work, log=self.work / "log")

    def equals_clean(self) -> bool:
        """Build once more from the downloads alone; return whether the raw image is the same."""
        incremental = self._image("out")
        self._forget_all_but_downloads()
        self._build("clean")
        return incremental == self._image("clean")

    def _image(self, output: str) -> str:
        images = sorted((self.work / output).glob("*.raw"))
        if len(images) != 1:
            raise BenchError(f"tegu left {len(images)} raw images in {output}")
        with images[0].open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _define(
        self,
        *,
        packages: tuple[str, ...] = PACKAGES,
        content: str = "first",
        older: bool = False,
    ) -> None:
        text = DEFINITION.format(
            suite=SUITE,
            mirror=self.place.mirror.uri(),
            packages=", ".join(f'"{p}"' for p in packages if p != KERNEL),
            older=OLDER.format(version=self.older) if older else "",
            kernel=KERNEL,
            content=content,
        )
        (self.work / "tegu.toml").write_text(text)

    def _clear(self) -> None:
        for name in ("store", "out", "clean"):
            discard(self.work / name, self.place.trash)
        (self.work / "tegu.lock").unlink(missing_ok=True)

    def _forget_all_but_downloads(self) -> None:
        for entry in (self.work / "store").iterdir():
            if entry.name not in DOWNLOADS:
                discard(entry, self.place.trash)

    def folders(self) -> list[Path]:
        return [self.work / "store", self.work / "out"]
