"""The cache of symbol versions, with a preprocessor and a genksyms that count their calls."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tegu.kernel import kbuild

SCRIPT = Path(kbuild.__file__).with_name("symversions.sh")
NOTED = """\
savedcmd_net/a.o := gcc -c -o net/a.o net/a.c

source_net/a.o := net/a.c

deps_net/a.o := \\
    $(wildcard include/config/SMP) \\
  include/a.h \\
  include/b.h \\

net/a.o: $(deps_net/a.o)

$(deps_net/a.o):
"""


class Tree:
    """A kernel tree of one source; `calls` says what has run since it was last asked."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name, text in (
            ("net/a.c", "source"),
            ("net/.a.o.cmd", NOTED),
            ("include/a.h", "a"),
            ("include/b.h", "b"),
            ("include/generated/autoconf.h", "#define CONFIG_SMP 1"),
            ("cpp", '#!/bin/sh\necho cpp >> calls\n[ ! -e broken ] && cat "$2"\n'),
            (
                "scripts/genksyms/genksyms",
                '#!/bin/sh\necho genksyms >> calls\necho "#SYMVER a $(cksum)"\n',
            ),
        ):
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            if text.startswith("#!"):
                path.chmod(0o755)

    def versions(self, *flags: str) -> str:
        done = subprocess.run(
            ["sh", SCRIPT, "net/.a.o.cmd", "./cpp", *(flags or ("-Dx",)), "net/a.c"],
            cwd=self.root,
            env={"PATH": "/usr/bin:/bin", "CCACHE_DIR": str(self.root / "cache")},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    def calls(self) -> list[str]:
        path = self.root / "calls"
        said = path.read_text().split() if path.exists() else []
        path.unlink(missing_ok=True)
        return said

    def kept(self) -> list[Path]:
        return sorted((self.root / "cache" / "symversions").glob("*"))


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_the_same_again_runs_nothing(tree: Tree) -> None:
    first = tree.versions()
    assert first.startswith("#SYMVER a ")
    assert tree.calls() == ["cpp", "genksyms"]
    assert tree.versions() == first
    assert tree.calls() == []
    assert len(tree.kept()) == 1


@pytest.mark.parametrize(
    "name",
    [
        *("net/a.c", "include/a.h", "include/b.h", "include/generated/autoconf.h"),
        "scripts/genksyms/genksyms",
    ],
)
def test_whatever_decides_is_asked_for(tree: Tree, name: str) -> None:
    tree.versions()
    tree.calls()
    path = tree.root / name
    path.write_text(path.read_text() + "\n# changed\n")
    tree.versions()
    assert tree.calls() == ["cpp", "genksyms"]


def test_other_flags_are_another_question(tree: Tree) -> None:
    tree.versions("-Dx")
    tree.versions("-Dy")
    assert tree.calls() == ["cpp", "genksyms"] * 2


def test_what_fails_is_not_kept(tree: Tree) -> None:
    (tree.root / "broken").touch()
    with pytest.raises(subprocess.CalledProcessError):
        tree.versions()
    assert tree.kept() == []


def test_without_notes_nothing_is_answered(tree: Tree) -> None:
    (tree.root / "net/.a.o.cmd").write_text("source_net/a.o := net/a.c\n")
    with pytest.raises(subprocess.CalledProcessError):
        tree.versions()
    assert tree.kept() == []
