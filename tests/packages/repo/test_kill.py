"""SIGKILL at twenty moments of a publication: clients see a whole state, the next run mends."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tegu.packages.repo import Repository, add, publish
from tegu.packages.repo.verification import verify, verify_own

# Counts the lines of our own code that are run, and dies at the one that is asked for: so that
# every moment can be hit, whatever else the machine does.
PROGRAM = """
import os, signal, sys
from pathlib import Path
from tegu.packages.repo import Repository, add, publish, remove
import tegu.packages.repo.publication, tegu.packages.repo.intake, tegu.packages.repo.rpm_index

count, limit = 0, int(sys.argv[1])

def trace(frame, event, argument):
    global count
    if "/packages/repo/" not in frame.f_code.co_filename:
        return None
    if event == "line":
        count += 1
        if count == limit:
            os.kill(os.getpid(), signal.SIGKILL)
    return trace

with Repository(Path(sys.argv[2])) as repo, repo.locked():
    sys.settrace(trace)
    add(repo, "stable", [Path(p) for p in sys.argv[3:]])
    remove(repo, "stable", ["old"])
    publish(repo, ["stable"])
    sys.settrace(None)
print(count)
"""


def _run(limit: int, repo: Repository, *packages: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(limit), str(repo.root), *map(str, packages)],
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_clients_always_see_a_whole_state(
    repo: Repository, deb: Any, rpm: Any, apt: Any, signing_key: Path, tmp_path: Path
) -> None:
    with repo.locked():
        add(repo, "stable", [deb("hello"), rpm("hello"), deb("old")])
        publish(repo)
    keyrings = [str(repo.public / "keyring.gpg")]
    # How long it takes, in lines, from a run that is left alone.
    trial = Repository.create(
        tmp_path / "trial",
        name="acme",
        channels=["stable"],
        architectures=["amd64"],
        signers=[str(signing_key)],
    )
    with trial:
        with trial.locked():
            add(trial, "stable", [deb("hello"), rpm("hello"), deb("old")])
            publish(trial)
        whole = _run(0, trial, deb("hello", "2"), rpm("hello", "2"))
    assert whole.returncode == 0, whole.stderr
    lines = int(whole.stdout)
    assert lines > 500
    moments = sorted(random.Random(20261121).sample(range(1, lines), 20))
    client = apt(repo)
    states = set()
    for number, moment in enumerate(moments, 2):
        packages = deb("hello", str(number)), rpm("hello", str(number)), deb("old", str(number))
        before = _offered(repo)
        done = _run(moment, repo, *packages)
        assert done.returncode == -signal.SIGKILL, (moment, done.stderr)
        report = verify(repo.public.as_uri(), ["stable"], keyrings)
        assert report.problems == [], moment
        assert client.update() == "", moment
        after = _offered(repo)
        assert after == before or f"hello={number}" in after, moment
        states.add(after == before)
    assert states == {True, False}, "no kill came before, or none after the exchange"
    # The next one mends: nothing temporary, no orphans, and what is published is what was asked.
    with repo.locked():
        publish(repo)
    assert list(repo.tmp.iterdir()) == []
    assert repo.orphans() == []
    assert verify_own(repo).problems == []
    assert _offered(repo) == {
        f"{i.name}={i.version}" for i in repo.catalogue.members("stable", "deb")
    }


def _offered(repo: Repository) -> set[str]:
    import gzip

    index = repo.public / "dists/stable/main/binary-amd64/Packages.gz"
    found = set()
    for entry in gzip.decompress(index.read_bytes()).decode().split("\n\n"):
        fields = dict(x.split(": ", 1) for x in entry.splitlines() if ": " in x)
        if fields:
            found.add(f"{fields['Package']}={fields['Version']}")
    return found
