"""dpkg's database, written as `dpkg --unpack` would: status, info/, triggers/ (dpkg(1), FILES).

Format facts: deb-control(5), deb-triggers(5), deb-conffiles(5), dpkg's doc/triggers.txt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tegu.image.unpack import Unpacked

__all__ = [
    "ADMIN",
    "add_unpacked",
    "info_name",
    "installed",
    "md5_of",
    "paragraphs",
    "write_paragraphs",
]

ADMIN = Path("var/lib/dpkg")

# Fields of a .deb's control file in the order in which dpkg writes them to its status file.
_STATUS_ORDER = (
    "Package",
    "Essential",
    "Protected",
    "Status",
    "Priority",
    "Section",
    "Installed-Size",
    "Origin",
    "Maintainer",
    "Bugs",
    "Architecture",
    "Multi-Arch",
    "Source",
    "Version",
    "Config-Version",
    "Replaces",
    "Provides",
    "Depends",
    "Pre-Depends",
    "Recommends",
    "Suggests",
    "Breaks",
    "Conflicts",
    "Enhances",
    "Conffiles",
    "Description",
)


def info_name(package: Unpacked) -> str:
    """Return the stem of the package's files in info/: `NAME`, or `NAME:ARCH` if co-installable."""
    fields = package.fields
    if fields.get("Multi-Arch") == "same":
        return f"{fields['Package']}:{fields['Architecture']}"
    return fields["Package"]


def _stanza(package: Unpacked, status: str) -> str:
    fields = dict(package.fields)
    fields["Status"] = status
    if package.conffiles:
        fields["Conffiles"] = "".join(f"\n {path} newconffile" for path in package.conffiles)
    known = [name for name in _STATUS_ORDER if name in fields]
    other = sorted(name for name in fields if name not in _STATUS_ORDER)
    lines = []
    for name in known + other:
        value = fields[name]
        lines.append(f"{name}:{value}" if value.startswith("\n") else f"{name}: {value}")
    return "\n".join(lines) + "\n"


def md5_of(path: Path) -> str:
    """Return the MD5 (hex) by which dpkg tells whether a conffile was changed by hand."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _trigger_lines(package: Unpacked) -> list[tuple[str, str, bool]]:
    """Return the package's interests as (trigger, package, noawait)."""
    found = []
    name = info_name(package) if ":" in info_name(package) else package.fields["Package"]
    for line in package.control.get("triggers", "").splitlines():
        words = line.split("#", 1)[0].split()
        if len(words) == 2 and words[0].startswith("interest"):
            found.append((words[1], name, words[0] == "interest-noawait"))
    return found


def add_unpacked(
    root: Path, packages: Sequence[Unpacked], lost: Mapping[str, set[str]], status: str
) -> None:
    """Write the database entries of `packages` under `root`, beside those already there."""
    admin = root / ADMIN
    info = admin / "info"
    triggers = admin / "triggers"
    for directory in (info, triggers, admin / "updates", admin / "alternatives", admin / "parts"):
        directory.mkdir(parents=True, exist_ok=True)
    (info / "format").write_text("1\n")
    (triggers / "Unincorp").touch()
    (triggers / "Lock").touch()
    (admin / "lock").touch()
    (admin / "available").touch()
    stanzas = paragraphs(admin / "status")
    listed = triggers / "File"
    files = set(listed.read_text().splitlines()) if listed.exists() else set()
    for package in packages:
        name = package.fields["Package"]
        stem = info_name(package)
        stanzas[stem] = _stanza(package, status)
        gone = lost.get(name, set())
        paths = ["/."] + ["/" + e.path for e in package.entries if "/" + e.path not in gone]
        (info / f"{stem}.list").write_text("\n".join(paths) + "\n")
        for member, text in package.control.items():
            path = info / f"{stem}.{member}"
            path.write_text(text)
            script = member in ("preinst", "postinst", "prerm", "postrm", "config")
            path.chmod(0o755 if script else 0o644)
        for trigger, who, noawait in _trigger_lines(package):
            entry = who + ("/noawait" if noawait else "")
            if trigger.startswith("/"):
                files.add(f"{trigger} {entry}")
            else:
                path = triggers / trigger
                lines = set(path.read_text().splitlines()) if path.exists() else set()
                path.write_text("".join(f"{line}\n" for line in sorted({*lines, entry})))
    listed.write_text("".join(f"{line}\n" for line in sorted(files)))
    write_paragraphs(admin / "status", stanzas)


def paragraphs(status: Path) -> dict[str, str]:
    """Read dpkg's status file: info name to paragraph (ending in a newline)."""
    if not status.exists():
        return {}
    found = {}
    for paragraph in status.read_text().split("\n\n"):
        text = paragraph.strip("\n")
        if not text:
            continue
        name = arch = multi = ""
        for line in text.splitlines():
            if line.startswith("Package: "):
                name = line[9:]
            elif line.startswith("Architecture: "):
                arch = line[14:]
            elif line.startswith("Multi-Arch: "):
                multi = line[12:]
        found[f"{name}:{arch}" if multi == "same" else name] = text + "\n"
    return found


def write_paragraphs(status: Path, stanzas: Mapping[str, str]) -> None:
    """Write dpkg's status file, sorted by package."""
    status.write_text("\n".join(stanzas[name] for name in sorted(stanzas)) + "\n")


def installed(stanzas: Iterable[str]) -> list[tuple[str, str]]:
    """Return (status words, package) of each paragraph, for checks."""
    found = []
    for text in stanzas:
        fields = dict(
            line.split(": ", 1) for line in text.splitlines() if ": " in line and line[0] != " "
        )
        found.append((fields.get("Status", ""), fields.get("Package", "")))
    return found
