"""Kconfig read far enough to say what exists and what an option lacks."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tegu.errors import BuildError, DefinitionError
from tegu.kernel.config_check import compare_config, refuse_misses, refuse_unknown
from tegu.kernel.expressions import parse_expression
from tegu.kernel.fragments import merge, parse_config, parse_fragment
from tegu.kernel.symbols import Symbols, read_symbols

KCONFIG = """
mainmenu "A kernel"

source "arch/$(SRCARCH)/Kconfig"

config NET
        bool "Networking"

menu "Protocols"
        depends on NET

config INET
        bool "TCP/IP"
        help
          Help texts may hold lines that look like entries:

          config NOT_AN_OPTION
          depends on NOTHING

config IPV6
        tristate "IPv6" if EXPERT
        depends on INET && \\
                (X86 || ARM)

endmenu

if BLOCK
config EXT4_FS
        tristate "ext4"
        depends on !BROKEN # a comment
        select CRC16
endif

config CRC16
        tristate
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "Kconfig").write_text(KCONFIG)
    (tmp_path / "arch/x86").mkdir(parents=True)
    (tmp_path / "arch/x86/Kconfig").write_text("config X86\n\tdef_bool y\n")
    return tmp_path


def unmet(symbols: Symbols, name: str, value: str, **config: str) -> list[str]:
    return symbols.unmet(name, value, lambda n: config.get(n, "n"))


def test_what_exists(tree: Path) -> None:
    symbols = read_symbols(tree, "x86")
    for name in ("NET", "INET", "IPV6", "EXT4_FS", "CRC16", "X86"):
        assert name in symbols
    assert "NOT_AN_OPTION" not in symbols
    assert symbols["IPV6"].type == "tristate"
    assert not symbols["CRC16"].prompt
    assert symbols.near("EXT4FS") == ["EXT4_FS"]


def test_why_not(tree: Path) -> None:
    symbols = read_symbols(tree, "x86")
    assert unmet(symbols, "INET", "y") == ["NET (is n)"]
    assert unmet(symbols, "INET", "y", NET="y") == []
    assert unmet(symbols, "EXT4_FS", "m", BROKEN="y") == ["BLOCK (is n)", "!BROKEN"]
    assert unmet(symbols, "IPV6", "y", NET="y", INET="y", X86="y") == ["EXPERT (is n)"]
    assert "X86 || ARM" in unmet(symbols, "IPV6", "y", NET="y", INET="y", EXPERT="y")
    assert unmet(symbols, "CRC16", "y") == ["it cannot be set by hand: other options select it"]
    # A module is enough for a module, not for what is built in.
    assert unmet(symbols, "EXT4_FS", "m", BLOCK="m") == []
    assert unmet(symbols, "EXT4_FS", "y", BLOCK="m") == ["BLOCK (is m)"]


def test_no_kernel_source(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="no kernel source"):
        read_symbols(tmp_path, "x86")


def test_unknown_option_names_the_nearest(tree: Path) -> None:
    options = merge([parse_fragment("# why\nCONFIG_EXT4=y", "base.config")])
    with pytest.raises(DefinitionError, match=r"base.config:2: CONFIG_EXT4: .* no such") as caught:
        refuse_unknown(options, read_symbols(tree, "x86"))
    assert "CONFIG_EXT4_FS" in str(caught.value.hint)


def test_what_did_not_take(tree: Path) -> None:
    options = merge([parse_fragment("# why\nCONFIG_INET=y\nCONFIG_EXT4_FS=m", "f")])
    config = parse_config("CONFIG_EXT4_FS=m\n# CONFIG_NET is not set\n")
    misses = compare_config(options, config, read_symbols(tree, "x86"))
    assert [str(m) for m in misses] == ["f:2: CONFIG_INET: wanted y, got n; needs NET (is n)"]
    with pytest.raises(BuildError, match="CONFIG_INET: wanted y, got n"):
        refuse_misses(misses)
    refuse_misses([])


@pytest.mark.parametrize(
    ("text", "values", "wanted"),
    [
        ("A && B", {"A": "y", "B": "m"}, 1),
        ("A || B", {"A": "n", "B": "m"}, 1),
        ("!A", {"A": "m"}, 1),
        ("!A", {}, 2),
        ("A=m", {"A": "m"}, 2),
        ("A != y", {"A": "y"}, 0),
        ("A || (B && !C)", {"B": "y", "C": "y"}, 0),
        ("VERSION >= 120000", {"VERSION": "120200"}, 2),
        ("VERSION < 0x10", {"VERSION": "16"}, 0),
        ('NAME = "x y"', {"NAME": '"x y"'}, 2),
        ("$(cc-option,-mfoo) && A", {"A": "y"}, 2),
    ],
)
def test_expressions(text: str, values: dict[str, str], wanted: int) -> None:
    assert parse_expression(text).value(lambda n: values.get(n, "n")) == wanted


@pytest.mark.parametrize("text", ["", "A &&", "(A", "A)", "&& A", "A B", "A =", "A ; B"])
def test_no_expressions(text: str) -> None:
    with pytest.raises(ValueError, match="expression"):
        parse_expression(text)


@given(st.text(alphabet='AB&|!()= "$m<>', max_size=30))
def test_any_text_is_an_expression_or_not(text: str) -> None:
    try:
        expression = parse_expression(text)
    except ValueError:
        return
    assert 0 <= expression.value(lambda _: "m") <= 2
    assert parse_expression(str(expression)).value(lambda _: "m") == expression.value(lambda _: "m")


AWKWARD = """
config FOO
\tbool "Foo"

menu "Things"

comment "B needs FOO"
\tdepends on !FOO

config B
\tbool "B"
\tdepends on BAR

config YES
\tbool "Yes"
\tdepends on MOD

config TEXT
\tstring "Text"
\tdepends on MOD

config MOD
\ttristate "Module"

config CAN
\tbool "Can"
\tdepends on $(cc-option,-mfancy)

config CHOSEN
\tbool "Chooses"
\tselect FOO
\tselect NOWHERE

choice
\tprompt "Which"

config ONE
\tbool "One"

config OTHER
\tbool "Other"

endchoice

config ALWAYS
\tdef_bool y

endmenu
"""


@pytest.fixture
def awkward(tmp_path: Path) -> Symbols:
    (tmp_path / "Kconfig").write_text(AWKWARD)
    return read_symbols(tmp_path, "x86")


def test_a_comments_condition_is_no_options(awkward: Symbols) -> None:
    assert unmet(awkward, "B", "y", FOO="y") == ["BAR (is n)"]
    assert unmet(awkward, "B", "y", FOO="y", BAR="y") == []
    assert unmet(awkward, "MOD", "m", FOO="y") == []


def test_a_module_is_enough_for_what_is_no_tristate(awkward: Symbols) -> None:
    assert unmet(awkward, "YES", "y", MOD="m") == []
    assert unmet(awkward, "TEXT", '"x"', MOD="m") == []
    assert unmet(awkward, "YES", "y") == ["MOD (is n)"]


def test_what_the_compiler_cannot(awkward: Symbols) -> None:
    assert unmet(awkward, "CAN", "y") == ["$(cc-option,-mfancy) (of the compiler or linker)"]


def test_why_it_is_on(awkward: Symbols) -> None:
    def why(name: str, **config: str) -> list[str]:
        return awkward.unwanted(name, lambda n: config.get(n, "n"))

    assert why("FOO", CHOSEN="y") == ["CHOSEN selects it"]
    assert why("ONE") == ["it is one of a choice: one of its options must be on"]
    assert why("ALWAYS") == ["its own default turns it on, and it cannot be set here"]
    assert "NOWHERE" not in awkward
    options = merge([parse_fragment("# why\n# CONFIG_FOO is not set", "f")])
    (miss,) = compare_config(options, {"FOO": "y", "CHOSEN": "y"}, awkward)
    assert str(miss) == "f:2: CONFIG_FOO: wanted n, got y: CHOSEN selects it"


def test_strings_and_order() -> None:
    def value(text: str, **config: str) -> int:
        return parse_expression(text).value(lambda n: config.get(n, "n"))

    assert value('NAME = ""') == 2
    assert value('NAME != ""', NAME='"x"') == 2
    assert value("A < y", A="m") == 2
    assert value("A >= m", A="n") == 0
