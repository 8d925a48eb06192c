"""The supervisor's part of microVMs: their bases and processes are started from here."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from tegu.errors import SandboxError
from tegu.sandbox import wireless
from tegu.sandbox.box import Box
from tegu.sandbox.spawned import Spawned, bare_python, start_python
from tegu.sandbox.spec import BoxSpec
from tegu.sandbox.vm import snapshots
from tegu.sandbox.wire import to_error

__all__ = ["KINDS", "OVERHEAD", "Machines"]

KINDS = ("microvm", "microvm-tcg")
OVERHEAD = 96 * 2**20
"""Bytes that QEMU may take beside the guest's memory, where a control group counts them."""


def _identity(template: str) -> object:
    """Return what tells a template from one that was put in its place."""
    top = Path("/usr" if template == "host" else template)
    about = [top.stat()]
    with os.scandir(top) as entries:
        about += [e.stat(follow_symlinks=False) for e in sorted(entries, key=lambda e: e.name)]
    return tuple((a.st_dev, a.st_ino, a.st_ctime_ns) for a in about)


class Machines:
    """What the supervisor knows of bases and snapshots; `state` is where they are kept."""

    def __init__(self, state: Path | None) -> None:
        self._state = state
        self._bases: dict[object, tuple[object, Path]] = {}
        self._making: dict[object, asyncio.Task[Path]] = {}
        self._zygote: _Zygote | None = None

    @property
    def state(self) -> Path:
        """Return the directory. Raises SandboxError when the supervisor may write nowhere."""
        if self._state is None:
            raise SandboxError(
                "there is no place to keep microVMs", hint="TEGU_SANDBOX_STATE names one"
            )
        return self._state

    async def prepare(self, spec: BoxSpec) -> None:
        """See to it that boxes like `spec` can be restored; the first of them takes a boot."""
        if spec.snapshot:
            return
        key, identity = self._key(spec), _identity(spec.template)
        known = self._bases.get(key)
        if known is not None and known[0] == identity and (known[1] / "manifest.json").exists():
            return
        task = self._making.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._make(spec))
            self._making[key] = task
            task.add_done_callback(lambda _: self._making.pop(key, None))
        self._bases[key] = (identity, await asyncio.shield(task))

    def _key(self, spec: BoxSpec) -> object:
        limits = spec.limits
        return spec.template, spec.kind, limits.memory, limits.cpus, limits.disk

    async def _make(self, spec: BoxSpec) -> Path:
        words = [
            *bare_python("tegu.sandbox.vm.base", "main(sys.argv[1:])"),
            *(json.dumps(spec.to_json()), str(self.state)),
        ]
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "TMPDIR": str(self.state)},
        )
        said, _ = await process.communicate()
        try:
            answer: dict[str, Any] = json.loads(said)
        except ValueError:
            raise SandboxError("making a microVM failed; the supervisor's log says more") from None
        if "error" in answer:
            raise to_error(answer["error"])
        return Path(answer["base"])

    def start(self, box: Box) -> None:
        """Start the process of a microVM; the guest is restored when the first order comes."""
        spec = box.spec
        if spec.snapshot:
            source = self.state / "snapshots" / snapshots.check_name(spec.snapshot)
        else:
            source = self._bases[self._key(spec)][1]
        if self._zygote is None or not self._zygote.alive:
            self._zygote = _Zygote()
        self._zygote.ask(box, [json.dumps(spec.to_json()), str(source), str(self.state)])

    def restored(self, name: str, wanted: BoxSpec) -> BoxSpec:
        """Return the description of a box that continues a snapshot: what was saved, with the
        lifetime and host name that are wanted now. Raises SandboxError."""
        body = snapshots.read_manifest(self.state / "snapshots" / snapshots.check_name(name), name)
        saved = body.get("spec")
        if not isinstance(saved, dict):
            raise SandboxError(f"snapshot {name}: its manifest is damaged")
        fields = {**saved, "snapshot": name, "timeout": wanted.timeout}
        if wanted.hostname != "box":
            fields["hostname"] = wanted.hostname
        return BoxSpec.from_json(fields)

    def snapshots(self) -> list[dict[str, Any]]:
        """Return what is saved here, by name."""
        found = []
        with suppress(FileNotFoundError):
            for directory in sorted((self.state / "snapshots").iterdir()):
                if directory.name.startswith("."):
                    continue
                entry: dict[str, Any] = {"name": directory.name}
                try:
                    body = snapshots.read_manifest(directory, directory.name)
                    spec = body.get("spec") or {}
                    entry |= {
                        "created": body["created"],
                        "kind": spec.get("kind"),
                        "template": spec.get("template"),
                        "bytes": sum((directory / f).stat().st_blocks * 512 for f in body["files"]),
                    }
                except (SandboxError, OSError) as e:
                    entry["error"] = getattr(e, "message", str(e))
                found.append(entry)
        return found

    def remove(self, name: str) -> None:
        """Remove a snapshot; boxes that were restored from it live on. Raises SandboxError."""
        import shutil

        directory = self.state / "snapshots" / snapshots.check_name(name)
        if not directory.is_dir():
            raise SandboxError(f"there is no snapshot {name}", hint="see `tegu sandbox snapshots`")
        gone = directory.with_name(f".new-gone-{name}")
        directory.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


class _Zygote(Spawned):
    """The process that microVMs' processes are clones of (tegu.sandbox.vm.zygote)."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: dict[str, Box] = {}
        command = bare_python("tegu.sandbox.vm.zygote")
        self._begin(lambda link: start_python(command, link, environment=os.environ))

    def ask(self, box: Box, arguments: list[str]) -> None:
        """Ask for a box's process. Raises SandboxError."""
        assert self._link is not None
        self._waiting[box.name] = box
        try:
            fds = [box.other_end.fileno()]
            wireless.tell(self._link, box.name, json.dumps(arguments), fds=fds)
        except OSError as e:
            del self._waiting[box.name]
            raise SandboxError(f"too many boxes are being started: {e.strerror}") from e

    def _take(self, words: list[str], fds: list[int]) -> None:
        box = self._waiting.pop(words[1])
        if words[0] == "born":
            box.born(int(words[2]), fds[0], "")
        else:
            box.stillborn(words[2])

    def stop(self) -> None:
        """Let it go; microVMs whose processes it made live on."""
        super().stop()
        waiting, self._waiting = self._waiting, {}
        for box in waiting.values():
            box.stillborn("the process that starts microVMs has ended")


def reap_orphans() -> None:
    """Wait for emulators whose process was killed before they ended: they are ours now."""
    while True:
        try:
            about = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if about is None:
            return
        try:
            name = Path(f"/proc/{about.si_pid}/comm").read_text()
        except OSError:
            return
        if not name.startswith(("qemu-system", "firecracker", "cloud-hyperviso")):
            return  # somebody here waits for it
        os.waitpid(about.si_pid, 0)
