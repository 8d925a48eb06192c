"""The module after the link, and the kernel as its packages have it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tests.kernel.livepatch.conftest import SECTIONS, Compile

from tegu.errors import BuildError, UsageError
from tegu.kernel.livepatch.build import module_name
from tegu.kernel.livepatch.elf import SHN_LIVEPATCH, ElfObject, Symbol
from tegu.kernel.livepatch.module import mark_relocations
from tegu.kernel.livepatch.package import write_package
from tegu.kernel.livepatch.target import read_target
from tegu.packages import open_deb
from tegu.packages.deb_write import DebEntry, write_deb

RELEASE = "6.12.107-tegu"
BUILD = "1 SMP Sat Nov 21"
SYMVERS = (
    "0x1\tprintk\tvmlinux\tEXPORT_SYMBOL\t\n"
    "0x2\thidden\tvmlinux\tEXPORT_SYMBOL_NS\tCRYPTO\n"
    "0x3\tof_module\tfs/ext4/ext4\tEXPORT_SYMBOL\t\n"
)
TEXT = """
extern int shown;
extern int printk(int);
int replaced(void) { return printk(shown); }
int (*table[1])(void) = { replaced };
"""


def linked(path: Path) -> bytes:
    """Return the object with the name that an assembler would not take."""
    obj = ElfObject.parse(path.read_bytes())
    (symbol,) = (s for s in obj.symbols if s.name == "shown")
    symbol.name = ".klp.sym.vmlinux.shown,2"
    obj.symbols.append(Symbol(".klp.sym.vmlinux.spare,0"))
    return obj.to_bytes()


def test_marked_relocations(compile_c: Compile, tmp_path: Path) -> None:
    data = linked(compile_c("x", TEXT, *SECTIONS))
    exported = {"printk": 1, "__fentry__": 1}
    obj = ElfObject.parse(mark_relocations(data, "x", exported))
    special = [s for s in obj.symbols if s.special == SHN_LIVEPATCH]
    assert [s.name for s in special] == [".klp.sym.vmlinux.shown,2"]
    (group,) = obj.livepatch
    assert group.name == ".klp.rela.vmlinux.text.replaced"
    assert {r.symbol.name for r in group.relocs} == {".klp.sym.vmlinux.shown,2"}
    rest = {r.symbol.name for s in obj.sections for r in s.relocs if s.name == ".text.replaced"}
    assert {"printk", "__fentry__"} <= rest
    path = tmp_path / "marked.ko"
    path.write_bytes(obj.to_bytes())
    shown = subprocess.run(
        ["readelf", "-sW", str(path)], check=True, capture_output=True, text=True
    ).stdout
    assert "OS [0xff20] .klp.sym.vmlinux.shown,2" in shown


def test_what_nobody_defines(compile_c: Compile) -> None:
    data = linked(compile_c("x", TEXT, *SECTIONS))
    with pytest.raises(BuildError, match="nothing in the kernel defines printk"):
        mark_relocations(data, "x", {"__fentry__": 1})


@pytest.mark.parametrize("name", ["", "9x", "A", "x.y", "x" * 41, "x-y", "../x"])
def test_names(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a live patch"):
        module_name(name)


def kernel_packages(out: Path, *, headers: bool = True) -> Path:
    def package(name: str, entries: list[DebEntry]) -> None:
        fields = {"Package": name, "Version": "6.12.107-1+tegu1", "Architecture": "amd64"}
        fields |= {"Maintainer": "x <x@x.invalid>", "Description": "x"}
        write_deb(out / f"{name}.deb", fields, entries, timestamp=0)

    image = bytearray(0x400)
    image[0x202:0x206], image[0x20E:0x210] = b"HdrS", (0x100).to_bytes(2, "little")
    image[0x300:] = f"{RELEASE} (tegu@tegu) #{BUILD}\0".encode()
    package(
        f"linux-image-{RELEASE}",
        [
            DebEntry(f"/boot/vmlinuz-{RELEASE}", bytes(image)),
            DebEntry(f"/boot/System.map-{RELEASE}", b"ffffffff81000000 T start\n"),
            DebEntry(f"/boot/config-{RELEASE}", b"CONFIG_LIVEPATCH=y\n# CONFIG_X is not set\n"),
        ],
    )
    package("linux-image-tegu", [])
    if headers:
        path = f"/usr/src/linux-headers-{RELEASE}/Module.symvers"
        package(f"linux-headers-{RELEASE}", [DebEntry(path, SYMVERS.encode())])
    return out


def test_a_kernel_from_its_packages(tmp_path: Path) -> None:
    target = read_target([kernel_packages(tmp_path)])
    assert (target.release, target.version) == (RELEASE, "6.12.107-1+tegu1")
    assert target.build == f"#{BUILD}"
    assert target.config == {"LIVEPATCH": "y", "X": "n"}
    assert target.exported == {"printk"}
    assert "start" in target.symbols


def test_a_package_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the headers package is missing"):
        read_target([kernel_packages(tmp_path, headers=False)])
    with pytest.raises(UsageError, match="the image and headers package is missing"):
        read_target([])


def test_the_package_of_a_live_patch(tmp_path: Path) -> None:
    target = read_target([kernel_packages(tmp_path)])
    patch = tmp_path / "fix.patch"
    patch.write_text("")
    made = write_package(tmp_path, "my_fix", "1", target, b"ko", "{}", [patch], timestamp=0)
    assert made.name == f"livepatch-{RELEASE}-my-fix_1_amd64.deb"
    with open_deb(made) as deb:
        names = {i.name for i, content in deb.data() if content is not None}
        assert "tegu kernel livepatch load my_fix" in deb.control["postinst"]
        assert f"revert my_fix --release {RELEASE}" in deb.control["prerm"]
    assert {f"/{n}" for n in names} == {
        f"/usr/lib/tegu/livepatch/{RELEASE}/my_fix.ko",
        f"/usr/lib/tegu/livepatch/{RELEASE}/my_fix.json",
    }
    with pytest.raises(UsageError, match="no version of a package"):
        write_package(tmp_path, "x", "v1", target, b"", "{}", [], timestamp=0)
