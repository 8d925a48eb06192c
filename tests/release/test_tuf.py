"""Releases under TUF metadata: published in one step, and every attack on a client refused."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tegu.errors import FetchError, ReleaseError, VerifyError
from tegu.release import signing
from tegu.release.client import Client
from tegu.release.numbers import Number
from tegu.release.workshop import Workshop

from .conftest import small_release


def put_out(shop: Workshop, number: str, text: str = "notes") -> None:
    manifest = small_release(shop, number, text)
    signing.sign(shop, manifest)
    signing.publish(shop, manifest)


def client_of(shop: Workshop, place: Path) -> Client:
    root = (shop.public / "metadata/1.root.json").read_bytes()
    return Client(shop.public.as_uri(), place, root)


@pytest.fixture
def seen(shop: Workshop, tmp_path: Path) -> Path:
    """The state of a client that has seen 26.11 and 26.11.1; `old` has what was public before."""
    put_out(shop, "26.11", "the first")
    shutil.copytree(shop.public, tmp_path / "old")
    put_out(shop, "26.11.1", "the second")
    client_of(shop, tmp_path / "state")
    return tmp_path / "state"


def test_a_client_gets_what_was_published(shop, tmp_path) -> None:
    put_out(shop, "26.11", "the first")
    client = client_of(shop, tmp_path / "state")
    assert client.names() == ["26.11/manifest.json", "26.11/notes.md"]
    assert client.fetch("26.11/notes.md", tmp_path / "notes").read_text() == "the first"
    assert [str(n) for n in shop.published()] == ["26.11"]
    with pytest.raises(ReleaseError, match="no release has"):
        client.fetch("26.11/other", tmp_path / "other")


def test_nothing_shows_before_it_is_published(shop, tmp_path) -> None:
    signing.sign(shop, small_release(shop, "26.11"))
    assert client_of(shop, tmp_path / "state").names() == []


def test_roll_back_is_refused(shop, seen, tmp_path) -> None:
    """The server (or one before it) puts back all of an older publication."""
    with pytest.raises(VerifyError, match="older than what was seen"):
        Client((tmp_path / "old").as_uri(), seen)


def test_freeze_is_refused(shop, seen, monkeypatch) -> None:
    """Someone goes on serving what was true once: it is believed for a week."""
    import tuf.ngclient._internal.trusted_metadata_set as clock

    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz or UTC) + timedelta(days=8)

    monkeypatch.setattr(clock.datetime, "datetime", Later)
    with pytest.raises(VerifyError, match="holds back what is new"):
        Client(shop.public.as_uri(), seen)


def test_mix_and_match_is_refused(shop, seen, tmp_path) -> None:
    """The targets of one publication under the snapshot of another."""
    metadata = shop.public / "metadata"
    newest = sorted(metadata.glob("*.targets.json"))[-1]
    older = sorted(metadata.glob("*.targets.json"))[-2]
    newest.write_bytes(older.read_bytes())
    with pytest.raises(VerifyError, match="refused"):
        client_of(shop, tmp_path / "new client")


def test_a_changed_file_is_refused(shop, seen, tmp_path) -> None:
    (file,) = (shop.public / "targets/26.11").glob("*.notes.md")
    file.write_text("the thirst")
    client = Client(shop.public.as_uri(), seen)
    with pytest.raises(VerifyError, match="refused"):
        client.fetch("26.11/notes.md", tmp_path / "notes")
    assert not (tmp_path / "notes").exists()


def test_a_foreign_signature_is_refused(shop, seen, tmp_path) -> None:
    """A thief of the server signs with keys of his own."""
    other = Workshop.create(tmp_path / "other shop")
    put_out(other, "26.11.2", "evil")
    for name in ("timestamp.json", "2.snapshot.json", "2.targets.json"):
        shutil.copy(other.public / "metadata" / name, shop.public / "metadata" / name)
    with pytest.raises(VerifyError, match="refused"):
        Client(shop.public.as_uri(), seen)


def test_metadata_that_is_none_is_refused(shop, seen) -> None:
    (shop.public / "metadata/timestamp.json").write_text("{}")
    with pytest.raises(VerifyError, match="refused"):
        Client(shop.public.as_uri(), seen)


def test_a_server_without_anything_is_said(tmp_path, shop) -> None:
    root = (shop.public / "metadata/1.root.json").read_bytes()
    with pytest.raises(FetchError, match="cannot be fetched"):
        Client((tmp_path / "nothing").as_uri(), tmp_path / "state", root)
    with pytest.raises(ReleaseError, match="root metadata must be given"):
        Client(shop.public.as_uri(), tmp_path / "fresh")


def test_refreshing_keeps_what_is_published(shop, seen) -> None:
    before = json.loads((shop.public / "metadata/timestamp.json").read_text())
    signing.refresh(shop)
    after = json.loads((shop.public / "metadata/timestamp.json").read_text())
    assert after["signed"]["version"] == before["signed"]["version"] + 1
    assert "26.11.1/notes.md" in Client(shop.public.as_uri(), seen).names()


def test_keys_are_exchanged_under_way(shop, seen) -> None:
    """A client that knows the old root follows to the new keys."""
    for role in ("timestamp", "root"):
        kept = shop.keys / f"{role}.old.pem"
        (shop.keys / f"{role}.pem").rename(kept)
        with pytest.raises(ReleaseError, match="cannot be read"):
            signing.refresh(shop) if role == "timestamp" else signing._signer(shop, "root")
        signing.renew_root(shop, role)
    signing.refresh(shop)
    assert "26.11/notes.md" in Client(shop.public.as_uri(), seen).names()


def test_a_release_never_changes_and_never_goes_back(shop, tmp_path) -> None:
    put_out(shop, "26.11.1")
    with pytest.raises(ReleaseError, match="never changes its content"):
        signing.sign(shop, small_release(shop, "26.11.1", "other"))
    with pytest.raises(ReleaseError, match="would go backwards"):
        signing.sign(shop, small_release(shop, "26.11"))
    manifest = small_release(shop, "26.12")
    (shop.work(Number.parse("26.12")) / "files/notes.md").write_text("changed behind its back")
    with pytest.raises(ReleaseError, match="not what the manifest says"):
        signing.sign(shop, manifest)


def test_two_signed_at_once_do_not_lose_each_other(shop) -> None:
    one, other = small_release(shop, "26.11"), small_release(shop, "27.02")
    signing.sign(shop, one)
    signing.sign(shop, other)
    signing.publish(shop, one)
    with pytest.raises(ReleaseError, match="before another release was published"):
        signing.publish(shop, other)
    signing.sign(shop, other)
    signing.publish(shop, other)
    assert [str(n) for n in shop.published()] == ["26.11", "27.02"]


def test_two_publishers_at_once_are_told(shop) -> None:
    with shop.locked(), pytest.raises(ReleaseError, match="another process"), shop.locked():
        pass
