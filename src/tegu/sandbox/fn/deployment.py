"""Deploying: code into the store, a version made ready, then the name turned to it, and back."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tegu.errors import SandboxError, StoreError, UsageError
from tegu.files import write_atomic
from tegu.sandbox.client import supervisor
from tegu.sandbox.fn import java
from tegu.sandbox.fn.client import Caller, logs
from tegu.sandbox.fn.discover import imports_of
from tegu.sandbox.fn.shelf import (
    NAMES,
    VERSIONS,
    Deployed,
    check_key,
    name_path,
    read_manifest,
    read_name,
)
from tegu.sandbox.fn.spec import FunctionSpec
from tegu.sandbox.fn.zygote import CODE
from tegu.store import Store

__all__ = ["deploy", "deployed", "put", "remove", "rollback"]

_SKIPPED = frozenset(["__pycache__", ".git", ".hg", ".venv", "node_modules", ".mypy_cache"])
_MOST_BYTES = 2**30
_MOST_FILES = 50_000
_KEPT_VERSIONS = 5
_WHEN = 1
"""Of every file, in seconds: an archive of classes is only good for files as old as it knows."""


def deploy(
    spec: FunctionSpec, source: Path, *, path: Path | None = None, store: Store | None = None
) -> Deployed:
    """Deploy the file or directory `source` as a version of the function `spec.name`.

    The version that was there answers until the new one is ready; if that does not come to be,
    SandboxError says why and nothing has changed. `path` is the supervisor's socket.
    """
    where = store or Store.default()
    with where.shared():
        laid: dict[str, bytes] = {}
        if spec.runtime == "java":
            spec, laid = _with_archive(spec, source, where, path)
        version = put(spec, source, where, laid)
        return _turn(where, spec.name, version, path)


def _with_archive(
    spec: FunctionSpec, source: Path, store: Store, path: Path | None
) -> tuple[FunctionSpec, dict[str, bytes]]:
    """Return a Java function as it will run, and the archive of classes that belongs to it."""
    if not spec.archive:
        return replace(spec, command=java.command_with(spec, None)), {}
    once = java.training(spec)
    _turn(store, once.name, put(once, source, store), path)
    try:
        with Caller(path, store.root) as caller:
            answer = caller.call_raw(once.name, spec.train.encode(), "json")
        said = logs(once.name, path=path, store=store)
    finally:
        remove(once.name, path=path, store=store)
    words = " ".join(" ".join(str(entry["text"]) for entry in said).split())
    archive = java.checked(answer.data, answer.outcome, words[-500:])
    command = java.command_with(spec, f"{CODE}/{java.ARCHIVE}")
    return replace(spec, command=command), {java.ARCHIVE: archive}


def rollback(
    name: str,
    version: str | None = None,
    *,
    path: Path | None = None,
    store: Store | None = None,
) -> Deployed:
    """Let an earlier version answer again: the one deployed before, or one by (the beginning of)
    its key. Raises SandboxError when there is none."""
    where = store or Store.default()
    with where.shared():
        now = read_name(where.root, name)
        if version is None:
            others = [v for v, _ in now.versions if v != now.current]
            if not others:
                raise SandboxError(f"{name} has no version but the one that answers")
            target = others[-1]
        else:
            matching = {v for v, _ in now.versions if v.startswith(version)}
            if len(matching) != 1:
                what = "is no version" if not matching else "may be several versions"
                raise SandboxError(f"{version} {what} of {name}", hint="see `tegu fn ls NAME`")
            target = matching.pop()
        return _turn(where, name, target, path)


def deployed(store: Store | None = None) -> list[Deployed]:
    """Return all functions that are deployed, by name."""
    root = (store or Store.default()).root
    names = sorted(p.stem for p in (root / NAMES).glob("*.json"))
    return [read_name(root, name) for name in names]


def remove(name: str, *, path: Path | None = None, store: Store | None = None) -> None:
    """Remove a function: what runs of it is killed, its versions leave the store."""
    where = store or Store.default()
    with where.shared(), where.locked(f"function-{name}"):
        gone = read_name(where.root, name)
        name_path(where.root, name).unlink()
        try:
            supervisor("fn", path=path, do="forget", store=str(where.root), name=name)
        except SandboxError as e:
            if "no supervisor" not in e.message:
                raise
        _drop(where, [v for v, _ in gone.versions])


def _drop(store: Store, versions: list[str]) -> None:
    """Remove versions that no name has; two functions may share one only by name, so none does."""
    for version in versions:
        store.drop_tree(VERSIONS, version)


def _turn(store: Store, name: str, version: str, path: Path | None) -> Deployed:
    """Make a version ready, then let it answer."""
    supervisor(
        "fn",
        path=path,
        start=True,
        do="prepare",
        store=str(store.root),
        name=name,
        version=check_key(version),
    )
    with store.locked(f"function-{name}"):
        target = name_path(store.root, name)
        before = read_name(store.root, name) if target.exists() else Deployed(name, version, [])
        after = before.with_version(version)
        old = after.versions[:-_KEPT_VERSIONS]
        after = replace(after, versions=after.versions[-_KEPT_VERSIONS:])
        try:
            write_atomic(target, json.dumps(after.to_json(), indent=1) + "\n")
        except OSError as e:
            raise StoreError(f"{target}: {e.strerror}") from e
        _drop(store, [v for v, _ in old])
    return after


def put(
    spec: FunctionSpec, source: Path, store: Store, laid: Mapping[str, bytes] | None = None
) -> str:
    """Put a version into the store, unless it is there; returns its key.

    `laid` are files beside those of `source`.
    """
    files = list(_files(source))
    if not files:
        raise UsageError(f"{source}: there is no file to deploy")
    _check_handler(spec, source, files)
    imports = imports_of([p for _, p in files if p.suffix == ".py"])
    extra: dict[str, Any] = {}
    head = json.dumps({"spec": spec.to_json(), "imports": imports, "extra": extra}, sort_keys=True)
    digest = hashlib.sha256(head.encode())
    contents: dict[str, tuple[int, bytes]] = {}
    total = 0
    for inside, data in (laid or {}).items():
        contents[inside] = 0o644, data
        digest.update(f"\0{inside}\0{len(data)}\0".encode())
        digest.update(data)
    for inside, path in files:
        try:
            data = path.read_bytes()
            mode = 0o755 if path.stat().st_mode & 0o111 else 0o644
        except OSError as e:
            raise UsageError(f"{path}: {e.strerror}") from e
        total += len(data)
        if total > _MOST_BYTES:
            raise UsageError(f"{source}: more than {_MOST_BYTES} bytes")
        contents[inside] = mode, data
        said = f"\0{inside}\0{mode:o}\0{len(data)}\0"
        digest.update(said.encode(errors="surrogateescape"))
        digest.update(data)
    version = digest.hexdigest()
    if store.tree(VERSIONS, version) is None:
        with store.new_tree(VERSIONS, version) as tree:
            _lay(tree, head, contents)
    read_manifest(store.root, version)
    return version


def _lay(tree: Path, head: str, contents: dict[str, tuple[int, bytes]]) -> None:
    try:
        (tree / "function.json").write_text(head + "\n")
        code = tree / "code"
        code.mkdir()
        for inside, (mode, data) in contents.items():
            target = code / inside
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            target.chmod(mode)
            os.utime(target, (_WHEN, _WHEN))
        for directory in (tree, code, *(p for p in code.rglob("*") if p.is_dir())):
            directory.chmod(0o755)
        fd = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _sync(fd)
        finally:
            os.close(fd)
    except OSError as e:
        raise StoreError(f"{e.filename or tree}: {e.strerror}") from e


def _sync(fd: int) -> None:
    from tegu.linux.libc import syncfs

    syncfs(fd)


def _files(source: Path) -> Iterator[tuple[str, Path]]:
    """Yield (path inside, path) of what is deployed, sorted: one file, or those of a directory."""
    if source.is_file():
        yield source.name, source
        return
    if not source.is_dir():
        raise UsageError(f"{source}: there is no such file or directory")
    count = 0
    for directory, names, files in os.walk(source):
        names[:] = sorted(n for n in names if n not in _SKIPPED)
        for name in sorted(files):
            path = Path(directory, name)
            about = path.lstat()
            if stat.S_ISLNK(about.st_mode):
                raise UsageError(
                    f"{path} is a link: only files are deployed",
                    hint="copy what it leads to into its place",
                )
            if stat.S_ISREG(about.st_mode) and path.suffix != ".pyc":
                count += 1
                if count > _MOST_FILES:
                    raise UsageError(f"{source}: more than {_MOST_FILES} files")
                yield str(path.relative_to(source)), path


def _check_handler(spec: FunctionSpec, source: Path, files: list[tuple[str, Path]]) -> None:
    if spec.runtime != "python":
        return
    module = spec.handler.partition(":")[0].replace(".", "/")
    if not {f"{module}.py", f"{module}/__init__.py"} & {inside for inside, _ in files}:
        raise UsageError(f"handler: {source} has no {module}.py")
