"""`tegu sandbox install`: what it writes, that the clients read it, and that it goes again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tegu.errors import SandboxError, TeguError, UnsupportedError, UsageError
from tegu.sandbox import install
from tegu.sandbox.install import CLIENTS, apply, plan

MAIN = """version = 2
# the administrator's own

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "example/pause:1"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.other]
    runtime_type = "io.containerd.runc.v2"
"""


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    made = tmp_path / "programs"
    made.mkdir()
    for name in ("tegu-oci", "tegu-oci-gvisor"):
        (made / name).write_text("#!/bin/sh\n")
        (made / name).chmod(0o755)
    return made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "root"
    (made / "etc/containerd").mkdir(parents=True)
    return made


def files(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): p.read_text() for p in root.rglob("*") if p.is_file()}


def do(root: Path, programs: Path | None, *clients: str, undo: bool = False) -> list[str]:
    return apply(plan(clients or CLIENTS, root=root, programs=programs, undo=undo))


def test_all_of_it_and_back(root: Path, programs: Path) -> None:
    main = root / "etc/containerd/config.toml"
    main.write_text(MAIN)
    main.chmod(0o640)
    before = files(root)
    planned = plan(CLIENTS, root=root, programs=programs, undo=False)
    assert files(root) == before  # a plan writes nothing
    assert all(c.needed and c.diff() for c in planned)
    said = apply(planned)
    assert len(said) == (shutil.which("containerd") is not None)
    assert main.stat().st_mode & 0o777 == 0o640
    found = tomllib.loads(main.read_text())["plugins"]["io.containerd.grpc.v1.cri"]
    assert found["sandbox_image"] == "example/pause:1"
    runtimes = found["containerd"]["runtimes"]
    assert sorted(runtimes) == ["other", "tegu", "tegu-gvisor"]
    assert runtimes["tegu-gvisor"]["options"]["BinaryName"] == str(programs / "tegu-oci-gvisor")
    assert runtimes["tegu"]["pod_annotations"] == ["io.tegu.*"]
    conf = tomllib.loads((root / "etc/containers/containers.conf.d/50-tegu.conf").read_text())
    assert conf["engine"]["runtimes"]["tegu-oci"] == [str(programs / "tegu-oci")]
    text = (root / "etc/tegu/runtime-classes.yaml").read_text()
    assert text.count("kind: RuntimeClass") == 2
    once = files(root)
    assert not any(c.needed for c in plan(CLIENTS, root=root, programs=programs, undo=False))
    assert do(root, programs) == []
    assert files(root) == once
    do(root, None, undo=True)
    assert files(root) == before
    assert do(root, None, undo=True) == []


def test_yaml_is_what_kubernetes_reads() -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    found = list(yaml.safe_load_all(install._MANIFEST))
    assert [(f["kind"], f["metadata"]["name"], f["handler"]) for f in found] == [
        ("RuntimeClass", "tegu", "tegu"),
        ("RuntimeClass", "tegu-gvisor", "tegu-gvisor"),
    ]


def test_without_a_file_before(root: Path, programs: Path) -> None:
    do(root, programs, "containerd")
    assert tomllib.loads((root / "etc/containerd/config.toml").read_text())["version"] in (2, 3)
    do(root, programs, "containerd")
    do(root, None, "containerd", undo=True)
    assert files(root) == {}


def test_it_is_renewed_in_place(root: Path, programs: Path, tmp_path: Path) -> None:
    main = root / "etc/containerd/config.toml"
    main.write_text(MAIN)
    do(root, programs)
    with main.open("a") as f:
        f.write('[debug]\n  level = "info"\n')  # the administrator goes on after us
    other = tmp_path / "other"
    programs.rename(other)
    do(root, other)
    assert str(other) in main.read_text()
    assert str(programs) + "/" not in main.read_text()
    do(root, None, undo=True)
    assert main.read_text() == MAIN + '[debug]\n  level = "info"\n'


def test_containerd_3(root: Path, programs: Path) -> None:
    main = root / "etc/containerd/config.toml"
    main.write_text("version = 3\n")
    (change,) = plan(["containerd"], root=root, programs=programs, undo=False)
    plugins = tomllib.loads(change.after or "")["plugins"]
    assert "tegu" in plugins["io.containerd.cri.v1.runtime"]["containerd"]["runtimes"]


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("", UnsupportedError, "config.toml: version 1"),
        ("version = 9\n", UnsupportedError, "config.toml: version 9"),
        ("version = [\n", SandboxError, "config.toml: "),
        (
            'version = 2\n[plugins."io.containerd.grpc.v1.cri"]\ncontainerd = {runtimes = {}}\n',
            SandboxError,
            "runtimes cannot be added",
        ),
        (
            'version = 2\n[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.tegu]\n',
            SandboxError,
            "runtimes cannot be added",
        ),
        ("version = 2\n# >>> tegu sandbox install\n", SandboxError, "is damaged"),
    ],
)
def test_files_that_cannot_be_added_to(
    root: Path, programs: Path, text: str, kind: type[TeguError], said: str
) -> None:
    main = root / "etc/containerd/config.toml"
    main.write_text(text)
    with pytest.raises(kind, match=said) as e:
        plan(["containerd"], root=root, programs=programs, undo=False)
    assert "\n" not in e.value.message
    assert main.read_text() == text


def test_what_others_changed_is_left(root: Path, programs: Path) -> None:
    do(root, programs)
    for name, match in (
        ("etc/containerd/config.toml", "has been changed since"),
        ("etc/containers/containers.conf.d/50-tegu.conf", "changed since"),
        ("etc/tegu/runtime-classes.yaml", "changed since"),
    ):
        path = root / name
        whole = path.read_text()
        path.write_text(whole.replace("tegu-oci", "mine").replace("handler", "h"))
        with pytest.raises(SandboxError, match=match):
            plan(CLIENTS, root=root, programs=programs, undo=True)
        path.write_text(whole)
    target = root / "target"
    target.write_text(MAIN)
    (root / "etc/containerd/config.toml").unlink()
    (root / "etc/containerd/config.toml").symlink_to(target)
    with pytest.raises(SandboxError, match="is a link"):
        plan(["containerd"], root=root, programs=programs, undo=False)


@pytest.mark.skipif(shutil.which("containerd") is None, reason="containerd is not installed")
def test_what_containerd_refuses_is_put_back(root: Path, programs: Path) -> None:
    main = root / "etc/containerd/config.toml"
    broken = 'version = 2\nroot = ["of", "another", "type"]\n'
    main.write_text(broken)
    with pytest.raises(SandboxError, match=r"containerd refuses .*config.toml"):
        do(root, programs, "kubernetes", "podman", "containerd")
    assert files(root) == {"etc/containerd/config.toml": broken}


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(alphabet=" \r\n#=[]\"'abversion2>tegu", max_size=60))
def test_any_text_is_restored_or_refused(root: Path, programs: Path, text: str) -> None:
    main = root / "etc/containerd/config.toml"
    main.write_text(f"version = 2\n{text}", newline="")
    before = main.read_bytes()
    try:
        (change,) = plan(["containerd"], root=root, programs=programs, undo=False)
    except TeguError as e:
        assert e.message
        return
    main.write_text(change.after or "", newline="")
    (change,) = plan(["containerd"], root=root, programs=None, undo=True)
    assert (change.after or "").encode() == before


def test_bad_words(root: Path, programs: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'docker' is none of"):
        plan(["docker"], root=root, programs=programs, undo=False)
    with pytest.raises(UsageError, match="there is no tegu-oci in"):
        plan(["podman"], root=root, programs=tmp_path, undo=False)
    with pytest.raises(UnsupportedError, match="neither containerd nor podman"):
        plan([], root=root, programs=programs, undo=False)


def test_at_the_front_door(root: Path, programs: Path) -> None:
    def tegu(*words: str) -> Any:
        command = [sys.executable, "-m", "tegu", "sandbox", "install", "--root", str(root)]
        return subprocess.run([*command, *words], capture_output=True, text=True, timeout=120)

    at = ("--programs", str(programs))
    shown = tegu(*at, "--for", "podman")
    assert shown.returncode == 0
    assert "+tegu-oci-gvisor = " in shown.stdout
    assert files(root) == {}
    done = json.loads(tegu(*at, "--for", "podman", "--apply", "--json").stdout)
    assert done["applied"] is True
    assert list(files(root)) == ["etc/containers/containers.conf.d/50-tegu.conf"]
    assert tegu("--for", "podman", "--undo", "--apply").returncode == 0
    assert files(root) == {}
    assert tegu("--for", "x").returncode == 2


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("podman") is None or os.geteuid() != 0,
    reason="podman is not installed, or this is not root",
)
def test_podman_reads_it(root: Path, programs: Path) -> None:
    do(root, programs, "podman")
    conf = root / "etc/containers/containers.conf.d/50-tegu.conf"
    for name in ("tegu-oci", "tegu-oci-gvisor"):
        done = subprocess.run(
            ["podman", "--runtime", name, "info", "--format", "{{.Host.OCIRuntime.Path}}"],
            env={**os.environ, "CONTAINERS_CONF": str(conf)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.stdout.strip() == str(programs / name), done.stderr
