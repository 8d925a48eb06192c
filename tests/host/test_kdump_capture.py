"""The capture's script, tried out piece by piece on a small file system of its own."""

from __future__ import annotations

import http.server
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "src/tegu/host/kdump/capture.sh"

Shell = Callable[..., str]

# Stands for makedumpfile: writes $MIB of memory to its last argument, or to standard output.
MAKEDUMPFILE = """\
#!/bin/sh
set -e
for last; do :; done
case " $* " in
*" -F "*) head -c $((MIB << 20)) /dev/zero; echo progress >&2 ;;
*" --dump-dmesg "*) echo "[    1.0] Kernel panic" >"$last" ;;
*) [ -z "$COMPLAINT" ] || { echo "$COMPLAINT" >&2; exit 1; }
   dd if=/dev/zero of="$last" bs=64k count=$((MIB * 16)) ;;
esac
"""


def unprivileged() -> str | None:
    busybox, unshare = shutil.which("busybox"), shutil.which("unshare")
    if busybox is None or unshare is None:
        return "needs busybox and unshare"
    done = subprocess.run([unshare, "-rm", "true"], capture_output=True)
    return None if done.returncode == 0 else "needs user namespaces"


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    reason = unprivileged()
    if reason is not None:
        pytest.skip(reason)
    programs, run = tmp_path / "bin", tmp_path / "run"
    programs.mkdir()
    run.mkdir()
    (programs / "makedumpfile").write_text(MAKEDUMPFILE)
    (programs / "makedumpfile").chmod(0o755)
    setup = f"""
. {SCRIPT}
PATH={programs}:$PATH run={run} core={tmp_path}/core console=/dev/null
blocks=131072 limit=67108864 level=31 compression=-z host_name=web
mount -t tmpfs -o size=8M tmpfs /mnt
dir=/mnt incoming=/mnt/.incoming
mkdir /mnt/.incoming
"""

    def call(script: str, **env: str) -> str:
        done = subprocess.run(
            ["unshare", "-rm", "busybox", "sh", "-c", setup + script],
            capture_output=True,
            text=True,
            env={"PATH": os.environ["PATH"], "MIB": "1", "COMPLAINT": "", **env},
            timeout=60,
        )
        said = run / "capture.log"
        return done.stdout + done.stderr + (said.read_text() if said.exists() else "")

    return call


def test_the_log_is_written_over_kept_blocks_on_a_full_disk(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("line\n" * 20_000)
    said = shell(
        f"""
dd if=/dev/zero of=$incoming/dmesg.txt bs=64k count=16 2>/dev/null
dd if=/dev/zero of=/mnt/full bs=64k 2>/dev/null
cp {tmp_path}/log $incoming/other 2>/dev/null && echo 'THE DISK IS NOT FULL'
rm -f $incoming/other; dd if=/dev/zero of=/mnt/full2 bs=4k 2>/dev/null
over {tmp_path}/log $incoming/dmesg.txt
cmp {tmp_path}/log $incoming/dmesg.txt && echo same
"""
    )
    assert "same" in said and "NOT FULL" not in said


def test_of_a_log_too_long_the_end_is_kept(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("".join(f"line {n:06d}\n" for n in range(20_000)))
    said = shell(
        f"""
dd if=/dev/zero of=$incoming/dmesg.txt bs=64k count=1 2>/dev/null
dd if=/dev/zero of=/mnt/full bs=4k 2>/dev/null
over {tmp_path}/log $incoming/dmesg.txt
tail -n 1 $incoming/dmesg.txt; stat -c %s $incoming/dmesg.txt
"""
    )
    assert "line 019999\n65536\n" in said


def test_older_memory_makes_room(shell: Shell) -> None:
    said = shell(
        """
for n in 1 2 3; do
    mkdir /mnt/$n; echo log >/mnt/$n/dmesg.txt; head -c 2097152 /dev/zero >/mnt/$n/vmcore
done
save_memory; ls /mnt/1 /mnt/2 /mnt/3 $incoming
""",
        MIB="5",
    )
    assert "no space: removing /mnt/1/vmcore" in said
    assert "no space: removing /mnt/2/vmcore" in said
    assert "/mnt/3/vmcore" not in said
    assert "memory saved: 5242880 bytes" in said


def test_no_room_at_all(shell: Shell) -> None:
    said = shell("save_memory || echo given up; ls -A $incoming", MIB="20")
    assert "no space for the memory: only the log is kept" in said
    assert "given up" in said and "partial" not in said


def test_a_bound_on_size(shell: Shell) -> None:
    said = shell("blocks=2048\nsave_memory; ls -A $incoming", MIB="2")
    assert "larger than max_size" in said and "partial" not in said


def test_a_kernel_that_cannot_be_filtered(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "core").write_bytes(b"m" * 1000)
    said = shell("save_memory; cat $incoming/vmcore", COMPLAINT="get_mem_type failed")
    assert (
        "makedumpfile failed (exit code 1: get_mem_type failed); copying all memory instead" in said
    )
    assert "m" * 1000 in said


class Store(http.server.BaseHTTPRequestHandler):
    """An object store: takes what comes with its length, and nothing else."""

    objects: dict[str, int]

    def do_PUT(self) -> None:
        length = self.headers.get("Content-Length")
        if length is None or self.headers.get("Transfer-Encoding"):
            self.send_error(411)
            return
        if self.path.startswith("/expired"):
            self.send_error(403)
            return
        Store.objects[self.path] = len(self.rfile.read(int(length)))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        pass


@pytest.mark.parametrize("presigned", [False, True])
def test_an_object_store(shell: Shell, tmp_path: Path, presigned: bool) -> None:
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    Store.objects = {}
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Store) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        base = f"http://store.invalid:{port}"
        url = f"{base}/core?sign=1" if presigned else f"{base}/dumps/"
        log_url = f"{base}/log?sign=2" if presigned else ""
        script = f"""
network() {{ :; }}
host=store.invalid port={port} peer=127.0.0.1 url='{url}' log_url='{log_url}'
read_log
to_http
"""
        said = shell(script, MIB="3")
        if presigned:  # the log's URL has expired, that of the memory has not
            again = shell(script.replace("/log?", "/expired?"), MIB="3")
            assert "the log could not be sent: " in again
            assert "memory sent: 3145728 bytes" in again
        server.shutdown()
    assert "memory sent: 3145728 bytes" in said
    assert sorted(Store.objects.values()) == [23, 3 << 20]
    names = sorted(Store.objects)
    if presigned:
        assert names == ["/core?sign=1", "/log?sign=2"]
    else:
        assert [n.rpartition("/")[2] for n in names] == ["dmesg.txt", "vmcore.flat"]
        assert names[0].startswith("/dumps/web-")
