"""The peers: mkosi and mmdebstrap, each told to do no more than the comparison needs."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

from bench.build.workload import ADDED, PACKAGES, SUITE, Case, Place, discard, restore, save
from bench.common import Usage, measure

from tegu.process import require, run

__all__ = ["Mkosi", "Mmdebstrap"]

TOOLS_LIFE = 30 * 24 * 3600

MKOSI_CONF = """\
[Distribution]
Distribution=debian
Release={suite}
LocalMirror={mirror}

[Output]
Format=disk
OutputDirectory={work}/out
ManifestFormat=

[Content]
Bootable=yes
Bootloader=uki
Packages={packages}

[Build]
BuildSources=
ToolsTree={tools}
CacheDirectory={work}/cache
PackageCacheDirectory={work}/packages
WorkspaceDirectory={work}/tmp
"""


class Mmdebstrap:
    """mmdebstrap: a tar of the root file system.

    It keeps nothing between runs, so every case is the same build; packages come from the mirror
    on 127.0.0.1, which is as near as its own cache could be.
    """

    name = "mmdebstrap"
    makes = "tar"

    def __init__(self, place: Place) -> None:
        self.place = place
        self.program = require("mmdebstrap", package="mmdebstrap")
        place.work.mkdir(parents=True, exist_ok=True)
        self.output = place.work / "root.tar"

    def version(self) -> str:
        return run([self.program, "--version"]).stdout.strip()

    def prepare(self, case: Case) -> None:
        discard(self.output, self.place.trash)

    def build(self, case: Case) -> Usage:
        packages = [*PACKAGES, *([ADDED] if case == "package" else [])]
        argv = [self.program, "--quiet", "--variant=essential", f"--include={','.join(packages)}"]
        return measure(
            [*argv, SUITE, self.output, self.place.mirror.uri()],
            env={**os.environ, "TMPDIR": str(self.place.work)},
            log=self.place.work / "log",
        )

    def folders(self) -> list[Path]:
        return [self.place.work]


class Mkosi:
    """mkosi as Debian ships it in the suite that is built: a disk with a UKI, UEFI only.

    Its tools (and mkosi itself) come from a tools tree of the same suite, made beforehand and not
    measured. `LocalMirror` keeps it to one index; incremental mode is used where it helps.
    """

    name = "mkosi"
    makes = "raw disk"

    def __init__(self, place: Place) -> None:
        self.place = place
        self.tools = place.cache / f"mkosi-tools-{SUITE}"
        self.kept = place.work.parent / "mkosi.kept"
        self._make_tools()
        place.work.mkdir(parents=True, exist_ok=True)
        modules = self.tools / "usr/lib/python3/dist-packages"
        self.env = {**os.environ, "PYTHONPATH": str(modules)}
        self.mkosi = [sys.executable, "-m", "mkosi"]
        for folder in ("out", "cache", "packages", "tmp", "mkosi.extra/etc"):
            (place.work / folder).mkdir(parents=True)
        (place.work / "mkosi.extra/etc/bench").write_text("first\n")
        self._configure()

    def _configure(self, *more: str) -> None:
        """Write the configuration; a --package option would go into the initrd as well."""
        text = MKOSI_CONF.format(
            suite=SUITE,
            mirror=self.place.mirror.uri(),
            work=self.place.work,
            tools=self.tools,
            # The stub of the unified kernel image is taken from the image itself.
            packages=",".join([*PACKAGES, "systemd-boot-efi", *more]),
        )
        (self.place.work / "mkosi.conf").write_text(text)

    def _make_tools(self) -> None:
        if self.tools.exists() and time.time() - self.tools.stat().st_mtime < TOOLS_LIFE:
            return
        mmdebstrap = require("mmdebstrap", package="mmdebstrap")
        new = self.tools.with_suffix(".new")
        for stale in (new, self.tools):
            if stale.exists():
                shutil.rmtree(stale)
        new.parent.mkdir(parents=True, exist_ok=True)
        argv = [mmdebstrap, "--quiet", "--variant=apt", "--include=mkosi", SUITE]
        run([*argv, new, self.place.mirror.uri()], timeout=1800)
        os.utime(new)
        new.rename(self.tools)

    def version(self) -> str:
        return run([*self.mkosi, "--version"], env=self.env).stdout.strip()

    def prepare(self, case: Case) -> None:
        (self.place.work / "mkosi.extra/etc/bench").write_text("first\n")
        self._configure()
        for folder in ("out", "cache"):
            self._empty(folder)
        if case == "cold":
            self._empty("packages")
        if case in ("cold", "warm"):
            return
        if not self.kept.exists():
            self._run("--incremental=yes", "--force")
            save(self.place.work / "cache", self.kept / "cache", self.place.trash)
            save(self.place.work / "out", self.kept / "out", self.place.trash)
        if case == "package" and not any((self.place.work / "packages").rglob(f"{ADDED}_*.deb")):
            # Its download is not what is compared.
            self._configure(ADDED)
            self._run("--force")
            self._configure()
        for folder in ("out", "cache"):
            restore(self.place.work / folder, self.kept / folder, self.place.trash)

    def build(self, case: Case) -> Usage:
        match case:
            case "cold" | "warm":
                return self._run("--force")
            case "unchanged":
                pass
            case "file":
                (self.place.work / "mkosi.extra/etc/bench").write_text("second\n")
            case "package" | "update":
                # mkosi 25 would take its initrd from the cache here, and then fails in apt (kmod is
                # purged after dpkg). And its cache never looks at the mirror again. So for both
                # the caches have to go, which is what --force twice does.
                self._configure(*([ADDED] if case == "package" else []))
                return self._run("--incremental=yes", "--force", "--force")
        return self._run("--incremental=yes", "--force")

    def _run(self, *options: str) -> Usage:
        argv = [*self.mkosi, *options, "build"]
        return measure(argv, env=self.env, cwd=self.place.work, log=self.place.work / "log")

    def _empty(self, folder: str) -> None:
        discard(self.place.work / folder, self.place.trash)
        (self.place.work / folder).mkdir()

    def folders(self) -> list[Path]:
        return [self.place.work / name for name in ("out", "cache", "packages")]
