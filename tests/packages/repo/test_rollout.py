"""Roll-outs in steps: which machines apt upgrades, and what the channel keeps meanwhile."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tegu.errors import RepositoryError, UsageError
from tegu.packages.repo import Repository, add, promote, publish, roll_out

MACHINES = [f"{n:032x}" for n in range(1, 41)]


def versions(repo: Repository, channel: str) -> set[str]:
    return {f"{i.name}={i.version}" for i in repo.catalogue.members(channel)}


def upgraded(client: Any) -> set[str]:
    """The machines of those above on which apt would upgrade hello to 2."""
    assert client.update() == ""
    chosen = set()
    for machine in MACHINES:
        done = client.run(
            *("-s", "-o", "APT::Get::Phase-Policy=true", "-o", f"APT::Machine-ID={machine}"),
            "dist-upgrade",
        )
        assert done.returncode == 0, done.stderr
        if "Inst hello [1] (2 " in done.stdout:
            chosen.add(machine)
    return chosen


def test_apt_follows_a_roll_out(
    repo: Repository, deb: Callable[..., Path], apt: Callable[..., Any]
) -> None:
    with repo.locked():
        add(repo, "dev", [deb("hello", "1")])
        promote(repo, "dev", "stable")
        add(repo, "dev", [deb("hello", "2")])
        promote(repo, "dev", "stable", percent=40)
        publish(repo)
    client = apt(repo)
    (client.home / "status").write_text(
        "Package: hello\nStatus: install ok installed\nVersion: 1\nArchitecture: all\n"
        "Maintainer: Nobody <nobody@tegu.invalid>\nDescription: the package hello\n\n"
    )
    assert versions(repo, "stable") == {"hello=1", "hello=2"}
    first = upgraded(client)
    assert 0 < len(first) < len(MACHINES)
    steps = {}
    for percent in (80, 0, 100):
        with repo.locked():
            assert [i.version for i in roll_out(repo, "stable", percent)] == ["2"]
            publish(repo, ["stable"])
        steps[percent] = upgraded(client)
    assert first <= steps[80] < set(MACHINES)  # who had it keeps it
    assert steps[0] == set()
    assert steps[100] == set(MACHINES)
    assert versions(repo, "stable") == {"hello=2"}
    with pytest.raises(RepositoryError, match="stable rolls nothing out"):
        roll_out(repo, "stable", 50)


def test_a_snapshot_is_for_everybody(repo: Repository, deb: Callable[..., Path]) -> None:
    from tegu.packages.repo import take_snapshot

    with repo.locked():
        add(repo, "dev", [deb("hello", "1")])
        roll_out(repo, "dev", 10, ["hello"])
        take_snapshot(repo, "dev", "2026.11")
        publish(repo)
    assert repo.catalogue.offered("dev") and not repo.catalogue.offered("2026.11")
    for name, there in (("dev", True), ("2026.11", False)):
        (packages,) = repo.public.glob(f"dists/{name}/*/binary-amd64/Packages.gz")
        import gzip

        text = gzip.decompress(packages.read_bytes()).decode()
        assert ("Phased-Update-Percentage: 10\n" in text) is there


def test_what_cannot_be_rolled_out(
    repo: Repository, deb: Callable[..., Path], rpm: Callable[..., Path]
) -> None:
    with repo.locked():
        add(repo, "dev", [deb("hello", "1"), rpm("world")])
        for percent in (-1, 101):
            with pytest.raises(UsageError, match="must be 0 to 100"):
                roll_out(repo, "dev", percent, ["hello"])
        with pytest.raises(RepositoryError, match="dev has no package gone"):
            roll_out(repo, "dev", 10, ["gone"])
        with pytest.raises(RepositoryError, match="is an RPM package: dnf rolls nothing out"):
            roll_out(repo, "dev", 10, ["world"])


def test_a_catalogue_of_before_is_taken_over(repo: Repository, deb: Callable[..., Path]) -> None:
    with repo.locked():
        add(repo, "dev", [deb("hello", "1")])
    path, root = repo.catalogue.path, repo.root
    repo.catalogue.close()
    with sqlite3.connect(path) as db:
        db.execute("ALTER TABLE member DROP COLUMN percent")
        db.execute("PRAGMA user_version = 1")
    with Repository(root) as again:
        assert versions(again, "dev") == {"hello=1"}
        assert again.catalogue.offered("dev") == {}
