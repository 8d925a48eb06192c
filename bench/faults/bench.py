"""The fault lab: faults injected in a guest of our own image; what doctor and heal make of each.

One guest of the server profile with the distribution's stock kernel takes all faults and all
healthy twins, one after another; a guest that is lost is replaced and the loss is in the table.
Seconds are the guest's own, of looks of three seconds and repairs with their verification, under
emulation where there is no KVM.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import shlex
import shutil
import tempfile
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.common import Bar, BenchError, BenchResult, machine
from bench.faults.state import Progress, made_of

from tegu.definition.shipped import shipped_definition
from tegu.errors import TeguError
from tegu.image import build_definition
from tegu.lab import QemuMachine, QemuOptions, Seed
from tegu.packages.probes import OBJECTS, compile_one
from tegu.process import run as run_program

__all__ = ["run"]

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
DEFINITION = """\
include = [{include}]
[system]
name = "tegu-faults"
[packages]
install = ["dmsetup", "nftables"]
"""
_PATIENCE = 900.0  # seconds for one fault from start to end
_ONLY = "TEGU_FAULTS"
"""Environment: names of faults and twins, separated by commas; these are done anew, others not."""

Row = dict[str, Any]


class Lab:
    """A guest that is there; another one when it is lost."""

    def __init__(self, image: Path, parts: Path) -> None:
        self._image = image
        self._parts = parts
        self._machine: QemuMachine | None = None

    def guest(self) -> QemuMachine:
        """Return the guest, booted and furnished."""
        if self._machine is None:
            log.info("booting")
            made = QemuMachine(
                QemuOptions(image=self._image, firmware="bios", seed=Seed(), memory=1 << 30)
            )
            made.start()
            self._machine = made
            made.wait_for_ssh(900)
            made.copy_in(self._parts, "/tmp/lab.tar")
            made.run(
                "mkdir -p /run/lab && tar -xf /tmp/lab.tar -C /run/lab --no-same-owner"
                " && systemctl is-system-running --wait",
                root=True,
                timeout=600,
            )
        return self._machine

    def drive(self, words: Sequence[str]) -> Row:
        """Run drive.py with these words; what went wrong stands in `trouble`."""
        line = shlex.join(["python3", "/run/lab/drive.py", *words])
        try:
            done = self.guest().run(line, root=True, timeout=_PATIENCE)
        except TeguError as e:
            self.close()
            return {"trouble": [e.message], "lost": True}
        try:
            found: Row = json.loads(done.stdout.splitlines()[-1])
        except (ValueError, IndexError):
            return {"trouble": [done.stderr[-300:] or "no answer"]}
        return found

    def close(self) -> None:
        """Take the guest away."""
        if self._machine is not None:
            self._machine.release()
            self._machine = None


def run(quick: bool) -> BenchResult:
    """Inject all; `quick`: the faults without a heavy load, and three twins."""
    faults = tomllib.loads((HERE / "faults.toml").read_text())
    twins = sorted(p.stem for p in (HERE / "guest/twins").glob("*.sh") if p.stem != "nothing")
    if quick:
        faults = {n: f for n, f in faults.items() if f.get("quick")}
        twins = ["database", "private-mounts", "snapshots"]
    chosen = set(filter(None, os.environ.get(_ONLY, "").split(",")))
    unknown = chosen - {*faults, *twins}
    if unknown:
        raise BenchError(f"{_ONLY}: there is no fault or twin {min(unknown)}")
    if chosen:
        faults = {n: f for n, f in faults.items() if n in chosen}
        twins = [t for t in twins if t in chosen]
    progress = Progress()
    # Now, from what the image is made of: who edits a file during the run gets that row anew.
    digests = {n: made_of("fault", n, about) for n, about in faults.items()}
    digests.update({n: made_of("twin", n, {}) for n in ["nothing", *twins]})

    def once(kind: str, name: str, do: Callable[[], Row]) -> Row:
        digest = digests[name]
        row = None if chosen else progress.done(name, digest)
        if row is None:
            log.info("%s %s", kind, name)
            row = do()
            log.info("%s", row)
            if not row.pop("lost", False):
                progress.keep(name, digest, row)
        return row

    with tempfile.TemporaryDirectory(prefix="tegu-faults-") as scratch:
        lab = Lab(_image(Path(scratch)), _parts(Path(scratch)))
        try:
            # Twins first: a fault leaves its traces in the kernel's log.
            well = [once("twin", n, functools.partial(_twin, lab, n)) for n in ["nothing", *twins]]
            sick = [
                once("fault", n, functools.partial(_fault, lab, n, about))
                for n, about in faults.items()
            ]
        finally:
            lab.close()
    return _result(sick, well, faults, progress.note())


def _image(scratch: Path) -> Path:
    definition = scratch / "tegu.toml"
    definition.write_text(DEFINITION.format(include=json.dumps(str(shipped_definition()))))
    return build_definition(definition, profile="server").path


def _parts(scratch: Path) -> Path:
    folder = scratch / "lab"
    shutil.copytree(HERE / "guest", folder)
    compile_one(HERE / "lockup.bpf.c", folder / "lockup.bpf.o", OBJECTS)
    run_program(["tar", "-cf", scratch / "lab.tar", "-C", folder, "."])
    return scratch / "lab.tar"


def _fault(lab: Lab, name: str, about: Row) -> Row:
    heal = "yes" if about["heal"] else "no"
    found = lab.drive(["fault", name, about["rule"], about["culprit"], heal])
    repaired = found.get("repaired")
    return {
        "what": name,
        "found": "yes" if found.get("detected") else "NO",
        "culprit": "right" if found.get("culprit") else f"wrong: {found.get('told', '')}".strip(),
        "seconds": found.get("seconds"),
        "repaired": ("verified" if repaired else _why_not(found))
        if about["heal"]
        else f"none: {about['why']}",
        "repair_seconds": found.get("repair_seconds"),
        "others": "; ".join(found.get("others", [])),
        "trouble": "; ".join(found.get("trouble", [])),
        "lost": found.get("lost", False),
    }


def _why_not(found: Row) -> str:
    return f"NO: {found.get('repair', 'not found')}"


def _twin(lab: Lab, name: str) -> Row:
    found = lab.drive(["twin", name, "2"])
    return {
        "what": f"twin: {name}",
        "found": "NOT TRIED" if "findings" not in found else "; ".join(found["findings"]) or "none",
        "culprit": "",
        "seconds": None,
        "repaired": "",
        "repair_seconds": None,
        "others": "",
        "trouble": "; ".join(found.get("trouble", [])),
        "lost": found.get("lost", False),
    }


def _result(sick: list[Row], well: list[Row], faults: Row, note: str) -> BenchResult:
    healable = [r for r, a in zip(sick, faults.values(), strict=True) if a["heal"]]
    detected = sum(r["found"] == "yes" for r in sick)
    right = sum(r["culprit"] == "right" for r in sick)
    verified = sum(r["repaired"] == "verified" for r in healable)
    false = sum(r["found"] != "none" for r in well)
    bars = [
        Bar.at_least("faults detected", detected, len(sick)),
        Bar.at_least("culprits right", right, round(0.9 * len(sick))),
        Bar.at_least("repaired and verified", verified, len(healable)),
        Bar.at_most("healthy twins with a false finding", false, 0),
    ]
    notes = [
        f"{len(sick)} faults, {len(healable)} of them with a safe remedy, {len(well)} twins, the"
        " first of them a machine that does nothing.",
        "soft-lockup is a BPF program that keeps a processor, not a module; its watchdog is set to"
        " 3 s.",
    ]
    if note:
        notes.append(note)
    return BenchResult("faults", machine(), sick + well, bars, notes)
