"""Downloads: whole and verified, or not there; what has arrived is not fetched twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from tegu.errors import FetchError, StoreError, VerifyError
from tegu.packages import LOCAL, Lock, LockedPackage, LockedRepository, fetch_all
from tegu.packages.lockfile import dump
from tegu.store import Store


def package(root: Path, name: str, content: bytes, **changes) -> LockedPackage:
    """Put a file on the mirror and return it as a locked package."""
    import hashlib

    filename = f"pool/{name}_1.0+x~1_all.deb"
    path = root / filename
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    values = {
        "name": name,
        "version": "1.0+x~1",
        "architecture": "all",
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "filename": filename,
        "repository": "rock",
        "source": name,
        "source_version": "1.0+x~1",
    }
    return LockedPackage(**{**values, **changes})


def lock_of(url: str, *packages: LockedPackage) -> Lock:
    repository = LockedRepository("rock", url, "rock", ("main",), "0" * 64, 1)
    return Lock("0" * 64, "x86-64", 1, (repository,), packages, ())


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    path = tmp_path / "mirror"
    path.mkdir()
    return path


def partials(store: Store) -> list[Path]:
    return [p for p in (store.root / "partial").iterdir() if p.stat().st_size]


def blobs(store: Store) -> list[str]:
    return sorted(p.name for p in (store.root / "blobs").glob("*/*"))


def test_all_that_is_missing_comes_in_parallel(mirror, store, serve) -> None:
    packages = [package(mirror, f"p{n}", os.urandom(100_000 + n)) for n in range(20)]
    server = serve(mirror)
    seen: dict[str, int] = {}
    guard = threading.Lock()

    def progress(p: LockedPackage, size: int) -> None:
        with guard:
            seen[p.name] = seen.get(p.name, 0) + size

    lock = lock_of(server.url, *packages)
    assert fetch_all(packages, lock, store, progress) == sum(p.size for p in packages)
    assert seen == {p.name: p.size for p in packages}
    assert blobs(store) == sorted(p.sha256 for p in packages)
    before = len(server.requests)
    assert fetch_all(packages, lock, store) == 0
    assert len(server.requests) == before


def test_a_directory_is_a_mirror_too(mirror, store) -> None:
    one = package(mirror, "one", b"content")
    assert fetch_all([one], lock_of(f"file://{mirror}", one), store) == 7
    assert store.blob(one.sha256).read_bytes() == b"content"
    (mirror / one.filename).unlink()
    two = package(mirror, "two", b"x")
    (mirror / two.filename).unlink()
    with pytest.raises(FetchError, match="not on the mirror any more"):
        fetch_all([two], lock_of(f"file://{mirror}", two), store)


def test_an_interrupted_download_is_resumed(mirror, store, serve) -> None:
    content = os.urandom(300_000)
    one = package(mirror, "one", content)
    server = serve(mirror)
    (store.root / "partial" / one.sha256).write_bytes(content[:200_000])
    assert fetch_all([one], lock_of(server.url, one), store) == 100_000
    assert server.requests[0].headers["Range"] == "bytes=200000-"
    assert store.blob(one.sha256).read_bytes() == content


def test_a_server_that_cannot_resume_sends_it_all(mirror, store, serve) -> None:
    content = os.urandom(300_000)
    one = package(mirror, "one", content)
    server = serve(mirror)
    server.ranges = False
    (store.root / "partial" / one.sha256).write_bytes(content[:200_000])
    assert fetch_all([one], lock_of(server.url, one), store) == 300_000
    assert store.blob(one.sha256).read_bytes() == content


def test_a_complete_partial_is_only_checked(mirror, store, serve) -> None:
    one = package(mirror, "one", b"x" * 1000)
    server = serve(mirror)
    (store.root / "partial" / one.sha256).write_bytes(b"x" * 1000)
    assert fetch_all([one], lock_of(server.url, one), store) == 0
    assert server.requests == []
    assert store.blob(one.sha256)


def test_a_damaged_partial_costs_one_more_attempt(mirror, store, serve) -> None:
    content = os.urandom(300_000)
    one = package(mirror, "one", content)
    server = serve(mirror)
    for partial in (os.urandom(200_000), os.urandom(300_000), os.urandom(400_000)):
        (store.root / "partial" / one.sha256).write_bytes(partial)
        fetch_all([one], lock_of(server.url, one), store)
        assert store.blob(one.sha256).read_bytes() == content
        store.drop_blob(one.sha256)


def test_a_connection_that_breaks_goes_on_where_it_broke(mirror, store, serve) -> None:
    content = os.urandom(600_000)
    one = package(mirror, "one", content)
    server = serve(mirror)

    def cut(handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[:400_000])
        handler.close_connection = True

    path = "/" + one.filename
    server.faults[path] = [cut, lambda h: h.send_error(503)]
    fetch_all([one], lock_of(server.url, one), store)
    assert store.blob(one.sha256).read_bytes() == content
    assert int(server.requests[-1].headers["Range"].strip("bytes=-")) > 0


@pytest.mark.parametrize("wrong", [b"y" * 1000, b"y" * 999, b"y" * 5000, b""])
def test_wrong_content_is_retried_then_refused_and_never_kept(
    mirror, store, serve, wrong: bytes
) -> None:
    one = package(mirror, "one", b"x" * 1000)
    good = package(mirror, "good", b"fine")
    (mirror / one.filename).write_bytes(wrong)
    server = serve(mirror)
    with pytest.raises((VerifyError, FetchError)) as caught:
        fetch_all([one], lock_of(server.url, one), store)
    assert one.filename.replace("~", "~") in caught.value.message
    assert len(server.requests) > 1
    assert store.blob(one.sha256) is None
    if len(wrong) == 1000:
        assert isinstance(caught.value, VerifyError)
        assert "tegu lock --update one" in (caught.value.hint or "")
        assert len(server.requests) == 2
        assert partials(store) == []
    (mirror / one.filename).write_bytes(b"x" * 1000)
    fetch_all([one, good], lock_of(server.url, one, good), store)
    assert store.blob(one.sha256).read_bytes() == b"x" * 1000


def test_a_passing_error_of_the_content_is_mended(mirror, store, serve) -> None:
    one = package(mirror, "one", b"x" * 1000)
    server = serve(mirror)

    def wrong(handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b"y" * 1000)

    server.faults["/" + one.filename] = [wrong]
    fetch_all([one], lock_of(server.url, one), store)
    assert store.blob(one.sha256).read_bytes() == b"x" * 1000


def test_what_is_gone_says_what_to_do(mirror, store, serve) -> None:
    one = package(mirror, "one", b"x")
    (mirror / one.filename).unlink()
    server = serve(mirror)
    with pytest.raises(FetchError, match="is not on the mirror any more") as caught:
        fetch_all([one], lock_of(server.url, one), store)
    assert "tegu lock --update one" in (caught.value.hint or "")
    assert len(server.requests) == 1


def test_errors_that_stay_end_it(mirror, store, serve) -> None:
    one = package(mirror, "one", b"x")
    server = serve(mirror)
    server.faults["/" + one.filename] = [lambda h: h.send_error(500)] * 9
    with pytest.raises(FetchError, match=r"answered 500 .* \(4 attempts\)"):
        fetch_all([one], lock_of(server.url, one), store)
    server.faults["/" + one.filename] = [lambda h: h.send_error(403)] * 9
    with pytest.raises(FetchError, match="refuses access"):
        fetch_all([one], lock_of(server.url, one), store)


def test_one_failure_stops_the_rest_but_keeps_what_came(mirror, store, serve) -> None:
    first = package(mirror, "first", b"x" * 500_000)
    gone = package(mirror, "gone", b"y" * 400_000)
    (mirror / gone.filename).unlink()
    server = serve(mirror)
    with pytest.raises(FetchError, match="gone"):
        fetch_all([first, gone], lock_of(server.url, first, gone), store)
    assert set(blobs(store)) <= {first.sha256}


def test_a_local_package_cannot_be_fetched(mirror, store) -> None:
    one = package(mirror, "one", b"x", repository=LOCAL)
    with pytest.raises(FetchError, match="not in the store") as caught:
        fetch_all([one], lock_of("file:///nowhere", one), store)
    assert "tegu lock" in (caught.value.hint or "")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_leaves_no_rubbish(mirror, tmp_path: Path, serve) -> None:
    small = tmp_path / "small"
    small.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tegu-test", str(small)])
    if done.returncode != 0:
        pytest.skip("this machine does not let us mount a tmpfs")
    try:
        store = Store(small)
        one = package(mirror, "one", os.urandom(4_000_000))
        server = serve(mirror)
        with pytest.raises(StoreError, match="no space left") as caught:
            fetch_all([one], lock_of(server.url, one), store)
        assert "tegu gc" in (caught.value.hint or "")
        assert blobs(store) == []
        assert partials(store) == []
        fits = package(mirror, "fits", b"x" * 1000)
        fetch_all([fits], lock_of(server.url, fits), store)
        assert blobs(store) == [fits.sha256]
    finally:
        subprocess.run(["umount", str(small)], check=True)


PROGRAM = """
import sys
from pathlib import Path
from tegu.packages import Lock, fetch_all
from tegu.store import Store
lock = Lock.read(Path(sys.argv[1]))
print(fetch_all(lock.system, lock, Store(Path(sys.argv[2]))), flush=True)
"""


def start(tmp_path: Path, lock: Lock, store: Store) -> subprocess.Popen[str]:
    (tmp_path / "tegu.lock").write_text(dump(lock))
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), tmp_path / "tegu.lock", store.root],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_an_interrupt_keeps_what_has_arrived(mirror, store, serve, tmp_path: Path) -> None:
    content = os.urandom(2_000_000)
    one = package(mirror, "one", content)
    server = serve(mirror)
    go_on = threading.Event()

    def slow(handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[:1_000_000])
        go_on.wait(30)
        handler.wfile.write(content[1_000_000:1_500_000])
        go_on.clear()
        go_on.wait(1)
        handler.close_connection = True

    server.faults["/" + one.filename] = [slow]
    lock = lock_of(server.url, one)
    child = start(tmp_path, lock, store)
    partial = store.root / "partial" / one.sha256
    deadline = time.monotonic() + 30
    while not (partial.exists() and partial.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    go_on.set()
    _, errors = child.communicate(timeout=60)
    assert child.returncode != 0
    assert "KeyboardInterrupt" in errors
    assert store.blob(one.sha256) is None
    assert partial.stat().st_size > 0
    assert content.startswith(partial.read_bytes())
    assert fetch_all([one], lock, store) < len(content)
    assert store.blob(one.sha256).read_bytes() == content


def test_two_processes_fetch_each_package_once(mirror, store, serve, tmp_path: Path) -> None:
    packages = [package(mirror, f"p{n}", os.urandom(400_000)) for n in range(6)]
    server = serve(mirror)
    lock = lock_of(server.url, *packages)
    children = [start(tmp_path, lock, store) for _ in range(2)]
    counts = []
    for child in children:
        out, errors = child.communicate(timeout=60)
        assert child.returncode == 0, errors
        counts.append(int(out))
    assert sum(counts) == sum(p.size for p in packages)
    assert len(server.requests) == len(packages)
    assert blobs(store) == sorted(p.sha256 for p in packages)


def test_a_password_from_netrc(mirror, store, serve, tmp_path, monkeypatch) -> None:
    path = tmp_path / "netrc"
    path.write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(path))
    one = package(mirror, "one", b"x")
    server = serve(mirror)
    fetch_all([one], lock_of(server.url, one), store)
    assert server.requests[0].headers["Authorization"].startswith("Basic ")
    path.write_text("nonsense here\n")
    store.drop_blob(one.sha256)
    with pytest.raises(FetchError, match="netrc"):
        fetch_all([one], lock_of(server.url, one), store)
