"""Objects for the tests, made by the compiler that makes kernels."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

FLAGS = (
    *("-O2", "-g0", "-fno-PIE", "-fcf-protection=none", "-pg", "-mfentry", "-mrecord-mcount"),
    *("-fno-asynchronous-unwind-tables", "-fno-common", "-fno-stack-protector"),
)
SECTIONS = ("-ffunction-sections", "-fdata-sections")

Compile = Callable[..., Path]


@pytest.fixture
def compile_c(tmp_path: Path) -> Compile:
    """Return a function that compiles C text: `compile_c(name, text, *more_flags)`."""
    if shutil.which("gcc") is None or platform.machine() != "x86_64":
        pytest.skip("no gcc that makes x86-64 code")

    def compile_(name: str, text: str, *flags: str) -> Path:
        source = tmp_path / f"{name}.c"
        source.write_text(text)
        out = tmp_path / f"{name}.o"
        subprocess.run(
            ["gcc", *FLAGS, *flags, "-c", "-o", str(out), str(source)],
            check=True,
            capture_output=True,
            text=True,
        )
        return out

    return compile_
