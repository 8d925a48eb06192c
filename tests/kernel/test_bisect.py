"""`tegu kernel bisect`: commits, packages and images, and one search in real machines."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tegu.cli import kernel_bisect, main
from tegu.definition.models import Definition, Kernel, System
from tegu.errors import BuildError, UsageError
from tegu.kernel import CommitLine, Repo, commit_builder, unpack_kernel
from tegu.kernel.bootfiles import BUSYBOXES
from tegu.lab import Bootable, Trial, find_first_bad
from tegu.packages import fetch_all, make_lock
from tegu.store import Store

from .test_upkeep import Work


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path / "repo")


def history(work: Work) -> tuple[str, list[str]]:
    """Two branches that are merged; the bug comes in on the side branch."""
    good = work.commit("start", "", {"state": "good\n"})
    work.git("checkout", "-q", "-b", "side")
    side = [work.commit(f"side {n}", "", {f"s{n}": "x\n"}) for n in range(3)]
    side.append(work.commit("the bug", "", {"state": "bad\n"}))
    side.append(work.commit("side, later", "", {"s9": "x\n"}))
    work.git("checkout", "-q", "mainline")
    for n in range(4):
        work.commit(f"main {n}", "", {f"m{n}": "x\n"})
    work.git("merge", "-q", "--no-edit", "side")
    work.commit("end", "", {"end": "x\n"})
    return good, side


def test_commits_across_a_merge(work: Work) -> None:
    good, side = history(work)
    repo = Repo(work.path)
    line = CommitLine(repo, good, "mainline")
    skipped = side[2]

    def attempt(commit: str) -> Trial:
        if commit == skipped:
            return Trial("skip", 0.0)
        bad = work.git("show", f"{commit}:state") == "bad"
        return Trial("bad" if bad else "good", 0.0)

    found = find_first_bad(line, line.good, line.bad, attempt)
    assert found.suspects in ((side[3],), (skipped, side[3]))
    assert line.subject(side[3]) == "the bug"
    with pytest.raises(UsageError, match="is not an ancestor"):
        CommitLine(repo, side[3], "stable")
    with pytest.raises(UsageError, match="there is no commit nonsense"):
        CommitLine(repo, "nonsense", "mainline")


def test_building_commits(work: Work, tmp_path: Path) -> None:
    good, side = history(work)
    command = 'test -e s9 && { echo "no s9 please" >&2; exit 1; }; cp state "$OUT/vmlinuz"'
    out = tmp_path / "out"
    with commit_builder(Repo(work.path), work.store, recipe=None, command=command) as builder:
        product = builder.build(side[3], out, lambda _: None)
        assert product.kernel is not None
        assert product.kernel.image.read_text() == "bad\n"
        builder.build(good, out, lambda _: None)
        assert (out / "vmlinuz").read_text() == "good\n"
        with pytest.raises(BuildError, match="the build failed: no s9 please"):
            builder.build(side[4], out, lambda _: None)
        builder.command = "true"
        with pytest.raises(UsageError, match=r"left nothing in \$OUT"):
            builder.build(good, out, lambda _: None)
        builder.command = 'touch "$OUT/a.qcow2" "$OUT/vmlinuz"'
        with pytest.raises(UsageError, match=r"left a.qcow2, vmlinuz in \$OUT"):
            builder.build(good, out, lambda _: None)
    assert len(work.git("worktree", "list").splitlines()) == 1


def deb(directory: Path, version: str, files: dict[str, str]) -> Path:
    """Make a package of a kernel that is none."""
    tree = directory / f"tree-{version}"
    control = f"Package: linux-image-x\nVersion: {version}\nArchitecture: all\n"
    control += "Maintainer: A <a@example.org>\nDescription: x\n"
    for name, text in {**files, "DEBIAN/control": control}.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    made = directory / f"linux-image-x_{version}_all.deb"
    subprocess.run(["dpkg-deb", "-b", str(tree), str(made)], check=True, capture_output=True)
    return made


def test_packages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEGU_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "debs").mkdir()
    for number in range(8, 13):  # 10 comes after 9
        deb(tmp_path / "debs", f"6.{number}-1", {"boot/vmlinuz-x": str(number)})
    (tmp_path / "base.qcow2").touch()
    tried: list[int] = []

    def trial(what: Bootable, command: object, *_: object) -> Trial:
        assert what.kernel is not None
        assert what.image == Path("base.qcow2")
        assert command == "true"
        tried.append(int(what.kernel.read_text()))
        if len(tried) == 3:
            raise KeyboardInterrupt
        return Trial("bad" if tried[-1] >= 11 else "good", 1.0, "tried", 0, "log")

    monkeypatch.setattr("tegu.lab.try_command", trial)
    arguments = ["kernel", "bisect", "--packages", "debs", "--good", "6.8-1", "--image"]
    arguments += ["base.qcow2", "--bad", "6.12-1", "-o", "out"]
    assert main([*arguments, "--", "true"]) == 130
    assert main([*arguments, "--", "true"]) == 2
    assert "holds a bisection already" in capsys.readouterr().err
    assert main([*arguments, "--resume", "--", "true"]) == 0
    assert "first bad: 6.11-1" in capsys.readouterr().out
    assert tried == [8, 12, 10, 10, 11]
    assert json.loads((tmp_path / "out/bisect.json").read_text())["first_bad"] == "6.11-1"
    assert "6.11-1" in (tmp_path / "out/bisect.html").read_text()
    assert list((tmp_path / "store/tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name one of --repo, --packages, --versions-of and --images"),
        (["--packages", "debs", "--images", "debs"], "name one of"),
        (["--packages", "debs"], "kernels need a system to be tried with"),
        (["--packages", "absent", "--image", "i"], "absent does not exist"),
        (["--packages", "debs", "--image", "absent"], "absent: no such image"),
        (["--packages", "debs", "--image", "i"], "there is no 1 to choose from"),
        (["--images", "i", "--rule", "most"], "'most' is no rule"),
        (["--images", "i", "--build", "x"], "are for commits"),
        (["--images", "i"], "there is no 1 to choose from"),
        (["--images", "2", "--images", "1"], "the good end 1 is newer than the bad one 2"),
        (["--images", "1", "--images", "2", "--resume"], "no bisection to go on with"),
        (["--repo", "debs"], "is not a git repository"),
        (["--packages", "i", "--image", "i"], "i is no package"),
    ],
)
def test_bad_questions(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TEGU_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "debs").mkdir()
    for name in ("i", "1", "2"):
        (tmp_path / name).touch()
    assert main(["kernel", "bisect", *arguments, "--good", "1", "--bad", "2", "--", "true"]) == 2
    assert message in capsys.readouterr().err


def test_packages_without_a_kernel(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no kernels"):
        unpack_kernel(deb(tmp_path, "1", {"boot/config": ""}), tmp_path / "out")
    assert kernel_bisect.APPEND.startswith("root=PARTLABEL=root ")


def version_of(tree: Path, version: str, made: Path) -> None:
    """Pack `tree` as another version of its package."""
    control = tree / "DEBIAN/control"
    lines = control.read_text().splitlines()
    lines = [f"Version: {version}" if x.startswith("Version:") else x for x in lines]
    control.write_text("\n".join(lines) + "\n")
    subprocess.run(
        ["dpkg-deb", "-Znone", "-b", str(tree), str(made / f"linux-image-x_{version}.deb")],
        check=True,
        capture_output=True,
    )


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_real_kernels_in_real_machines(
    shared_store: Store,
    tegu_image: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The distribution's kernel, which needs an initrd; the third version of it does not start."""
    if not any(path.is_file() for path in map(Path, BUSYBOXES)):
        pytest.skip("no static busybox here to make an initrd of (busybox-static)")
    definition = Definition(system=System(name="tiny", version="1"), kernel=Kernel())
    lock = make_lock(definition, shared_store)
    (package,) = (p for p in lock.system if p.name.startswith("linux-image-6"))
    fetch_all([package], lock, shared_store)
    blob = shared_store.blob(package.sha256)
    assert blob is not None
    tree = tmp_path / "tree"
    subprocess.run(["dpkg-deb", "-R", str(blob), str(tree)], check=True)
    (kernel,) = tree.glob("boot/vmlinuz-*")
    # What no machine of ours has need not be copied into it.
    for name in ("sound", "drivers/gpu", "drivers/net/ethernet", "drivers/infiniband", "net"):
        shutil.rmtree(next(tree.glob("usr/lib/modules/*")) / "kernel" / name, ignore_errors=True)
    debs = tmp_path / "debs"
    debs.mkdir()
    version_of(tree, "1", debs)
    version_of(tree, "2", debs)
    kernel.write_bytes(b"MZ" + bytes(100_000))
    version_of(tree, "3", debs)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    arguments = ["kernel", "bisect", "--packages", str(debs), "--image", str(tegu_image)]
    arguments += ["--good", "1", "--bad", "3", "--boot-failure", "bad", "--boot-timeout", "900"]
    arguments += ["--state", str(tmp_path / "s.json"), "-o", str(tmp_path / "out"), "--json"]
    test = f"modprobe overlay && test $(uname -r) = {kernel.name.removeprefix('vmlinuz-')}"
    assert main([*arguments, "--", test]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["first_bad"] == "3"
    assert [(s["candidate"], s["verdict"]) for s in found["steps"]] == [
        ("1", "good"),
        ("3", "bad"),
        ("2", "good"),
    ]
    assert "did not start" in found["steps"][1]["trials"][0]["why"]
