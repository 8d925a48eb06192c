"""What a recipe says, as typed data; unknown keys are errors, as in a definition.

The string after each field is its documentation (docs/packages.md is made by hand from it).
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

__all__ = ["Content", "Depends", "LaidFile", "Recipe", "Scripts", "Source", "Variable"]

# Debian Policy 5.6.1 and 5.6.12; narrower than RPM's rules, so that both take them.
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9+.-]+$")]
Version = Annotated[str, StringConstraints(pattern=r"^[0-9][A-Za-z0-9.+~]*$")]
Line = Annotated[str, StringConstraints(pattern=r"^[^\n]*$")]
Mode = Annotated[str, StringConstraints(pattern=r"^[0-7]{3,4}$")]
Unit = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9:_.@-]+\.[a-z]+$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
AbsolutePath = Annotated[str, StringConstraints(pattern=r"^/[^\x00-\x1f]+$")]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Variable(_Table):
    """A value that is given when the package is built: `{{ NAME }}` in texts stands for it."""

    help: str
    default: str | None = None


class Source(_Table):
    """Where the source comes from: exactly one of `url`, `path`, `debian` and `tegu`."""

    url: str | None = None
    """An archive by http, https or file; needs `sha256`."""
    path: str | None = None
    """An archive beside the recipe; needs `sha256`."""
    debian: Name | None = None
    """A source package of the distribution underneath, verified by its signed index."""
    tegu: str | None = None
    """A directory of the tegu that is running."""
    version: str | None = None
    """The version of the Debian source package; default: the newest."""
    sha256: Sha256 | None = None
    """Of the archive."""
    strip: int = Field(default=1, ge=0, le=9)
    """Leading directories of the archive's paths that are left out."""

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        given = [k for k in ("url", "path", "debian", "tegu") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError("exactly one of url, path, debian and tegu is needed")
        if given[0] in ("url", "path") and self.sha256 is None:
            raise ValueError(f"{given[0]} needs sha256: nothing unverified is ever built")
        if given[0] in ("debian", "tegu") and self.sha256 is not None:
            raise ValueError(f"{given[0]} is verified otherwise: sha256 does not go with it")
        if self.version is not None and given[0] != "debian":
            raise ValueError("version goes with debian only")
        return self


class Build(_Table):
    """What turns the source into files."""

    steps: list[str] = []
    """Shell commands, run in order in the source; what they put below $DESTDIR is packaged."""
    needs: list[str] = []
    """Programs that the steps call and this machine must have."""


class LaidFile(_Table):
    """One file: exactly one of `content`, `source`, `symlink`, `directory`."""

    path: AbsolutePath
    content: str | None = None
    source: str | None = None
    """A file, relative to the recipe."""
    symlink: str | None = None
    directory: bool = False
    mode: Mode | None = None
    formats: list[Literal["deb", "rpm"]] = ["deb", "rpm"]
    """The package formats that have it."""

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        given = sum(v is not None for v in (self.content, self.source, self.symlink))
        if given + self.directory != 1:
            raise ValueError("exactly one of content, source, symlink and directory is needed")
        if ".." in PurePosixPath(self.path).parts:
            raise ValueError("the path leads elsewhere")
        return self


class Content(_Table):
    """What the package takes from the definition beside it, so that nothing is said twice."""

    host_half: bool = False
    """The host half of tegu: what `packages.tegu` installs."""
    definition: str | None = None
    """A definition, relative to the recipe; the keys below speak of it."""
    profile: str | None = None
    """Its profile."""
    meta: bool = False
    """Depend on all that the definition's `packages.install` names."""
    os_release: AbsolutePath | None = None
    """Write os-release(5) of its `[system]` here."""
    sysctl: AbsolutePath | None = None
    """Write its `[sysctl]` here, as sysctl.d(5)."""

    @model_validator(mode="after")
    def _needs(self) -> Self:
        if self.definition is None and (self.meta or self.os_release or self.sysctl):
            raise ValueError("meta, os_release and sysctl need definition")
        return self


class Depends(_Table):
    """Relations to other packages, in the notation of each format."""

    deb: list[Line] = []
    rpm: list[Line] = []


class Scripts(_Table):
    """What is run on the machine, by sh with -e. The same text for both formats.

    `install` runs after each installation and upgrade, `remove` before a removal (not before an
    upgrade), `purge` when settings go as well (RPM: after a removal).
    """

    install: str = ""
    remove: str = ""
    purge: str = ""
    formats: list[Literal["deb", "rpm"]] = ["deb", "rpm"]
    """The package formats that have them."""


class Recipe(_Table):
    """A package."""

    name: Name
    version: Version | Literal["tegu"]
    """The upstream version; "tegu" for that of the tegu that is running."""
    revision: int = Field(default=1, ge=0)
    """Of the packaging; 0: none, for what has no source elsewhere."""
    summary: Annotated[Line, StringConstraints(max_length=80, min_length=1)]
    """One line, without a full stop."""
    description: str = ""
    """Paragraphs, separated by empty lines."""
    section: Name = "admin"
    """Debian Policy 2.4."""
    priority: Literal["required", "important", "standard", "optional"] = "optional"
    license: Line = "Apache-2.0"
    """SPDX expression."""
    copyright: str = "2026 The Tegu developers"
    """Who holds the rights, and since when."""
    homepage: Line | None = None
    architecture: Literal["all", "native"] = "all"
    """`native`: that of the build machine."""
    formats: list[Literal["deb", "rpm"]] = ["deb", "rpm"]
    variable: dict[str, Variable] = {}
    source: Source | None = None
    build: Build = Build()
    content: Content = Content()
    file: list[LaidFile] = []
    units: list[Unit] = []
    """Units of this package to enable."""
    depends: Depends = Depends()
    recommends: Depends = Depends()
    conflicts: Depends = Depends()
    replaces: Depends = Depends()
    provides: Depends = Depends()
    scripts: Scripts = Scripts()
    lintian: list[Line] = []
    """Tags of lintian(1) that do not apply: `tag [pattern]`; a comment in the recipe says why."""
    changes: list[Line] = []
    """What is new in this version, one line each."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.build.steps and self.source is None:
            raise ValueError("build.steps need a source")
        if self.source is not None and not self.build.steps:
            raise ValueError("a source without build.steps gives no files")
        if self.summary.endswith("."):
            raise ValueError("summary: one line without a full stop (Debian Policy 3.4.1)")
        return self
