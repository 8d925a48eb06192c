"""Parts of microVMs that need no guest: frames, kernel images, snapshots' files, the monitor."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tegu.errors import SandboxError, UnsupportedError, UsageError
from tegu.sandbox.state import appear, need_room, state_directory
from tegu.sandbox.vm import snapshots
from tegu.sandbox.vm.channel import MAX_PAYLOAD, Frames, pack
from tegu.sandbox.vm.driver import Machine
from tegu.sandbox.vm.guest import identity
from tegu.sandbox.vm.kernel import payload
from tegu.sandbox.vm.qmp import Monitor

MACHINE = Machine("qemu", "1", "tcg", 2**27, 1, "/k", "/i", "/r", "key")


def both() -> tuple[Frames, socket.socket]:
    ours, theirs = socket.socketpair()
    return Frames(ours), theirs


@given(st.lists(st.tuples(st.sampled_from("oexcf"), st.integers(0, 2**32 - 1), st.binary())))
def test_frames_come_as_they_were_sent(frames: list[tuple[str, int, bytes]]) -> None:
    reader, writer = both()
    data = b"".join(pack(*frame) for frame in frames)
    got = []
    for part in (data[: len(data) // 2], data[len(data) // 2 :]):
        if part:
            writer.sendall(part)
            got += list(reader.receive())
    assert got == frames
    writer.close()
    with pytest.raises(SandboxError, match="has ended"):
        list(reader.receive())


@given(st.binary(min_size=12))
def test_a_guest_that_talks_nonsense_is_cut_off_or_waited_for(data: bytes) -> None:
    reader, writer = both()
    writer.sendall(data)
    try:
        for kind, number, content in reader.receive():
            assert len(kind) == 1
            assert 0 <= number < 2**32
            assert len(content) <= MAX_PAYLOAD
    except SandboxError as e:
        assert "nonsense" in e.message


@given(st.binary(max_size=2048))
def test_no_kernel_image_is_refused_not_believed(data: bytes) -> None:
    with pytest.raises(UnsupportedError):
        payload(data)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_a_kernel_image_that_points_outside_itself_is_refused(offset: int, length: int) -> None:
    image = bytearray(4096)
    image[0x1F1] = 1
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, 0x020F)
    struct.pack_into("<II", image, 0x248, offset, length)
    try:
        found = payload(bytes(image))
    except UnsupportedError:
        return
    assert len(found) == length - 4


def saved(directory: Path) -> Path:
    directory.mkdir()
    for name in snapshots.FILES:
        (directory / name).write_bytes(name.encode() + bytes(3 * 2**20) + b"end")
    snapshots.write(directory, MACHINE, {})
    return directory


def test_a_snapshot_is_whole_or_refused(tmp_path: Path) -> None:
    there = saved(tmp_path / "one")
    body = snapshots.read_manifest(there, "one")
    snapshots.verify(there, "one", body)
    snapshots.verify_once(there, "one", body)
    with (there / "disk").open("r+b") as f:
        f.seek(2**20)
        f.write(b"x")
    for check in (snapshots.verify, snapshots.verify_once):
        with pytest.raises(SandboxError, match="one is damaged: disk does not match"):
            check(there, "one", body)


def test_holes_and_zeros_are_the_same(tmp_path: Path) -> None:
    full, sparse = tmp_path / "full", tmp_path / "sparse"
    full.write_bytes(bytes(5 * 2**20) + b"x" + bytes(2**20))
    with full.open("rb") as source, sparse.open("wb") as target:
        snapshots.copy_sparse(source.fileno(), target.fileno())
    assert sparse.read_bytes() == full.read_bytes()
    with sparse.open("r+b") as f:
        f.truncate(0)
        f.truncate(6 * 2**20 + 1)
        f.seek(5 * 2**20)
        f.write(b"x")
    assert snapshots.digest(sparse) == snapshots.digest(full)
    sparse.write_bytes(full.read_bytes()[:-1])
    assert snapshots.digest(sparse) != snapshots.digest(full)


@given(st.binary(max_size=300))
def test_a_manifest_that_is_none_is_refused(data: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "manifest.json").write_bytes(data)
        with pytest.raises(SandboxError):
            snapshots.read_manifest(Path(name), "odd")


@given(
    st.dictionaries(st.sampled_from(["format", "check", "files", "machine", "x"]), st.integers())
)
def test_a_manifest_with_fields_of_another_kind_is_refused(body: dict[str, int]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "manifest.json").write_text(json.dumps({"format": 1, **body}))
        with pytest.raises(SandboxError):
            snapshots.read_manifest(Path(name), "odd")


@pytest.mark.parametrize("name", ["", "../x", "/x", "A", ".x", "x" * 65, "a b", 7, None])
def test_what_is_no_name(name: object) -> None:
    with pytest.raises(UsageError, match="is no name"):
        snapshots.check_name(name)


def test_identities_differ_in_every_part() -> None:
    one, two = (identity("box", 10, 20).split(b"\0") for _ in range(2))
    assert len(one) == 7
    assert len(one[0]) == 128
    assert all(a != b for a, b in zip(one[:2] + one[3:5], two[:2] + two[3:5], strict=True))
    assert one[2] == b"box"


def test_what_appears_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "d" / "x"
    with pytest.raises(ValueError, match="no"), appear(target) as fresh:
        (fresh / "f").write_text("half")
        raise ValueError("no")
    assert list((tmp_path / "d").iterdir()) == []
    left = tmp_path / "d" / ".new-1-dead"
    left.mkdir()
    with appear(target) as fresh:
        (fresh / "f").write_text("whole")
    assert (target / "f").read_text() == "whole"
    assert not left.exists()


def test_what_would_not_fit_is_refused_before_it_is_begun(tmp_path: Path) -> None:
    need_room(tmp_path, 1, "little")
    with pytest.raises(SandboxError, match=r"much: .* has \d+ MiB free, and 1099511627776 may be"):
        need_room(tmp_path, 2**60, "much")


def test_the_state_is_where_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TEGU_SANDBOX_STATE", str(tmp_path))
    assert state_directory() == tmp_path
    monkeypatch.delenv("TEGU_SANDBOX_STATE")
    if os.geteuid() == 0:
        assert state_directory() == Path("/var/lib/tegu/sandbox")


def monitor(*answers: bytes) -> Monitor:
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with theirs:
            for answer in answers:
                theirs.sendall(answer)
                if answer is answers[-1]:
                    # It listens on: who asks one that is gone learns no more than that.
                    theirs.shutdown(socket.SHUT_WR)
                theirs.recv(65536)

    threading.Thread(target=serve, daemon=True).start()
    return Monitor(ours)


def soon() -> float:
    return time.monotonic() + 20


def test_the_monitor_gives_answers_past_events_and_errors() -> None:
    one = monitor(
        b'{"QMP": {}}\r\n',
        b'{"return": {}}\r\n',
        b'{"event": "STOP"}\r\n{"ret',
    )
    one.greet(soon())
    with pytest.raises(SandboxError, match="QEMU ended"):
        one.ask("stop", deadline=soon())
    refusing = monitor(b'{"error": {"class": "GenericError", "desc": "not now"}}\n')
    with pytest.raises(SandboxError, match="QEMU refused cont: not now"):
        refusing.ask("cont", deadline=soon())


def test_a_silent_monitor_is_not_waited_for_for_ever() -> None:
    ours, theirs = socket.socketpair()
    with pytest.raises(SandboxError, match="did not answer in time"):
        Monitor(ours).greet(time.monotonic() + 0.05)
    theirs.close()
