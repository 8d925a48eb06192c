"""A payload written as .deb and .rpm: names, versions, scripts and documents of each format."""

from __future__ import annotations

import platform
import re
import textwrap
from datetime import UTC, datetime
from pathlib import Path

from tegu.errors import UnsupportedError
from tegu.packages.deb_write import Compression, DebEntry, stored_gzip, write_deb
from tegu.packages.recipe.content import Payload
from tegu.packages.recipe.model import Recipe
from tegu.packages.rpm_write import RpmHeader, write_rpm

__all__ = ["to_deb", "to_rpm"]

_MAINTAINER = "The Tegu developers <tegu@tegu.invalid>"
# dpkg-architecture(1), rpm's own names (arch_canon in its rpmrc).
_NATIVE = {"x86_64": ("amd64", "x86_64"), "aarch64": ("arm64", "aarch64")}
_ENABLE = """
if [ "$1" = configure ] && command -v deb-systemd-helper >/dev/null 2>&1; then
    if deb-systemd-helper --quiet was-enabled {unit}; then
        deb-systemd-helper enable {unit} >/dev/null || true
    else
        deb-systemd-helper update-state {unit} >/dev/null || true
    fi
fi
"""
_PURGE_UNIT = """
if [ "$1" = purge ] && command -v deb-systemd-helper >/dev/null 2>&1; then
    deb-systemd-helper purge {unit} >/dev/null || true
fi
"""


def native() -> tuple[str, str]:
    """Return this machine's architecture, as dpkg and as rpm call it."""
    try:
        return _NATIVE[platform.machine()]
    except KeyError:
        raise UnsupportedError(f"packages for {platform.machine()} are not built here") from None


def full_version(recipe: Recipe, version: str) -> str:
    """Return version and revision, as deb-version(7) has them."""
    return f"{version}-{recipe.revision}" if recipe.revision else version


def to_deb(
    recipe: Recipe,
    version: str,
    held: Payload,
    out: Path,
    *,
    timestamp: int,
    compression: Compression = "xz",
) -> Path:
    """Write the .deb into the directory `out` and return its path."""
    full = full_version(recipe, version)
    architecture = "all" if recipe.architecture == "all" else native()[0]
    control = {
        "Package": recipe.name,
        "Version": full,
        "Architecture": architecture,
        "Maintainer": _MAINTAINER,
    }
    for name in ("depends", "recommends", "conflicts", "provides", "replaces"):
        if words := held.relations[name]:
            control[name.capitalize()] = ", ".join(words)
    control["Section"] = recipe.section
    control["Priority"] = recipe.priority
    if recipe.homepage:
        control["Homepage"] = recipe.homepage
    if recipe.architecture == "all":
        control["Multi-Arch"] = "foreign"
    control["Description"] = _described(recipe)
    return write_deb(
        out / f"{recipe.name}_{full}_{architecture}.deb",
        control,
        _with_documents(recipe, full, held.entries, timestamp),
        timestamp=timestamp,
        scripts=_deb_scripts(recipe, held),
        conffiles=held.conffiles,
        compression=compression,
    )


def to_rpm(recipe: Recipe, version: str, held: Payload, out: Path, *, timestamp: int) -> Path:
    """Write the .rpm into the directory `out` and return its path."""
    architecture = "noarch" if recipe.architecture == "all" else native()[1]
    header = RpmHeader(
        name=recipe.name,
        version=version,
        release=str(recipe.revision or 1),
        architecture=architecture,
        summary=recipe.summary,
        description="\n\n".join(_paragraphs(recipe)) or recipe.summary,
        license=recipe.license,
        requires=held.relations["depends"],
        recommends=held.relations["recommends"],
        conflicts=held.relations["conflicts"],
        obsoletes=held.relations["replaces"],
        provides=held.relations["provides"],
        url=recipe.homepage,
        config=held.conffiles,
        scripts=_rpm_scripts(recipe),
    )
    licence = DebEntry(f"/usr/share/doc/{recipe.name}/copyright", _copyright(recipe).encode())
    there = {e.path for e in held.entries}
    extra = [] if licence.path in there else [licence]
    return write_rpm(out, header, [*held.entries, *extra], timestamp=timestamp)


def _paragraphs(recipe: Recipe) -> list[str]:
    parts = re.split(r"\n\s*\n", recipe.description.strip())
    return ["\n".join(textwrap.wrap(" ".join(p.split()), 76)) for p in parts if p.strip()]


def _described(recipe: Recipe) -> str:
    body = "\n .\n".join(
        "\n".join(f" {line}" for line in part.splitlines()) for part in _paragraphs(recipe)
    )
    return f"{recipe.summary}\n{body}" if body else recipe.summary


def _with_documents(
    recipe: Recipe, full: str, entries: tuple[DebEntry, ...], timestamp: int
) -> list[DebEntry]:
    """Add what Debian Policy (12.5, 12.7) wants in each package, where it is not there."""
    day = datetime.fromtimestamp(timestamp, UTC)
    # A version without a revision is of a native package (deb-version(7)).
    log = "changelog.gz" if not recipe.revision else "changelog.Debian.gz"
    changes = recipe.changes or ["Built from its recipe."]
    text = (
        f"{recipe.name} ({full}) stable; urgency=medium\n\n"
        + "".join(f"  * {change}\n" for change in changes)
        + f"\n -- {_MAINTAINER}  {day:%a, %d %b %Y %H:%M:%S} +0000\n"
    )
    documents = f"/usr/share/doc/{recipe.name}"
    wanted = {
        f"{documents}/copyright": _copyright(recipe).encode(),
        f"{documents}/{log}": stored_gzip(text.encode()),
    }
    if recipe.lintian:
        lines = "".join(f"{recipe.name}: {tag}\n" for tag in recipe.lintian)
        wanted[f"/usr/share/lintian/overrides/{recipe.name}"] = lines.encode()
    there = {e.path for e in entries}
    return [*entries, *(DebEntry(p, data) for p, data in wanted.items() if p not in there)]


def _copyright(recipe: Recipe) -> str:
    common = {"Apache-2.0": "Apache-2.0", "GPL-2.0-only": "GPL-2", "GPL-3.0-or-later": "GPL-3"}
    text = common.get(recipe.license)
    where = (
        f" On Debian systems the full text is in /usr/share/common-licenses/{text}."
        if text
        else f" See https://spdx.org/licenses/{recipe.license}.html for the full text."
    )
    return (
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n"
        f"Upstream-Name: {recipe.name}\n\n"
        f"Files: *\nCopyright: {recipe.copyright}\nLicense: {recipe.license}\n{where}\n"
    )


def _deb_scripts(recipe: Recipe, held: Payload) -> dict[str, str]:
    ours = recipe.scripts if "deb" in recipe.scripts.formats else None
    post, pre, purge = "", "", ""
    if ours is not None and ours.install:
        post += f'\nif [ "$1" = configure ]; then\n{_indented(ours.install)}fi\n'
    if ours is not None and ours.remove:
        pre += f'\nif [ "$1" = remove ]; then\n{_indented(ours.remove)}fi\n'
    if ours is not None and ours.purge:
        purge += f'\nif [ "$1" = purge ]; then\n{_indented(ours.purge)}fi\n'
    for unit in recipe.units:
        post += _ENABLE.format(unit=unit)
        purge += _PURGE_UNIT.format(unit=unit)
    scripts = dict(held.scripts)
    for name, text in (("postinst", post), ("prerm", pre), ("postrm", purge)):
        if text:
            scripts[name] = scripts.get(name, "#!/bin/sh\nset -e\n") + text
    return scripts


def _indented(text: str) -> str:
    return textwrap.indent(text.strip("\n") + "\n", "    ", lambda line: bool(line.strip()))


def _rpm_scripts(recipe: Recipe) -> dict[str, str]:
    """Return scriptlets; $1 is how many of the package there will be (rpm-scriptlets(7)).

    Enabling is by presets, as an RPM system's policy has it (systemd.preset(5)).
    """
    ours = recipe.scripts if "rpm" in recipe.scripts.formats else None
    post = ours.install if ours is not None else ""
    preun = ours.remove if ours is not None else ""
    postun = ours.purge if ours is not None else ""
    if recipe.units:
        names = " ".join(recipe.units)
        post += (
            '\nif [ "$1" -eq 1 ] && command -v systemctl >/dev/null 2>&1; then\n'
            f"    systemctl --no-reload preset {names} || :\nfi\n"
        )
        preun += (
            "\nif command -v systemctl >/dev/null 2>&1; then\n"
            f"    systemctl --no-reload disable --now {names} || :\nfi\n"
        )
    scripts = {}
    if post.strip():
        scripts["post"] = f"set -e\n{post}"
    if preun.strip():
        scripts["preun"] = f'[ "$1" -eq 0 ] || exit 0\nset -e\n{preun}'
    if postun.strip():
        scripts["postun"] = f'[ "$1" -eq 0 ] || exit 0\nset -e\n{postun}'
    return scripts
