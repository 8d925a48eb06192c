"""How long does it take to publish packages, and to publish one more?

Whole commands are measured, from their start to the signed index: Tegu beside aptly and reprepro
for 500 real packages and for 5,000 small ones, beside createrepo_c for small RPMs. Nothing is
deleted until the end: ext4 makes files more slowly just after many were removed.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.common import Bar, BenchResult, Usage, machine, median, ratio
from bench.repo.peers import Aptly, Createrepo, Gpg, Peer, Reprepro, Tegu
from bench.repo.workload import real_packages, small_debs, small_rpms

from tegu.errors import UnsupportedError

__all__ = ["run"]

Results = dict[str, dict[str, list[Usage]]]
DEB = (Tegu, Aptly, Reprepro)
RPM = (Tegu, Createrepo)
PROGRAMS = {"aptly": "aptly", "reprepro": "reprepro", "createrepo_c": "createrepo-c"}


def run(quick: bool) -> BenchResult:
    """Measure; `quick` runs everything once."""
    for program, package in PROGRAMS.items():
        if shutil.which(program) is None:
            raise UnsupportedError(
                f"the program {program} is not installed", hint=f"install the package {package}"
            )
    times = 1 if quick else 3
    rpms = 1000 if quick else 5000
    about = machine()
    cases = [
        ("500 real packages", real_packages(501), DEB),
        ("5,000 small packages", small_debs(5001), DEB),
        (f"{rpms:,} small RPMs", small_rpms(rpms + 1), RPM),
    ]
    results: Results = {}
    with tempfile.TemporaryDirectory(prefix="tegu-bench-repo-", dir=cases[1][1][0].parents[1]) as d:
        home = Path(d)
        gpg = Gpg(home / "gnupg")
        try:
            for number, (case, packages, peers) in enumerate(cases):
                folder = home / f"case{number}"
                folder.mkdir()
                results.update(_case(folder, case, packages, peers, gpg, times))
        finally:
            gpg.stop()
    return BenchResult("repo", about, _rows(results), _bars(results, rpms), _notes(cases[0][1]))


def _case(
    folder: Path,
    case: str,
    packages: Sequence[Path],
    peers: Sequence[type[Peer]],
    gpg: Gpg,
    times: int,
) -> Results:
    """Measure publishing all packages but one, then that one; the peers take turns."""
    all_but_one = folder / "packages"
    all_but_one.mkdir()
    for path in packages[:-1]:
        (all_but_one / path.name).hardlink_to(path)
    first: dict[str, list[Usage]] = {p.name: [] for p in peers}
    more: dict[str, list[Usage]] = {p.name: [] for p in peers}
    for turn in range(times):
        for kind in peers if turn % 2 == 0 else peers[::-1]:
            home = folder / f"{kind.name}-{turn}"
            home.mkdir()
            peer = kind(home, gpg)
            peer.prepare()
            first[kind.name].append(peer.measured(peer.first(all_but_one)))
            more[kind.name].append(peer.measured(peer.more(packages[-1])))
    return {case: first, f"{case}, one more": more}


def _rows(results: Results) -> list[dict[str, object]]:
    rows = []
    for case, peers in results.items():
        for name, usages in peers.items():
            used = median(usages)
            rows.append(
                {
                    "case": case,
                    "publisher": name,
                    "wall s": used.wall,
                    "CPU s": used.cpu,
                    "largest process MiB": used.peak_mib,
                    "runs": len(usages),
                }
            )
    return rows


def _bars(results: Results, rpms: int) -> list[Bar]:
    real = results["500 real packages"]
    one_more = results["5,000 small packages, one more"]["Tegu"]
    rpm = results[f"{rpms:,} small RPMs, one more"]["Tegu"]
    return [
        Bar.at_least(
            "real packages: reprepro / Tegu, wall",
            ratio(real["Tegu"], real["reprepro"], "wall"),
            2.5,
        ),
        Bar.at_least(
            "real packages: aptly / Tegu, wall", ratio(real["Tegu"], real["aptly"], "wall"), 1.0
        ),
        Bar.at_most(
            "one more than 5,000: Tegu, wall s", statistics.median(u.wall for u in one_more), 0.3
        ),
        Bar.at_most(
            "one more than 5,000: Tegu, CPU s", statistics.median(u.cpu for u in one_more), 0.3
        ),
        Bar.at_most(
            f"one more than {rpms:,} RPMs: Tegu, wall s",
            statistics.median(u.wall for u in rpm),
            0.3,
        ),
    ]


def _notes(real: Sequence[Path]) -> list[str]:
    size = sum(p.stat().st_size for p in real) / 1e6
    return [
        f"Real packages: {size:.0f} MB. Tegu syncs packages and indexes to the disk (fsync, "
        "syncfs) and writes Packages.gz and .zst.",
    ]
