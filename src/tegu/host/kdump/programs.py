"""Programs of this machine with the libraries they need, for an initrd.

What the dynamic loader would load is asked of the loader itself (ldd(1), ld.so(8) --list), which
also knows of libraries in unusual places.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from tegu.boot.cpio import Archive
from tegu.errors import BuildError, UnsupportedError
from tegu.process import run

__all__ = ["add_program", "libraries"]

_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


def libraries(listing: str) -> list[str]:
    """Return the absolute paths in the output of ldd; raises BuildError for one that is missing."""
    found = []
    for line in listing.splitlines():
        if "=> not found" in line:
            raise BuildError(f"a program's library is missing: {line.strip()}")
        match = re.search(r"(?:=> )?(/\S+) \(0x[0-9a-f]+\)$", line)
        if match is not None:
            found.append(match[1])
    return found


def add_program(archive: Archive, name: str, *, package: str) -> None:
    """Put the program `name` at /bin and its libraries where they are looked for.

    Raises UnsupportedError naming the Debian `package` when it is not installed.
    """
    path = shutil.which(name, path=_PATH)
    if path is None:
        raise UnsupportedError(
            f"{name} is not installed, which the capture kernel needs",
            hint=f"apt-get install {package}",
        )
    archive.file(f"bin/{name}", Path(path).read_bytes(), 0o755)
    done = run(["ldd", path], check=False)
    if done.returncode != 0 and "not a dynamic executable" not in done.stderr + done.stdout:
        raise BuildError(f"cannot find out the libraries of {path}: {done.stderr.strip()}")
    for library in libraries(done.stdout):
        archive.file(library.lstrip("/"), Path(library).read_bytes(), 0o755)
