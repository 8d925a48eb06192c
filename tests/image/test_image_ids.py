"""Numbers of system users depend on their names alone."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tegu.image.ids import allocate, renumber
from tegu.linux import run_isolated

NAMES = st.lists(st.from_regex(r"[a-z_][a-z0-9_-]{0,20}", fullmatch=True), max_size=60)


@given(names=NAMES)
def test_numbers_are_unique_in_range_and_do_not_depend_on_order(names: list[str]) -> None:
    numbers = allocate(names)
    assert set(numbers) == set(names)
    assert len(set(numbers.values())) == len(numbers)
    assert all(200 <= n <= 899 for n in numbers.values())
    assert allocate(reversed(names)) == numbers


def _tables(root: Path, users: dict[str, int]) -> None:
    etc = root / "etc"
    etc.mkdir(parents=True)
    fixed = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"
    rows = "".join(f"{n}:x:{i}:{i}::/:/bin/false\n" for n, i in users.items())
    (etc / "passwd").write_text(fixed + rows)
    groups = "".join(f"{n}:x:{i}:\n" for n, i in users.items())
    (etc / "group").write_text("root:x:0:\nadm:x:4:zoe,amy\nnogroup:x:65534:\n" + groups)
    (etc / "shadow").write_text("".join(f"{n}:!:20000::::::\n" for n in ["root", "nobody", *users]))
    (etc / "gshadow").write_text("".join(f"{n}:!::\n" for n in ["root", "adm", *users]))


def test_files_follow_their_users_whatever_the_order_of_arrival(tmp_path: Path) -> None:
    def build(name: str, users: dict[str, int]) -> dict[str, object]:
        root = tmp_path / name
        _tables(root, users)

        def work(_: object) -> dict[str, object]:
            import os

            for user, number in users.items():
                path = root / f"of-{user}"
                path.touch()
                os.chown(path, number, number)
                path.chmod(0o4755)
            numbers = renumber(root, [root])
            owners = {
                user: (p.stat().st_uid, p.stat().st_gid, oct(p.stat().st_mode))
                for user in users
                if (p := root / f"of-{user}")
            }
            tables = {p.name: p.read_text() for p in sorted((root / "etc").iterdir())}
            return {"numbers": numbers, "owners": owners, "tables": tables}

        return run_isolated(work)

    one = build("one", {"alpha": 100, "beta": 101, "gamma": 999})
    two = build("two", {"gamma": 100, "alpha": 998, "beta": 997})
    assert one["numbers"] == two["numbers"]
    assert one["tables"] == two["tables"]
    assert dict(one["owners"]) == dict(two["owners"])  # type: ignore[call-overload]
    assert "adm:x:4:amy,zoe" in one["tables"]["group"]  # type: ignore[index]
    assert "20000" not in one["tables"]["shadow"]  # type: ignore[index]
