"""Commits to choose from and to build, one after the other, in a work tree of their own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tegu.errors import BuildError, UsageError
from tegu.kernel.bootfiles import KernelFiles, kernel_files, unpack_kernel
from tegu.kernel.build import CCACHE
from tegu.kernel.fragments import merged_text
from tegu.kernel.gitrepo import Repo
from tegu.kernel.kbuild import Kbuild
from tegu.kernel.objects import is_kernel
from tegu.kernel.toolchain import require_toolchain
from tegu.process import CommandError, run

if TYPE_CHECKING:
    from tegu.kernel.recipe import Recipe
    from tegu.store import Store

__all__ = ["CommitBuilder", "CommitLine", "Product", "commit_builder"]

_HOURS = 3600
_TAIL = 20_000  # characters of a build's output that an error quotes
_CANNOT_TELL = 125


class CommitLine:
    """The commits between two: git's own bisection, which knows branches and merges."""

    def __init__(self, repo: Repo, good: str, bad: str) -> None:
        self.repo = repo
        self.good, self.bad = repo.commit(good), repo.commit(bad)
        if not repo.is_ancestor(self.good, self.bad):
            base = (repo.bases(self.good, self.bad) or [""])[0]
            raise UsageError(
                f"{good} is not an ancestor of {bad}",
                hint=f"name where they part as --good: {base[:12]}"
                if base
                else "they have no commit in common",
            )

    def suspects(self, good: Sequence[str], bad: str) -> list[str]:
        """Return `bad` and what leads to it, but to none of `good`; parents first."""
        done = self.repo.git(
            "rev-list", "--topo-order", "--reverse", bad, *(f"^{g}" for g in good), "--"
        )
        return done.stdout.split()

    def middle(self, good: Sequence[str], bad: str, out: Iterable[str]) -> str | None:
        """Return the commit that halves the rest best (git-rev-list(1), --bisect-all)."""
        away = {*out, bad}
        done = self.repo.git("rev-list", "--bisect-all", bad, *(f"^{g}" for g in good), "--")
        names = (line.partition(" ")[0] for line in done.stdout.splitlines())
        return next((n for n in names if n not in away), None)

    def subject(self, commit: str) -> str:
        """Return the first line of what the commit says."""
        return self.repo.git("log", "-1", "--format=%s", commit, "--").stdout.strip()


@dataclass(frozen=True, slots=True)
class Product:
    """What a commit was built into: a kernel, or a whole image."""

    kernel: KernelFiles | None
    image: Path | None


class CommitBuilder:
    """Builds commits in `work`, a work tree that stays, so that each costs what has changed.

    With `command`, that line is run by sh(1) there, and leaves what is to be booted in `$OUT`.
    Without, the kernel is built with the configuration of `recipe`, by ccache.
    """

    def __init__(
        self,
        repo: Repo,
        work: Path,
        store: Store,
        *,
        recipe: Recipe | None,
        command: str | None,
        jobs: int | None = None,
    ) -> None:
        self.repo = repo
        self.work = work
        self.store = store
        self.recipe = recipe
        self.command = command
        self.jobs = jobs or os.cpu_count() or 1

    def build(self, commit: str, out: Path, say: Callable[[str], None]) -> Product:
        """Check `commit` out and build it into the new directory `out`.

        Raises BuildError when this commit does not build; UsageError when the command leaves
        nothing to boot.
        """
        say("check out")
        self.repo.git("checkout", "--quiet", "--force", "--detach", commit, cwd=self.work)
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        say("build")
        if self.command is not None:
            self._by_command(commit, out)
            return _product(out)
        return self._by_recipe(commit, out, say)

    def _by_command(self, commit: str, out: Path) -> None:
        assert self.command is not None
        try:
            done = run(
                ["sh", "-c", self.command],
                cwd=self.work,
                env={**os.environ, "OUT": str(out), "COMMIT": commit, "JOBS": str(self.jobs)},
                check=False,
                timeout=12 * _HOURS,
            )
        except CommandError as e:
            raise BuildError(e.message) from e
        if done.returncode != 0:
            said = f"{done.stdout}\n{done.stderr}".strip()[-_TAIL:]
            lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
            last = lines[-1] if lines else f"exit code {done.returncode}"
            how = "says that it cannot be built" if done.returncode == _CANNOT_TELL else "failed"
            raise BuildError(f"the build {how}: {last}", hint=said)

    def _by_recipe(self, commit: str, out: Path, say: Callable[[str], None]) -> Product:
        if self.recipe is None:
            raise UsageError("commits are built by a recipe or by --build")
        if not is_kernel(self.work):
            raise BuildError(f"{commit[:12]} is no kernel tree", hint="build it by --build COMMAND")
        require_toolchain()
        (raw,) = self.repo.read([commit])
        log = self.store.small("kernel-logs-1", f"bisect-{os.getpid()}.log")
        log.unlink(missing_ok=True)
        kbuild = Kbuild(
            self.recipe,
            self.work,
            timestamp=raw.committed,
            cache=Path(os.environ.get("CCACHE_DIR") or self.store.root / CCACHE),
            jobs=self.jobs,
            log=log,
        )
        fragment = self.work / ".tegu-fragment"
        fragment.write_text(merged_text(self.recipe.options))
        kbuild.configure(Path(fragment.name))
        kbuild.make(self.recipe.facts.target, "modules", say=say)
        kbuild.make("INSTALL_MOD_PATH=.tegu-modules", "modules_install")
        release = kbuild.make("-s", "kernelrelease").split()[-1]
        image = Path(shutil.copy2(self.work / self.recipe.facts.image, out / f"vmlinuz-{release}"))
        made = self.work / ".tegu-modules" / "lib"
        if made.is_dir():
            shutil.move(made, out / "lib")
        for link in ("build", "source"):
            (out / "lib/modules" / release / link).unlink(missing_ok=True)
        log.unlink(missing_ok=True)
        return Product(kernel_files(out, image, release), None)


@contextmanager
def commit_builder(
    repo: Repo,
    store: Store,
    *,
    recipe: Recipe | None,
    command: str | None,
    jobs: int | None = None,
) -> Iterator[CommitBuilder]:
    """Lend a builder; its work tree is in the store, and gone at the end."""
    with store.shared(), store.scratch() as scratch:
        work = scratch / "tree"
        repo.git("worktree", "add", "--quiet", "--detach", "--no-checkout", str(work), "HEAD")
        try:
            yield CommitBuilder(repo, work, store, recipe=recipe, command=command, jobs=jobs)
        finally:
            repo.git("worktree", "remove", "--force", str(work), check=False)


def _product(out: Path) -> Product:
    """Return what a command has left in `out`: an image, a package, or a kernel."""
    images = [p for p in out.iterdir() if p.suffix in (".qcow2", ".raw")]
    packages = [p for p in out.glob("*.deb") if "-headers-" not in p.name]
    kernels = [p for p in out.iterdir() if p.name.startswith(("vmlinuz", "bzImage"))]
    found = [*images, *packages, *kernels]
    if len(found) != 1:
        names = ", ".join(sorted(p.name for p in found)) or "nothing"
        raise UsageError(
            f"the build left {names} in $OUT",
            hint="it must be one image (*.qcow2, *.raw), one kernel package (*.deb), or one "
            "kernel (vmlinuz-RELEASE) with its modules in lib/modules/RELEASE",
        )
    if images:
        return Product(None, images[0])
    if packages:
        return Product(unpack_kernel(packages[0], out / "unpacked"), None)
    release = kernels[0].name.partition("-")[2]
    given = out / "initrd.img"
    files = kernel_files(out, kernels[0], release) if release else None
    if given.is_file():
        return Product(KernelFiles(kernels[0], given, files.modules if files else None), None)
    return Product(files or KernelFiles(kernels[0], None, None), None)
