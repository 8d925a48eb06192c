"""Indexes: what is verified, what is refused, what is kept."""

from __future__ import annotations

import logging
import shutil
import socket
import time
from pathlib import Path

import pytest

from tegu.errors import FetchError, VerifyError
from tegu.packages.index import load_indexes
from tegu.packages.kinds import INDEXES
from tegu.packages.release import parse_release, verify_signature
from tegu.packages.sources import Mirror, Source
from tegu.store import Store

NOW = int(time.time())
HOUR = 3600


def load(source: Source, store: Store, *, offline: bool = False) -> str:
    """Return the text of the only Packages file."""
    (index,) = load_indexes([source], store, "amd64", offline=offline)
    return index.files[0].path.read_text()


def kept(store: Store) -> list[str]:
    return sorted(path.name for path in (store.root / INDEXES).glob("*"))


def test_a_signed_index_is_read(repository, store) -> None:
    repository.add("apple", "1.2-3")
    repository.publish(date=NOW - 60, valid_until=NOW + HOUR)
    (index,) = load_indexes([repository.source()], store, "amd64")
    assert "Package: apple\nVersion: 1.2-3\n" in index.files[0].path.read_text()
    assert index.release.date == NOW - 60
    assert len(index.inrelease_sha256) == 64


@pytest.mark.parametrize("form", [".xz", ".gz", ".zst"])
def test_each_compression_is_read(repository, store, form: str) -> None:
    repository.add("apple")
    if form == ".zst":
        import hashlib

        import zstandard

        repository.publish()
        folder = repository.dists / "main/binary-amd64"
        plain = "\n".join(repository.stanzas).encode()
        packed = zstandard.ZstdCompressor().compress(plain)
        for path in folder.glob("Packages.*"):
            path.unlink()
        (folder / "Packages.zst").write_bytes(packed)
        text = (
            f"Suite: stable\nCodename: rock\nDate: Fri, 02 Jan 2026 00:00:00 GMT\n"
            f"Architectures: amd64\nSHA256:\n {hashlib.sha256(packed).hexdigest()} {len(packed)} "
            "main/binary-amd64/Packages.zst\n"
        )
        (repository.dists / "InRelease").write_bytes(repository.keys.sign("archive", text))
    else:
        repository.forms = (form,)
        repository.publish()
    assert "Package: apple" in load(repository.source(), store)


def test_by_hash_is_preferred(repository, store, serve) -> None:
    repository.by_hash = True
    repository.add("apple")
    repository.publish()
    (repository.dists / "main/binary-amd64/Packages.xz").write_bytes(b"already the next one")
    server = serve(repository.root)
    assert "Package: apple" in load(repository.source(mirror=Mirror(server.url)), store)
    assert any("/by-hash/SHA256/" in r.path for r in server.requests)


def test_a_changed_index_is_refused_and_not_kept(repository, store) -> None:
    repository.add("apple")
    repository.publish()
    path = repository.dists / "InRelease"
    path.write_bytes(path.read_bytes().replace(b"Codename: rock", b"Codename: sand"))
    with pytest.raises(VerifyError, match="the signature is bad"):
        load(repository.source(), store)
    assert kept(store) == []


def test_an_unknown_key_is_refused(repository, store, keys) -> None:
    keys.make("stranger", when="20200101T000000")
    repository.add("apple")
    repository.publish(key="stranger")
    with pytest.raises(VerifyError, match=r"signed with the key \w+, which is not in"):
        load(repository.source(), store)
    several = (str(keys.home / "archive.gpg"), str(keys.home / "stranger.gpg"))
    assert "apple" in load(repository.source(keyrings=several), store)


def test_an_expired_key_is_refused(repository, store, keys) -> None:
    ring = keys.make("old", when="20200101T000000", expires="20210101T000000")
    repository.add("apple")
    repository.publish(key="old", when="20200601T000000")
    with pytest.raises(VerifyError, match="the key that signed it has expired"):
        load(repository.source(keyrings=(str(ring),)), store)


def test_an_expired_signature_is_refused(repository, store) -> None:
    repository.add("apple")
    repository.publish(when="20210101T000000", expires="1d")
    with pytest.raises(VerifyError, match="the signature has expired"):
        load(repository.source(), store)


def test_no_signature_at_all_is_refused(repository, store) -> None:
    repository.add("apple")
    repository.publish()
    path = repository.dists / "InRelease"
    signed = path.read_text()
    for text in (
        signed.split("-----BEGIN PGP SIGNATURE-----")[0],
        signed.split("\n\n", 1)[1].split("-----BEGIN PGP SIGNATURE-----")[0],
        "<html>log in to the network</html>",
        "",
        signed + signed,
    ):
        path.write_text(text)
        with pytest.raises(VerifyError, match="not a signed index"):
            load(repository.source(), store)


def test_text_around_the_signed_part_is_not_read(repository, keys) -> None:
    repository.publish()
    signed = (repository.dists / "InRelease").read_bytes()
    ring = [str(keys.home / "archive.gpg")]
    text = verify_signature(signed + b"\nCodename: smuggled\n", ring, where="x")
    assert "smuggled" not in text
    assert parse_release(text, where="x").codename == "rock"


def test_an_armoured_keyring_serves_too(repository, store, keys) -> None:
    repository.add("apple")
    repository.publish()
    ring = keys.home / "archive.asc"
    ring.write_bytes(keys.gpg("--armor", "--export", "<archive@tegu.invalid>"))
    assert "apple" in load(repository.source(keyrings=(str(ring),)), store)


def test_a_missing_keyring_says_what_to_do(repository, store) -> None:
    repository.publish()
    with pytest.raises(VerifyError, match="cannot be read") as caught:
        load(repository.source(keyrings=("/nowhere/ring.gpg",)), store)
    assert "base.keyring" in (caught.value.hint or "")


def test_an_index_past_its_time_is_refused(repository, store) -> None:
    repository.add("apple")
    repository.publish(date=NOW - 9 * HOUR, valid_until=NOW - HOUR)
    with pytest.raises(VerifyError, match="expired, it was valid until"):
        load(repository.source(), store)


def test_a_snapshot_is_judged_at_its_moment(repository, store) -> None:
    repository.add("apple")
    repository.publish(date=NOW - 99 * HOUR, valid_until=NOW - 90 * HOUR)
    assert "apple" in load(repository.source(snapshot=NOW - 95 * HOUR), store)
    with pytest.raises(VerifyError, match="expired"):
        load(repository.source(snapshot=NOW - 80 * HOUR), store)


def test_the_machines_apt_may_ignore_age_but_not_the_suite(repository, store, caplog) -> None:
    repository.add("apple")
    repository.publish(date=NOW - 9 * HOUR, valid_until=NOW - HOUR)
    lenient = Mirror(f"file://{repository.root}", lenient=True)
    with caplog.at_level(logging.WARNING):
        assert "apple" in load(repository.source(mirror=lenient), store)
    assert "apt on this machine ignores that" in caplog.text
    shutil.copytree(repository.dists, repository.root / "dists/sand")
    with pytest.raises(VerifyError, match="asked for the suite sand"):
        load(repository.source(mirror=lenient, suite="sand"), store)


def test_a_date_in_the_future_is_refused(repository, store) -> None:
    repository.add("apple")
    repository.publish(date=NOW + 9 * HOUR)
    with pytest.raises(VerifyError, match="dated in the future"):
        load(repository.source(), store)


def test_another_suites_index_is_refused(repository, store) -> None:
    repository.add("apple")
    repository.publish()
    shutil.copytree(repository.dists, repository.root / "dists/sand")
    with pytest.raises(VerifyError, match="suite sand, got an index of rock / stable"):
        load(repository.source(suite="sand"), store)
    shutil.copytree(repository.dists, repository.root / "dists/stable")
    assert "apple" in load(repository.source(suite="stable"), store)


@pytest.mark.parametrize("damage", [b"other content of another length", b"", None])
def test_packages_that_differ_from_the_index_are_refused(repository, store, damage) -> None:
    repository.forms = (".xz",)
    repository.add("apple")
    repository.publish()
    path = repository.dists / "main/binary-amd64/Packages.xz"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"!" if damage is None else damage)
    with pytest.raises(VerifyError, match="not what the signed index announces"):
        load(repository.source(), store)
    assert not [name for name in kept(store) if name.endswith(".Packages")]


def test_a_missing_component_says_so(repository, store) -> None:
    repository.add("apple")
    repository.publish()
    with pytest.raises(FetchError, match="no component games for amd64"):
        load(repository.source(components=("games",)), store)


def test_a_mirror_that_is_not_there(repository, store, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="No such file") as caught:
        load(repository.source(mirror=Mirror(f"file://{tmp_path}/nowhere")), store)
    assert "dists/" in (caught.value.hint or "")


def test_an_unreachable_mirror_names_the_url_and_the_cause(repository, store) -> None:
    with socket.socket() as taken:  # bound but not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        url = f"http://user:secret@127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(FetchError, match=r"dists/rock/InRelease: cannot connect") as caught:
            load(repository.source(mirror=Mirror(url)), store)
    assert "secret" not in caught.value.message
    assert "4 attempts" in caught.value.message
    assert "base.mirror" in (caught.value.hint or "")


def test_passing_faults_are_retried(repository, store, serve) -> None:
    repository.add("apple")
    repository.publish()
    server = serve(repository.root)

    def cut(handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        handler.wfile.write(b"half")
        handler.close_connection = True

    server.faults["/dists/rock/InRelease"] = [lambda h: h.send_error(503), cut]
    assert "apple" in load(repository.source(mirror=Mirror(server.url)), store)


def test_an_absent_suite_is_not_retried(repository, store, serve) -> None:
    server = serve(repository.root)
    with pytest.raises(FetchError, match="404"):
        load(repository.source(mirror=Mirror(server.url)), store)
    assert len(server.requests) == 1


def test_an_unchanged_index_is_not_sent_again(repository, store, serve) -> None:
    repository.add("apple")
    repository.publish()
    server = serve(repository.root)
    source = repository.source(mirror=Mirror(server.url))
    load(source, store)
    first = len(server.requests)
    load(source, store)
    again = server.requests[first:]
    assert [r.path for r in again] == ["/dists/rock/InRelease"]
    assert "If-None-Match" in again[0].headers


def test_offline_uses_what_is_here_and_says_its_age(
    repository, store, caplog, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.add("apple")
    repository.publish(valid_until=NOW + HOUR)
    with pytest.raises(FetchError, match="not in the store"):
        load(repository.source(), store, offline=True)
    load(repository.source(), store)
    source = repository.source()
    shutil.rmtree(repository.root)
    real = time.time
    monkeypatch.setattr("tegu.packages.index.time.time", lambda: real() + 5 * HOUR)
    with caplog.at_level(logging.WARNING):
        # It was valid when it came; that it is old is said, not refused.
        assert "apple" in load(source, store, offline=True)
    assert "using the index of 5 hours ago" in caplog.text


def test_a_damaged_cached_index_is_refused_offline(repository, store) -> None:
    repository.publish()
    load(repository.source(), store)
    (cached,) = (store.root / INDEXES).glob("*.InRelease")
    cached.write_bytes(cached.read_bytes().replace(b"stable", b"stible"))
    with pytest.raises(VerifyError, match="the signature is bad"):
        load(repository.source(), store, offline=True)


def test_a_damaged_packages_file_is_fetched_again(repository, store, caplog) -> None:
    repository.add("apple")
    repository.publish()
    good = load(repository.source(), store)
    (cached,) = (store.root / INDEXES).glob("*.Packages")
    cached.write_text(good.replace("Version: 1", "Version: 9"))
    with pytest.raises(FetchError, match="not in the store"):
        load(repository.source(), store, offline=True)
    cached.write_text(good.replace("Version: 1", "Version: 9"))
    assert load(repository.source(), store) == good
    assert "is damaged and was dropped" in caplog.text


def test_indexes_that_nothing_leads_to_are_dropped(repository, store) -> None:
    import os

    repository.add("apple")
    repository.publish()
    load(repository.source(), store)
    old = store.small(INDEXES, "0" * 64 + ".Packages")
    beside = old.with_suffix(".solv")
    for path in (old, beside):
        path.write_text("x")
        os.utime(path, (NOW - 99 * 86400, NOW - 99 * 86400))
    load(repository.source(), store)
    assert not old.exists()
    assert not beside.exists()
    assert len(list((store.root / INDEXES).glob("*.Packages"))) == 1


def test_a_flat_repository(repository, store, tmp_path: Path) -> None:
    import hashlib

    repository.add("apple")
    flat = tmp_path / "flat/debs"
    flat.mkdir(parents=True)
    plain = "\n".join(repository.stanzas).encode()
    (flat / "Packages").write_bytes(plain)
    text = (
        f"Date: Fri, 02 Jan 2026 00:00:00 GMT\nSHA256:\n {hashlib.sha256(plain).hexdigest()} "
        f"{len(plain)} Packages\n"
    )
    (flat / "InRelease").write_bytes(repository.keys.sign("archive", text))
    source = repository.source(suite="debs/", mirror=Mirror(f"file://{tmp_path}/flat"))
    assert "apple" in load(source, store)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Date: yesterday\nSHA256:\n",
        "Suite: x\nDate: Fri, 02 Jan 2026 00:00:00 GMT\n",
        "Date: Fri, 02 Jan 2026 00:00:00 GMT\nSHA256:\n 12 3 x\n",
        "Date: Fri, 02 Jan 2026 00:00:00 GMT\nSHA256:\n " + "a" * 64 + " -1 x\n",
    ],
)
def test_a_release_that_is_none(text: str) -> None:
    with pytest.raises(VerifyError):
        parse_release(text, where="here")
