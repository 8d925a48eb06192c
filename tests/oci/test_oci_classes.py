"""Containers of the class gvisor: by annotation, by the runtime's name, and what is refused."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.oci.conftest import COMMAND, Runtime, until

from tegu.errors import TeguError, UnsupportedError, UsageError
from tegu.oci.classes import ANNOTATION, wanted_class
from tegu.sandbox.gvisor.trial import try_runsc

Change = Callable[[dict[str, Any]], None]


def of_class(name: object, more: Change | None = None) -> Change:
    def change(config: dict[str, Any]) -> None:
        config["annotations"] = {ANNOTATION: name}
        if more is not None:
            more(config)

    return change


@pytest.fixture(scope="module")
def works(tmp_path_factory: pytest.TempPathFactory) -> None:
    if os.geteuid() != 0:
        pytest.skip("containers are made as root here")
    found, reason = try_runsc(tmp_path_factory.mktemp("trial"))
    if not found:
        pytest.skip(f"class gvisor: {reason}")


@pytest.mark.parametrize(
    ("said", "default", "answer"),
    [
        (None, "", "container"),
        (None, "gvisor", "gvisor"),
        ("container", "", "container"),
        ("container", "container", "container"),
        ("gvisor", "", "gvisor"),
        ("gvisor", "container", "gvisor"),
        ("gvisor", "gvisor", "gvisor"),
    ],
)
def test_which_class(said: str | None, default: str, answer: str) -> None:
    annotations = {} if said is None else {ANNOTATION: said}
    assert wanted_class(annotations, default) == answer
    assert wanted_class({**annotations, "other": "x"}, default) == answer


@given(
    st.one_of(st.none(), st.text(), st.dictionaries(st.text(), st.text()), st.integers())
    | st.builds(lambda v: {ANNOTATION: v}, st.text() | st.none() | st.lists(st.text()))
)
def test_odd_annotations(said: object) -> None:
    try:
        assert wanted_class(said, "gvisor") == "gvisor"
    except TeguError as e:
        assert ANNOTATION in e.message


def test_what_is_refused_by_name(oci: Runtime) -> None:
    for name in ("microvm", "microvm-tcg", "process", "tee"):
        done = oci.run("true", change=of_class(name), check=False)
        assert done.returncode == 12
        assert done.stderr.startswith(f"tegu-oci: unsupported: annotations['{ANNOTATION}']: {name}")
    done = oci.run("true", change=of_class("strong"), check=False)
    assert (done.returncode, "'strong' is none of container, gvisor" in done.stderr) == (2, True)
    bundle = oci.bundle("true", change=of_class("container"))
    words = ("--class", "gvisor", "run", "--bundle", str(bundle), oci.name())
    done = oci(*words, check=False)
    assert (done.returncode, "container is weaker than" in done.stderr) == (2, True)
    assert oci("--class", "none", "list", check=False).returncode == 2


def test_fields_that_gvisor_would_ignore(oci: Runtime) -> None:
    def sysctl(config: dict[str, Any]) -> None:
        config["linux"]["sysctl"] = {"kernel.shm_rmid_forced": "1"}

    def device(config: dict[str, Any]) -> None:
        config["linux"]["devices"] = [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}]

    def hosts_network(config: dict[str, Any]) -> None:
        config["linux"]["namespaces"] = [
            n for n in config["linux"]["namespaces"] if n["type"] != "network"
        ]

    def personality(config: dict[str, Any]) -> None:
        config["linux"]["personality"] = {"domain": "LINUX32"}

    def unknown(config: dict[str, Any]) -> None:
        config["linux"]["novelty"] = 1

    for change, field in (
        (sysctl, "linux.sysctl['kernel.shm_rmid_forced']"),
        (device, "linux.devices[0]: /dev/fuse"),
        (hosts_network, "linux.namespaces: the host's network"),
        (personality, "linux.personality"),
        (unknown, "linux.novelty"),
    ):
        done = oci.run("true", change=of_class("gvisor", change), check=False)
        assert done.returncode != 0
        assert field in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_without_runsc(oci: Runtime) -> None:
    bundle = oci.bundle("true", change=of_class("gvisor"))
    words = [*COMMAND, "--root", str(oci.root), "run", "--bundle", str(bundle), oci.name()]
    program = (
        "import sys, tegu.oci.classes as c; c._find = lambda _: ''; "
        "from tegu.oci.command import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words[4:]], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 12
    assert "class gvisor: runsc is not installed (install the package runsc)" in done.stderr


@pytest.mark.slow
def test_a_life(works: None, oci: Runtime) -> None:
    bundle = oci.bundle("sh", "-c", "uname -r; echo begun; sleep 1000", change=of_class("gvisor"))
    name = oci.name()
    log = bundle / "out"
    with log.open("wb") as out:
        null = {"stdout": out, "stderr": out, "stdin": subprocess.DEVNULL, "capture_output": False}
        pid_file = bundle / "pid"
        oci("create", "--bundle", str(bundle), "--pid-file", str(pid_file), name, **null)
    state = oci.state(name)
    assert (state["status"], state["pid"]) == ("created", int(pid_file.read_text()))
    assert state["annotations"] == {ANNOTATION: "gvisor"}
    assert "container with id exists" in oci(
        "create", "--bundle", str(bundle), name, check=False
    ).stderr  # fmt: skip
    assert "not running" in oci("pause", name, check=False).stderr
    oci("start", name)
    until(lambda: b"begun" in log.read_bytes())
    assert log.read_text().splitlines()[0] != platform.release()
    done = oci("exec", "--env", "A=b", "--cwd", "/tmp", "--user", "5:6", name, "sh", "-c",
               "id -u; pwd; echo $A; exit 3", check=False)  # fmt: skip
    assert (done.stdout, done.returncode) == ("5\n/tmp\nb\n", 3)
    oci("pause", name)
    assert oci.state(name)["status"] == "paused"
    oci("resume", name)
    assert [c["status"] for c in json.loads(oci("list", "--json").stdout)] == ["running"]
    assert name in oci("list").stdout
    for words in (("update", "--pids-limit", "9", name), ("exec", "--tty", name, "sh")):
        refused = oci(*words, check=False)
        assert refused.returncode == 12
        assert "unsupported: " in refused.stderr
    oci("kill", name, "KILL")
    until(lambda: oci.state(name)["status"] == "stopped")
    oci("delete", name)
    assert oci("state", name, check=False).returncode == 1


@pytest.mark.slow
def test_beside_each_other(works: None, oci: Runtime) -> None:
    """One runtime, one bundle, two classes; and the class by the runtime's name."""
    kernels = []
    for change in (None, of_class("container"), of_class("gvisor")):
        done = oci.run("sh", "-c", "uname -r; exit 7", change=change, check=False)
        assert done.returncode == 7
        kernels.append(done.stdout.strip())
    assert kernels[:2] == [platform.release()] * 2
    assert kernels[2] != platform.release()
    bundle = oci.bundle("uname", "-r")
    words = ("--class", "gvisor", "run", "--bundle", str(bundle), oci.name())
    assert oci(*words).stdout.strip() == kernels[2]
    failed = oci.run("/no/such", change=of_class("gvisor"), check=False)
    assert failed.returncode != 0
    assert "no such file" in failed.stderr
    assert oci("list", "--quiet").stdout == ""


@pytest.mark.slow
def test_the_named_runtime_in_the_package(works: None, oci: Runtime) -> None:
    script = Path(sys.executable).with_name("tegu-oci-gvisor")
    if not script.exists():
        pytest.skip("tegu-oci-gvisor is not installed here: ./dev setup makes it")
    bundle = oci.bundle("uname", "-r")
    words = [str(script), "--root", str(oci.root), "run", "--bundle", str(bundle), oci.name()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() != platform.release()


def test_errors_name_the_annotation() -> None:
    with pytest.raises(UnsupportedError, match="microvm: this runtime"):
        wanted_class({ANNOTATION: "microvm"}, "")
    with pytest.raises(UsageError, match="is none of"):
        wanted_class({ANNOTATION: ["gvisor"]}, "")
