"""The key locator against tomllib: same keys, and the line each was really written on."""

from __future__ import annotations

import datetime
import json
import re
import tomllib
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tegu.definition.locate import Location, locate

# Text full of what could lead a scanner astray. DEL and lone surrogates are not allowed in TOML.
_ALPHABET = st.one_of(
    st.sampled_from("\"'#[]{}=,.\\\n\t abc01"),
    st.characters(exclude_categories=["Cs"], exclude_characters="\x7f\r"),
)
_TEXT = st.text(_ALPHABET, max_size=12)
_KEYS = st.one_of(st.sampled_from(["a", "b", "c", "d", "1", "-", "a.b"]), _TEXT)
_SCALARS = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.booleans(),
    st.floats(allow_nan=False),
    _TEXT,
    st.datetimes().map(lambda d: d.replace(microsecond=0)),
    st.dates(),
)


def _values(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.lists(inner, max_size=4), st.dictionaries(_KEYS, inner, max_size=4))


_DOCUMENTS = st.dictionaries(_KEYS, st.recursive(_SCALARS, _values, max_leaves=15), max_size=5)


class Writer:
    """Writes a document in styles that `draw` chooses, noting the line of everything."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.text = ""
        self.lines: dict[Location, int] = {}

    @property
    def line(self) -> int:
        return self.text.count("\n") + 1

    def coin(self) -> bool:
        return self.draw(st.booleans())

    def void(self) -> None:
        void = st.sampled_from(["", "", "\n", "  ", "# [x] = \"'''\n", "\t\n\n"])
        self.text += self.draw(void)

    def key(self, key: str) -> str:
        styles = ["basic"]
        if re.fullmatch(r"[A-Za-z0-9_-]+", key):
            styles.append("bare")
        if _literal_can_hold(key) and "\n" not in key:
            styles.append("literal")
        style = self.draw(st.sampled_from(styles))
        return {"basic": _basic(key), "bare": key, "literal": f"'{key}'"}[style]

    def dotted(self, keys: tuple[str, ...]) -> str:
        dot = self.draw(st.sampled_from([".", " . "]))
        return dot.join(self.key(key) for key in keys)

    def document(self, document: dict[str, Any]) -> None:
        self.body((), (), document)

    def body(self, shown: tuple[str, ...], here: Location, table: dict[str, Any]) -> None:
        """Write the content of a table; `shown` is the path for headers."""
        later = {}
        for key, value in table.items():
            own_header = isinstance(value, dict) or _is_tables(value)
            if own_header and self.coin():
                later[key] = value
            else:
                self.pair((key,), here, value)
        for key, value in later.items():
            if isinstance(value, dict):
                self.headed((*shown, key), (*here, key), value)
                continue
            for index, entry in enumerate(value):
                self.void_line()
                self.lines.setdefault((*here, key), self.line)
                self.lines[(*here, key, index)] = self.line
                self.text += f"[[{self.dotted((*shown, key))}]]"
                self.end()
                self.body((*shown, key), (*here, key, index), entry)

    def headed(self, shown: tuple[str, ...], here: Location, table: dict[str, Any]) -> None:
        inner = {k: v for k, v in table.items() if isinstance(v, dict)}
        if inner and len(inner) == len(table) and self.coin():
            # Implied: it stands where the first table inside it has its header.
            first = True
            for key, value in inner.items():
                self.void_line()
                if first:
                    self.lines[here] = self.line
                first = False
                self.header((*shown, key), (*here, key))
                self.body((*shown, key), (*here, key), value)
            return
        if inner and self.coin():
            # Tables inside come first, its own header after them.
            rest = {k: v for k, v in table.items() if k not in inner}
            for key, value in inner.items():
                self.void_line()
                self.header((*shown, key), (*here, key))
                self.body((*shown, key), (*here, key), value)
            self.void_line()
            self.header(shown, here)
            self.body(shown, here, rest)
            return
        self.void_line()
        self.header(shown, here)
        self.body(shown, here, table)

    def header(self, shown: tuple[str, ...], here: Location) -> None:
        self.lines[here] = self.line
        self.text += f"[ {self.dotted(shown)} ]"
        self.end()

    def pair(self, keys: tuple[str, ...], here: Location, value: Any) -> None:
        if isinstance(value, dict) and value and self.coin():
            for key, inner in value.items():
                self.pair((*keys, key), here, inner)
            return
        self.void_line()
        for length in range(1, len(keys) + 1):
            self.lines.setdefault((*here, *keys[:length]), self.line)
        self.text += f"{self.dotted(keys)} = "
        self.value((*here, *keys), value)
        self.end()

    def value(self, here: Location, value: Any) -> None:
        if isinstance(value, dict):
            self.text += "{"
            for index, (key, inner) in enumerate(value.items()):
                self.text += ", " if index else " "
                self.lines[(*here, key)] = self.line
                self.text += f"{self.key(key)} = "
                self.value((*here, key), inner)
            self.text += "}"
        elif isinstance(value, list):
            self.text += "["
            for index, inner in enumerate(value):
                self.void()
                self.lines[(*here, index)] = self.line
                self.value((*here, index), inner)
                self.void()
                self.text += "," if index + 1 < len(value) or self.coin() else ""
            self.void()
            self.text += "]"
        elif isinstance(value, str):
            self.text += self.draw(st.sampled_from(_string_styles(value)))
        elif isinstance(value, bool):
            self.text += str(value).lower()
        elif isinstance(value, datetime.date):
            self.text += value.isoformat()
        else:
            self.text += repr(value)

    def void_line(self) -> None:
        self.void()
        self.text += self.draw(st.sampled_from(["", "  "]))

    def end(self) -> None:
        self.text += self.draw(st.sampled_from(["\n", "  # ends = [\n"]))


def _basic(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _literal_can_hold(text: str) -> bool:
    return "'" not in text and all(c >= " " or c in "\t\n" for c in text)


def _string_styles(text: str) -> list[str]:
    body = text.replace("\\", "\\\\").replace('"""', '""\\"')
    body = "".join(c if c >= " " or c in "\t\n" else f"\\u{ord(c):04X}" for c in body)
    styles = [_basic(text), f'"""\n{body}"""']
    if _literal_can_hold(text):
        styles.append(f"'''\n{text}'''")
        if "\n" not in text:
            styles.append(f"'{text}'")
    if "'''" not in text and all(c >= " " or c in "\t\n" for c in text):
        styles.append(f"'''\n{text}'''")
    return styles


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


@st.composite
def _written(draw: st.DrawFn) -> tuple[dict[str, Any], str, dict[Location, int]]:
    document = draw(_DOCUMENTS)
    writer = Writer(draw)
    writer.document(document)
    text = writer.text
    if draw(st.booleans()):
        text = text.replace("\n", "\r\n")
    return document, text, writer.lines


@settings(max_examples=400, deadline=None)
@given(_written())
def test_every_key_is_found_on_its_line(
    written: tuple[dict[str, Any], str, dict[Location, int]],
) -> None:
    document, text, lines = written
    assert tomllib.loads(text) == document, text  # or the writer of this test is wrong
    assert locate(text) == lines, text


def _locations(value: object, here: Location = ()) -> set[Location]:
    found = {here} if here else set()
    if isinstance(value, dict):
        for key, inner in value.items():
            found |= _locations(inner, (*here, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            found |= _locations(inner, (*here, index))
    return found


_FRAGMENTS = st.sampled_from(
    [
        *("[a]\n", "[a.b]\n", "[[c]]\n", "[[c.d]]\n", '[ "x y" . z ]\n', "[c.e]\n", "\n", "# [\n"),
        *("k = 1\n", "l.m = 2\n", "l.n = [[], [{}]]\n", "'x y'.z = [1, {q = 2}]\n"),
        *(
            's = """a\n"b""c""""\n',
            "t = '''\n[x]\ny = 1'''\n",
            'u = "\\"#"\n',
            "v = 1979-05-27 07:32:00\n",
        ),
        *("w = [ # ]\n  1, # ,\n  2 ]\n", "e = ''\n", 'f = """"""\n', "g.h.i = {j.k = 1}\n"),
    ]
)


@settings(max_examples=400, deadline=None)
@given(st.lists(_FRAGMENTS, max_size=8, unique=True).map("".join))
def test_whatever_tomllib_takes_has_a_line_for_every_key(text: str) -> None:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        assume(False)
    lines = locate(text)
    assert set(lines) == _locations(document)
    assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())


@pytest.mark.parametrize(
    ("text", "location", "line"),
    [
        ("a = 1\n\nb = 2", ("b",), 3),
        ("[x]\n[x.y]\nz = 1", ("x", "y", "z"), 3),
        ("[[f]]\na = 1\n[[f]]\na = 2", ("f", 1, "a"), 4),
        ("[[f]]\n[f.g]\nh = 1", ("f", 0, "g", "h"), 3),
        ('a = [\n  "x",\n\n  "y",\n]', ("a", 1), 4),
        ('s = """\n\n"""\nb = 1', ("b",), 4),
        ('s = """a\\"""\n"""\nb = 1', ("b",), 3),
        ("[p.q]\nr = 1\n[p]\ns = 2", ("p",), 3),
        ("[p.q]\nr = 1", ("p",), 1),
        ('"\\u0061b" = 1', ("ab",), 1),
    ],
)
def test_lines(text: str, location: Location, line: int) -> None:
    assert locate(text)[location] == line


def test_a_long_multi_line_string_does_not_take_long_or_deep() -> None:
    text = 's = """\n' + 'x "" \\\\ y\n' * 100_000 + '"""\nb = 1\n'
    assert locate(text)[("b",)] == 100_003
