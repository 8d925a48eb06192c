"""Publishing, and the clients that read it."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tegu.errors import RepositoryError
from tegu.linux import libc
from tegu.packages.repo import Repository, add, promote, publish, remove, take_snapshot
from tegu.packages.repo.settings import load_settings
from tegu.packages.repo.verification import verify_own

HOUR = 3600


def _publish(repo: Repository, *debs: Path, channel: str = "stable", **options: Any) -> None:
    with repo.locked():
        if debs:
            add(repo, channel, debs)
        publish(repo, **options)


def _by_hash(repo: Repository, suite: str = "stable") -> set[str]:
    folder = repo.public / f"dists/{suite}/main/binary-amd64/by-hash/SHA256"
    return {p.name for p in folder.iterdir()}


def test_apt_reads_and_fetches_by_hash_over_http(
    repo: Repository, deb: Any, apt: Any, serve: Callable[[Path], Any]
) -> None:
    _publish(repo, deb("hello"), deb("libfoo2", "2:1.0~rc1-1+b2", arch="amd64"))
    server = serve(repo.public)
    client = apt(repo, url=server.url)
    assert client.update() == ""
    assert client.has() == {"hello=1", "libfoo2=2:1.0~rc1-1+b2"}
    assert client.download("libfoo2") == ""
    assert client.download("hello") == ""
    paths = [r.path for r in server.requests]
    assert any("/by-hash/SHA256/" in p for p in paths)
    assert not any(p.endswith(("Packages.gz", "Packages.zst")) for p in paths)


def test_apt_follows_from_one_publication_to_the_next(repo: Repository, deb: Any, apt: Any) -> None:
    _publish(repo, deb("hello"))
    client = apt(repo)
    assert client.update() == ""
    _publish(repo, deb("hello", "2"), deb("more"))
    assert client.update() == ""
    assert client.has() == {"hello=2", "more=1"}


def test_what_an_old_index_names_stays_for_a_while_then_goes(repo: Repository, deb: Any) -> None:
    start = int(time.time())
    _publish(repo, deb("hello"), now=start)
    first = _by_hash(repo)
    (pool,) = (repo.public / "pool").rglob("*.deb")
    with repo.locked():
        add(repo, "stable", [deb("other")])
        remove(repo, "stable", ["hello"])
        publish(repo, now=start + HOUR)
    assert first < _by_hash(repo)
    assert pool.exists()
    _publish(repo, deb("third"), now=start + 20 * HOUR)
    assert first < _by_hash(repo)
    assert pool.exists()
    _publish(repo, deb("fourth"), now=start + 26 * HOUR)
    assert not first & _by_hash(repo)
    assert not pool.exists()
    assert not pool.parent.exists()
    # Its version is taken for ever; the same file may come back.
    with repo.locked(), pytest.raises(RepositoryError, match="has that version"):
        add(repo, "stable", [deb("hello", text="other")])
    _publish(repo, deb("hello"))
    assert pool.exists()
    assert verify_own(repo).problems == []


def test_nothing_changed_nothing_is_written(repo: Repository, deb: Any) -> None:
    _publish(repo, deb("hello"))
    inrelease = repo.public / "dists/stable/InRelease"
    before = inrelease.stat()
    with repo.locked():
        assert set(publish(repo).current) == {"dev", "stable"}
    assert inrelease.stat().st_ino == before.st_ino
    # Half of the validity later it is signed anew, or clients would refuse it one day.
    with repo.locked():
        done = publish(repo, now=int(time.time()) + 8 * 24 * HOUR)
    assert set(done.written) == {"dev", "stable"}


def test_a_channel_is_promoted_without_a_rebuild(repo: Repository, deb: Any) -> None:
    _publish(repo, deb("hello"), deb("gone"), channel="dev")
    with repo.locked():
        add(repo, "stable", [deb("gone")])
        remove(repo, "dev", ["gone"])
        add(repo, "dev", [deb("hello", "2")])
        done = promote(repo, "dev", "stable")
        publish(repo)
    assert {(i.name, i.version) for i in done.entered} == {("hello", "1"), ("hello", "2")}
    assert [i.name for i in done.left] == ["gone"]
    index = repo.public / "dists/stable/main/binary-amd64/Packages.gz"
    assert gzip.decompress(index.read_bytes()) == gzip.decompress(
        (repo.public / "dists/dev/main/binary-amd64/Packages.gz").read_bytes()
    )
    with repo.locked(), pytest.raises(RepositoryError, match="to itself"):
        promote(repo, "dev", "dev")


def test_one_package_is_promoted_and_replaces_its_older_version(repo: Repository, deb: Any) -> None:
    with repo.locked():
        add(repo, "stable", [deb("hello"), deb("other")])
        add(repo, "dev", [deb("hello", "2"), deb("new")])
        promote(repo, "dev", "stable", ["hello"])
    have = {(i.name, i.version) for i in repo.catalogue.members("stable")}
    assert have == {("hello", "2"), ("other", "1")}
    with repo.locked(), pytest.raises(RepositoryError, match="dev has no package nothing"):
        promote(repo, "dev", "stable", ["nothing"])


def test_a_promotion_does_not_go_backwards(repo: Repository, deb: Any) -> None:
    with repo.locked():
        add(repo, "stable", [deb("hello", "1.10")])
        add(repo, "dev", [deb("hello", "1.9")])
        with pytest.raises(RepositoryError, match=r"backwards: stable has 1\.10"):
            promote(repo, "dev", "stable")
        promote(repo, "dev", "stable", allow_downgrade=True)
    assert [i.version for i in repo.catalogue.members("stable")] == ["1.9"]


def test_a_snapshot_never_changes(repo: Repository, deb: Any, apt: Any) -> None:
    _publish(repo, deb("hello"))
    with repo.locked():
        assert take_snapshot(repo, "stable", "2026.11") == 1
        publish(repo)
    frozen = repo.public / "dists/2026.11/InRelease"
    before = frozen.read_text()
    assert "Valid-Until" not in before
    _publish(repo, deb("hello", "2"))
    _publish(repo, now=int(time.time()) + 300 * 24 * HOUR)
    assert frozen.read_text() == before
    client = apt(repo, "2026.11", component="snapshot")
    assert client.update() == ""
    assert client.has() == {"hello=1"}
    with repo.locked():
        for name in ("2026.11", "dev"):
            with pytest.raises(RepositoryError, match="already"):
                take_snapshot(repo, "stable", name)
        with pytest.raises(RepositoryError, match="empty"):
            take_snapshot(repo, "dev", "2026.12")
        with pytest.raises(RepositoryError, match=r"no channel 2026\.11"):
            add(repo, "2026.11", [deb("more")])
        # Signed anew, and by another key, it still says the same.
        publish(repo, ["2026.11"], force=True)
    text = before.partition("-----BEGIN PGP SIGNATURE")[0]
    assert frozen.read_text().startswith(text)
    assert verify_own(repo, ["2026.11"]).problems == []


def test_where_directories_cannot_be_exchanged_the_index_comes_last(
    repo: Repository, deb: Any, apt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(one: str, other: str) -> None:
        raise OSError(22, os.strerror(22), one) if Path(other).exists() else FileNotFoundError

    renamed: list[str] = []
    rename = Path.rename
    monkeypatch.setattr(libc, "exchange", cannot)

    def noted(self: Path, target: Path) -> Path:
        renamed.append(Path(target).as_posix())
        return rename(self, target)

    _publish(repo, deb("hello"))
    monkeypatch.setattr(Path, "rename", noted)
    with repo.locked():
        add(repo, "stable", [deb("hello", "2")])
        renamed.clear()
        publish(repo, ["stable"])
    live = [p for p in renamed if "/dists/stable/" in p]
    assert live[-1].endswith("/InRelease")
    assert "by-hash" in live[0]
    client = apt(repo)
    assert client.update() == ""
    assert client.has() == {"hello=2"}
    assert verify_own(repo).problems == []


def test_keys_are_rotated_with_both_signing_for_a_while(
    repo: Repository, deb: Any, apt: Any, tmp_path: Path
) -> None:
    from tegu.packages.repo import make_key

    _publish(repo, deb("hello"))
    old = apt(repo)
    assert old.update() == ""
    kept = tmp_path / "old-keyring.asc"
    shutil.copyfile(repo.public / "keyring.asc", kept)
    (old.home / "sources.list").write_text(
        f"deb [signed-by={kept}] {repo.public.as_uri()} stable main\n"
    )
    make_key(repo.root / "private/next.key", "Acme 2 <acme2@tegu.invalid>", days=50)
    settings = repo.root / "repo.toml"
    first = repo.settings.signers[0]

    def sign_with(*keys: str) -> None:
        listed = ", ".join(f'"{k}"' for k in keys)
        settings.write_text(
            "".join(
                f"signers = [{listed}]\n" if line.startswith("signers") else line
                for line in settings.read_text().splitlines(keepends=True)
            )
        )
        repo.settings = load_settings(settings)
        with repo.locked():
            publish(repo)

    sign_with(first, "private/next.key")
    assert old.update() == ""  # knows the old key only
    new = apt(repo)
    assert new.update() == ""
    sign_with("private/next.key")
    assert apt(repo).update() == ""
    assert "NO_PUBKEY" in old.update()


@pytest.mark.skipif(shutil.which("dnf") is None, reason="dnf is not installed")
def test_dnf_installs_and_refuses_what_was_tampered_with(
    repo: Repository, deb: Any, rpm: Any, tmp_path: Path
) -> None:
    _publish(repo, deb("hello"), rpm("hello"), rpm("world", "2.0~rc1", "3"))
    assert verify_own(repo).problems == []

    def dnf(*arguments: str) -> subprocess.CompletedProcess[str]:
        options = {
            "reposdir": tmp_path / "none",
            "cachedir": tmp_path / "dnf-cache",
            "acme.repo_gpgcheck": 1,
            "acme.gpgcheck": 0,
            "acme.gpgkey": (repo.public / "keyring.asc").as_uri(),
            "acme.metadata_expire": 0,
        }
        url = (repo.public / "rpm/stable/x86_64").as_uri()
        return subprocess.run(
            [
                *("dnf", "-y", f"--installroot={tmp_path}/root", "--releasever=1"),
                *(f"--setopt={k}={v}" for k, v in options.items()),
                *(f"--repofrompath=acme,{url}", "--repo=acme", *arguments),
            ],
            capture_output=True,
            text=True,
        )

    done = dnf("install", "hello")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "root/usr/share/hello/text").read_text() == "hello\n"
    _publish(repo, rpm("hello", "1.1"))
    done = dnf("--refresh", "upgrade")
    assert done.returncode == 0, done.stderr
    assert "hello-1.1-1" in done.stdout
    # A package that was tampered with.
    (world,) = (repo.public / "pool").rglob("world-*.rpm")
    whole = world.read_bytes()
    world.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    done = dnf("install", "world")
    assert done.returncode != 0
    assert "checksum" in done.stderr.lower() + done.stdout.lower()
    assert any("world-" in p for p in verify_own(repo).problems)
    world.write_bytes(whole)
    # An index that was tampered with.
    repomd = repo.public / "rpm/stable/x86_64/repodata/repomd.xml"
    repomd.write_text(repomd.read_text().replace("<revision>", "<revision>9"))
    # Not what dnf remembers of the last look, which may be as new as its clock can tell.
    done = dnf("--refresh", "install", "world")
    assert done.returncode != 0
    assert "signature" in (done.stderr + done.stdout).lower()
    assert any("changed after it was signed" in p for p in verify_own(repo).problems)
