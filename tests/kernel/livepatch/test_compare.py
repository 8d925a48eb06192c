"""Real objects, before and after a change: what is replaced, what is refused, and that it runs."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.kernel.livepatch.conftest import SECTIONS, Compile

from tegu.errors import UnsupportedError
from tegu.kernel.livepatch.compare import Change, compare
from tegu.kernel.livepatch.extract import Extract, extract
from tegu.kernel.livepatch.pieces import take_apart

Compare = Callable[..., Change]

BASE = """
#define noinline __attribute__((noinline))
#define notrace __attribute__((no_instrument_function))
extern int printf(const char *, ...);
struct config { int a; long b; };
static struct config config = { 1, 2 };
static int counter;
extern int limit;
typedef int (*hook_t)(int);
hook_t hook;

static noinline int scale(int x) { return x * 3 + config.a; }
static noinline notrace int raw(int x) { return x + 100; }
int plain(int x) { static int calls; return raw(x) + ++calls; }
int ask(int x) { counter++; return scale(x) + limit; }
int other(int x) { static int calls; calls += 2; return calls * x; }
int show(void) { return printf("counter is %d of %d\\n", counter, limit); }
void install(int a) { hook = ask; config.a = a; config.b++; }
static int boot(void) __attribute__((section(".init.text"), used));
static int boot(void) { counter = 7; return counter; }
"""


@pytest.fixture
def change(compile_c: Compile) -> Compare:
    def made(*edits: tuple[str, str], base: str = BASE) -> Change:
        text = base
        for old, new in edits:
            assert old in text
            text = text.replace(old, new)
        before = compile_c("before", base, *SECTIONS)
        after = compile_c("after", text, *SECTIONS)
        return compare(take_apart(before, "x.c"), take_apart(after, "x.c"))

    return made


def test_nothing_changed(change: Compare) -> None:
    found = change()
    assert (found.functions, found.added) == ((), ())


def test_lines_that_move_change_nothing(change: Compare) -> None:
    found = change(("struct config {", "/* a\n\n\n */\nstruct config {"))
    assert (found.functions, found.added) == ((), ())


def test_only_what_changed(change: Compare) -> None:
    found = change(("x * 3", "x * 5"))
    assert found.functions == ("scale",)


def test_a_string_counts(change: Compare) -> None:
    found = change(("counter is %d", "Counter is %d"))
    assert found.functions == ("show",)


def test_new_function_and_data(change: Compare) -> None:
    found = change(
        (
            "int ask(int x) {",
            "static int seen; static noinline int add(int x) { return x + ++seen; }"
            "\nint ask(int x) { x = add(x);",
        ),
    )
    assert found.functions == ("ask",)
    assert found.added == ("add",)
    assert "seen" not in found.originals


def test_static_variables_of_functions_are_told_apart(change: Compare) -> None:
    # A third `calls` comes first, so that the compiler numbers the others anew.
    found = change(
        ("int plain(int x) {", "int plain(int x) { { static long calls; limit = ++calls; }"),
        ("extern int limit;", "extern int limit;\nint other(int x);"),
    )
    assert found.functions == ("plain",)


def test_what_ftrace_cannot_reach_goes_with_its_callers(change: Compare) -> None:
    found = change(("x + 100", "x + 200"))
    assert found.functions == ("plain",)
    assert found.added == ("raw",)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("config = { 1, 2 }", "config = { 1, 3 }", "the initial value of config"),
        ("{ int a; long b; }", "{ int a; long b; long c; }", "the size of config from 16 to 24"),
        ("counter = 7", "counter = 8", "boot, which the kernel runs once"),
    ],
)
def test_what_cannot_be_patched(change: Compare, old: str, new: str, reason: str) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        change((old, new))


def test_a_visible_function_without_entry_is_refused(change: Compare) -> None:
    base = BASE.replace("static noinline notrace int raw", "noinline notrace int raw")
    with pytest.raises(UnsupportedError, match="raw, which has no ftrace entry"):
        change(("x + 100", "x + 200"), base=base)


def run_both(made: Extract, before: Path, tmp_path: Path, main: str) -> str:
    """Link the original, all its names made visible, with what was taken out of the patched one."""
    new = tmp_path / "new.o"
    new.write_bytes(made.obj.to_bytes())
    visible = tmp_path / "visible.o"
    names = ("counter", "config", "scale", "raw")
    subprocess.run(
        ["objcopy", *(f"--globalize-symbol={n}" for n in names), str(before), str(visible)],
        check=True,
    )
    source = tmp_path / "main.c"
    source.write_text(main)
    program = tmp_path / "program"
    subprocess.run(
        ["gcc", "-no-pie", "-o", str(program), str(source), str(visible), str(new)], check=True
    )
    return subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout


def test_the_extract_runs_and_shares_the_state_of_the_original(
    change: Compare, tmp_path: Path
) -> None:
    found = change(
        (
            "int ask(int x) {",
            "static int seen = 5;\nstatic const char *const tags[] = "
            '{"new", "newer"};\nstatic noinline const char *tag(int i) { return tags[i & 1]; }\n'
            'int ask(int x) { seen++; hook = ask; printf("%s %d ", tag(seen), seen);',
        ),
        ("x * 3", "x * 5"),
    )
    assert set(found.functions) == {"ask", "scale"}
    made = extract(found, "new_", original=lambda p: p.name, outside=lambda n: n)
    assert set(made.data) == {"seen", "tags"}
    order = {name: made.entries[name] for name in ("ask", "scale")}
    text = run_both(
        made,
        tmp_path / "before.o",
        tmp_path,
        "#include <stdio.h>\nint limit = 1000; typedef int (*hook_t)(int); extern hook_t hook;"
        f"int ask(int); int {order['ask']}(int); extern int counter;"
        f"int main(void) {{ int a = ask(2); int b = {order['ask']}(2);"
        'printf("%d %d %d %d\\n", a, b, counter, hook == ask); return 0; }',
    )
    # Old: 2*3+1+1000. New: its callee is new as well, the counter is the old one's, and a pointer
    # to the function stays what it was.
    assert text == "new 6 1007 1011 2 1\n"


LOCKS = """
struct lock_class {};
extern void init(const char *, struct lock_class *);
extern int slow(int);
int first(int x) { static struct lock_class key; init("first", &key); return slow(x); }
int second(int x) { static struct lock_class key; init("second", &key); return slow(x) + 1; }
"""


def test_variables_without_content(change: Compare) -> None:
    """The class of a lock is nothing where locking is not checked; its number may shift."""
    found = change(
        ("int first(int x) {", "int first(int x) { static int calls; calls++; "), base=LOCKS
    )
    assert (found.functions, found.added) == (("first",), ())

    def never(name: object) -> str:
        raise AssertionError(f"{name} is not the running kernel's")

    made = extract(found, "new_", original=never, outside=lambda name: name)
    assert made.data == ("calls",) or made.data[0].startswith("calls.")
    symbols = {s.name: s for s in made.obj.symbols}
    (key,) = (s for name, s in symbols.items() if name.startswith("key"))
    assert key.section is not None
    assert key.section.size == 0
