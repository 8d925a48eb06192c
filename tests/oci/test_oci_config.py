"""config.json: every field honoured or refused by name, and no input that ends in a traceback."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tegu.errors import TeguError
from tegu.oci.config import checked, load
from tegu.oci.example import example
from tegu.oci.fields import FIELDS, HONOURED, REFUSED, ConfigError, check, markdown
from tegu.oci.options import parse
from tegu.oci.process import Identity
from tegu.oci.resources import first_version, second_version

DOCS = Path(__file__).parents[2] / "docs/oci.md"


def put(config: dict[str, Any], path: str, value: Any) -> None:
    """Set a field by its path in the table, making what leads there."""
    here: Any = config
    *parts, last = path.split(".")
    for part in parts:
        name = part.removesuffix("[]")
        name = "x" if name == "*" else name
        below = here.setdefault(name, [{}] if part.endswith("[]") else {})
        here = below[0] if part.endswith("[]") else below
    here["x" if last == "*" else last] = value


@pytest.mark.parametrize("rootless", [True, False])
def test_the_example_is_sound(rootless: bool) -> None:
    config = checked(example(rootless=rootless), "/b")
    Identity(config.process, config.linux)
    assert config.rootfs == "/b/rootfs"
    assert config.is_new("pid")
    assert config.is_new("user") == rootless


@pytest.mark.parametrize("field", [f for f in FIELDS.values() if f.verdict == REFUSED])
def test_refused_fields_are_named(field: Any) -> None:
    config = example(rootless=False)
    value = {"text": "x", "int": 1, "uint": 1, "texts": ["x"], "flag": True}.get(field.kind, [{}])
    config["mounts"] = config["mounts"][:1]
    put(config, field.path, value)
    shown = field.path.replace("[]", "[0]")
    with pytest.raises(TeguError) as caught:
        checked(config, "/b")
    assert caught.value.message.startswith(f"unsupported: {shown}: ")


@pytest.mark.parametrize("field", [f for f in FIELDS.values() if f.verdict == HONOURED])
def test_fields_of_the_wrong_kind_are_named(field: Any) -> None:
    config: dict[str, Any] = {}
    put(config, field.path, object() if field.kind != "flag" else "yes")
    with pytest.raises(ConfigError) as caught:
        check(config)
    shown = field.path.replace("[]", "[0]").replace("*", "x")
    assert caught.value.message.startswith(f"{shown}: must be ")


@pytest.mark.parametrize(
    "path", ["x", "process.x", "linux.x", "linux.resources.x", "linux.resources.cpu.x", "root.x"]
)
def test_unknown_fields_are_refused(path: str) -> None:
    config = example(rootless=False)
    put(config, path, 1)
    with pytest.raises(ConfigError, match=f"^{path}: no such field"):
        checked(config, "/b")


def test_null_and_empty_are_no_fields() -> None:
    config = example(rootless=False)
    config["linux"]["intelRdt"] = None
    config["linux"]["mountLabel"] = ""
    config["process"]["apparmorProfile"] = None
    assert "intelRdt" not in checked(config, "/b").linux


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("ociVersion", "2.0.0", "ociVersion: 2.0.0"),
        ("root.path", "", "root.path: missing"),
        ("process.args", [], "process.args: missing"),
        ("process.cwd", "tmp", "process.cwd: must be an absolute path"),
        ("process.env", ["A"], r"process.env\[0\]: must be NAME=VALUE"),
        ("process.env", ["A=\0"], "process.env: must be a list of strings"),
        ("process.user.uid", 2**32 - 1, "process.user.uid: at most"),
        ("process.oomScoreAdj", 2000, "process.oomScoreAdj: from -1000 to 1000"),
        ("process.consoleSize", {"height": 70000, "width": 1}, "process.consoleSize"),
        ("linux.namespaces", [], "linux.namespaces: a container needs"),
        ("linux.namespaces", [{"type": "mount", "path": "/x"}], r"linux.namespaces\[0\].path"),
        ("linux.namespaces", [{"type": "moon"}], r"linux.namespaces\[0\].type: moon"),
        ("linux.namespaces", [{"type": "pid"}] * 2, r"linux.namespaces\[1\].type: .*twice"),
        ("linux.uidMappings", [{"containerID": 0, "hostID": 0, "size": 1}], "linux.uidMappings"),
        ("linux.devices", [{"path": "/dev/x", "type": "z"}], r"linux.devices\[0\].type"),
        ("linux.devices", [{"path": "x", "type": "c"}], r"linux.devices\[0\].path"),
        ("linux.maskedPaths", ["proc"], r"linux.maskedPaths\[0\]"),
        ("linux.timeOffsets", {"monotonic": {"secs": 1}}, "linux.timeOffsets: needs"),
        ("hooks", {"prestart": [{"path": "sh"}]}, r"hooks.prestart\[0\].path"),
        ("hooks", {"prestart": [{"path": "/sh", "timeout": 0}]}, r"hooks.prestart\[0\].timeout"),
        ("mounts", [{"destination": "x"}], r"mounts\[0\].destination"),
    ],
)
def test_what_does_not_fit_together(path: str, value: Any, message: str) -> None:
    config = example(rootless=False)
    put(config, path, value)
    with pytest.raises(ConfigError, match=f"^{message}"):
        checked(config, "/b")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("process.rlimits", [{"type": "RLIMIT_X", "soft": 1, "hard": 1}], r"process.rlimits\[0\]"),
        (
            "process.rlimits",
            [{"type": "RLIMIT_CORE", "soft": 2, "hard": 1}],
            r"process.rlimits\[0\]",
        ),
        ("process.ioPriority", {"class": "IOPRIO_CLASS_X"}, "process.ioPriority.class"),
        ("process.scheduler", {"policy": "SCHED_X"}, "process.scheduler.policy"),
        ("process.selinuxLabel", "a:b:c", "unsupported: process.selinuxLabel"),
        ("linux.personality", {"domain": "BSD"}, "linux.personality.domain"),
        ("linux.seccomp", {"defaultAction": "X"}, "linux.seccomp.defaultAction: X"),
        ("linux.seccomp", {"defaultAction": "SCMP_ACT_NOTIFY"}, "unsupported: linux.seccomp"),
        (
            "linux.seccomp",
            {"defaultAction": "SCMP_ACT_ALLOW", "flags": ["F"]},
            r"unsupported: linux.seccomp.flags\[0\]: F",
        ),
        (
            "linux.seccomp",
            {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"action": "SCMP_ACT_KILL"}]},
            r"linux.seccomp.syscalls\[0\].names: missing",
        ),
    ],
)
def test_what_a_process_cannot_be(path: str, value: Any, message: str) -> None:
    raw = example(rootless=False)
    put(raw, path, value)
    config = checked(raw, "/b")
    with pytest.raises(TeguError, match=f"^{message}"):
        Identity(config.process, config.linux)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load(str(tmp_path))
    for text in ("", "{", "[" * 100000, '{"a": 1e999}', "\xff"):
        (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(TeguError):
            load(str(tmp_path))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=6), v, max_size=3),
    max_leaves=8,
)


@given(path=st.sampled_from(sorted(FIELDS)), value=JSON)
def test_any_value_anywhere_is_taken_or_refused_in_a_line(path: str, value: Any) -> None:
    raw = copy.deepcopy(example(rootless=False))
    try:
        put(raw, path, value)
    except (AttributeError, TypeError, KeyError, IndexError):
        return
    try:
        config = checked(json.loads(json.dumps(raw)), "/b")
        for i, mount in enumerate(config.mounts):
            parse(mount.get("options", []), mount.get("type", ""), f"mounts[{i}].options")
        first_version(config.linux.get("resources", {}))
        second_version(config.linux.get("resources", {}))
        if not config.linux.get("seccomp"):
            Identity(config.process, config.linux)
    except TeguError as e:
        assert "\n" not in e.message.split(":")[0] or "\n" in path


def test_the_documentation_has_the_table() -> None:
    assert markdown() in DOCS.read_text()
