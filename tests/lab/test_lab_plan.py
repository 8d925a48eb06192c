"""Plans are read strictly: what is wrong is said with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tegu.errors import DefinitionError, UsageError
from tegu.lab.expect import Allowed, Text, check_text
from tegu.lab.plan import Plan
from tegu.lab.plan_file import load_plan
from tegu.lab.runner import plan_variables
from tegu.lab.template import fill, names
from tegu.lab.variables import parse_variables, select

ROOT = Path(__file__).parents[2]

GOOD = """\
name = "good"
[variable.packages]
help = "from the lock"
[variable.target]
help = "where it boots to"
default = "multi-user.target"
[boot]
memory = "512M"
hostname = "h"
[[machine]]
name = "uefi"
[[machine]]
name = "bios"
firmware = "bios"
memory = "1G"
[[step]]
name = "first"
id = "one"
run = "echo {{ target }} ${HOME} {print}"
stdout = { equals = "{{target}}", only = [{ pattern = "a", reason = "b" }] }
[[step]]
name = "second"
needs = ["one"]
only = ["bios"]
reboot = true
[[step]]
name = "last"
power_off = true
console = { matches = ["Power down"] }
"""

HEAD = '[[step]]\nname = "second"'
LAST = '[[step]]\nname = "last"'


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(text)
    return path


def test_a_good_plan(tmp_path: Path) -> None:
    plan = load_plan(write(tmp_path, GOOD))
    assert [(m.name, m.firmware, m.memory, m.hostname) for m in plan.machines()] == [
        ("uefi", "uefi", "512M", "h"),
        ("bios", "bios", "1G", "h"),
    ]
    assert [s.action for s in plan.step] == ["run", "reboot", "power_off"]
    assert plan.variables() == {"target"}


def test_every_plan_we_ship_is_good() -> None:
    paths = sorted((ROOT / "distro" / "plans").glob("*.toml"))
    assert [p.name for p in paths if p.name == "acceptance.toml"]
    for path in paths:
        plan = load_plan(path)
        if path.stem != "kselftest":  # what the kernel does after it has started, and takes long
            assert {"uefi", "bios"} <= {m.firmware for m in plan.machines()}


def test_a_plan_without_machines_has_one(tmp_path: Path) -> None:
    text = 'name = "a"\n[boot]\nbus = "nvme"\n[[step]]\nname = "x"\nrun = "true"\n'
    (machine,) = load_plan(write(tmp_path, text)).machines()
    assert (machine.name, machine.bus) == ("default", "nvme")


@pytest.mark.parametrize(
    ("old", "new", "where", "said"),
    [
        ('name = "good"', 'name = "Good One"', "Good One", "name: "),
        ('name = "good"\n', "", "[variable.packages]", "name: is missing"),
        ('memory = "512M"', 'memory = "much"', "[boot]", "boot: not a size: 'much'"),
        ('memory = "512M"', "memory = 512", "memory = 512", "boot.memory: "),
        ('hostname = "h"', 'host = "h"', "host =", "boot.host: unknown key"),
        ('hostname = "h"', 'user_data = "x: 1"', "[boot]", "cloud-init would ignore this"),
        ('firmware = "bios"', 'firmware = "efi"', '"efi"', "machine[1].firmware: "),
        ('"bios"\nf', '"uefi"\nf', '"uefi"\nfirmware', "there is another machine 'uefi'"),
        ('run = "echo', 'runs = "echo', "runs", "step[0].runs: unknown key"),
        ("reboot = true", "reboot = false", "reboot", "step[1].reboot: "),
        ("reboot = true", 'reboot = true\nrun = "x"', HEAD, "step[1]: needs exactly one of"),
        ("reboot = true", "reboot = true\nroot = true", HEAD, "root goes with `run` only"),
        ('needs = ["one"]', 'needs = ["two"]', "needs", "no step before this one has the id 'two'"),
        ('only = ["bios"]', 'only = ["vax"]', "vax", "there is no machine 'vax'"),
        ('pattern = "a"', 'pattern = "("', "pattern", "not a regular expression"),
        ('reason = "b"', 'reason = ""', "reason", "step[0].stdout.only[0].reason: "),
        ('reason = "b"', 'why = "b"', "why", "reason: is missing"),
        ('["Power down"]', '"Power down"', "Power down", "step[2].console.matches: "),
        ("{{ target }}", "{{ tarjet }}", '[[step]]\nname = "first"', "'tarjet' is not declared"),
        ("variable.target", "variable.user", "variable.user", "is a built-in variable"),
        ("power_off", 'id = "one"\npower_off', 'id = "one"\npower', "another step has the id"),
        ("power_off = true", "power_off = true\ntimeout = 0", "timeout", "step[2].timeout: "),
        ("power_off = true", 'run = "x"\non = "moon"', "moon", "step[2].on: "),
        ("power_off = true", 'run = "x"\non = "host"\nroot = true', LAST, "who runs the plan"),
        ("power_off = true", "power_off = ", "power_off", "Invalid value"),
        (
            'down"] }',
            "down\"] }\n[[step]]\nname='z'\nrun='x'",
            "[[step]]\nname='z'",
            "is off after",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_line(
    tmp_path: Path, old: str, new: str, where: str, said: str
) -> None:
    """`where` begins on the line that the message must name."""
    text = GOOD.replace(old, new, 1)
    assert text != GOOD
    line = text[: text.index(where)].count("\n") + 1
    path = write(tmp_path, text)
    with pytest.raises(DefinitionError) as caught:
        load_plan(path)
    everything = f"{caught.value.message}\n{caught.value.hint or ''}"
    found = next(one for one in everything.splitlines() if said in one)
    assert f"{path}:{line}: " in found


def test_files_that_are_no_plan(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match="cannot read the plan"):
        load_plan(tmp_path / "none")
    (tmp_path / "bytes").write_bytes(b"name = \xff")
    with pytest.raises(DefinitionError, match="byte 7 is not UTF-8"):
        load_plan(tmp_path / "bytes")
    with pytest.raises(DefinitionError, match="step: is missing"):
        load_plan(write(tmp_path, 'name = "a"'))
    with pytest.raises(DefinitionError, match="step: "):
        load_plan(write(tmp_path, 'name = "a"\nstep = []'))
    for odd in ("machine = 3", "boot = 3", "step = 'x'", "machine = [3]", "variable = [1]"):
        with pytest.raises(DefinitionError):
            load_plan(write(tmp_path, f'name = "a"\n{odd}\n'))


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_plan_with_a_bite_taken_out_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(GOOD)))
    end = data.draw(st.integers(start, min(len(GOOD), start + 40)))
    path = tmp_path_factory.getbasetemp() / "bitten.toml"
    path.write_text(GOOD[:start] + GOOD[end:])
    try:
        assert isinstance(load_plan(path), Plan)
    except DefinitionError as e:
        assert str(path) in e.message


def test_variables(tmp_path: Path) -> None:
    assert names("{{ a }} {{b_1}} ${c} {{.Go}} {d} {{ E }}") == {"a", "b_1"}
    assert fill("x={{ a }}", {"a": "it's"}, lambda v: f"<{v}>") == "x=<it's>"
    with pytest.raises(UsageError, match="needs a value for 'a'"):
        fill("{{a}}", {})
    plan = load_plan(write(tmp_path, GOOD.replace("{print}", "{{ packages }}")))
    with pytest.raises(UsageError, match="needs values for: packages") as caught:
        plan_variables(plan, {})
    assert "from the lock" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="has no variable 'other'"):
        plan_variables(plan, {"other": "x"})
    values = plan_variables(plan, {"packages": "a 1 all"})
    assert values == {"packages": "a 1 all", "target": "multi-user.target"}
    assert select(plan, {"packages": "p", "unused": "u"}, {"x": "y"}) == {"packages": "p", "x": "y"}
    assert parse_variables(["a=b=c", "d="]) == {"a": "b=c", "d": ""}
    for bad in ("a", "=b", ""):
        with pytest.raises(UsageError, match="not a variable"):
            parse_variables([bad])


@pytest.mark.parametrize(
    ("text", "wanted", "problems"),
    [
        ("a\nb \n\n", Text(equals="a\nb"), 0),
        ("a\nb", Text(equals="a"), 1),
        ("", Text(equals=""), 0),
        ("x", Text(equals=""), 1),
        ("b\na\n", Text(lines="a\nb"), 0),
        ("b\na\na\n", Text(lines="a\nb"), 1),
        ("hello world", Text(contains=["lo w", "h"]), 0),
        ("hello", Text(contains=["x", "y"]), 2),
        ("one\ntwo", Text(matches=["^two$", "^o"]), 0),
        ("one\ntwo", Text(matches=["^wo"]), 1),
        ("one\ntwo", Text(lacks=["three"]), 0),
        ("one\ntwo", Text(lacks=["^two"]), 1),
        ("", Text(only=[]), 0),
        ("a 1\n\na 2\n", Text(only=[Allowed(pattern="a", reason="r")]), 0),
        ("a 1\nba\n", Text(only=[Allowed(pattern="a", reason="r")]), 1),
        ("1.2", Text(matches=["^{{ v }}$"]), 0),
        ("1x2", Text(matches=["^{{ v }}$"]), 1),
        ("v 1.2", Text(contains=["{{ v }}"], equals="v {{ v }}"), 0),
    ],
)
def test_expectations(text: str, wanted: Text, problems: int) -> None:
    assert len(check_text(text, wanted, {"v": "1.2"}, "stdout")) == problems


def test_a_long_difference_is_cut() -> None:
    expected = "\n".join(f"package-{i} 1" for i in range(500))
    (said,) = check_text("nothing", Text(lines=expected), {}, "stdout")
    assert "-package-0 1" in said
    assert "and 4" in said.splitlines()[-1]
    assert len(said.splitlines()) < 30
