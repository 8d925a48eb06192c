"""The package `tegu`: the host half, built from the Tegu that is running.

What is in it: the rooms that work inside a machine (`ROOMS`), the front door, and the files of
`tegu/host/files/`, which is laid out like the root file system. What is not there is not offered:
the front door shows a verb only when its module is installed.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import tegu
from tegu.definition.shipped import shipped_directory
from tegu.errors import BuildError
from tegu.packages.deb_write import DebEntry, stored_gzip, write_deb

if TYPE_CHECKING:
    from tegu.packages.local import LocalPackage
    from tegu.store import Store

__all__ = ["HostParts", "build_tegu_deb", "host_files", "host_half", "host_parts", "release_time"]

ROOMS = (
    *("boot", "emulator", "heal", "host", "linux", "oci", "probe", "qos", "sandbox", "store"),
    "tune",
)
MODULES = (
    "__init__.py",
    "__main__.py",
    "errors.py",
    "files.py",
    "process.py",
    "py.typed",
    "cli/__init__.py",
    "cli/agent.py",
    "cli/autoupgrade.py",
    "cli/doctor.py",
    "cli/fn.py",
    "cli/front.py",
    "cli/heal.py",
    "cli/host.py",
    "cli/kdump.py",
    "cli/kernel_host.py",
    "cli/kernel_livepatch.py",
    "cli/output.py",
    "cli/probe.py",
    "cli/qos.py",
    "cli/qos_pods.py",
    "cli/sandbox.py",
    "cli/sandbox_install.py",
    "cli/sandbox_saved.py",
    "cli/sandbox_template.py",
    "cli/tune.py",
    "cli/upgrade.py",
)
# A new kernel, or a new command line, gets its boot file on the machine: kmod and busybox-static
# are for its initrd, systemd-boot-efi has the UEFI stub.
_DEPENDS = (
    "busybox-static, kmod, libbpf1, libseccomp2, python3 (>= 3.11), python3-rich, python3-typer,"
    " systemd-boot-efi"
)
_LIBRARY = "/usr/lib/python3/dist-packages/tegu"
_MAINTAINER = "The Tegu developers <tegu@tegu.invalid>"
_ENTRY = """#!/usr/bin/python3 -I
import sys

from tegu.cli import main

sys.exit(main())
"""
# Where the system's Python does not look into Debian's directory.
_OTHER_ENTRY = _ENTRY.replace(
    "import sys\n", 'import sys\n\nsys.path.append("/usr/lib/python3/dist-packages")\n'
)
# Without the site module, which takes as long to load as what is needed.
_OCI_ENTRY = """#!/usr/bin/python3 -IS
import sys

sys.path.append("/usr/lib/python3/dist-packages")

from tegu.oci.entry import main

sys.exit(main())
"""


@dataclass(frozen=True, slots=True)
class HostParts:
    """What the package is made of: control fields, files, maintainer scripts by name."""

    control: dict[str, str]
    entries: list[DebEntry]
    scripts: dict[str, str]


def host_parts(timestamp: int, *, system_python: bool = True) -> HostParts:
    """Return what the package is made of.

    Without `system_python` it is for a system whose Python does not look into Debian's directory,
    and has no maintainer scripts.
    """
    entries = list(_entries(timestamp))
    if not system_python:
        other = DebEntry("/usr/bin/tegu", _OTHER_ENTRY.encode(), mode=0o755)
        debian = ("/usr/share/lintian/", "/usr/share/doc/tegu/changelog")
        entries = [
            other if e.path == other.path else e for e in entries if not e.path.startswith(debian)
        ]
        return HostParts(_control(), entries, {})
    return HostParts(_control(), entries, _scripts(entries))


def release_time() -> int:
    """Return the first day of the release's month (26.11: November 2026), seconds since the epoch.

    A fixed time of the release rather than of the build: the package stays the same until its
    content changes.
    """
    match = re.match(r"(\d\d)\.(\d\d?)", tegu.__version__)
    if match is None:
        raise BuildError(f"the version {tegu.__version__} is not of the form YY.MM")
    return int(datetime(2000 + int(match[1]), int(match[2]), 1, tzinfo=UTC).timestamp())


def host_half(store: Store) -> LocalPackage:
    """Build the package if the store has not this very one, and return it."""
    from tegu.files import write_atomic
    from tegu.packages.kinds import INDEXES
    from tegu.packages.local import LocalPackage, bring_in

    entries = list(_entries(release_time()))
    made_of = hashlib.sha256(repr((tegu.__version__, _control(), _scripts(entries))).encode())
    for entry in entries:
        made_of.update(repr(entry).encode())
    note = store.small(INDEXES, f"tegu-{made_of.hexdigest()[:32]}.json")
    try:
        package = LocalPackage(**json.loads(note.read_text()))
        if store.blob(package.sha256) is not None:
            return package
    except (OSError, ValueError, TypeError):
        pass
    with tempfile.TemporaryDirectory(prefix="tegu-deb-") as scratch:
        path = build_tegu_deb(Path(scratch), release_time())
        package = bring_in(path, store, "all")
    values = {key: getattr(package, key) for key in LocalPackage.__slots__}
    write_atomic(note, json.dumps(values))
    return package


def build_tegu_deb(out_dir: Path, timestamp: int) -> Path:
    """Write `tegu_VERSION_all.deb` into `out_dir` and return it; the same source, the same bytes.

    `timestamp` (seconds since the epoch) is the time of every file in it.
    """
    entries = list(_entries(timestamp))
    return write_deb(
        out_dir / f"tegu_{tegu.__version__}_all.deb",
        _control(),
        entries,
        timestamp=timestamp,
        scripts=_scripts(entries),
        conffiles=[e.path for e in entries if e.path.startswith("/etc/") and e.content is not None],
        # It never leaves the build machine as a file, and no library's version shows in its bytes.
        compression="stored",
    )


def host_files() -> Iterator[tuple[str, bytes]]:
    """Yield what of the Python package belongs to the host half: path below `tegu/`, content."""
    from tegu.packages.probes import compile_objects

    compile_objects()  # nothing to do in an installation: it carries them
    root = _source()
    for name in MODULES:
        path = root / name
        if path.is_file():
            yield name, path.read_bytes()
    for room in ROOMS:
        for path in sorted((root / room).rglob("*")):
            relative = path.relative_to(root)
            if not path.is_file() or "__pycache__" in relative.parts:
                continue
            if relative.parts[:2] == ("sandbox", "native") and path.suffix != ".py":
                continue  # for one architecture, and not the same bytes from every compiler
            if relative.parts[:2] == ("host", "files"):
                continue  # goes to its place in the file system instead
            if relative.parts[:2] == ("probe", "bpf") and not path.name.endswith(".o"):
                continue  # compiled already
            yield str(relative), path.read_bytes()
    for path in sorted((shipped_directory() / "tune").glob("*.toml")):
        yield f"distro/tune/{path.name}", path.read_bytes()


def _source() -> Path:
    with resources.as_file(resources.files(tegu)) as path:
        return Path(path)


def _entries(timestamp: int) -> Iterator[DebEntry]:
    for name, content in host_files():
        script = content.startswith(b"#!")
        yield DebEntry(f"{_LIBRARY}/{name}", content, mode=0o755 if script else 0o644)
    yield DebEntry("/usr/bin/tegu", _ENTRY.encode(), mode=0o755)
    yield DebEntry("/usr/bin/tegu-oci", _OCI_ENTRY.encode(), mode=0o755)
    gvisor = _OCI_ENTRY.replace("import main", "import gvisor").replace("main()", "gvisor()")
    yield DebEntry("/usr/bin/tegu-oci-gvisor", gvisor.encode(), mode=0o755)
    files = _source() / "host" / "files"
    for path in sorted(files.rglob("*")):
        target = f"/{path.relative_to(files)}"
        if path.is_symlink():
            yield DebEntry(target, target=str(path.readlink()))
        elif path.is_file() and path.name != ".gitkeep":
            executable = path.stat().st_mode & 0o100
            yield DebEntry(target, path.read_bytes(), mode=0o755 if executable else 0o644)
    day = datetime.fromtimestamp(timestamp, UTC)
    documents = "/usr/share/doc/tegu"
    yield DebEntry(f"{documents}/copyright", _COPYRIGHT.encode())
    yield DebEntry(f"{documents}/changelog.gz", _gz(_changelog(day)))
    yield DebEntry("/usr/share/lintian/overrides/tegu", _OVERRIDES.encode())
    manual = _MANUAL.replace("@VERSION@", tegu.__version__).replace("@DATE@", f"{day:%Y-%m-%d}")
    yield DebEntry("/usr/share/man/man1/tegu.1.gz", _gz(manual))
    for name in ("tegu-oci", "tegu-oci-gvisor"):
        yield DebEntry(f"/usr/share/man/man1/{name}.1.gz", target="tegu.1.gz")


def _gz(text: str) -> bytes:
    """Return a .gz, as Debian Policy (section 12.1) wants these files to be."""
    return stored_gzip(text.encode())


def _control() -> dict[str, str]:
    return {
        "Package": "tegu",
        "Version": tegu.__version__,
        "Architecture": "all",
        "Maintainer": _MAINTAINER,
        "Depends": _DEPENDS,
        "Suggests": "python3-prometheus-client, runsc, skopeo",
        "Conflicts": "linux-initramfs-tool",
        "Provides": "linux-initramfs-tool",
        "Section": "admin",
        "Priority": "optional",
        "Multi-Arch": "foreign",
        "Description": "host half of the Tegu operating system\n"
        " Tegu builds cloud operating systems from one definition. This package is what\n"
        " runs inside such a system: it makes the initrd when a kernel is installed, and\n"
        " looks after the machine.",
    }


def _scripts(entries: list[DebEntry]) -> dict[str, str]:
    """Return the maintainer scripts: Python compiled and cleaned, units enabled and known."""
    units = sorted(
        {
            Path(e.path).name
            for e in entries
            if Path(e.path).parent == Path("/usr/lib/systemd/system")
            and e.content is not None
            and b"\n[Install]" in e.content
        }
    )
    post = [_POSTINST]
    remove = [_PRERM]
    purge = []
    for unit in units:
        post.append(_ENABLE.replace("@UNIT@", unit))
        purge.append(_PURGE.replace("@UNIT@", unit))
    scripts = {"postinst": "".join(post), "prerm": "".join(remove)}
    if units:
        scripts["postrm"] = "#!/bin/sh\nset -e\n" + "".join(purge)
    return scripts


def _changelog(day: datetime) -> str:
    return (
        f"tegu ({tegu.__version__}) unstable; urgency=medium\n\n"
        "  * Built by Tegu itself; see CHANGELOG.md of the project for what changed.\n\n"
        f" -- {_MAINTAINER}  {day:%a, %d %b %Y %H:%M:%S} +0000\n"
    )


_POSTINST = """#!/bin/sh
set -e

if [ "$1" = configure ] && command -v py3compile >/dev/null 2>&1; then
    py3compile -p tegu
fi
"""

_PRERM = """#!/bin/sh
set -e

if command -v py3clean >/dev/null 2>&1; then
    py3clean -p tegu
fi
"""

_ENABLE = """
if [ "$1" = configure ] && command -v deb-systemd-helper >/dev/null 2>&1; then
    if deb-systemd-helper --quiet was-enabled @UNIT@; then
        deb-systemd-helper enable @UNIT@ >/dev/null || true
    else
        deb-systemd-helper update-state @UNIT@ >/dev/null || true
    fi
fi
"""

_PURGE = """
if [ "$1" = purge ] && command -v deb-systemd-helper >/dev/null 2>&1; then
    deb-systemd-helper purge @UNIT@ >/dev/null || true
fi
"""

_COPYRIGHT = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: tegu

Files: *
Copyright: 2026 The Tegu developers
License: Apache-2.0
 On Debian systems the full text of the Apache License, Version 2.0, is in
 /usr/share/common-licenses/Apache-2.0.
"""

_OVERRIDES = """# The root file system grows before other units write to it.
tegu: systemd-service-file-refers-to-unusual-wantedby-target local-fs.target [*tegu-grow.service]
# It mounts the image's database, and reads nothing in it.
tegu: uses-dpkg-database-directly [usr/lib/python3/dist-packages/tegu/boot/init.sh]
# A slot on trial that ends there starts again.
tegu: systemd-service-file-refers-to-unusual-wantedby-target * [*tegu-upgrade-emergency.service]
# The first scripts of the initrds, where busybox is /bin/busybox.
tegu: unusual-interpreter /bin/busybox [usr/lib/python3/dist-packages/tegu/boot/init.sh]
tegu: unusual-interpreter /bin/busybox [usr/lib/python3/dist-packages/tegu/host/kdump/capture.sh]
# BPF byte code, which is the same on every architecture: the kernel compiles it.
tegu: arch-independent-package-contains-binary-or-object [*/tegu/probe/bpf/*.bpf.o]
"""

_MANUAL = r""".TH TEGU 1 "@DATE@" "Tegu @VERSION@" "User Commands"
.SH NAME
tegu, tegu\-oci, tegu\-oci\-gvisor \- look after a machine that runs a Tegu system
.SH SYNOPSIS
.B tegu
.RB [ \-v ]
.I VERB
.RI [ ARGUMENT ...]
.br
.B tegu
.RB [ \-h | \-V ]
.br
.B tegu\-oci
.I COMMAND
.RI [ ARGUMENT ...]
.SH DESCRIPTION
Tegu builds, boots and tests cloud operating systems. Inside a machine made by it only
the host half is installed;
.B tegu \-\-help
lists the verbs that are there, and
.B tegu
.I VERB
.B \-\-help
explains one of them.
.PP
.B tegu\-oci
is an OCI runtime for
.BR podman (1)
and containerd;
.B tegu\-oci \-\-help
lists its commands.
.B tegu\-oci\-gvisor
is the same, with containers in gVisor (
.BR runsc ).
.SH OPTIONS
.TP
.BR \-v ", " \-\-verbose
Say what is done; given twice, show every program that is run.
.TP
.BR \-V ", " \-\-version
Print the version.
.TP
.BR \-h ", " \-\-help
Print help. Every verb has it too, with an example.
.SH EXIT STATUS
0 on success, 2 for a wrong command line, 12 when this machine lacks what is needed,
another number for other errors. An error is one line on standard error; with
.B \-\-json
it is an object on standard output as well.
.SH SEE ALSO
.BR systemd (1)
"""
