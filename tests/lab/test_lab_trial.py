"""What one try of a candidate comes to; the machines themselves are tried in tests/kernel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tegu.errors import UsageError
from tegu.lab import Bootable, MachineReport, Report, StepResult, TrialSettings, try_command
from tegu.lab.results import Status
from tegu.lab.trial import _of_report, _options


def report(*steps: tuple[str, Status]) -> Report:
    results = tuple(StepResult(name, status, 1.0, f"{name}: no\nmore") for name, status in steps)
    machine = MachineReport("one", "uefi", "tcg", 0.0, 1.0, results)
    return Report("plan", "", "image", 0.0, 1.0, (machine,))


def test_plans() -> None:
    settings = TrialSettings()
    booted: tuple[str, Status] = ("boot until SSH answers", "passed")
    assert _of_report(report(booted, ("a", "passed")), settings, 1.0).verdict == "good"
    failed = _of_report(report(booted, ("a", "failed"), ("b", "error")), settings, 1.0)
    assert (failed.verdict, failed.why) == ("bad", "2 steps of the plan plan did not pass")
    assert "a: no\nmore" in failed.log
    dead = report(("boot until SSH answers", "error"), ("a", "skipped"))
    trial = _of_report(dead, settings, 1.0)
    assert (trial.verdict, trial.why) == ("skip", "boot until SSH answers: no")
    assert _of_report(dead, replace(settings, boot_failure="bad"), 1.0).verdict == "bad"


def test_what_is_started() -> None:
    image, kernel = Path("i.qcow2"), Path("vmlinuz")
    assert _options(Bootable(image), TrialSettings(firmware="bios")).firmware == "bios"
    options = _options(Bootable(image, kernel, None, "quiet"), TrialSettings(memory=1 << 29))
    assert (options.image, options.kernel, options.append) == (image, kernel, "quiet")
    assert options.memory == 1 << 29
    with pytest.raises(UsageError, match="'efi' is no firmware"):
        _options(Bootable(image), TrialSettings(firmware="efi"))


def test_an_image_that_is_none(tmp_path: Path) -> None:
    """A bad argument is a mistake in the question, and no verdict."""
    with pytest.raises(UsageError):
        try_command(Bootable(tmp_path / "absent"), "true", TrialSettings(), lambda _: None)
