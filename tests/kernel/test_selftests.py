"""Which of the kernel's own tests are built, how they are installed, and what they depend on."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tegu.errors import BuildError, DefinitionError
from tegu.kernel import load_recipe
from tegu.kernel.kbuild import PLACE, Kbuild
from tegu.kernel.selftests import install_selftests, library_packages, read_selftests

from .test_recipe import write

TESTS = """
[collection.timers]
[collection.livepatch]
needs = ["LIVEPATCH"]
[collection.bpf]
needs = ["BPF_SYSCALL"]
programs = ["test_tag"]
helpers = ["helper"]
scripts = ["run.sh"]
files = ["deep/lib.sh"]
modules = ["testmod"]
make = ["EXTRA=yes"]
"""
# The makefiles of a kernel, as far as the installing asks for them.
TOP = """
headers: ; touch headers-made
modules: ; echo ko >$(M)/testmod.ko
"""
SELFTESTS = """
install:
\tmkdir -p $(KSFT_INSTALL_PATH)/kselftest
\tfor t in $(TARGETS); do mkdir $(KSFT_INSTALL_PATH)/$$t; \\
\techo "$$t:a_test" >>$(KSFT_INSTALL_PATH)/kselftest-list.txt; done
\techo "$(KDIR) $(FORCE_TARGETS)" >$(KSFT_INSTALL_PATH)/said
"""
BPF = """
$(OUTPUT)/%: ; echo "$(EXTRA)" >$@; chmod +x $@
"""


@pytest.fixture
def kbuild(tmp_path: Path) -> Kbuild:
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    if subprocess.run(["unshare", *user, "--mount", "true"], capture_output=True).returncode != 0:
        pytest.skip("this machine refuses mount namespaces")
    tree = tmp_path / "linux"
    below = tree / "tools/testing/selftests"
    for name, text in (
        ("Makefile", TOP),
        (".config", "CONFIG_BPF_SYSCALL=y\n"),
        ("tools/testing/selftests/Makefile", SELFTESTS),
        ("tools/testing/selftests/bpf/Makefile", BPF),
        ("tools/testing/selftests/bpf/run.sh", "#!/bin/sh\n"),
        ("tools/testing/selftests/bpf/deep/lib.sh", "lib"),
        ("tools/testing/selftests/bpf/testmod/Makefile", "obj-m := testmod.o\n"),
    ):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    (below / "bpf/run.sh").chmod(0o755)
    return Kbuild(
        load_recipe(write(tmp_path)),
        tree,
        timestamp=1_788_000_000,
        cache=tmp_path / "ccache",
        jobs=1,
        log=tmp_path / "log",
    )


def test_collections_whole_and_in_part(
    kbuild: Kbuild, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "selftests.toml"
    path.write_text(TESTS)
    root = tmp_path / "root"
    root.mkdir()
    # strip(1) has nothing to do with files that are no programs.
    monkeypatch.setattr("tegu.kernel.selftests.run", lambda *_, **__: None)
    install_selftests(kbuild, read_selftests(path), kbuild.config(), root)
    assert (kbuild.tree / "headers-made").exists()
    assert (root / "said").read_text() == f"{PLACE} 1\n"
    # Without the option there is no livepatch; the others are listed for run_kselftest.sh.
    listed = (root / "kselftest-list.txt").read_text().split()
    assert listed == ["timers:a_test", "bpf:test_tag", "bpf:run.sh"]
    found = {p.relative_to(root / "bpf").as_posix() for p in (root / "bpf").rglob("*")}
    assert found == {"test_tag", "helper", "run.sh", "deep", "deep/lib.sh", "testmod.ko"}
    assert (root / "bpf/test_tag").read_text() == "yes\n"
    assert os.access(root / "bpf/run.sh", os.X_OK)


def test_a_file_that_this_kernel_has_not(kbuild: Kbuild, tmp_path: Path) -> None:
    path = tmp_path / "selftests.toml"
    path.write_text('[collection.bpf]\nscripts = ["gone.sh"]\n')
    (tmp_path / "root").mkdir()
    with pytest.raises(BuildError, match=r"selftests/bpf has no gone.sh") as caught:
        install_selftests(kbuild, read_selftests(path), {}, tmp_path / "root")
    assert "selftests.toml names it" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[collections.net]", "only tables"),
        ("collection = 1", "only tables"),
        ("[collection]\nnet = 1", "named after a directory"),
        ('[collection."../net"]', "named after a directory"),
        ('[collection.net]\nprograms = "tls"', "list of strings"),
        ("[collection.net]\ncolour = []", "no such key"),
        ('[collection.net]\nscripts = ["../../x"]', "cannot be meant"),
        ('[collection.net]\nprograms = ["a b"]', "cannot be meant"),
        ('[collection.net]\nmake = ["install"]', "cannot be meant"),
        ("[collection.net", "selftests.toml: "),
    ],
)
def test_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "selftests.toml"
    path.write_text(text)
    with pytest.raises(DefinitionError, match=message):
        read_selftests(path)


def test_ours_can_be_read(tmp_path: Path) -> None:
    assert read_selftests(tmp_path / "absent.toml") == []
    ours = read_selftests(load_recipe().path.parent / "selftests.toml")
    assert {"seccomp", "landlock", "livepatch", "net", "bpf", "cgroup", "timers"} == {
        c.name for c in ours
    }
    for collection in ours:
        # An option that our own configuration does not ask for would leave it out, unseen.
        asked = load_recipe().options
        assert not [n for n in collection.needs if n in asked and asked[n].value != "y"]


def test_depends_come_from_the_programs(tmp_path: Path) -> None:
    for program in ("true", "readelf"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    shutil.copy(shutil.which("true") or "", tmp_path / "true")
    (depends,) = library_packages(tmp_path)
    assert depends.startswith("libc6 (>= 2.")
    (tmp_path / "script").write_text("#!/bin/sh\n")
    assert library_packages(tmp_path) == [depends]
