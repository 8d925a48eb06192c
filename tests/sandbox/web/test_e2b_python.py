"""The published E2B client for Python, unchanged, against the service."""

from __future__ import annotations

import asyncio
import io
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from tests.sandbox.conftest import until
from tests.sandbox.web.conftest import Service

e2b = pytest.importorskip("e2b", reason="the client e2b is not installed")
pytestmark = pytest.mark.slow


@pytest.fixture
def sandbox(e2b_settings: Service) -> Iterator[Any]:
    one = e2b.Sandbox.create(timeout=120, envs={"FROM": "envs"}, metadata={"test": "yes"})
    yield one
    one.kill()


def test_commands_in_the_foreground(sandbox: Any) -> None:
    heard: list[tuple[str, str]] = []
    done = sandbox.commands.run(
        "pwd; echo $FROM $A; echo oops >&2",
        envs={"A": "é"},
        cwd="/usr",
        on_stdout=lambda text: heard.append(("out", text)),
        on_stderr=lambda text: heard.append(("err", text)),
    )
    assert (done.exit_code, done.stdout, done.stderr) == (0, "/usr\nenvs é\n", "oops\n")
    assert "".join(t for k, t in heard if k == "out") == done.stdout
    with pytest.raises(e2b.CommandExitException) as failed:
        sandbox.commands.run("echo no >&2; exit 3")
    assert (failed.value.exit_code, failed.value.stderr) == (3, "no\n")
    assert sandbox.commands.run("pwd; echo $HOME").stdout == "/root\n/root\n"
    assert sandbox.commands.run("head -c 3000000 /dev/zero | tr '\\0' x").stdout == "x" * 3_000_000


def test_a_command_that_cannot_start_says_why(sandbox: Any) -> None:
    with pytest.raises(e2b.InvalidArgumentException, match="cannot start /bin/bash"):
        sandbox.commands.run("true", cwd="/nowhere")
    with pytest.raises(e2b.AuthenticationException, match="invalid username"):
        sandbox.commands.run("true", user="mallory")
    assert sandbox.commands.run("id -un", user="root").stdout == "root\n"


def test_commands_in_the_background(sandbox: Any) -> None:
    command = sandbox.commands.run("read a; echo got $a; sleep 600", background=True, stdin=True)
    assert [(p.pid, p.cmd, p.args[-1]) for p in sandbox.commands.list()] == [
        (command.pid, "/bin/bash", "read a; echo got $a; sleep 600")
    ]
    # Its pid is that of the sandbox's own process table.
    assert sandbox.commands.run(f"cat /proc/{command.pid}/comm").stdout == "bash\n"
    command.send_stdin("it\n")
    assert next(iter(command))[0] == "got it\n"
    assert sandbox.commands.kill(command.pid)
    with pytest.raises(e2b.CommandExitException) as ended:
        command.wait()
    assert "killed" in (ended.value.error or "")
    assert not sandbox.commands.kill(command.pid)
    assert sandbox.commands.list() == []
    assert "sleep 600" not in sandbox.commands.run("cat /proc/[0-9]*/cmdline | tr '\\0' ' '").stdout


def test_input_is_closed_and_streamed(sandbox: Any) -> None:
    command = sandbox.commands.run("cat; echo over", background=True, stdin=True)
    command.send_stdin("one ")
    sandbox.commands.stream_input(command.pid, ["two ", b"three\n"])
    command.close_stdin()
    assert command.wait().stdout == "one two three\nover\n"
    # Without stdin=True there is nothing to read.
    assert sandbox.commands.run("cat; echo over").stdout == "over\n"


def test_reconnecting_loses_nothing(sandbox: Any) -> None:
    command = sandbox.commands.run(
        "echo first; read go; echo second; exit 4", background=True, stdin=True
    )
    assert next(iter(command))[0] == "first\n"
    command.disconnect()
    sandbox.commands.send_stdin(command.pid, "go\n")
    assert until(lambda: sandbox.commands.list() == [])
    again = sandbox.commands.connect(command.pid)  # although it has ended meanwhile
    with pytest.raises(e2b.CommandExitException) as ended:
        again.wait()
    assert (ended.value.exit_code, ended.value.stdout) == (4, "second\n")
    with pytest.raises(e2b.NotFoundException):
        sandbox.commands.connect(99999)


def test_a_commands_timeout_kills_it(sandbox: Any) -> None:
    with pytest.raises(e2b.TimeoutException):
        sandbox.commands.run("sleep 611 & sleep 612", timeout=1)
    assert until(lambda: sandbox.commands.list() == [])
    left = sandbox.commands.run("cat /proc/[0-9]*/cmdline | tr '\\0' ' '").stdout
    assert "sleep 61" not in left


def test_terminals(sandbox: Any) -> None:
    terminal = sandbox.pty.create(e2b.PtySize(rows=20, cols=70), cwd="/usr", envs={"B": "c"})
    sandbox.pty.send_stdin(terminal.pid, b"stty size; pwd; echo $B $TERM; tty\n")
    seen = bytearray()

    def read_until(wanted: bytes) -> None:
        for _, _, data in terminal:
            seen.extend(data or b"")
            if wanted in seen:
                return

    read_until(b"/dev/pts/0\r\n")
    for wanted in (b"20 70\r\n", b"/usr\r\n", b"c xterm-256color\r\n"):
        assert wanted in seen
    sandbox.pty.resize(terminal.pid, e2b.PtySize(rows=30, cols=90))
    again = sandbox.pty.connect(terminal.pid)
    sandbox.pty.send_stdin(again.pid, b"stty size; sh -c 'echo re''ady; exec sleep 613'\n")
    heard = bytearray()
    for _, _, data in again:
        heard.extend(data or b"")
        if b"ready" in heard:
            break
    assert b"30 90\r\n" in heard
    sandbox.pty.send_stdin(again.pid, b"\x03")  # Ctrl-C: the terminal is a controlling one
    sandbox.pty.send_stdin(again.pid, b"exit 5\n")
    with pytest.raises(e2b.CommandExitException) as ended:
        again.wait()
    assert ended.value.exit_code == 5


def test_files(sandbox: Any) -> None:
    files = sandbox.files
    written = files.write("/home/user/a/b.txt", "héllo")
    assert (written.name, written.path, written.type.value) == (
        "b.txt",
        "/home/user/a/b.txt",
        "file",
    )
    assert files.read("/home/user/a/b.txt") == "héllo"
    data = bytes(range(256)) * 5000
    files.write("data.bin", io.BytesIO(data))
    assert bytes(files.read("/root/data.bin", format="bytes")) == data
    assert b"".join(files.read("~/data.bin", format="stream")) == data
    files.write("zipped", data, gzip=True)
    assert bytes(files.read("zipped", format="bytes")) == data
    both = files.write_files([{"path": "/w/1", "data": "1"}, {"path": "/w/é 2", "data": b"2"}])
    assert [w.path for w in both] == ["/w/1", "/w/é 2"]
    assert files.read("/w/é 2") == "2"
    assert [(e.name, e.type.value, e.size) for e in files.list("/w")] == [
        ("1", "file", 1),
        ("é 2", "file", 1),
    ]
    sandbox.commands.run("ln -s /w/1 /w/link; chmod 600 /w/1; chown 65534:65534 '/w/é 2'")
    assert [e.path for e in files.list("/", depth=2) if e.path.startswith("/w/")] == [
        "/w/1",
        "/w/link",
        "/w/é 2",
    ]
    link, one, other = (files.get_info(f"/w/{n}") for n in ("link", "1", "é 2"))
    assert (link.type.value, link.symlink_target) == ("symlink", "/w/1")
    assert (one.mode, one.permissions, one.owner) == (0o600, "-rw-------", "root")
    assert (other.owner, other.group) == ("nobody", "nogroup")
    assert abs(one.modified_time.timestamp() - time.time()) < 600
    assert files.make_dir("/w/x/y") and not files.make_dir("/w/x/y")
    assert files.rename("/w/1", "/w/x/one").path == "/w/x/one"
    assert not files.exists("/w/1") and files.exists("/w/x/one") and files.exists("/w/link")
    files.remove("/w")
    assert not files.exists("/w")


def test_file_metadata(sandbox: Any) -> None:
    sandbox.files.write("/m", "x", metadata={"who": "me", "What": "test"})
    assert sandbox.files.get_info("/m").metadata == {"who": "me", "what": "test"}


def test_wrong_paths_are_told(sandbox: Any) -> None:
    files = sandbox.files
    for call in (
        lambda: files.read("/nothing"),
        lambda: files.get_info("/nothing"),
        lambda: files.list("/nothing"),
        lambda: files.rename("/nothing", "/else"),
        lambda: files.remove("/nothing"),
        lambda: files.watch_dir("/nothing"),
    ):
        with pytest.raises(e2b.FileNotFoundException, match="/nothing"):
            call()
    with pytest.raises(e2b.InvalidArgumentException, match="not a regular file"):
        files.read("/usr")
    with pytest.raises(e2b.InvalidArgumentException, match="not a regular file"):
        files.read("/proc/version")
    with pytest.raises(e2b.SandboxException, match="/usr/x"):
        files.write("/usr/x", "no")
    with pytest.raises(e2b.NotEnoughSpaceException):
        files.write("/big", io.BytesIO(bytes(300 * 2**20)))


def test_watching(sandbox: Any) -> None:
    sandbox.files.make_dir("/watched/deep")
    watch = sandbox.files.watch_dir("/watched", recursive=True, include_entry=True)
    sandbox.commands.run(
        "cd /watched; echo 1 > a; mv a deep/b; chmod 600 deep/b; mkdir -p x/y; echo 2 > x/y/z;"
        " rm deep/b"
    )
    found: list[Any] = []

    def seen() -> set[tuple[str, str]]:
        found.extend(watch.get_new_events())
        return {(e.name, e.type.value) for e in found}

    wanted = {
        *(("a", "create"), ("a", "write"), ("a", "rename"), ("deep/b", "create")),
        *(("deep/b", "chmod"), ("x", "create"), ("deep/b", "remove"), ("x/y/z", "create")),
    }
    assert until(lambda: wanted <= seen()), seen()
    entries = [e.entry for e in found if e.name == "x/y/z" and e.entry is not None]
    assert entries[0].path == "/watched/x/y/z"
    watch.stop()
    with pytest.raises(e2b.SandboxException, match="stopped"):
        watch.get_new_events()


def test_upload_and_download_urls(sandbox: Any) -> None:
    def open_url(url: str, data: bytes | None = None, kind: str = "") -> bytes:
        request = urllib.request.Request(url, data=data)
        if kind:
            request.add_header("Content-Type", kind)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return bytes(answer.read())

    form = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\nup\r\n--b--\r\n'
    )
    open_url(sandbox.upload_url("/up"), form, "multipart/form-data; boundary=b")
    assert sandbox.files.read("/up") == "up"
    url = sandbox.download_url("/up", use_signature_expiration=60)
    assert open_url(url) == b"up"
    for wrong in (
        url.replace("%2Fup", "%2Fetc%2Fpasswd"),
        url.replace("signature=v1_", "signature=v1_x"),
        sandbox.download_url("/up", use_signature_expiration=-5),
        url.partition("&signature")[0],
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            open_url(wrong)
        assert refused.value.code == 401


def test_life(e2b_settings: Service) -> None:
    with pytest.raises(e2b.SandboxException, match="template 'nope' was not found"):
        e2b.Sandbox.create("nope")
    with pytest.raises(e2b.SandboxException, match=r"timeout: 1e.06 is not above 0 and at most"):
        e2b.Sandbox.create(timeout=1_000_000)
    with pytest.raises(e2b.SandboxException, match="network: this service gives none"):
        e2b.Sandbox.create(allow_internet_access=True)
    with pytest.raises(e2b.AuthenticationException):
        e2b.Sandbox.create(api_key="e2b_0000000000000000")
    one = e2b.Sandbox.create(timeout=100)
    one.files.write("/kept", "yes")
    one.set_timeout(200)
    left = one.get_info().end_at.timestamp() - time.time()
    assert 100 < left <= 200
    again = e2b.Sandbox.connect(one.sandbox_id, timeout=30)  # never shortens
    assert again.get_info().end_at.timestamp() - time.time() > 100
    assert again.files.read("/kept") == "yes"
    assert one.is_running()
    samples = one.get_metrics()
    assert samples[-1].disk_used > 0 and samples[-1].mem_used > 0
    assert one.kill() and not one.kill()
    assert not one.is_running()
    with pytest.raises(e2b.SandboxNotRunningException, match="it was killed"):
        one.commands.run("true")
    with pytest.raises(e2b.NotFoundException):
        e2b.Sandbox.connect(one.sandbox_id)


def test_a_sandboxs_timeout_is_kept(e2b_settings: Service) -> None:
    one = e2b.Sandbox.create(timeout=60)
    command = one.commands.run("sleep 614", background=True, timeout=0)
    one.set_timeout(1)  # sooner than before
    with pytest.raises(e2b.SandboxNotRunningException, match="reached its timeout of 1 s"):
        command.wait()
    assert not one.is_running()
    assert one.sandbox_id not in [s.sandbox_id for s in e2b.Sandbox.list().next_items()]


def test_listing_by_pages(e2b_settings: Service) -> None:
    made = [e2b.Sandbox.create(timeout=60, metadata={"n": "p q/%"}) for _ in range(3)]
    try:
        query = e2b.SandboxQuery(metadata={"n": "p q/%"})
        paginator = e2b.Sandbox.list(query=query, limit=2)
        pages = []
        while paginator.has_next:
            pages.append([s.sandbox_id for s in paginator.next_items()])
        assert pages == [[made[2].sandbox_id, made[1].sandbox_id], [made[0].sandbox_id]]
        nobody = e2b.Sandbox.list(query=e2b.SandboxQuery(metadata={"n": "other"}))
        assert nobody.next_items() == []
        paused = e2b.SandboxQuery(state=[e2b.SandboxState.PAUSED], metadata={"n": "p q/%"})
        made[0].pause()
        assert [s.sandbox_id for s in e2b.Sandbox.list(query=paused).next_items()] == [
            made[0].sandbox_id
        ]
    finally:
        for one in made:
            one.kill()


def test_pause_keeps_files_and_programs(e2b_settings: Service) -> None:
    one = e2b.Sandbox.create(timeout=60)
    one.files.write("/state", "kept")
    counter = one.commands.run(
        "i=0; while sleep 0.05; do i=$((i+1)); echo $i > /n; done", background=True, timeout=0
    )
    assert until(lambda: one.files.exists("/n"))
    assert one.pause() and not one.pause()
    assert not one.is_running()
    with pytest.raises(e2b.SandboxNotRunningException, match="it is paused"):
        one.files.read("/state")
    again = e2b.Sandbox.connect(one.sandbox_id, timeout=60)
    assert again.files.read("/state") == "kept"
    before = int(again.files.read("/n") or 0)
    assert until(lambda: int(again.files.read("/n") or 0) > before)
    assert again.commands.kill(counter.pid)
    one.kill()


def test_a_timeout_may_pause_and_a_call_may_wake(e2b_settings: Service) -> None:
    lifecycle = {"on_timeout": "pause", "auto_resume": True}
    one = e2b.Sandbox.create(timeout=60, lifecycle=lifecycle)
    one.files.write("/state", "kept")
    one.set_timeout(1)
    assert until(lambda: one.get_info().state.value == "paused")
    assert one.files.read("/state") == "kept"
    assert one.get_info().state.value == "running"
    one.kill()


def test_a_key_makes_one_sandbox(e2b_settings: Service) -> None:
    key = "the-same-key"
    one = e2b.Sandbox.create(timeout=60, idempotency_key=key)
    same = e2b.Sandbox.create(timeout=60, idempotency_key=key)
    assert one.sandbox_id == same.sandbox_id
    with pytest.raises(e2b.SandboxException, match="another request"):
        e2b.Sandbox.create(timeout=61, idempotency_key=key)
    one.kill()


def test_what_is_not_here_is_refused(sandbox: Any) -> None:
    for call in (sandbox.create_snapshot, sandbox.fork):
        with pytest.raises(e2b.SandboxException, match="unsupported: "):
            call()


def test_calls_fail_at_once_when_the_sandbox_dies(e2b_settings: Service) -> None:
    one = e2b.Sandbox.create(timeout=600)
    watch = one.files.watch_dir("/tmp")
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            one.commands.run("echo up > /up; sleep 615", timeout=0)
        except e2b.SandboxException as e:
            errors.append(e)

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert until(lambda: one.files.exists("/up"))
    one.kill()
    waiting.join(30)
    assert not waiting.is_alive()
    assert isinstance(errors[0], e2b.SandboxNotRunningException), errors
    with pytest.raises(e2b.SandboxNotRunningException):
        watch.get_new_events()


def test_async_client(e2b_settings: Service) -> None:
    async def work() -> None:
        one = await e2b.AsyncSandbox.create(timeout=60)
        try:
            done = await asyncio.gather(*(one.commands.run(f"echo {i}") for i in range(20)))
            assert [d.stdout for d in done] == [f"{i}\n" for i in range(20)]
            await one.files.write("/a/x", b"x" * 100_000)
            assert len(await one.files.read("/a/x")) == 100_000
            seen: list[Any] = []
            came = asyncio.Event()

            def hear(event: Any) -> None:
                seen.append((event.name, event.type.value))
                came.set()

            watch = await one.files.watch_dir("/a", on_event=hear)
            await one.files.remove("/a/x")
            await asyncio.wait_for(came.wait(), 30)
            assert seen[0] == ("x", "remove")
            await watch.stop()
            heard = bytearray()
            done_event = asyncio.Event()

            def on_data(data: bytes) -> None:
                heard.extend(data)
                if b"40 99" in heard:
                    done_event.set()

            terminal = await one.pty.create(e2b.PtySize(rows=40, cols=99), on_data=on_data)
            await one.pty.send_stdin(terminal.pid, b"stty size\n")
            await asyncio.wait_for(done_event.wait(), 30)
            assert await one.pty.kill(terminal.pid)
            running = await one.commands.run("sleep 616", background=True, timeout=0)
            assert await running.kill()
        finally:
            await one.kill()

    asyncio.run(work())
