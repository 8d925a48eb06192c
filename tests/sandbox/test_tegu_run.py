"""`tegu run` and `tegu sandbox` as a user meets them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tegu.errors import UsageError
from tegu.sandbox import thin
from tegu.sandbox.spec import BoxSpec, RunSpec, parse_size

THIN = Path(thin.__file__)


def tegu_run(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run the thin client as it stands alone: no package path, no site packages."""
    return subprocess.run(
        [sys.executable, "-S", "-I", str(THIN), *words],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
    )


def tegu(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tegu", *words], capture_output=True, text=True, timeout=120
    )


def test_streams_and_codes(path: Path) -> None:
    done = tegu_run("--", "sh", "-c", "cat; echo e >&2; exit 5", stdin="in")
    assert (done.returncode, done.stdout, done.stderr) == (5, "in", "e\n")
    assert tegu_run("sh", "-c", "exit 0").returncode == 0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "there is no command"),
        (("--nonsense", "true"), 2, "there is no option --nonsense"),
        (("--memory", "lots", "true"), 2, "--memory: 'lots' is not a size"),
        (("--memory", "9" * 400, "true"), 2, "--memory: a size of 400 digits is out of range"),
        (("--memory",), 2, "--memory needs a value"),
        (("--pids", "x", "true"), 2, "--pids: 'x' is not a number"),
        (("--timeout", "nan", "true"), 2, "--timeout: 'nan' is not a number"),
        (("--timeout", "0", "true"), 2, "timeout: 0.0 is not between"),
        (("-e", "novalue", "true"), 2, "-e: 'novalue' is not NAME=VALUE"),
        (("-w", "tmp", "true"), 2, "cwd: 'tmp' is not an absolute path"),
        (("-t", "/no/such", "true"), 2, "template: /no/such is not a directory"),
        (("--class", "microvm", "true"), 12, "unsupported: class microvm"),
        (("--class", "x", "true"), 2, "class: 'x' is none of"),
        (("no-such-program",), 127, "cannot start no-such-program"),
        (("/etc/passwd",), 126, "cannot start /etc/passwd"),
        (("--timeout", "0.2", "sleep", "9"), 124, "timeout: everything in the box was killed"),
    ],
)
def test_what_goes_wrong_is_one_line(
    path: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    done = tegu_run(*words)
    assert done.returncode == code, done
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 2


def test_help_has_an_example(path: Path) -> None:
    done = tegu_run("--help")
    assert done.returncode == 0
    assert "Example: tegu run" in done.stdout
    assert tegu("run", "--help").stdout == done.stdout


def test_options_reach_the_box(path: Path) -> None:
    script = 'printf %s "$A"; pwd; grep processes /proc/self/limits; touch /etc/x'
    options = ("-e", 'A=ü\t"x\\', "--cwd=/tmp", "--pids", "40", "--read-only")
    done = tegu_run(*options, "sh", "-c", script)
    assert done.stdout.startswith('ü\t"x\\/tmp\n')
    assert done.stdout.split()[-3:] == ["40", "40", "processes"]
    assert "Read-only" in done.stderr


def test_json_outcome(path: Path) -> None:
    done = tegu_run("--json", "sh", "-c", "exit 3")
    outcome = json.loads(done.stderr)
    assert outcome["code"] == 3
    assert not outcome["timed_out"]
    failed = json.loads(tegu_run("--json", "no-such-program").stderr)
    assert failed["error"]["kind"] == "StartError"


def test_closed_streams(path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", f"exec '{sys.executable}' -S -I '{THIN}' cat <&- >&-"], timeout=60
    )
    assert done.returncode == 0


def test_a_file_as_input_cannot_be_written_to(path: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.write_bytes(b"of the host\n" * 100_000)
    source.chmod(0o666)
    before = source.read_bytes()
    script = "cat; python3 -c 'import os; os.fchmod(0, 0)'; : > /proc/self/fd/0; echo x >&0"
    with source.open("rb") as f:
        done = subprocess.run(
            [sys.executable, "-S", "-I", str(THIN), "sh", "-c", script],
            stdin=f, capture_output=True, timeout=120,
        )  # fmt: skip
    assert done.stdout == before
    assert source.read_bytes() == before
    assert source.stat().st_mode & 0o777 == 0o666


def test_what_is_not_read_of_a_file_is_left_for_the_next(path: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.write_bytes(b"one\ntwo\n" + b"x" * 200_000)
    thin_run = f"'{sys.executable}' -S -I '{THIN}'"
    done = subprocess.run(
        ["sh", "-c", f"{thin_run} true; {thin_run} sh -c 'read a; echo $a'; wc -c"],
        stdin=source.open("rb"), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.split() == ["one", "200004"]


def test_through_the_front_door(path: Path) -> None:
    assert tegu("run", "--", "echo", "hi").stdout == "hi\n"
    assert tegu("run", "sh", "-c", "exit 9").returncode == 9
    doctor = json.loads(tegu("sandbox", "doctor", "--json").stdout)
    found = {f["name"]: f for f in doctor}
    assert found["container"]["available"]
    for kind in ("process", "gvisor", "microvm", "microvm-tcg", "tee"):
        assert bool(found[kind]["reason"]) != found[kind]["available"]
    assert not found["tee"]["available"]
    table = tegu("sandbox", "doctor").stdout
    assert "unsupported: " in table


def test_boxes_at_the_front_door(path: Path, tmp_path: Path) -> None:
    name = tegu("sandbox", "create", "--timeout", "300").stdout.strip()
    assert name in tegu("sandbox", "list").stdout
    source = tmp_path / "in"
    source.write_bytes(b"\0data")
    assert tegu("sandbox", "cp", str(source), f"{name}:/tmp/x").returncode == 0
    assert tegu("sandbox", "exec", name, "--", "sh", "-c", "wc -c < /tmp/x").stdout.strip() == "5"
    assert tegu("sandbox", "cp", f"{name}:/tmp/x", str(tmp_path / "out")).returncode == 0
    assert (tmp_path / "out").read_bytes() == b"\0data"
    assert tegu("sandbox", "exec", name, "--", "sh", "-c", "exit 6").returncode == 6
    assert tegu("sandbox", "exec", "--timeout", "0.2", name, "sleep", "9").returncode == 124
    assert tegu("sandbox", "pause", name).returncode == 0
    assert tegu("sandbox", "resume", name).returncode == 0
    assert tegu("sandbox", "kill", name).returncode == 0
    gone = tegu("sandbox", "exec", name, "true")
    assert gone.returncode == 20
    assert f"there is no box {name}" in gone.stderr


def test_without_a_supervisor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TEGU_SANDBOX_SOCKET", f"/tmp/tegu-none-{os.getpid()}/s")
    done = tegu("sandbox", "list")
    assert done.returncode == 20
    assert "no supervisor serves" in done.stderr


@pytest.mark.parametrize("where", ["/tmp/" + "x" * 200 + "/s", "/proc/no/such/s"])
def test_a_socket_that_cannot_be(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.setenv("TEGU_SANDBOX_SOCKET", where)
    done = tegu_run("true")
    assert done.returncode == 20
    assert "Traceback" not in done.stderr
    assert "None" not in done.stderr
    assert "too long" in done.stderr or "cannot serve at" in done.stderr


@given(st.text(max_size=40))
def test_quoting_is_json(text: str) -> None:
    assert json.loads(thin._quote(text)) == text


@given(
    st.text(max_size=8)
    | st.from_regex(r"[0-9]{1,6}(\.[0-9]{1,3})?[KMGTkmgt]?(i?B)?", fullmatch=True)
)
def test_sizes_mean_the_same_to_both_clients(text: str) -> None:
    try:
        ours = int(thin._size("--memory", text))
    except thin._UsageError:
        with pytest.raises(UsageError):
            parse_size(text, "memory")
        return
    try:
        assert parse_size(text, "memory") == ours
    except UsageError:
        assert not 0 < ours < 2**62


@given(
    st.lists(st.text(max_size=10), min_size=1, max_size=5),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
)
def test_requests_are_what_the_supervisor_reads(words: list[str], env: dict[str, str]) -> None:
    message = json.loads(thin._request({"memory": "64M", "cpus": "0.5", "pids": "9"}, env, words))
    assert BoxSpec.from_json(message["box"]).limits.memory == 2**26
    try:
        spec = RunSpec.from_json(message["run"])
    except UsageError:
        return
    assert list(spec.argv) == words
    assert dict(spec.env) == env
