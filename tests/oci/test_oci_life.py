"""A container's life, by the command line that clients use."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.oci.conftest import COMMAND, Runtime, until

from tegu.oci.state import start_time


def test_create_start_kill_delete(oci: Runtime) -> None:
    bundle = oci.bundle("sleep", "1000")
    name = oci.name()
    pid_file = bundle / "pid"
    words = ("create", "--bundle", str(bundle), "--pid-file", str(pid_file), name)
    oci(*words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, capture_output=False)
    state = oci.state(name)
    assert state["status"] == "created"
    assert state["pid"] == int(pid_file.read_text())
    assert state["bundle"] == str(bundle)
    refused = oci("start", "nosuch", check=False)
    assert (refused.returncode, refused.stderr) == (
        1,
        "tegu-oci: container does not exist: nosuch\n",
    )
    oci("start", name)
    assert oci.state(name)["status"] == "running"
    until(lambda: b"sleep" in Path(f"/proc/{state['pid']}/cmdline").read_bytes())
    assert "not created" in oci("start", name, check=False).stderr
    assert "id exists" in oci(*words, check=False).stderr
    assert oci.state(name)["status"] == "running"
    assert "not stopped" in oci("delete", name, check=False).stderr
    assert name in oci("list", "--quiet").stdout.split()
    assert json.loads(oci("list", "--format", "json").stdout)[0]["status"] == "running"
    oci("kill", name, "KILL")
    until(lambda: oci.state(name)["status"] == "stopped")
    assert "not running" in oci("kill", name, check=False).stderr
    oci("delete", name)
    assert oci("state", name, check=False).returncode == 1
    oci("delete", "--force", name)


def test_run_gives_streams_and_exit_code(oci: Runtime) -> None:
    done = oci.run("sh", "-c", "cat; echo no >&2; exit 7", input="in", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, "in", "no\n")
    killed = oci.run("sh", "-c", "kill -9 $$", check=False)
    assert killed.returncode in (0, 137)  # process 1 is deaf to its own signals


def test_exec(oci: Runtime) -> None:
    bundle, name = oci.bundle("sleep", "1000"), oci.name()
    oci("run", "--detach", "--bundle", str(bundle), name, capture_output=False)
    script = "id -u; id -g; pwd; echo $A; cat /proc/1/comm; exit 5"
    done = oci("exec", "--user", "12:34", "--cwd", "/tmp", "--env", "A=b", name,
               "sh", "-c", script, check=False)  # fmt: skip
    assert (done.returncode, done.stdout.split()) == (5, ["12", "34", "/tmp", "b", "sleep"])
    missing = oci("exec", name, "nosuch", check=False)
    assert missing.returncode == 1
    assert "'nosuch' not found in $PATH: no such file or directory" in missing.stderr
    process = {
        "args": ["sh", "-c", "grep CapEff /proc/self/status"],
        "cwd": "/",
        "env": ["PATH=/bin"],
    }
    file = bundle / "process.json"
    file.write_text(json.dumps(process))
    assert oci("exec", "--process", str(file), name).stdout.split() == ["CapEff:", "0" * 16]
    pid_file = bundle / "pid"
    oci("exec", "--detach", "--pid-file", str(pid_file), name, "sleep", "999", capture_output=False)
    assert int(pid_file.read_text()) in json.loads(oci("ps", "--format", "json", name).stdout)
    assert "sleep 999" in oci("ps", name).stdout


def test_hooks_run_in_order_with_the_state(oci: Runtime) -> None:
    log = oci.directory / "log"
    names = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart",
             "poststop")  # fmt: skip
    inside = oci.directory / "inside"
    inside.mkdir()

    def change(config: dict[str, Any]) -> None:
        config["hooks"] = {}
        for name in names:
            # startContainer's path is of the container: it logs where both can see.
            file = "/log/inside" if name == "startContainer" else str(log)
            script = f"printf '%s ' {name} >>{file}; cat >>{file}; echo >>{file}"
            config["hooks"][name] = [{"path": "/bin/sh", "args": ["sh", "-c", script],
                                      "env": ["PATH=/bin:/usr/bin"], "timeout": 60}]  # fmt: skip
        config["mounts"].append({"destination": "/log", "source": str(inside), "options": ["bind"]})
        config["annotations"] = {"org.example.k": "v"}

    oci.sh("true", change)
    lines = dict(line.split(" ", 1) for line in log.read_text().splitlines())
    assert list(lines) == [n for n in names if n != "startContainer"]
    statuses = [json.loads(line)["status"] for line in lines.values()]
    assert statuses[:3] == ["creating"] * 3
    assert statuses[4] == "stopped"
    for line in (*lines.values(), (inside / "inside").read_text().split(" ", 1)[1]):
        state = json.loads(line)
        assert state["annotations"] == {"org.example.k": "v"}
        assert state["id"] == oci.names[-1]


@pytest.mark.parametrize("name", ["prestart", "createRuntime", "createContainer", "startContainer"])
def test_a_hook_that_fails_ends_the_container(oci: Runtime, name: str) -> None:
    def change(config: dict[str, Any]) -> None:
        config["hooks"] = {name: [{"path": "/bin/sh", "args": ["sh", "-c", "exit 3"]}]}

    done = oci.run("echo", "started", change=change, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert f"hooks.{name}[0]: /bin/sh exited with 3" in done.stderr


def test_a_hook_past_its_time_is_killed(oci: Runtime) -> None:
    def change(config: dict[str, Any]) -> None:
        config["hooks"] = {
            "prestart": [{"path": "/bin/sleep", "args": ["sleep", "600"], "timeout": 1}]
        }

    done = oci.run("true", change=change, check=False)
    assert "hooks.prestart[0]: /bin/sleep did not end within 1 s" in done.stderr


def test_a_terminal_is_handed_over(oci: Runtime) -> None:
    bundle = oci.bundle(
        "sh", "-c", "tty; stty size; test -t 0 && ls -l /dev/console", change=_with_terminal
    )
    name, path = oci.name(), bundle / "console.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        words = ("create", "--bundle", str(bundle), "--console-socket", str(path), name)
        oci(*words, capture_output=False, stdin=subprocess.DEVNULL)
        end, _ = listener.accept()
        with end:
            text, fds, _, _ = socket.recv_fds(end, 100, 4)
    assert text == b"/dev/pts/0"
    assert len(fds) == 1
    oci("start", name)
    data = b""
    while True:
        try:
            part = os.read(fds[0], 4096)
        except OSError:
            break
        data += part
    os.close(fds[0])
    lines = data.decode().splitlines()
    assert lines[:2] == ["/dev/pts/0", "24 80"]
    assert "136," in lines[2]


def _with_terminal(config: dict[str, Any]) -> None:
    config["process"]["terminal"] = True
    config["process"]["consoleSize"] = {"height": 24, "width": 80}


def test_run_with_a_terminal_in_the_foreground(oci: Runtime) -> None:
    done = oci.run("sh", "-c", "tty; read x; echo got $x", change=_with_terminal, input="word\n")
    assert "/dev/pts/0" in done.stdout
    assert "got word" in done.stdout


def test_a_terminal_that_nobody_takes_is_refused(oci: Runtime) -> None:
    bundle = oci.bundle("sh", change=_with_terminal)
    done = oci("create", "--bundle", str(bundle), oci.name(), check=False)
    assert "process.terminal: nobody takes the terminal" in done.stderr


def test_preserved_descriptors_are_handed_down_and_no_others(oci: Runtime) -> None:
    reader, writer = os.pipe()
    extra = os.open("/", os.O_RDONLY)
    try:
        bundle, name = oci.bundle("sh", "-c", "ls /proc/self/fd; echo through >&3"), oci.name()
        shell = (
            f"exec 3>&{writer} 9<&{extra} {writer}>&- {extra}<&-; exec "
            + " ".join([*COMMAND, "--root", str(oci.root), "run", "--preserve-fds", "1"])
            + f" --bundle {bundle} {name}"
        )
        done = subprocess.run(
            ["bash", "-c", shell], pass_fds=[writer, extra], capture_output=True, check=True
        )
        assert os.read(reader, 100) == b"through\n"
        assert done.stdout.split() == [b"0", b"1", b"2", b"3", b"4"]  # 4 is of ls itself
        missing = oci("run", "--preserve-fds", "5", "--bundle", str(bundle), "x", check=False)
        assert "--preserve-fds: descriptor" in missing.stderr
    finally:
        for fd in (reader, writer, extra):
            os.close(fd)


def test_a_container_whose_maker_is_killed_can_be_deleted(oci: Runtime) -> None:
    told, hook = oci.directory / "told", oci.directory / "hook"

    def change(config: dict[str, Any]) -> None:
        script = f"cat >{told}; echo $$ >{hook}.new; mv {hook}.new {hook}; exec sleep 1000"
        config["hooks"] = {"prestart": [{"path": "/bin/sh", "args": ["sh", "-c", script],
                                         "env": ["PATH=/bin:/usr/bin"]}]}  # fmt: skip

    bundle, name = oci.bundle("true", change=change), oci.name()
    maker = subprocess.Popen([*COMMAND, "--root", str(oci.root), "create", "-b", str(bundle), name])
    until(hook.exists)
    assert oci.state(name)["status"] == "creating"
    maker.kill()
    maker.wait()
    os.kill(int(hook.read_text()), signal.SIGKILL)
    # The first process hears that its maker is gone, and ends by itself.
    first = json.loads(told.read_text())["pid"]
    until(lambda: start_time(first) is None)
    assert oci.state(name)["status"] == "stopped"
    oci("delete", name)


def test_containers_made_at_once(oci: Runtime) -> None:
    bundles = [(oci.name(), oci.bundle("true")) for _ in range(6)]
    codes: list[int] = []

    def one(name: str, bundle: Path) -> None:
        codes.append(oci("run", "--bundle", str(bundle), name, check=False).returncode)

    threads = [threading.Thread(target=one, args=pair) for pair in bundles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [0] * 6


def test_nothing_stays_behind(oci: Runtime) -> None:
    mounts = Path("/proc/self/mountinfo").read_text()
    oci.sh("true")
    oci.run("nosuch", check=False)
    assert Path("/proc/self/mountinfo").read_text() == mounts
    names = set(oci.names)
    for directory in Path("/sys/fs/cgroup").glob("**/oci-*"):
        assert not any(n in directory.name for n in names)


def test_logs_in_json_as_clients_read_them(oci: Runtime) -> None:
    log = oci.directory / "log.json"
    oci("--log", str(log), "--log-format", "json", "state", "nosuch", check=False)
    line = json.loads(log.read_text())
    assert line["level"] == "error"
    assert line["msg"] == "container does not exist: nosuch"


def test_features_and_spec_and_help(oci: Runtime) -> None:
    features = json.loads(oci("features").stdout)
    assert features["ociVersionMax"] == "1.2.0"
    assert features["linux"]["seccomp"]["enabled"] is True
    target = oci.directory / "new"
    target.mkdir()
    oci("spec", "--bundle", str(target))
    assert json.loads((target / "config.json").read_text())["process"]["args"] == ["sh"]
    assert "there already" in oci("spec", "--bundle", str(target), check=False).stderr
    assert "Example: tegu-oci kill" in oci("kill", "--help").stdout
    assert "spec: 1.2.0" in oci("--version").stdout
    restore = oci("restore", "x", check=False)
    assert (restore.returncode, restore.stderr.startswith("tegu-oci: unsupported: ")) == (12, True)


def test_limits_pause_and_update(oci: Runtime) -> None:
    def change(config: dict[str, Any]) -> None:
        config["linux"]["resources"]["pids"] = {"limit": 37}

    bundle, name = oci.bundle("sleep", "1000", change=change), oci.name()
    done = oci("run", "--detach", "--bundle", str(bundle), name, capture_output=False, check=False)
    if done.returncode:
        pytest.skip("no control group for pids may be made here")
    stats = json.loads(oci("events", "--stats", name).stdout)
    assert stats["data"]["pids"] == {"current": 1, "limit": 37}
    oci("update", "--pids-limit", "39", name)
    assert json.loads(oci("events", "--stats", name).stdout)["data"]["pids"]["limit"] == 39
    unknown = oci("update", "--resources", "-", name, input='{"pids": {"most": 1}}', check=False)
    assert "linux.resources.pids.most: no such field" in unknown.stderr
    oci("pause", name)
    assert oci.state(name)["status"] == "paused"
    assert "it is paused" in oci("exec", name, "true", check=False).stderr
    oci("resume", name)
    assert oci.state(name)["status"] == "running"
    oci("pause", name)
    oci("delete", "--force", name)


def test_without_control_groups(oci: Runtime) -> None:
    def change(config: dict[str, Any]) -> None:
        namespaces = config["linux"]["namespaces"]
        config["linux"]["namespaces"] = [n for n in namespaces if n["type"] != "cgroup"]

    bundle = str(oci.bundle("cat", "/proc/self/cgroup", change=change))
    done = oci("--cgroup-manager", "disabled", "run", "--bundle", bundle, oci.name())
    assert done.stdout == Path("/proc/self/cgroup").read_text()
    limited = oci.bundle(
        "true", change=lambda c: c["linux"]["resources"].update({"pids": {"limit": 9}})
    )
    words = ("--cgroup-manager", "disabled", "run", "--bundle", str(limited), oci.name())
    assert "control groups are disabled" in oci(*words, check=False).stderr


def test_namespaces_by_path(oci: Runtime) -> None:
    bundle, first = oci.bundle("sleep", "1000"), oci.name()
    oci("run", "--detach", "--bundle", str(bundle), first, capture_output=False)
    pid = oci.state(first)["pid"]

    def change(config: dict[str, Any]) -> None:
        for namespace in config["linux"]["namespaces"]:
            kind = {"network": "net"}.get(namespace["type"], namespace["type"])
            if kind in ("net", "ipc", "uts", "pid"):
                namespace["path"] = f"/proc/{pid}/ns/{kind}"
        del config["hostname"]

    script = "readlink /proc/self/ns/net /proc/self/ns/ipc /proc/self/ns/pid; echo $$"
    found = oci.sh(script, change).split()
    assert found[:3] == [str(Path(f"/proc/{pid}/ns/{k}").readlink()) for k in ("net", "ipc", "pid")]
    assert int(found[3]) > 1

    def wrong(config: dict[str, Any]) -> None:
        config["linux"]["namespaces"][0]["path"] = f"/proc/{pid}/ns/net"

    text = oci.run("true", change=wrong, check=False).stderr
    assert "linux.namespaces[0].path" in text
    assert "not a namespace of type pid" in text
