"""Packages of another repository in a channel of ours; and the verbs of the front door."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tegu.cli import main
from tegu.errors import RepositoryError, VerifyError
from tegu.packages.repo import Repository, mirror
from tegu.packages.repo.mirroring import Upstream
from tegu.packages.repo.verification import verify_own
from tegu.store import Store


def _upstream(repository: Any, url: str | None = None, *patterns: str) -> Upstream:
    return Upstream(
        url or f"file://{repository.root}",
        repository.codename,
        (repository.component,),
        ("amd64",),
        repository.keys.home / "archive.gpg",
        patterns,
    )


def test_a_suite_is_mirrored_and_only_what_is_new_is_fetched(
    repo: Repository, repository: Any, store: Store, serve: Any, apt: Any
) -> None:
    from tegu.packages.repo import publish

    repository.add("hello", "1", real=True)
    repository.add("other", "2:1.0", real=True)
    repository.add("hello", "2", real=True)
    repository.publish()
    server = serve(repository.root)
    with repo.locked():
        added = mirror(repo, "dev", _upstream(repository, server.url), store)
        publish(repo)
    assert {(i.name, i.version) for i in added.new} == {("hello", "2"), ("other", "2:1.0")}
    client = apt(repo, "dev")
    assert client.update() == ""
    assert client.has() == {"hello=2", "other=2:1.0"}
    repository.add("hello", "3", real=True)
    repository.publish()
    server.requests.clear()
    empty = Store(store.root.parent / "other-store")  # what counts is what the pool has
    with repo.locked():
        again = mirror(repo, "dev", _upstream(repository, server.url), empty)
    assert [(i.name, i.version) for i in again.new] == [("hello", "3")]
    assert sum(r.path.endswith(".deb") for r in server.requests) == 1


def test_only_some_packages(repo: Repository, repository: Any, store: Store) -> None:
    for name in ("libfoo1", "libfoo-dev", "bar"):
        repository.add(name, real=True)
    repository.publish()
    with repo.locked():
        added = mirror(repo, "dev", _upstream(repository, None, "libfoo*"), store)
        assert {i.name for i in added.new} == {"libfoo1", "libfoo-dev"}
        with pytest.raises(RepositoryError, match="no package nothing"):
            mirror(repo, "dev", _upstream(repository, None, "nothing"), store)


def test_a_tampered_upstream(repo: Repository, repository: Any, store: Store) -> None:
    path = repository.add("hello", real=True)
    repository.publish()
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with repo.locked(), pytest.raises(VerifyError, match="hello"):
        mirror(repo, "dev", _upstream(repository), store)
    inrelease = repository.dists / "InRelease"
    inrelease.write_bytes(inrelease.read_bytes().replace(b"Suite: ", b"Suite: x"))
    with repo.locked(), pytest.raises(VerifyError, match="changed after it was signed"):
        mirror(repo, "dev", _upstream(repository), store)
    assert repo.catalogue.members("dev") == []


def test_tegu_reads_what_tegu_publishes(
    repo: Repository, deb: Any, store: Store, tmp_path: Path
) -> None:
    """Indexes of many gzip members and Zstandard frames, read by our own client."""
    from tegu.packages.repo import add, publish

    with repo.locked():
        add(repo, "dev", [deb(f"package{n}") for n in range(300)])
        publish(repo)
    assert len(repo.catalogue.query("SELECT key FROM chunk")) > 1
    other = Repository.create(
        tmp_path / "second",
        name="second",
        channels=["in"],
        architectures=["amd64"],
        signers=list(repo.settings.signers),
    )
    keyring = repo.public / "keyring.gpg"
    upstream = Upstream(repo.public.as_uri(), "dev", ("main",), ("amd64",), keyring)
    with other, other.locked():
        assert len(mirror(other, "in", upstream, store).new) == 300


def test_from_nothing_to_channels_by_the_front_door(
    tmp_path: Path, deb: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*arguments: str, code: int = 0) -> Any:
        capsys.readouterr()
        assert main(["repo", *arguments, "--json"]) == code
        return json.loads(capsys.readouterr().out)

    home = tmp_path / "acme"
    made = run("init", str(home), "--name", "acme")
    assert made["made_key"]
    assert (home / "private/signing.key").stat().st_mode & 0o077 == 0
    assert (
        "is a repository already"
        in run("init", str(home), "--name", "x", code=13)["error"]["message"]
    )
    monkeypatch.setenv("TEGU_REPO", str(home))
    added = run("add", str(deb("hello")), "--publish")
    assert added["published"] == ["dev"]
    assert [i["name"] for i in added["new"]] == ["hello"]
    assert run("promote", "dev", "testing", "--publish")["entered"][0]["name"] == "hello"
    assert run("snapshot", "testing", "2026.11")["packages"] == 1
    assert run("remove", "hello", "--channel", "dev")["left"][0]["version"] == "1"
    assert run("publish")["written"] == ["dev", "stable"]
    names = {c["name"]: c["packages"] for c in run("list")}
    assert names == {"dev": 0, "testing": 1, "stable": 0, "2026.11": 1}
    assert [p["name"] for p in run("list", "testing")] == ["hello"]
    assert run("verify")["problems"] == []
    assert "no channel or snapshot nope" in run("list", "nope", code=13)["error"]["message"]
    assert (
        "no channel nope" in run("add", str(deb("x1")), "-c", "nope", code=13)["error"]["message"]
    )
    assert run("key", str(home / "private/next.key"), "--name", "next")["fingerprint"]
    assert verify_own(Repository(home)).problems == []


def test_serve(repo: Repository, deb: Any) -> None:
    """The real verb, in a process of its own, on a port that is free."""
    import signal
    import subprocess
    import sys
    import urllib.error
    import urllib.request

    from tegu.packages.repo import add, publish

    with repo.locked():
        add(repo, "stable", [deb("hello")])
        publish(repo)
    command = [sys.executable, "-m", "tegu", "repo", "serve", "--port", "0"]
    child = subprocess.Popen(
        [*command, "--repo", str(repo.root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        url = child.stdout.readline().strip()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{url}/dists/stable/InRelease") as answer:
            assert answer.read().startswith(b"-----BEGIN PGP SIGNED MESSAGE")
        for path in ("/dists/", "/../repo.toml", "/%2e%2e/private/signing.key"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                opener.open(url + path)
    finally:
        child.send_signal(signal.SIGINT)
        child.communicate()
    assert child.returncode == 0


def test_a_system_is_locked_from_our_repository_and_its_packages_fetched(
    repo: Repository, repository: Any, store: Store, deb: Any, serve: Any
) -> None:
    """The way of a definition: `[[repository]]`, over HTTP, by hash, with our key."""
    from tegu.definition import Definition
    from tegu.packages import fetch_all, make_lock
    from tegu.packages.repo import add, publish

    with repo.locked():
        add(repo, "stable", [deb("acme-tool", "1.0"), deb("acme-tool", "1.1")])
        publish(repo)
    server = serve(repo.public)
    repository.add("knife")
    repository.add("base-files", Essential="yes", Priority="required")
    repository.publish()
    ours = {
        "uri": server.url,
        "suite": "stable",
        "components": ["main"],
        "keyring": repo.public / "keyring.asc",
    }
    data = repository.definition(install=["acme-tool"]).model_dump()
    lock = make_lock(
        Definition.model_validate({**data, "repository": [ours]}), store, tools=["knife"]
    )
    (tool,) = [p for p in lock.system if p.name == "acme-tool"]
    assert tool.version == "1.1"
    assert fetch_all([tool], lock, store) == tool.size
    assert store.blob(tool.sha256) is not None
    assert any("/by-hash/" in r.path for r in server.requests)
