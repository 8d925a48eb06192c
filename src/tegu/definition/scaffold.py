"""`tegu new`: the first files of a definition of one's own, on top of Tegu Linux."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template

from pydantic import TypeAdapter, ValidationError

from tegu.definition.layers import collect
from tegu.definition.problems import Stop, as_error, nearest, shown_path
from tegu.definition.shipped import shipped_definition
from tegu.definition.types import WORDS, SystemName
from tegu.errors import DefinitionError, UsageError

__all__ = ["Scaffold", "scaffold"]

# Where each template goes.
_TEMPLATES = {
    "tegu.toml": "tegu.toml.in",
    "README.md": "README.md.in",
    "files/.gitkeep": "gitkeep.in",
}


@dataclass(frozen=True, slots=True)
class Scaffold:
    """What was made: `files` are relative to `directory`."""

    directory: Path
    files: tuple[Path, ...]


def scaffold(name: str, directory: Path, *, profile: str = "server") -> Scaffold:
    """Write a definition called `name` into `directory`, which is made if it is not there.

    `profile` is one of Tegu Linux's own. Raises UsageError for a bad name or profile,
    DefinitionError when something is there already or can not be written; then nothing is left.
    """
    _check_name(name)
    _check_profile(profile)
    values = {"name": name, "profile": profile}
    texts = {path: _template(source, values) for path, source in _TEMPLATES.items()}
    try:
        if os.path.lexists(directory):
            _fill(directory, texts)
        else:
            _make(directory, texts)
    except OSError as e:
        what = f"{shown_path(directory)}: can not be written: {e.strerror}"
        raise DefinitionError(what) from e
    return Scaffold(directory, tuple(Path(path) for path in texts))


def _check_name(name: str) -> None:
    adapter = TypeAdapter[str](SystemName)
    try:
        adapter.validate_python(name)
    except ValidationError as e:
        error = e.errors()[0]
        if error["type"] == "string_too_long":
            raise UsageError(f"the name is longer than {error['ctx']['max_length']}") from e
        words = WORDS[error["ctx"]["pattern"]]
        fixed = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in name)
        fixed = fixed.lower().strip("._-")
        hint = f"such as '{fixed}'" if fixed else None
        raise UsageError(f"{name!r} is not {words}", hint=hint) from e


def _check_profile(profile: str) -> None:
    try:
        known = list(collect(shipped_definition()).profiles)
    except Stop as stop:
        raise as_error([stop.problem]) from stop
    if profile not in known:
        near = nearest(profile, known)
        raise UsageError(
            f"Tegu Linux has no profile '{profile}'; it has {', '.join(known)}",
            hint=f"did you mean '{near}'?" if near else None,
        )


def _template(name: str, values: Mapping[str, str]) -> str:
    text = resources.files("tegu.definition").joinpath("templates", name).read_text()
    return Template(text).substitute(values)


def _make(directory: Path, texts: Mapping[str, str]) -> None:
    """Make `directory` with everything in it, or not at all."""
    parent = directory.absolute().parent
    if not parent.is_dir():
        raise DefinitionError(f"{shown_path(parent)}: there is no such directory to write in")
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=parent))
    try:
        temporary.chmod(0o755)
        for path, text in texts.items():
            (temporary / path).parent.mkdir(parents=True, exist_ok=True)
            (temporary / path).write_text(text)
        # rename(2) refuses a directory with something in it, should one have appeared meanwhile.
        temporary.rename(directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _fill(directory: Path, texts: Mapping[str, str]) -> None:
    """Write into a directory that is there (a fresh repository, say); nothing is replaced."""
    if not directory.is_dir():
        raise DefinitionError(f"{shown_path(directory)}: is there already, and is no directory")
    there = [path for path in texts if os.path.lexists(directory / path)]
    if there:
        raise DefinitionError(
            f"{shown_path(directory / there[0])}: is there already, and is not overwritten",
            hint="choose another directory with --dir",
        )
    made: list[Path] = []
    try:
        for path, text in texts.items():
            target = directory / path
            for parent in reversed(target.relative_to(directory).parents):
                if not (directory / parent).is_dir():
                    (directory / parent).mkdir()
                    made.append(directory / parent)
            with target.open("x") as f:
                made.append(target)
                f.write(text)
    except BaseException:
        for done in reversed(made):
            if done.is_dir():
                done.rmdir()
            else:
                done.unlink()
        raise
