"""Running make as the kernel's build does: at a fixed place, logged, with errors that tell."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tegu.cli.front import main
from tegu.errors import BuildError, DefinitionError, UnsupportedError, UsageError
from tegu.kernel import build as build_module
from tegu.kernel import build_kernel, last_built, load_recipe
from tegu.kernel import toolchain as tools
from tegu.kernel.build import KIND, _key, built_sources, compiled
from tegu.kernel.kbuild import PLACE, Kbuild
from tegu.kernel.package import write_packages
from tegu.kernel.payload import Selftests, debug_entries
from tegu.packages import SourcePackage, open_deb
from tegu.packages.deb_write import DebEntry
from tegu.store import Store

from .test_recipe import TOML, write

MAKEFILE = """
there:
\t@pwd; echo $(KCFLAGS) $(LOCALVERSION) $$KBUILD_BUILD_TIMESTAMP $$SECRET; touch made
broken:
\t@echo '  CC      net/a.o'
\t@echo "net/a.c:3:1: error: expected ';'" >&2; exit 1
"""


@pytest.fixture
def kbuild(tmp_path: Path) -> Kbuild:
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    probe = ["unshare", *user, "--mount", "true"]
    if subprocess.run(probe, capture_output=True).returncode != 0:
        pytest.skip("this machine refuses mount namespaces")
    tree = tmp_path / "linux"
    tree.mkdir()
    (tree / "Makefile").write_text(MAKEFILE)
    return Kbuild(
        load_recipe(write(tmp_path)),
        tree,
        timestamp=1_788_000_000,
        cache=tmp_path / "ccache",
        jobs=1,
        log=tmp_path / "log",
    )


def test_place_flags_and_time(kbuild: Kbuild, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "leaked")
    said: list[str] = []
    out = kbuild.make("there", say=said.append).split()
    assert out[0] == PLACE
    assert f"-ffile-prefix-map={PLACE}=/usr/src/linux" in out
    assert "-tegu" in out
    assert "2026" in out
    assert "leaked" not in out
    assert (kbuild.tree / "made").exists()


def test_first_error_is_told_and_the_rest_kept(kbuild: Kbuild) -> None:
    with pytest.raises(BuildError, match=r"make broken failed: net/a.c:3:1: error: expected") as e:
        kbuild.make("broken")
    assert str(kbuild.log) in str(e.value.hint)
    assert "CC      net/a.o" in kbuild.log.read_text()


def test_no_such_target(kbuild: Kbuild) -> None:
    with pytest.raises(BuildError, match=r"No rule to make target"):
        kbuild.make("absent")


def test_packages(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path))
    image = [
        DebEntry("/boot/vmlinuz-6.12.107-tegu", b"kernel"),
        DebEntry("/boot/System.map-6.12.107-tegu", b"map", mode=0o600),
        DebEntry("/usr/lib/modules/6.12.107-tegu/modules.dep", b""),
    ]

    def make(name: str) -> Mapping[str, bytes]:
        out = tmp_path / name
        out.mkdir()
        written = write_packages(
            recipe,
            out,
            image=image,
            headers=[DebEntry("/usr/src/linux-headers-6.12.107-tegu/Makefile", b"all:\n")],
            selftests=Selftests(
                [DebEntry("/usr/lib/linux-selftests/net/x.py", b"#!/bin/sh\n", mode=0o755)],
                ["libc6 (>= 2.34)", "libcap2"],
            ),
            copyright_text=b"GPL-2\n",
            timestamp=1_788_000_000,
        )
        return {p.name: p.read_bytes() for p in written}

    first = make("one")
    assert first == make("two")
    assert list(first) == [
        f"linux-{kind}_6.12.107-1+tegu2_amd64.deb"
        for kind in (
            "image-6.12.107-tegu",
            "headers-6.12.107-tegu",
            "image-tegu",
            "selftests-tegu",
        )
    ]
    with open_deb(tmp_path / "one" / next(iter(first))) as deb:
        assert deb.fields["Package"] == "linux-image-6.12.107-tegu"
        assert deb.fields["Source"] == "linux (6.12.107-1)"
        scripts = {k: v for k, v in deb.control.items() if k in ("postinst", "prerm", "postrm")}
    with open_deb(tmp_path / "one" / list(first)[3]) as deb:
        assert deb.fields["Depends"].startswith("libc6 (>= 2.34), libcap2, ")
        assert deb.fields["Depends"].endswith(", linux-image-6.12.107-tegu")
    assert "/etc/kernel/postinst.d" in scripts["postinst"]
    for text in scripts.values():
        subprocess.run(["sh", "-n"], input=text, text=True, check=True)


def test_a_package_of_debug_symbols(kbuild: Kbuild, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="left no vmlinux"):
        debug_entries(kbuild)
    (kbuild.tree / "vmlinux").write_bytes(b"\x7fELF symbols")
    out = tmp_path / "out"
    out.mkdir()
    *_, path = write_packages(
        kbuild.recipe,
        out,
        image=[],
        headers=[],
        selftests=Selftests([], []),
        copyright_text=b"",
        timestamp=0,
        debug=debug_entries(kbuild),
    )
    assert path.name == "linux-image-6.12.107-tegu-dbg_6.12.107-1+tegu2_amd64.deb"
    with open_deb(path) as deb:
        assert "Depends" not in deb.fields  # it is of use on other machines than that kernel's
        found = {i.name: c.read() for i, c in deb.data() if c is not None}
    # Where tegu.host.kdump.debugger looks.
    name = "usr/lib/debug/boot/vmlinux-6.12.107-tegu"
    assert found[name] == b"\x7fELF symbols"


def test_no_debug_symbols_to_be_had_is_known_before_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_tree(recipe: object, package: object, files: object, tree: Path, say: object) -> None:
        (tree / "debian").mkdir(parents=True)
        (tree / "debian/changelog").write_text(
            "linux (1-1) x; urgency=low\n\n -- A <a@b.invalid>  Sat, 21 Nov 2026 10:00:00 +0000\n"
        )
        (tree / "Kconfig").write_text('config SMP\n\tbool "SMP"\n')
        rules = "allnoconfig:\n\techo CONFIG_SMP=y >.config\nkernelrelease:\n"
        (tree / "Makefile").write_text(f"{rules}\t@echo 6.12.107-tegu\n")

    monkeypatch.setattr(build_module, "make_tree", make_tree)
    monkeypatch.setattr(build_module, "require_toolchain", lambda prefix: None)
    monkeypatch.setattr(build_module, "toolchain_versions", dict)
    package = SourcePackage("linux", "1", "", ())
    monkeypatch.setattr(build_module, "source_of", lambda *a, **k: package)
    with pytest.raises(DefinitionError, match="leaves debug information out"):
        build_kernel(load_recipe(write(tmp_path)), Store(tmp_path / "store"), debug=True)


def test_the_postinst_runs_hooks_when_it_configures(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path))
    written = write_packages(
        recipe,
        tmp_path,
        image=[],
        headers=[],
        selftests=Selftests([], []),
        copyright_text=b"",
        timestamp=0,
    )
    with open_deb(written[0]) as deb:
        text = deb.control["postinst"]
    hooks = tmp_path / "postinst.d"
    hooks.mkdir()
    (hooks / "zz-note").write_text(f'#!/bin/sh\necho "$DEB_MAINT_PARAMS:$1:$2" >> {tmp_path}/ran\n')
    (hooks / "zz-note").chmod(0o755)
    text = text.replace("/etc/kernel/postinst.d", str(hooks))
    for words in (["abort-upgrade", "1"], ["configure", "6.12.106"]):
        subprocess.run(["sh", "-s", *words], input=text, text=True, check=True)
    ran = (tmp_path / "ran").read_text()
    assert ran == "configure 6.12.106:6.12.107-tegu:/boot/vmlinuz-6.12.107-tegu\n"


def test_missing_tools_are_named_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {"no-such-program": "no-such-package", "nor-this-one": "another"}
    # Nothing but these two: what else this machine lacks is not the question.
    monkeypatch.setattr(tools, "PROGRAMS", wanted)
    monkeypatch.setattr(tools, "_HEADERS", {})
    with pytest.raises(UnsupportedError, match="no-such-program, nor-this-one") as caught:
        build_kernel(load_recipe(write(tmp_path)), Store(tmp_path / "store"))
    assert caught.value.hint == "apt-get install another no-such-package"


@pytest.mark.parametrize("content", [b"nonsense", b"-----BEGIN CERTIFICATE-----\n"])
def test_a_key_that_is_none(tmp_path: Path, content: bytes) -> None:
    recipe = load_recipe(write(tmp_path))
    package = SourcePackage("linux", "1", "", ())
    with pytest.raises(UsageError, match="cannot read the key"):
        _key(recipe, package, {}, tmp_path / "absent.pem")
    (tmp_path / "key.pem").write_bytes(content)
    with pytest.raises(DefinitionError, match="not a private key with its certificate"):
        _key(recipe, package, {}, tmp_path / "key.pem")


def test_nothing_is_built_in_an_empty_store(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    assert last_built(store) is None
    assert built_sources(store, "6.12.107-tegu") is None


def test_a_path_that_make_would_split(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path))
    for tree, cache in (("a b", "cache"), ("tree", "c:d")):
        with pytest.raises(UsageError, match="cannot be built below") as caught:
            Kbuild(
                recipe,
                tmp_path / tree,
                timestamp=0,
                cache=tmp_path / cache,
                jobs=1,
                log=tmp_path / "log",
            )
        assert "TEGU_STORE" in str(caught.value.hint)


def test_the_key_follows_the_code_and_the_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store must not answer with what other code made."""
    recipe = load_recipe(write(tmp_path))
    package = SourcePackage("linux", "1", "", ())
    first = _key(recipe, package, {}, None)
    assert _key(recipe, package, {}, None) == first
    (tmp_path / "selftests.toml").write_text("[collection.timers]\n")
    second = _key(recipe, package, {}, None)
    code = tmp_path / "src" / "kernel"
    code.mkdir(parents=True)
    (code.parent / "packages").mkdir()
    for name in build_module._CODE:
        text = (Path(build_module.__file__).parent / f"{name}.py").read_text()
        (code / f"{name}.py").write_text(text)
    monkeypatch.setattr(build_module, "__file__", str(code / "build.py"))
    assert _key(recipe, package, {}, None) == second
    (code / "payload.py").write_text("changed")
    third = _key(recipe, package, {}, None)
    with_symbols = _key(recipe, package, {}, None, debug=True)
    assert len({first, second, third, with_symbols}) == 4


def test_what_was_compiled_is_read_from_all_commands(tmp_path: Path) -> None:
    for name in ("net/a.c", "include/linux/a.h", "arch/x86/kernel/vmlinux.lds.S", "net/unused.c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "net/.a.o.cmd").write_text("deps := net/a.c include/linux/a.h /usr/include/x.h")
    command = "deps := arch/x86/kernel/vmlinux.lds.S absent.h"
    (tmp_path / "arch/x86/kernel/.vmlinux.lds.cmd").write_text(command)
    assert compiled(tmp_path) == ["arch/x86/kernel/vmlinux.lds.S", "include/linux/a.h", "net/a.c"]


def test_the_last_built_is_the_last_in_use(tmp_path: Path) -> None:
    """After going back to an earlier recipe, a look-up, that one is the kernel in use."""
    store = Store(tmp_path / "store")
    for key in ("old", "new"):
        with store.new_tree(KIND, key) as tree:
            (tree / f"{key}.deb").touch()
            facts = {"release": "6.12.107-tegu", "version": "1", "packages": [f"{key}.deb"]}
            more = {"seconds": 1, "config": {}, "tools": {}}
            (tree / "kernel.json").write_text(json.dumps({**facts, **more}))
    trees = {key: store.root / KIND / key for key in ("old", "new")}
    for moment, key in enumerate(("old", "new")):
        os.utime(trees[key], (moment, moment))
    assert last_built(store, "6.12.107-tegu") == trees["new"] / "new.deb"
    store.tree(KIND, "old")
    assert last_built(store, "6.12.107-tegu") == trees["old"] / "old.deb"
    assert last_built(store, "6.12.108-tegu") is None


def test_a_release_that_is_not_the_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found out when it is configured, not when the modules are looked for."""
    store = Store(tmp_path / "store")

    def make_tree(recipe: object, package: object, files: object, tree: Path, say: object) -> None:
        (tree / "debian").mkdir(parents=True)
        (tree / "debian/changelog").write_text(
            "linux (1-1) x; urgency=low\n\n -- A <a@b.invalid>  Sat, 21 Nov 2026 10:00:00 +0000\n"
        )
        (tree / "Kconfig").write_text('config SMP\n\tbool "SMP"\n')
        rules = "allnoconfig:\n\techo CONFIG_SMP=y >.config\nkernelrelease:\n\t@echo 6.12.99-x\n"
        (tree / "Makefile").write_text(rules)

    monkeypatch.setattr(build_module, "make_tree", make_tree)
    source = build_module.Source(SourcePackage("linux", "1", "", ()), {})
    with store.scratch() as scratch, pytest.raises(BuildError, match=r"calls itself 6.12.99-x"):
        build_module.configured(
            load_recipe(write(tmp_path)), source, store, scratch, log=tmp_path / "log"
        )


def test_output_that_is_a_file_is_found_out_before_the_build(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").touch()
    recipe = write(tmp_path)
    code = main(["kernel", "build", "-r", str(recipe), "-o", str(tmp_path / "out")])
    assert code == 1
    assert "out: File exists" in capsys.readouterr().err


def test_sigterm_ends_the_make_too(kbuild: Kbuild, tmp_path: Path) -> None:
    """What `tegu kernel` starts ends with it, whoever ends it."""
    (kbuild.tree / "Makefile").write_text("wait:\n\t@echo $$$$ >pid; exec sleep 600\n")
    program = (
        "import sys, pathlib, typer\n"
        "from tegu.cli import front, kernel\n"
        "from tegu.kernel import load_recipe\n"
        "from tegu.kernel.kbuild import Kbuild\n"
        "@kernel.app.command()\n"
        "def hang():\n"
        "    at = pathlib.Path(sys.argv[2])\n"
        "    Kbuild(load_recipe(at / 'kernel.toml'), at / 'linux', timestamp=0, cache=at / 'c',\n"
        "           jobs=1, log=at / 'log').make('wait')\n"
        "sys.exit(front.main(['kernel', 'hang']))\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, "kernel", str(tmp_path)], stderr=subprocess.PIPE, text=True
    )
    pid = kbuild.tree / "pid"
    while not (pid.exists() and pid.read_text().strip()) and child.poll() is None:
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate(timeout=120)
    assert child.returncode == 128 + signal.SIGTERM, said
    assert "interrupted" in said
    status = Path(f"/proc/{pid.read_text().strip()}/stat")

    def runs() -> bool:
        try:
            return status.read_text().rpartition(")")[2].split()[0] != "Z"
        except (FileNotFoundError, ProcessLookupError):
            return False

    while runs():  # killed already; pytest's own limit ends a failure
        time.sleep(0.05)


def test_the_compiler_for_another_architecture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, TOML + 'arm64 = ["base"]\n')
    recipe = load_recipe(path, architecture="arm64")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert recipe.facts.prefix == "aarch64-linux-gnu-"
    assert load_recipe(path).facts.prefix == ""
    monkeypatch.setattr(tools, "PROGRAMS", {})
    monkeypatch.setattr(tools, "_HEADERS", {})
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnsupportedError, match="needs no-such-gcc, no-such-ld") as caught:
        tools.require_toolchain("no-such-")
    assert caught.value.hint == "apt-get install binutils-no-such gcc-no-such"
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert recipe.facts.prefix == ""
    with pytest.raises(UnsupportedError, match="a kernel for arm64 has never been built"):
        build_kernel(recipe, Store(tmp_path / "store"))


def test_both_architectures_have_fragments() -> None:
    """Whether all of them take is asked of the kernel's own conf: `tegu kernel config check`."""
    x86, arm = load_recipe(), load_recipe(architecture="arm64")
    assert {"ACPI", "EFI_STUB", "VIRTIO_BLK", "BPF_SYSCALL"} <= set(x86.options) & set(arm.options)
    assert not [n for n in arm.options if n.startswith("X86_")]
    assert not [n for n in x86.options if n.startswith("ARM64_")]
