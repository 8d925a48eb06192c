"""Runs the kernel's own build system, the same way everywhere, so that the same bits come out.

What makes a build repeat: Documentation/kbuild/reproducible-builds.rst.
"""

from __future__ import annotations

import os
import re
import shlex
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from tegu.errors import BuildError, UsageError
from tegu.kernel.fragments import parse_config
from tegu.kernel.recipe import Recipe
from tegu.process import CommandError, require, run

__all__ = ["Kbuild"]

PLACE = "/usr/src"
"""Where the build sees its tree, wherever that is (hier(7) has the directory everywhere).

A fixed place keeps paths out of the objects, and makes them the same to ccache in every build.
"""

_HOURS = 3600
_SYMVERSIONS = Path(__file__).with_name("symversions.sh")
# In a mount namespace of its own, which ends with the build.
_ENTER = 'mount --bind "$1" "$2" && cd "$2" && shift 2 && exec "$@"'
_ERROR = re.compile(r"(?:^|\s)(?:fatal )?error: |\*\*\* |undefined reference|No space left")


class Kbuild:
    """The build of one tree. `timestamp` is in seconds since the epoch, `cache` ccache's."""

    def __init__(
        self, recipe: Recipe, tree: Path, *, timestamp: int, cache: Path, jobs: int, log: Path
    ) -> None:
        for place in (tree, cache):
            # The kernel's makefiles split their variables at blanks, and so do its scripts.
            if re.search(r"[\s:'\"$#\\]", str(place)):
                raise UsageError(
                    f"a kernel cannot be built below {place}: the path has a blank or one of "
                    ": ' \" $ # \\",
                    hint="name another store with TEGU_STORE",
                )
        self.recipe = recipe
        self.tree = tree
        self.jobs = jobs
        self.log = log
        moment = datetime.fromtimestamp(timestamp, UTC)
        self._env = {
            **_inherited(),
            "LC_ALL": "C",
            "TZ": "UTC",
            "SOURCE_DATE_EPOCH": str(timestamp),
            "KBUILD_BUILD_TIMESTAMP": moment.strftime("%a %b %d %H:%M:%S UTC %Y"),
            "KBUILD_BUILD_USER": "tegu",
            "KBUILD_BUILD_HOST": "tegu",
            "KBUILD_BUILD_VERSION": str(recipe.revision),
            "CCACHE_DIR": str(cache),
            "CCACHE_NOHASHDIR": "1",
        }
        prefix = recipe.facts.prefix
        self._options = [
            f"ARCH={recipe.facts.arch}",
            f"CROSS_COMPILE={prefix}",
            f"CC=ccache {prefix}gcc",
            "HOSTCC=ccache gcc",
            f"KCFLAGS=-ffile-prefix-map={PLACE}=/usr/src/linux",
            f"LOCALVERSION=-{recipe.name}",
            # Its own variable for this (scripts/Makefile.build), out of a cache.
            f"cmd_gensymtypes_c=sh {shlex.quote(str(_SYMVERSIONS)).replace('$', '$$')} "
            "$(dot-target).cmd $(CPP) -D__GENKSYMS__ $(c_flags) $<",
        ]

    def make(self, *targets: str, say: Callable[[str], None] | None = None) -> str:
        """Run make for `targets`; returns its output. BuildError quotes the first error."""
        start = self.log.stat().st_size if self.log.exists() else 0
        argv = [*self._entered(), "make", f"-j{self.jobs}", *self._options, *targets]
        with self.log.open("ab") as out, self._watched(start, say):
            try:
                done = run(argv, env=self._env, stdout=out, check=False, timeout=12 * _HOURS)
            except CommandError as e:
                raise BuildError(e.message) from e
            out.write(done.stderr.encode())
        with self.log.open("rb") as f:
            f.seek(start)
            text = f.read().decode(errors="replace")
        if done.returncode != 0:
            lines = [*done.stderr.splitlines(), *text.splitlines()]
            last = lines[-1].strip() if lines else "no message"
            first = next((x.strip() for x in lines if _ERROR.search(x)), last)
            raise BuildError(
                f"the kernel's make {' '.join(targets)} failed: {first}",
                hint=f"all of its output is in {self.log}",
            )
        return text

    def shell(self, command: str) -> None:
        """Run a command line as make would: in the tree at its place, with make's environment.

        Raises BuildError with the first error that it prints.
        """
        done = run(
            [*self._entered(), "sh", "-c", command], env=self._env, check=False, timeout=_HOURS
        )
        if done.returncode != 0:
            lines = [*done.stderr.splitlines(), *done.stdout.splitlines(), "no message"]
            first = next((x.strip() for x in lines if _ERROR.search(x)), lines[0])
            raise BuildError(f"{command.split(maxsplit=1)[0]} failed: {first}")

    def _entered(self) -> list[str]:
        """Return the command that runs what follows it with the tree at `PLACE`."""
        user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        unshare = [require("unshare", package="util-linux"), *user, "--mount"]
        return [*unshare, "sh", "-c", _ENTER, "sh", str(self.tree), PLACE]

    @contextmanager
    def _watched(self, start: int, say: Callable[[str], None] | None) -> Iterator[None]:
        """Tell how many files are done, while make runs."""
        if say is None:
            yield
            return
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(2):
                with self.log.open("rb") as f:
                    f.seek(start)
                    text = f.read()
                say(f"compile: {text.count(b'  CC ')} files")

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def output(self, *targets: str) -> str:
        """Run make silently for `targets` and return what it prints ("kernelrelease")."""
        argv = [*self._entered(), "make", "-s", *self._options, *targets]
        try:
            return run(argv, env=self._env, timeout=600).stdout.strip()
        except CommandError as e:
            raise BuildError(f"the kernel's make {' '.join(targets)} failed: {e.message}") from e

    def run(self, *argv: str | Path, timeout: float = 600) -> str:
        """Run another program in the tree, at its place; returns what it prints."""
        try:
            return run([*self._entered(), *argv], env=self._env, timeout=timeout).stdout
        except CommandError as e:
            raise BuildError(e.message) from e

    def config(self) -> dict[str, str]:
        """Return the values of `.config`."""
        return parse_config((self.tree / ".config").read_text())

    def has_modules(self) -> bool:
        """Say whether `.config` is of a kernel that can load modules."""
        return self.config().get("MODULES") == "y"

    def sign(self, module: Path) -> None:
        """Sign a module that no `modules_install` has signed, if this build signs at all.

        Documentation/admin-guide/module-signing.rst, "Manually signing modules".
        """
        config = self.config()
        if config.get("MODULE_SIG_ALL") != "y":
            return
        key, digest = (config[f"MODULE_SIG_{name}"].strip('"') for name in ("KEY", "HASH"))
        # The key's file holds the certificate too (certs/Makefile).
        self.run("scripts/sign-file", digest, key, key, module)

    def configure(self, fragment: Path, overrides: Sequence[str] = ()) -> None:
        """Make `.config` from nothing but the options in `fragment`.

        With KCONFIG_ALLCONFIG, allnoconfig takes these values and says no to all other questions
        (Documentation/kbuild/kconfig.rst).
        """
        self.make(f"KCONFIG_ALLCONFIG={fragment}", *overrides, "allnoconfig")


def _inherited() -> dict[str, str]:
    """What the build takes from its surroundings: where programs are, and nothing that speaks."""
    kept = {k: v for k, v in os.environ.items() if k in ("HOME", "TMPDIR", "CCACHE_MAXSIZE")}
    return {**kept, "PATH": os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"}
