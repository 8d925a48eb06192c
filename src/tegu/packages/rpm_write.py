"""Writing a binary package of RPM, by rpmbuild(8), so that the same content gives the same bytes.

Needs no root: files belong to root:root because the spec file says so. No time is later than
`timestamp`, the build host is nobody, nothing is stripped, compressed or looked into on the way,
and dependencies are those that are given. The RPM version and its macros are the build machine's;
another version may write other bytes.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tegu.errors import BuildError, UsageError
from tegu.files import atomic_copy
from tegu.packages.deb_write import DebEntry, with_parents
from tegu.process import CommandError, require, run

__all__ = ["RpmHeader", "rpm_version", "write_rpm"]

RpmCompression = Literal["gz", "xz", "zst"]

_PAYLOAD: Mapping[RpmCompression, str] = {
    "gz": "w9.gzdio",
    "xz": "w6.xzdio",
    "zst": "w19.zstdio",
}
_MINUTES = 60
# rpm-spec(5), "Name", "Version", "Release"; rpm-version(7).
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_VERSION = re.compile(r"[A-Za-z0-9._+~^]+")
_SCRIPTS = ("pre", "post", "preun", "postun", "pretrans", "posttrans")
# Directories that every system of RPM packages has from its `filesystem` package; a package that
# says their mode again would change it.
_SYSTEM = frozenset(
    (
        *("/bin", "/boot", "/etc", "/lib", "/lib64", "/opt", "/sbin", "/srv", "/usr", "/usr/bin"),
        *("/usr/include", "/usr/lib", "/usr/lib/modules", "/usr/lib/systemd", "/usr/lib64"),
        *("/usr/lib/systemd/system", "/usr/libexec", "/usr/local", "/usr/sbin", "/usr/share"),
        *("/usr/share/doc", "/usr/share/man", "/usr/src", "/var", "/var/cache", "/var/lib"),
    )
)


@dataclass(frozen=True, slots=True)
class RpmHeader:
    """What a package says of itself.

    `architecture` is RPM's name ("x86_64", "noarch"); `requires`, `provides` and the like are in
    its notation ("libelf.so.1()(64bit)", "kernel = 6.12"). `config` are files that keep what the
    machine's owner wrote. `scripts` are by the names of rpm-spec
    ("post", "preun"), run by /bin/sh.
    """

    name: str
    version: str
    release: str
    architecture: str
    summary: str
    description: str
    license: str
    requires: tuple[str, ...] = ()
    provides: tuple[str, ...] = ()
    suggests: tuple[str, ...] = ()
    recommends: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    obsoletes: tuple[str, ...] = ()
    url: str | None = None
    config: tuple[str, ...] = ()
    scripts: Mapping[str, str] = field(default_factory=dict)

    @property
    def file_name(self) -> str:
        return f"{self.name}-{self.version}-{self.release}.{self.architecture}.rpm"


def rpm_version() -> str:
    """Return what rpmbuild says of its version; UnsupportedError when it is not here."""
    return run([require("rpmbuild", package="rpm"), "--version"], timeout=60).stdout.strip()


def write_rpm(
    directory: Path,
    header: RpmHeader,
    files: Iterable[DebEntry],
    *,
    timestamp: int,
    compression: RpmCompression = "xz",
) -> Path:
    """Write a package into `directory` and return its path.

    `timestamp` is in seconds since the epoch. Raises UsageError when something does not fit,
    UnsupportedError without rpmbuild, BuildError when it fails.
    """
    rpmbuild = require("rpmbuild", package="rpm")
    entries = with_parents(files)
    with tempfile.TemporaryDirectory(prefix="tegu-rpm-") as temporary:
        work = Path(temporary)
        stage = work / "stage"
        lines = _stage(stage, entries, timestamp, frozenset(header.config))
        (work / "files").write_text("".join(lines), encoding="utf-8")
        (work / "package.spec").write_text(_spec(header, work, stage), encoding="utf-8")
        options = {
            "_topdir": str(work),
            "_rpmdir": str(work / "out"),
            "_build_name_fmt": "package.rpm",
            "_tmppath": str(work / "tmp"),
            "_dbpath": str(work / "db"),
            "_buildhost": "tegu",
            "_binary_payload": _PAYLOAD[compression],
            "_build_id_links": "none",
            "_enable_debug_packages": "0",
            "debug_package": "%{nil}",
            "__os_install_post": "%{nil}",
            "__spec_install_pre": "%{___build_pre}",
            "clamp_mtime_to_source_date_epoch": "1",
            "use_source_date_epoch_as_buildtime": "1",
            "source_date_epoch_from_changelog": "0",
            "optflags": "%{nil}",
        }
        defines = [w for key, value in options.items() for w in ("--define", f"{key} {value}")]
        (work / "tmp").mkdir()
        try:
            run(
                [
                    *(rpmbuild, "-bb", "--quiet", "--target", header.architecture, *defines),
                    *("--buildroot", stage, work / "package.spec"),
                ],
                env={
                    "PATH": os.environ.get("PATH", os.defpath),
                    "HOME": str(work),
                    "LC_ALL": "C.UTF-8",
                    "TZ": "UTC",
                    "SOURCE_DATE_EPOCH": str(timestamp),
                },
                timeout=60 * _MINUTES,
            )
        except CommandError as e:
            raise BuildError(f"{header.file_name}: {e.message}") from e
        return atomic_copy(work / "out/package.rpm", directory / header.file_name)


def _stage(
    stage: Path, entries: Mapping[str, DebEntry], timestamp: int, config: frozenset[str]
) -> list[str]:
    """Lay the files out below `stage`; returns the lines of the spec's list of files."""
    stage.mkdir()
    lines = ["%defattr(-, root, root, -)\n"]
    for path, entry in sorted(entries.items(), key=lambda pair: pair[0].split("/")):
        place = stage / path[1:]
        attributes = f"%attr({entry.permissions:04o}, root, root)"
        if entry.content is not None:
            place.write_bytes(entry.content)
            place.chmod(0o600 | entry.permissions & 0o777)  # readable to us; the spec has the mode
            kept = "%config(noreplace) " if path in config else ""
            lines.append(f"{kept}{attributes} {_quoted(path)}\n")
        elif entry.target is not None:
            place.symlink_to(entry.target)
            lines.append(f"{_quoted(path)}\n")
        else:
            place.mkdir()
            if path not in _SYSTEM:
                lines.append(f"%dir {attributes} {_quoted(path)}\n")
    for place in stage.rglob("*"):
        os.utime(place, (timestamp, timestamp), follow_symlinks=False)
    return lines


def _quoted(path: str) -> str:
    """Return a path as a list of files has it: no macros, no patterns."""
    if re.search(r"[\x00-\x1f\x7f\"\\]", path):
        raise UsageError(f"the path {path!r} cannot be in an RPM package")
    return '"' + path.replace("%", "%%") + '"'


def _spec(header: RpmHeader, work: Path, stage: Path) -> str:
    if not _NAME.fullmatch(header.name):
        raise UsageError(f"{header.name!r} is no name of an RPM package")
    for value in (header.version, header.release):
        if not _VERSION.fullmatch(value):
            raise UsageError(f"{header.name}: {value!r} is no version of an RPM package")
    if unknown := sorted(set(header.scripts) - set(_SCRIPTS)):
        raise UsageError(f"{header.name}: {unknown[0]!r} is no script of an RPM package")
    lines = [
        f"Name: {header.name}",
        f"Version: {header.version}",
        f"Release: {header.release}",
        f"Summary: {_line(header.summary)}",
        f"License: {_line(header.license)}",
        "AutoReqProv: no",
    ]
    if header.architecture == "noarch":
        lines.append("BuildArch: noarch")
    if header.url is not None:
        lines.append(f"URL: {_line(header.url)}")
    for tag in ("requires", "provides", "suggests", "recommends", "conflicts", "obsoletes"):
        lines += [f"{tag.capitalize()}: {_line(v)}" for v in getattr(header, tag)]
    lines += ["", "%description", _text(header.description), ""]
    lines += ["%prep", "%build", "%install", ""]
    for name in _SCRIPTS:
        if name in header.scripts:
            lines += [f"%{name}", _text(header.scripts[name]), ""]
    lines += [f"%files -f {work / 'files'}", ""]
    return "\n".join(lines)


def _line(text: str) -> str:
    if "\n" in text:
        raise UsageError(f"a field of an RPM package has one line: {text!r}")
    return text.replace("%", "%%")


def _text(text: str) -> str:
    """Return text as the body of a section: no macros, and no line that begins another section."""
    escaped = text.replace("%", "%%").rstrip("\n")
    if re.search(r"^%%(?:package|files|prep|build|install|changelog)\b", escaped, re.MULTILINE):
        raise UsageError("a text of an RPM package has a line that begins a section")
    return escaped
