"""`tegu-oci` made known to containerd, podman and Kubernetes: files changed, checked, put back.

containerd reads imported files section by section, each in place of the main file's. So its
runtimes are a marked block at the end of its own config.toml; podman has a file of ours beside its
others; Kubernetes a manifest to apply. What is written can be told from what others wrote since.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import shutil
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tegu.errors import SandboxError, UnsupportedError, UsageError
from tegu.files import write_atomic
from tegu.process import CommandError, require, run

__all__ = ["CLIENTS", "Change", "apply", "found_clients", "plan"]

CLIENTS = ("containerd", "podman", "kubernetes")
_CONTAINERD = "etc/containerd/config.toml"
_PODMAN = "etc/containers/containers.conf.d/50-tegu.conf"
_KUBERNETES = "etc/tegu/runtime-classes.yaml"
_BEGIN = "# >>> tegu sandbox install"
_END = "# <<< tegu sandbox install"
_BLOCK = re.compile(
    rf"\n?{re.escape(_BEGIN)} (?P<sha>[0-9a-f]{{64}})(?P<new> new)?\n"
    rf"(?P<body>.*?){re.escape(_END)}\n",
    re.DOTALL,
)
_PLUGINS = {2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}
"""Where runtimes of CRI are configured, by the file's version (containerd 1 and 2)."""
_RUNTIMES = {"tegu": "tegu-oci", "tegu-gvisor": "tegu-oci-gvisor"}
"""Programs by the handlers' names."""


@dataclass(frozen=True)
class Change:
    """A file before and after; None where there is none. `then` says what is left to do."""

    client: str
    path: Path
    before: str | None
    after: str | None
    then: str

    @property
    def needed(self) -> bool:
        """Whether something changes."""
        return self.before != self.after

    def diff(self) -> str:
        """Return it as a unified diff."""
        old, new = ((text or "").splitlines(keepends=True) for text in (self.before, self.after))
        gone = "/dev/null"
        first = gone if self.before is None else str(self.path)
        second = gone if self.after is None else str(self.path)
        lines = difflib.unified_diff(old, new, first, second)
        return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)


def found_clients(root: Path = Path("/")) -> list[str]:
    """Return which of CLIENTS there are: by their programs, and containerd's by its directory."""
    there = {
        "containerd": shutil.which("containerd") is not None or (root / "etc/containerd").is_dir(),
        "podman": shutil.which("podman") is not None,
    }
    found = [name for name, here in there.items() if here]
    return [*found, "kubernetes"] if "containerd" in found else found


def plan(
    clients: Sequence[str], *, root: Path = Path("/"), programs: Path | None = None, undo: bool
) -> list[Change]:
    """Return what would change below `root`; nothing is written.

    `programs` is the directory of `tegu-oci` and `tegu-oci-gvisor`, by default where PATH has
    them. Raises UsageError, UnsupportedError and SandboxError with the file's name.
    """
    for name in clients:
        if name not in CLIENTS:
            raise UsageError(f"{name!r} is none of {', '.join(CLIENTS)}")
    if not clients:
        raise UnsupportedError(
            "neither containerd nor podman is here", hint="name one with --for all the same"
        )
    at = {} if undo else _programs(programs)
    changes = []
    for name in dict.fromkeys(clients):
        if name == "containerd":
            changes.append(_containerd(root / _CONTAINERD, at, undo=undo))
        elif name == "podman":
            text = "" if undo else _podman(at)
            then = "podman --runtime tegu-oci run ..., or tegu-oci-gvisor"
            changes.append(_own_file(name, root / _PODMAN, text, then, undo=undo))
        else:
            then = f"kubectl {'delete' if undo else 'apply'} -f /{_KUBERNETES}"
            text = "" if undo else _MANIFEST
            changes.append(_own_file(name, root / _KUBERNETES, text, then, undo=undo))
    return changes


def apply(changes: Sequence[Change]) -> list[str]:
    """Write changes, or take all of them back when containerd does not accept its own.

    Returns what was checked. Raises SandboxError.
    """
    done: list[Change] = []
    checked = []
    try:
        for change in changes:
            if not change.needed:
                continue
            done.append(change)
            _write(change.path, change.after)
            if change.client == "containerd" and change.after is not None:
                said = _ask_containerd(change)
                checked += [said] if said else []
    except BaseException:
        for change in reversed(done):
            _write(change.path, change.before)
        raise
    return checked


def _write(path: Path, text: str | None) -> None:
    try:
        if text is None:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = path.stat().st_mode & 0o7777 if path.exists() else 0o644
        write_atomic(path, text)
        path.chmod(mode)
    except OSError as e:
        raise SandboxError(f"cannot write {path}: {e.strerror}") from e


def _read(path: Path) -> str | None:
    if path.is_symlink():
        raise SandboxError(f"{path} is a link to {path.readlink()}: its owner must change that")
    try:
        with path.open(newline="") as f:  # as it is, to be put back so
            return f.read()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as e:
        raise SandboxError(f"cannot read {path}: {e}") from e


def _programs(directory: Path | None) -> dict[str, str]:
    found = {}
    for program in _RUNTIMES.values():
        path = shutil.which(program, path=None if directory is None else str(directory))
        if path is None:
            raise UsageError(
                f"there is no {program} in {directory or 'PATH'}", hint="--programs names its place"
            )
        if any(c in path for c in '"\\\n'):
            raise UsageError(f"{path!r} cannot be written into a configuration")
        found[program] = str(Path(path).absolute())
    return found


def _containerd(path: Path, at: dict[str, str], *, undo: bool) -> Change:
    before = _read(path)
    then = "restart containerd: systemctl restart containerd"
    kept, new = _without_block(path, before or "")
    if undo:
        after = None if new and re.fullmatch(r"version = \d\n", kept) else kept
        return Change("containerd", path, before, before if before is None else after, then)
    version = _version(path, before and kept)
    if before is None or new:
        kept = kept or f"version = {version}\n"
        mark = " new"
    else:
        mark = ""
    lines = []
    for handler, program in _RUNTIMES.items():
        table = f'plugins."{_PLUGINS[version]}".containerd.runtimes.{handler}'
        lines += [
            f"[{table}]",
            '  runtime_type = "io.containerd.runc.v2"',
            '  pod_annotations = ["io.tegu.*"]',
            '  container_annotations = ["io.tegu.*"]',
            f"[{table}.options]",
            f'  BinaryName = "{at[program]}"',
        ]
    body = "\n".join(lines) + "\n"
    after = f"{kept}\n{_BEGIN} {_sha(body)}{mark}\n{body}{_END}\n"
    try:
        tomllib.loads(after)
    except tomllib.TOMLDecodeError as e:
        raise SandboxError(
            f"{path}: runtimes cannot be added to it: {e}",
            hint="it has tables of that name, or writes runtimes as one inline table",
        ) from e
    return Change("containerd", path, before, after, then)


def _without_block(path: Path, text: str) -> tuple[str, bool]:
    """Return a file without our block, and whether the file itself is ours."""
    found = _BLOCK.search(text)
    if found is None:
        if _BEGIN in text or _END in text:
            raise SandboxError(f"{path}: what was installed there is damaged: remove it by hand")
        return text, False
    if _sha(found["body"]) != found["sha"]:
        raise SandboxError(
            f"{path}: what was installed there has been changed since",
            hint=f"remove all between the lines that begin with {_BEGIN[:3]} and {_END[:3]}",
        )
    return text[: found.start()] + text[found.end() :], bool(found["new"])


def _version(path: Path, text: str | None) -> int:
    """Return the version of containerd's configuration: the file's, else that containerd has."""
    if text is not None:
        try:
            said = tomllib.loads(text).get("version", 1)
        except tomllib.TOMLDecodeError as e:
            raise SandboxError(f"{path}: {e}") from e
        if said not in _PLUGINS:
            raise UnsupportedError(
                f"{path}: version {said}", hint="`containerd config migrate` makes a newer one"
            )
        return int(said)
    program = shutil.which("containerd")
    found = re.search(r" v?(\d+)\.", run([program, "--version"]).stdout) if program else None
    return 3 if found and int(found[1]) >= 2 else 2


def _ask_containerd(change: Change) -> str:
    """Have containerd itself read its file; return what it was asked. Raises SandboxError."""
    if shutil.which("containerd") is None:
        return ""
    words = [require("containerd"), "--config", str(change.path), "config", "dump"]
    try:
        dumped = tomllib.loads(run(words, timeout=60).stdout)
    except (CommandError, tomllib.TOMLDecodeError) as e:
        raise SandboxError(f"containerd refuses {change.path}: {e}", hint="it was put back") from e
    wanted = tomllib.loads(change.after or "").get("plugins", {})
    for plugin in _PLUGINS.values():
        for handler in wanted.get(plugin, {}).get("containerd", {}).get("runtimes", {}):
            seen = dumped.get("plugins", {}).get(plugin, {}).get("containerd", {})
            if handler not in seen.get("runtimes", {}):
                raise SandboxError(
                    f"containerd does not see the runtime {handler} in {change.path}",
                    hint="it was put back",
                )
    return f"containerd reads {change.path}"


def _own_file(client: str, path: Path, body: str, then: str, *, undo: bool) -> Change:
    before = _read(path)
    if before is not None:
        first, _, rest = before.partition("\n")
        if first != f"{_BEGIN} {_sha(rest)}":
            raise SandboxError(
                f"{path}: another's, or changed since it was installed", hint="remove it by hand"
            )
    return Change(client, path, before, None if undo else f"{_BEGIN} {_sha(body)}\n{body}", then)


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _podman(at: dict[str, str]) -> str:
    # A list in a later file takes the place of earlier ones: so podman's own are in it too.
    names = ", ".join(f'"{n}"' for n in ("crun", "runc", "kata", "runsc", "krun", *at))
    free = ", ".join(f'"{n}"' for n in ("crun", "krun", "tegu-oci"))
    lines = ["[engine]", f"runtime_supports_json = [{names}]"]
    lines += [f"runtime_supports_nocgroups = [{free}]", "", "[engine.runtimes]"]
    lines += [f'{program} = ["{path}"]' for program, path in at.items()]
    return "\n".join(lines) + "\n"


_MANIFEST = "".join(
    f"""\
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata:
  name: {handler}
handler: {handler}
---
"""
    for handler in _RUNTIMES
).removesuffix("---\n")
