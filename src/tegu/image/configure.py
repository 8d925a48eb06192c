"""Maintainer scripts: what turns unpacked packages into an installed system.

dpkg does the work, in a sandbox. Steps that every such run would repeat, or that must not happen
in an image at all, are kept out by shims bound over the programs that do them; what a shim leaves
out is done once afterwards (`tegu.image.derived`) or at the machine's first boot.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tegu.errors import BuildError
from tegu.image.dpkgdb import ADMIN, info_name
from tegu.image.sandbox import Sandbox
from tegu.image.shortcuts import scripts, shortened
from tegu.image.unpack import Unpacked
from tegu.linux import bind, unmount
from tegu.process import Completed

__all__ = ["SHIMS", "configure", "run_preinsts"]

_NOTHING = "#!/bin/sh\nexit 0\n"

# Program to its shim. Each must be a pure matter of derived data, or of identity.
SHIMS: dict[str, str] = {
    # Byte code: compiled once per package, kept in the store.
    "usr/bin/py3compile": _NOTHING,
    "usr/lib/python3.*/py_compile.py": "",
    # The bundle and the hashed links: once, when every certificate is there.
    "usr/sbin/update-ca-certificates": _NOTHING,
    # Host keys: made at first boot, by the machine itself.
    "usr/bin/ssh-keygen": _NOTHING,
    # The hardware database: compiled once.
    "usr/bin/systemd-hwdb": _NOTHING,
    # The message catalogue: compiled once.
    "usr/bin/journalctl": _NOTHING,
    # The linker's cache: made once, after the last library.
    "usr/sbin/ldconfig": _NOTHING,
    # The index of kernel modules: made once.
    "usr/sbin/depmod": _NOTHING,
    # The initrd is made with the disk (`tegu.boot`), and no other is booted from.
    "usr/sbin/update-initramfs": _NOTHING,
}

# deb-systemd-helper starts a Perl for every question that every script asks of every unit. On a
# first installation the answers are known; what is to be enabled is handed to it in one call.
_HELPER = "usr/bin/deb-systemd-helper"
_HELPER_KEPT = "/run/tegu-deb-systemd-helper"
_HELPER_LIST = "run/tegu-units"
_HELPER_SHIM = f"""#!/bin/sh
scope=system
verb=
units=
for word in "$@"; do
    case "$word" in
        --user) scope=user ;;
        --system) scope=system ;;
        --quiet) ;;
        -*) exec {_HELPER_KEPT} "$@" ;;
        *) if [ -z "$verb" ]; then verb="$word"; else units="$units $word"; fi ;;
    esac
done
case "$verb" in
    unmask | was-enabled)
        for unit in $units; do
            for state in /var/lib/systemd/deb-systemd-*helper-*/"$unit"*; do
                [ ! -e "$state" ] || exec {_HELPER_KEPT} "$@"
            done
        done ;;
    enable | update-state)
        for unit in $units; do echo "$scope $verb $unit" >>/{_HELPER_LIST}; done ;;
    *) exec {_HELPER_KEPT} "$@" ;;
esac
exit 0
"""

_DPKG = ("dpkg", "--force-unsafe-io", "--force-confdef", "--force-confold")


@contextmanager
def _shimmed(box: Sandbox, scratch: Path) -> Iterator[None]:
    bound = []
    try:
        helper = box.root / _HELPER
        if helper.is_file():
            kept = box.root / _HELPER_KEPT.lstrip("/")
            kept.write_bytes(helper.read_bytes())
            kept.chmod(0o755)
            shim = scratch / "shim-helper"
            shim.write_text(_HELPER_SHIM)
            shim.chmod(0o755)
            bind(shim, helper)
            bound.append(helper)
        for pattern, text in SHIMS.items():
            shim = scratch / f"shim-{Path(pattern).name}"
            shim.write_text(text)
            shim.chmod(0o755)
            for target in sorted(box.root.glob(pattern)):
                if target.is_file():
                    bind(shim, target)
                    bound.append(target)
        for name in scripts():
            target = box.root / ADMIN / "info" / name
            quick = shortened(name, target.read_text()) if target.is_file() else None
            if quick is not None:
                shim = scratch / f"shim-{name}"
                shim.write_text(quick)
                shim.chmod(0o755)
                bind(shim, target)
                bound.append(target)
        yield
    finally:
        for target in reversed(bound):
            unmount(target)


@contextmanager
def _no_daemons(box: Sandbox) -> Iterator[None]:
    """Keep maintainer scripts from starting services (invoke-rc.d(8), policy-rc.d)."""
    policy = box.root / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()


def _dependency_order(packages: Sequence[Unpacked]) -> list[Unpacked]:
    """Sort for preinst: pre-dependencies first, then by name; base-passwd before all.

    base-passwd's preinst makes the users that the others' scripts name.
    """
    by_name = {p.package.name: p for p in packages}
    done: dict[str, None] = {}

    def visit(name: str, path: frozenset[str]) -> None:
        package = by_name.get(name)
        if package is None or name in done or name in path:
            return
        needs = re.findall(
            r"(?:^|[,|])\s*([a-z0-9][a-z0-9+.-]+)", package.fields.get("Pre-Depends", "")
        )
        for need in needs:
            visit(need, path | {name})
        done[name] = None

    for first in ("base-passwd", "base-files"):
        visit(first, frozenset())
    for name in sorted(by_name):
        visit(name, frozenset())
    return [by_name[name] for name in done]


def run_preinsts(box: Sandbox, scratch: Path, packages: Sequence[Unpacked]) -> None:
    """Call every `preinst install`, in order of pre-dependency.

    They run when all files are in place already; dpkg would run each just before its package's
    files appear. For a first installation this makes no difference to the scripts of Debian, and
    diversions made here must not concern files of the set (checked by the merge's result).
    """
    with _shimmed(box, scratch), _no_daemons(box):
        for package in _dependency_order(packages):
            if "preinst" not in package.control:
                continue
            script = f"/{ADMIN}/info/{info_name(package)}.preinst"
            done = box.run(
                [script, "install"],
                env={
                    "DPKG_MAINTSCRIPT_PACKAGE": package.package.name,
                    "DPKG_MAINTSCRIPT_ARCH": package.package.architecture,
                    "DPKG_MAINTSCRIPT_NAME": "preinst",
                    "DPKG_MAINTSCRIPT_PACKAGE_REFCOUNT": "1",
                    "DPKG_ADMINDIR": f"/{ADMIN}",
                    "DPKG_ROOT": "",
                },
                check=False,
            )
            if done.returncode != 0:
                raise _script_error(package.package.name, "preinst", done)


def configure(box: Sandbox, scratch: Path) -> None:
    """Configure all that is unpacked, process triggers, enable units."""
    with _shimmed(box, scratch), _no_daemons(box):
        done = box.run([*_DPKG, "--configure", "--pending"], timeout=1800, check=False)
        if done.returncode != 0:
            raise _dpkg_error(done)
    wanted: dict[tuple[str, str], set[str]] = {}
    listed = box.root / _HELPER_LIST
    for line in listed.read_text().splitlines() if listed.exists() else ():
        scope, verb, unit = line.split(" ", 2)
        wanted.setdefault((scope, verb), set()).add(unit)
    for (scope, verb), units in sorted(wanted.items()):
        box.run(
            [f"/{_HELPER}", f"--{scope}", verb, *sorted(units)],
            env={
                "DPKG_MAINTSCRIPT_PACKAGE": "init-system-helpers"
            },  # it refuses to be called by hand
        )


def _script_error(package: str, script: str, done: Completed) -> BuildError:
    tail = " / ".join((done.stderr or done.stdout).strip().splitlines()[-4:])
    return BuildError(
        f"{script} of {package} exited with {done.returncode}: {tail or 'no message'}"
    )


def _dpkg_error(done: Completed) -> BuildError:
    failed = re.findall(r"error processing package (\S+)", done.stderr)
    said = [line for line in done.stderr.splitlines() if line.strip() and "symlink" not in line]
    tail = " / ".join(said[-6:])
    what = ", ".join(sorted(set(failed))) or "dpkg"
    return BuildError(f"configuring {what} failed: {tail}")
