"""Clients that we did not write take our images: crun runs the OCI layout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from .conftest import SMALL, Small

pytestmark = pytest.mark.slow


def test_crun_runs_the_oci_image(small: Small, tmp_path: Path) -> None:
    if shutil.which("crun") is None:
        pytest.skip("crun is not installed")
    if os.geteuid() != 0:
        pytest.skip("running a container with all its owners needs root")
    text = SMALL.format(packages="", rest="").replace('formats = ["tar"]', 'formats = ["oci"]')
    (small.directory / "tegu.toml").write_text(text)
    built = small.build()
    layout = built.images.directory(small.store) / "files" / built.images.images[0].name

    def blob(descriptor: dict[str, str]) -> Path:
        return layout / "blobs" / descriptor["digest"].replace(":", "/")

    index = json.loads((layout / "index.json").read_text())
    manifest = json.loads(blob(index["manifests"][0]).read_text())
    bundle = tmp_path / "bundle"
    root = bundle / "rootfs"
    root.mkdir(parents=True)
    for layer in manifest["layers"]:
        subprocess.run(["tar", "--zstd", "-xpf", blob(layer), "-C", root], check=True)
    subprocess.run(["crun", "spec"], cwd=bundle, check=True)
    config = json.loads((bundle / "config.json").read_text())
    code = "print(open('/usr/lib/os-release').read())"
    config["process"] |= {"terminal": False, "args": ["python3", "-c", code], "rlimits": []}
    config["mounts"] = [m for m in config["mounts"] if m["type"] != "cgroup"]
    (bundle / "config.json").write_text(json.dumps(config))
    # A mount namespace with the unified hierarchy: crun refuses a hybrid one, cgroups or not.
    command = f"crun --cgroup-manager=disabled --root={tmp_path}/state run tegu-test"
    script = f"mount -t cgroup2 none /sys/fs/cgroup && exec {command}"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        cwd=bundle,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert 'ID="small"' in done.stdout
