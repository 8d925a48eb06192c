"""CVE numbers by the commit that mends them, from a copy of the kernel's own list.

The kernel's CVE team keeps a git repository ("vulns"): `cve/published/YEAR/CVE-YEAR-NUMBER.sha1`
has the mainline commits on its lines (Documentation/process/cve.rst).
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from tegu.errors import UsageError

__all__ = ["read_cves"]

_NAME = re.compile(r"CVE-\d{4}-\d{4,7}")
_ID = re.compile(r"[0-9a-f]{40}")


def read_cves(directory: Path) -> dict[str, tuple[str, ...]]:
    """Return the CVE numbers of each commit; UsageError when `directory` is no such copy."""
    published = directory / "cve" / "published"
    if not published.is_dir():
        raise UsageError(
            f"{directory} is no copy of the kernel's CVE list",
            hint="it has a directory cve/published with files CVE-....sha1",
        )
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(published.glob("*/CVE-*.sha1")):
        if _NAME.fullmatch(path.stem):
            for commit in _ID.findall(path.read_text(errors="replace")):
                found[commit].append(path.stem)
    return {commit: tuple(names) for commit, names in found.items()}
