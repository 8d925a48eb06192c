"""`tegu kernel bisect` over releases and over commits, each candidate built and booted for real."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tegu.cli import main
from tegu.errors import FetchError, UnsupportedError
from tegu.image import build_definition
from tegu.kernel import load_recipe
from tegu.kernel.build import fetched
from tegu.kernel.source import source_of
from tegu.kernel.toolchain import require_toolchain
from tegu.kernel.tree import _unpack
from tegu.store import Store

from .test_recipe import TOML, write

HERE = Path(__file__).parent
TINY = HERE / "tiny.config"

RELEASE = """\
include = ["tegu:minimal"]
[system]
name = "release"
version = "{number}"
[sysctl]
"net.ipv4.tcp_mtu_probing" = {probing}
"""
PLAN = """\
name = "probing"
[boot]
wait = "ssh"
timeout = 900
[[step]]
name = "the path's packet size is found out"
run = "cat /proc/sys/net/ipv4/tcp_mtu_probing"
stdout = { equals = "1" }
"""

pytestmark = pytest.mark.slow


def bisect(capsys: pytest.CaptureFixture[str], tmp_path: Path, *arguments: str | Path) -> Any:
    """Run `tegu kernel bisect` to its answer; returns its report."""
    state = ["--state", tmp_path / "state.json", "-o", tmp_path / "report", "--json"]
    capsys.readouterr()
    code = main(["kernel", "bisect", *map(str, state), *map(str, arguments)])
    said = capsys.readouterr()
    assert code == 0, said.err
    return json.loads(said.out)


@pytest.mark.timeout(3600)
def test_releases(
    shared_store: Store,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three releases, the second of which lost a setting; a plan is the test."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "machines"))
    releases = tmp_path / "releases"
    releases.mkdir()
    for number, probing in ((1, 1), (2, 0), (3, 0)):
        definition = tmp_path / f"{number}/tegu.toml"
        definition.parent.mkdir()
        definition.write_text(RELEASE.format(number=number, probing=probing))
        with shared_store.locked("tests-bisect"):
            built = build_definition(definition, store=shared_store)
        (releases / f"release_{number}.qcow2").symlink_to(built.path)
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN)
    found = bisect(
        *(capsys, tmp_path, "--images", releases),
        *("--good", "release_1.qcow2", "--bad", "release_3.qcow2", "--", plan),
    )
    assert found["first_bad"] == "release_2.qcow2"
    assert [(s["candidate"][8], s["verdict"]) for s in found["steps"]] == [
        ("1", "good"),
        ("3", "bad"),
        ("2", "bad"),
    ]
    why = found["steps"][2]["trials"][0]
    assert why["why"] == "1 steps of the plan probing did not pass"
    assert (tmp_path / "report/bisect.html").is_file()


def git(tree: Path, *arguments: str) -> str:
    user = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "gc.auto=0"]
    done = subprocess.run(
        ["git", *user, *arguments], cwd=tree, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def edit(tree: Path, name: str, old: str, new: str, subject: str) -> str:
    """Commit a change of one file; returns the commit."""
    path = tree / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    git(tree, "commit", "-q", "-a", "-m", subject)
    return git(tree, "rev-parse", "HEAD")


@pytest.mark.timeout(4 * 3600)
def test_commits(
    shared_store: Store,
    tegu_image: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Seven commits on the distribution's source, built by a recipe of ours, small as can be.

    One does not compile, one does not boot, and before that one a setting went missing.
    """
    if not os.environ.get("TEGU_TEST_BISECT_COMMITS"):
        pytest.skip("it builds eight kernels, which takes long: set TEGU_TEST_BISECT_COMMITS=1")
    ours = load_recipe()
    try:
        require_toolchain()
        package = source_of(ours, shared_store, offline=True)
        source = fetched(package, shared_store, offline=True)
    except UnsupportedError as e:
        pytest.skip(f"no kernel can be built here: {e.message}")
    except FetchError as e:
        pytest.skip(f"the source of the kernel was never fetched here: {e.message}")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "machines"))

    tree = tmp_path / "linux"
    tree.mkdir()
    _unpack(source.files[package.file(".orig.tar.xz").name], tree, strip=1)
    git(tree, "init", "-q")
    git(tree, "add", "-A", "--force")
    git(tree, "commit", "-q", "-m", "the distribution's source")
    good = git(tree, "rev-parse", "HEAD")
    shared = "ipc/ipc_sysctl.c"
    edit(tree, "README", "Linux kernel", "The Linux kernel", "README: say which kernel")
    broken = edit(tree, shared, "#include", "#inclde", "ipc: does not compile")
    edit(tree, shared, "#inclde", "#include", "ipc: mend the build")
    culprit = edit(tree, shared, '"shmmni"', '"shmnmi"', "ipc: make the names consistent")
    edit(tree, "init/version.c", "EXPORT_SYMBOL", "\nEXPORT_SYMBOL", "version: a blank line")
    edit(
        *(tree, "init/main.c", '\tpr_info("Run %s as init process\\n", init_filename);'),
        *('\tpanic("no init today");', "init: does not start"),
    )
    bad = edit(tree, "init/main.c", 'panic("no init today");', "", "init: mend the start")

    path = write(tmp_path, TOML.replace("6.12.107-1", ours.version))
    shutil.copy(TINY, tmp_path / "config/base.config")
    found = bisect(
        *(capsys, tmp_path, "--repo", tree, "--good", good, "--bad", bad),
        *("--image", tegu_image, "--recipe", path, "--boot-timeout", "900"),
        *("--", "test -e /proc/sys/kernel/shmmni"),
    )
    print(json.dumps(found["steps"], indent=1))
    assert found["first_bad"] == culprit
    assert found["titles"][culprit] == "ipc: make the names consistent"
    verdicts = {s["candidate"]: s["verdict"] for s in found["steps"]}
    assert verdicts[good] == "good"
    assert verdicts.get(broken, "skip") == "skip"
