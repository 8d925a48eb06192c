"""What must not be trusted: refused by apt, and by `tegu repo verify`, each with its reason."""

from __future__ import annotations

import gzip
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tegu.cli import main
from tegu.errors import RepositoryError, VerifyError
from tegu.packages.repo import Repository, add, publish
from tegu.packages.repo.settings import load_settings
from tegu.packages.repo.sign import signed_text
from tegu.packages.repo.verification import verify, verify_own

DAY = 86400


@pytest.fixture
def published(repo: Repository, deb: Any) -> Repository:
    with repo.locked():
        add(repo, "stable", [deb("hello"), deb("other")])
        publish(repo)
    return repo


def _problem(repo: Repository) -> str:
    problems = verify_own(repo).problems
    assert len(problems) == 1, problems
    return problems[0]


def _flip(path: Path, at: int = -20) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def _drop_by_hash(repo: Repository) -> list[Path]:
    return sorted((repo.public / "dists/stable/main/binary-amd64/by-hash/SHA256").iterdir())


def test_whole_is_accepted(published: Repository, apt: Any) -> None:
    report = verify_own(published)
    assert report.problems == []
    assert {(c.name, c.packages) for c in report.checked} == {("dev", 0), ("stable", 2)}
    assert apt(published).update() == ""


def test_a_tampered_package(published: Repository, apt: Any) -> None:
    (path,) = (published.public / "pool").rglob("hello_*.deb")
    _flip(path)
    client = apt(published)
    assert client.update() == ""
    assert "Hash Sum mismatch" in client.download("hello")
    assert client.download("other") == ""
    assert "hello_1_all.deb: not what the signed index announces" in _problem(published)


def test_a_missing_package(published: Repository, apt: Any) -> None:
    (path,) = (published.public / "pool").rglob("hello_*.deb")
    path.unlink()
    client = apt(published)
    assert client.update() == ""
    assert "hello" in client.download("hello")
    assert "No such file" in _problem(published)


def test_a_tampered_index(published: Repository, apt: Any) -> None:
    folder = published.public / "dists/stable/main/binary-amd64"
    for path in [*_drop_by_hash(published), *folder.glob("Packages.*")]:
        content = path.read_bytes()
        path.unlink()  # one file under two names
        path.write_bytes(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])
    assert "Hash Sum mismatch" in apt(published).update()
    problems = verify_own(published).problems
    assert len(problems) == 2  # .gz and .zst
    assert all("not what the signed index announces" in p for p in problems)


def test_a_changed_inrelease(published: Repository, apt: Any) -> None:
    path = published.public / "dists/stable/InRelease"
    path.write_text(path.read_text().replace("Label: acme", "Label: evil"))
    assert "BADSIG" in apt(published).update()
    assert "changed after it was signed" in _problem(published)


def test_a_changed_inrelease_with_old_lists_present(published: Repository, apt: Any) -> None:
    client = apt(published)
    assert client.update() == ""
    test_a_changed_inrelease(published, lambda _: client)


def test_another_key(published: Repository, apt: Any, tmp_path: Path) -> None:
    from tegu.packages.repo import make_key

    make_key(tmp_path / "evil.key", "Evil <evil@tegu.invalid>", days=10)
    client = apt(published)
    assert client.update() == ""
    (tmp_path / "trusted.gpg").write_bytes((published.public / "keyring.gpg").read_bytes())
    shutil.copyfile(published.public / "keyring.asc", tmp_path / "trusted.asc")
    sources = client.home / "sources.list"
    keyring = str(published.public / "keyring.asc")
    sources.write_text(sources.read_text().replace(keyring, str(tmp_path / "trusted.asc")))
    _set_signers(published, str(tmp_path / "evil.key"))
    with published.locked():
        publish(published)
    assert "NO_PUBKEY" in client.update()
    report = verify(published.public.as_uri(), ["stable"], [str(tmp_path / "trusted.gpg")])
    assert "which is not in" in report.problems[0]


def _set_signers(repo: Repository, *specs: str) -> None:
    path = repo.root / "repo.toml"
    lines = path.read_text().splitlines()
    lines = [f"signers = {json.dumps(specs)}" if x.startswith("signers") else x for x in lines]
    path.write_text("\n".join(lines) + "\n")
    repo.settings = load_settings(path)


def test_an_old_index_replayed(repo: Repository, deb: Any, apt: Any, tmp_path: Path) -> None:
    long_ago = int(time.time()) - 20 * DAY
    with repo.locked():
        add(repo, "stable", [deb("hello")])
        publish(repo, now=long_ago)
    shutil.copytree(repo.public / "dists", tmp_path / "old")
    with repo.locked():
        add(repo, "stable", [deb("hello", "2")])
        publish(repo)
    assert verify_own(repo).problems == []
    shutil.rmtree(repo.public / "dists")
    shutil.copytree(tmp_path / "old", repo.public / "dists")
    said = apt(repo).update()
    assert "expired" in said or "not valid" in said
    problems = verify_own(repo, ["stable"]).problems
    assert "expired, it was valid until" in problems[0]


def test_a_younger_index_replayed_is_seen_where_it_was_published(
    repo: Repository, deb: Any, tmp_path: Path
) -> None:
    with repo.locked():
        add(repo, "stable", [deb("hello")])
        publish(repo, now=int(time.time()) - DAY)
    shutil.copytree(repo.public / "dists", tmp_path / "old")
    with repo.locked():
        add(repo, "stable", [deb("hello", "2")])
        publish(repo)
    shutil.rmtree(repo.public / "dists")
    shutil.copytree(tmp_path / "old", repo.public / "dists")
    assert "an old one was put back" in verify_own(repo, ["stable"]).problems[0]


def test_a_snapshot_in_the_place_of_a_channel(published: Repository, apt: Any) -> None:
    from tegu.packages.repo import take_snapshot

    with published.locked():
        take_snapshot(published, "stable", "old")
        publish(published)
    shutil.copyfile(
        published.public / "dists/old/InRelease", published.public / "dists/stable/InRelease"
    )
    client = apt(published)
    client.update()  # exits with 0: another suite is worth a notice only, to apt 2.6
    assert client.has() == set()
    assert "asked for the suite stable, got an index of old" in _problem(published)


def test_a_mirror_cut_in_the_middle(
    published: Repository, apt: Any, deb: Any, tmp_path: Path
) -> None:
    # A mirror that copies files one by one, and got as far as InRelease.
    mirror = tmp_path / "mirror"
    shutil.copytree(published.public, mirror)
    with published.locked():
        add(published, "stable", [deb("hello", "2")])
        publish(published)
    shutil.copyfile(published.public / "dists/stable/InRelease", mirror / "dists/stable/InRelease")
    client = apt(published, url=mirror.as_uri())
    assert client.update() != ""
    report = verify(mirror.as_uri(), ["stable"], [str(published.public / "keyring.gpg")])
    assert len(report.problems) == 2
    assert "No such file" in report.problems[0]


def test_an_expired_key(published: Repository, apt: Any, keys: Any) -> None:
    keys.make("expired", when="20200101T000000", expires="1y")
    secret = keys.home / "expired.key"
    secret.write_bytes(keys.gpg("--export-secret-keys", "<expired@tegu.invalid>"))
    inrelease = published.public / "dists/stable/InRelease"
    text = signed_text(inrelease.read_text())
    _set_signers(published, str(secret))
    with published.locked(), pytest.raises(RepositoryError, match="expired on 2020-12-31"):
        publish(published)
    # Signed regardless, by someone whose clock stood still: clients see it.
    inrelease.write_bytes(keys.sign("expired", text, when="20200601T000000"))
    (published.public / "keyring.asc").write_bytes(
        keys.gpg("--armor", "--export", "<expired@tegu.invalid>")
    )
    assert "EXPKEYSIG" in apt(published).update()
    keyring = str(keys.home / "expired.gpg")
    report = verify(published.public.as_uri(), ["stable"], [keyring])
    assert "the key that signed it has expired" in report.problems[0]


def test_a_lost_key_leaves_what_is_published(published: Repository, deb: Any, apt: Any) -> None:
    before = (published.public / "dists/stable/InRelease").read_bytes()
    _set_signers(published, "private/gone.key")
    with published.locked():
        add(published, "stable", [deb("more")])
        with pytest.raises(RepositoryError, match=r"gone\.key cannot be read: No such"):
            publish(published)
    assert (published.public / "dists/stable/InRelease").read_bytes() == before
    assert apt(published).update() == ""


def test_the_front_door_says_it_in_one_line(
    published: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--repo", str(published.root)]
    assert main(["repo", "verify", *where]) == 0
    (path,) = (published.public / "pool").rglob("hello_*.deb")
    _flip(path)
    capsys.readouterr()
    assert main(["repo", "verify", *where, "--json"]) == VerifyError.exit_code
    out, err = capsys.readouterr()
    assert '"problems": [\n' in out
    assert len(err.splitlines()) == 1
    assert main(["repo", "verify", *where, "--indexes-only"]) == 0


def test_verifying_over_http(
    published: Repository, serve: Callable[[Path], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve(published.public)
    keyring = ["--keyring", str(published.public / "keyring.gpg")]
    command = ["repo", "verify", server.url, *keyring, "-c", "stable"]
    assert main(command) == 0
    index = published.public / "dists/stable/main/binary-amd64/Packages.gz"
    index.unlink()
    index.write_bytes(gzip.compress(b""))
    assert main(command) == VerifyError.exit_code
    assert "Packages.gz: not what the signed index announces" in capsys.readouterr().err
