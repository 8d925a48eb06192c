"""The package of the host half: the same each time, in order, and sufficient by itself."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tegu
from tegu.packages import open_deb
from tegu.packages import tegu_deb as room
from tegu.packages.tegu_deb import build_tegu_deb, host_half, release_time


@pytest.fixture
def deb(tmp_path: Path) -> Path:
    return build_tegu_deb(tmp_path, release_time())


@pytest.fixture
def tree(deb: Path, tmp_path: Path) -> Path:
    """The package unpacked."""
    root = tmp_path / "tree"
    with open_deb(deb) as opened:
        for info, content in opened.data():
            path = root / info.name
            if info.isdir():
                path.mkdir(parents=True, exist_ok=True)
            elif info.issym():
                path.symlink_to(info.linkname)
            else:
                assert content is not None
                path.write_bytes(content.read())
                path.chmod(info.mode)
    return root


def test_the_same_source_gives_the_same_bytes(deb: Path, tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    again = build_tegu_deb(tmp_path / "again", release_time())
    assert deb.name == f"tegu_{tegu.__version__}_all.deb"
    assert again.read_bytes() == deb.read_bytes()


def test_the_store_keeps_it_until_the_source_changes(store, monkeypatch) -> None:
    first = host_half(store)
    monkeypatch.setattr(room, "build_tegu_deb", lambda *a: pytest.fail("built again"))
    assert host_half(store) == first
    assert store.blob(first.sha256) is not None
    monkeypatch.undo()
    monkeypatch.setattr(room, "_MANUAL", room._MANUAL + "changed\n")
    assert host_half(store).sha256 != first.sha256
    monkeypatch.undo()
    store.drop_blob(first.sha256)
    assert host_half(store) == first
    assert store.blob(first.sha256) is not None


def test_what_it_says_of_itself(deb: Path) -> None:
    with open_deb(deb) as opened:
        assert opened.fields["Package"] == "tegu"
        assert opened.fields["Version"] == tegu.__version__
        assert opened.fields["Provides"] == opened.fields["Conflicts"] == "linux-initramfs-tool"
        assert opened.fields["Depends"].count("python3") >= 1
        assert {"postinst", "prerm", "md5sums"} <= set(opened.control)


def test_only_the_host_half_is_in_it(tree: Path) -> None:
    library = tree / "usr/lib/python3/dist-packages/tegu"
    assert (library / "linux/__init__.py").is_file()
    for room_of_the_works in ("packages", "image", "lab", "definition"):
        assert not (library / room_of_the_works).exists()
    assert {p.name for p in (library / "cli").iterdir()} <= {
        "__init__.py", "agent.py", "autoupgrade.py", "doctor.py", "fn.py", "front.py", "heal.py",
        "host.py", "kdump.py", "kernel_host.py", "kernel_livepatch.py", "output.py", "probe.py",
        "qos.py", "qos_pods.py", "sandbox.py", "sandbox_install.py", "sandbox_saved.py",
        "sandbox_template.py", "tune.py", "upgrade.py",
    }  # fmt: skip
    assert not list(tree.rglob("__pycache__"))


def test_the_probes_are_in_it_compiled(tree: Path) -> None:
    programs = tree / "usr/lib/python3/dist-packages/tegu/probe/bpf"
    sources = (Path(tegu.__file__).parent / "probe" / "bpf").glob("*.bpf.c")
    assert sorted(p.name for p in programs.iterdir()) == sorted(
        s.with_suffix(".o").name for s in sources
    )
    for program in programs.iterdir():
        # An ELF relocatable for BPF (e_machine 247), without a directory of the build machine.
        data = program.read_bytes()
        assert data[:6] == b"\x7fELF\x02\x01" and data[18] == 247
        assert str(Path(tegu.__file__).parent).encode() not in data


def test_its_modules_import_without_the_works(tree: Path) -> None:
    """Each module of the package loads from the package alone, without the works' dependencies."""
    library = tree / "usr/lib/python3/dist-packages"
    modules = [
        ".".join(path.relative_to(library).with_suffix("").parts).removesuffix(".__init__")
        for path in library.rglob("*.py")
        if path.name != "__main__.py"
    ]
    assert "tegu.cli.front" in modules
    program = (
        "import importlib, sys\n"
        f"sys.path.insert(0, {str(library)!r})\n"
        "for absent in ('pydantic', 'httpx', 'jinja2', 'pefile'):\n"
        "    sys.modules[absent] = None\n"
        f"for name in {sorted(modules)!r}:\n"
        "    module = importlib.import_module(name)\n"
        f"    assert module.__file__.startswith({str(library)!r}), module\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, cwd=tree
    )
    assert done.returncode == 0, done.stderr


def test_the_command_starts_from_the_package(tree: Path) -> None:
    library = tree / "usr/lib/python3/dist-packages"
    program = (
        f"import sys; sys.path.insert(0, {str(library)!r}); sys.argv = ['tegu', '--version']\n"
        f"exec(open({str(tree / 'usr/bin/tegu')!r}).read())"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert tegu.__version__ in done.stdout
    assert (tree / "usr/bin/tegu").stat().st_mode & 0o777 == 0o755


def test_files_of_the_host_go_to_their_places(tmp_path: Path, monkeypatch) -> None:
    source = tmp_path / "source"
    shutil.copytree(
        Path(tegu.__file__).parent, source, ignore=shutil.ignore_patterns("__pycache__")
    )
    files = source / "host/files"
    shutil.rmtree(files, ignore_errors=True)
    for name, text, mode in (
        ("usr/lib/systemd/system/tegu-x.service", "[Service]\n\n[Install]\nWantedBy=a\n", 0o644),
        ("usr/lib/systemd/system/tegu-y.service", "[Service]\n", 0o644),
        ("etc/kernel/postinst.d/zz-tegu", "#!/bin/sh\n", 0o755),
    ):
        path = files / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
    (files / "usr/lib/tegu").symlink_to("python3/dist-packages/tegu")
    monkeypatch.setattr(room, "_source", lambda: source)
    with open_deb(build_tegu_deb(tmp_path, release_time())) as opened:
        members = {info.name: info for info, _ in opened.data()}
        assert opened.control["conffiles"] == "/etc/kernel/postinst.d/zz-tegu\n"
        assert "deb-systemd-helper enable tegu-x.service" in opened.control["postinst"]
        assert "tegu-y.service" not in opened.control["postinst"]
        assert "purge tegu-x.service" in opened.control["postrm"]
    assert members["etc/kernel/postinst.d/zz-tegu"].mode == 0o755
    assert members["usr/lib/tegu"].linkname == "python3/dist-packages/tegu"
    assert not [n for n in members if "dist-packages/tegu/host/files" in n]
    for script in ("postinst", "prerm", "postrm"):
        (tmp_path / script).write_text(opened.control[script])
        subprocess.run(["sh", "-n", tmp_path / script], check=True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("lintian") is None, reason="lintian is not installed")
def test_lintian_finds_nothing(deb: Path) -> None:
    options = ["--no-cfg", "--fail-on", "error,warning"]
    done = subprocess.run(["lintian", *options, deb], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(shutil.which("man") is None, reason="man is not installed")
def test_the_manual_page_is_well_formed(tree: Path) -> None:
    page = tree / "usr/share/man/man1/tegu.1.gz"
    done = subprocess.run(
        ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", page],
        capture_output=True,
        text=True,
        env={"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin", "MANROFFSEQ": ""},
    )
    assert done.returncode == 0
    assert done.stderr == ""


def test_the_oci_runtime_starts_from_the_package(tree: Path) -> None:
    command = [sys.executable, "-I", "-S"]
    script = tree / "usr/lib/python3/dist-packages/tegu/oci/__main__.py"
    done = subprocess.run([*command, script, "--version"], capture_output=True, text=True)
    assert done.stdout.startswith(f"tegu-oci version {tegu.__version__}\n"), done.stderr
    entry = tree / "usr/bin/tegu-oci"
    assert entry.read_text().startswith("#!/usr/bin/python3 -IS\n")
    assert entry.stat().st_mode & 0o777 == 0o755
