"""The solver: what it takes, and how it says that nothing fits."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tegu.errors import SolveError
from tegu.packages import solve as solving
from tegu.packages.index import load_indexes
from tegu.packages.solve import Answer, Question, SolverRepository, solve

HAS_SOLV = (
    subprocess.run(["/usr/bin/python3", "-I", "-c", "import solv"], capture_output=True).returncode
    == 0
)


@pytest.fixture(params=["libsolv", "apt"])
def solver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both solvers in turn."""
    if request.param == "libsolv" and not HAS_SOLV:
        pytest.skip("python3-solv is not installed")
    if request.param == "apt":
        monkeypatch.setattr(solving, "_PYTHON", "/nonexistent/python3")
    return str(request.param)


@pytest.fixture
def libsolv() -> None:
    if not HAS_SOLV:
        pytest.skip("python3-solv is not installed")


@pytest.fixture
def ask(store, repository):
    """Return a function that publishes what was added and answers one question."""

    def ask(*install: str, further: tuple[SolverRepository, ...] = (), **options) -> Answer:
        repository.publish()
        (index,) = load_indexes([repository.source()], store, "amd64")
        base = SolverRepository("rock", index.files[0].path, 500, True)
        options.setdefault("base", "none")
        (answer,) = solve([Question("system", install, **options)], [base, *further], "amd64")
        return answer

    return ask


@pytest.fixture
def further(store, other_repository):
    """Return a function that publishes the other repository at a priority."""

    def publish(priority: int, *, base: bool = False) -> SolverRepository:
        other_repository.publish()
        (index,) = load_indexes([other_repository.source()], store, "amd64")
        return SolverRepository("other", index.files[0].path, priority, base)

    return publish


def taken(answer: Answer) -> list[str]:
    return sorted(f"{p['Package']}={p['Version']}" for p in answer.packages)


def names(answer: Answer) -> set[str]:
    return {p["Package"] for p in answer.packages}


def test_dependencies_come_along_and_recommends_do_not(solver, ask, repository) -> None:
    repository.add("apple", Depends="core (>= 1)", Pre_Depends="stem", Recommends="leaf")
    for name in ("core", "stem", "leaf", "other"):
        repository.add(name)
    assert taken(ask("apple")) == ["apple=1", "core=1", "stem=1"]
    assert names(ask("apple", recommends=True)) == {"apple", "core", "stem", "leaf"}


def test_the_newest_version_wins(solver, ask, repository) -> None:
    for version in ("1.9", "1.10", "1.10~rc1"):
        repository.add("apple", version)
    assert taken(ask("apple")) == ["apple=1.10"]


def test_suites_are_read_together(solver, ask, repository, further, other_repository) -> None:
    repository.add("apple", "1.0-1", Depends="core")
    repository.add("core", "2")
    other_repository.add("apple", "1.0-1+deb1u1", Depends="core")
    other_repository.add("core", "1")
    answer = ask("apple", further=(further(500, base=True),))
    assert taken(answer) == ["apple=1.0-1+deb1u1", "core=2"]
    assert {p["Package"]: p["repository"] for p in answer.packages} == {
        "apple": "other",
        "core": "rock",
    }


def test_what_is_essential_or_required_is_the_base(solver, ask, repository) -> None:
    repository.add("base-files", Essential="yes", Priority="required")
    repository.add("tzdata", Priority="required")
    repository.add("apt", Priority="required")
    repository.add("nano", Priority="important")
    repository.add("apple")
    assert names(ask("apple", base="required")) == {"apple", "base-files", "tzdata"}
    assert names(ask("apple", base="essential")) == {"apple", "base-files"}
    assert names(ask("apple", base="none")) == {"apple"}
    assert names(ask("apple", "apt", base="essential")) == {"apple", "apt", "base-files"}
    assert names(ask("apple", base="required", exclude=["tzdata"])) == {"apple", "base-files"}


def test_a_vendor_cannot_make_packages_essential(
    solver, ask, repository, further, other_repository
) -> None:
    repository.add("apple")
    other_repository.add("spy", Essential="yes", Priority="required")
    assert names(ask("apple", base="required", further=(further(500),))) == {"apple"}


def test_the_first_alternative_is_taken(solver, ask, repository) -> None:
    repository.add("apple", Depends="zebra | aardvark, mta | postfix")
    repository.add("zebra")
    repository.add("aardvark")
    repository.add("postfix", Provides="mta")
    repository.add("exim", Provides="mta")
    assert {"zebra"} == names(ask("apple")) & {"zebra", "aardvark"}


def test_the_next_alternative_when_the_first_cannot_be(solver, ask, repository) -> None:
    repository.add("apple", Depends="broken | sound | other")
    repository.add("broken", Depends="nowhere")
    repository.add("sound")
    repository.add("other")
    assert names(ask("apple")) == {"apple", "sound"}


def test_one_package_may_answer_for_another(libsolv, ask, repository) -> None:
    repository.add("apple", Depends="one | two")
    repository.add("pear", Depends="two")
    repository.add("one")
    repository.add("two")
    # apt would take `one` as well, as it looks at apple first.
    assert names(ask("apple", "pear")) == {"apple", "pear", "two"}


def test_virtual_packages_by_priority_then_name(libsolv, ask, repository) -> None:
    repository.add("apple", Pre_Depends="awk")
    repository.add("gawk", Provides="awk")
    repository.add("mawk", Provides="awk", Priority="required")
    repository.add("aawk", Provides="awk")
    assert names(ask("apple")) == {"apple", "mawk"}


def test_a_real_package_goes_before_providers(solver, ask, repository) -> None:
    repository.add("apple", Depends="awk")
    repository.add("aawk", Provides="awk")
    repository.add("awk")
    assert names(ask("apple")) == {"apple", "awk"}


def test_versioned_provides(solver, ask, repository) -> None:
    repository.add("apple", Depends="api (>= 2)")
    repository.add("old", Provides="api (= 1)")
    repository.add("new", Provides="api (= 2)")
    repository.add("vague", Provides="api")
    assert names(ask("apple")) == {"apple", "new"}


def test_multi_arch_qualifiers(solver, ask, repository) -> None:
    repository.add("apple", Depends="python3:any, tool", Architecture="amd64")
    repository.add("python3", Architecture="amd64", Multi_Arch="allowed")
    repository.add("tool", Architecture="amd64", Multi_Arch="foreign")
    assert names(ask("apple")) == {"apple", "python3", "tool"}


def test_conflicts_with_what_one_provides_oneself(solver, ask, repository) -> None:
    repository.add("kernel", Depends="initramfs-tools | initramfs-tool")
    repository.add("initramfs-tools", Provides="initramfs-tool", Conflicts="initramfs-tool")
    repository.add("tegu", Provides="initramfs-tool", Conflicts="initramfs-tool")
    assert names(ask("kernel", "tegu")) == {"kernel", "tegu"}
    assert names(ask("kernel")) == {"kernel", "initramfs-tools"}


def test_exclusions_lead_to_another_way(solver, ask, repository) -> None:
    repository.add("apple", Depends="one | two")
    repository.add("one")
    repository.add("two")
    assert names(ask("apple", exclude=["one"])) == {"apple", "two"}


def test_pins(libsolv, ask, repository) -> None:
    for version in ("1.1", "1.2-1", "1.2-2", "1.3"):
        repository.add("apple", version)
    assert taken(ask("apple", pin={"apple": "1.1"})) == ["apple=1.1"]
    assert taken(ask("apple", pin={"apple": "1.2*"})) == ["apple=1.2-2"]
    assert taken(ask("apple", pin={"pear": "9"})) == ["apple=1.3"]
    with pytest.raises(SolveError, match=r"no version of apple is 2\.0") as caught:
        ask("apple", pin={"apple": "2.0"})
    assert "1.1, 1.2-1, 1.2-2, 1.3" in (caught.value.hint or "")


def test_pins_by_apt(ask, repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solving, "_PYTHON", "/nonexistent/python3")
    for version in ("1.1", "1.2-1", "1.3"):
        repository.add("apple", version)
    assert taken(ask("apple", pin={"apple": "1.2*"})) == ["apple=1.2-1"]


def test_a_higher_priority_goes_before_a_newer_version(
    solver, ask, repository, further, other_repository
) -> None:
    repository.add("apple", "2", Depends="core")
    repository.add("core", "5")
    other_repository.add("apple", "1", Depends="core")
    other_repository.add("other", "1")
    assert taken(ask("apple", further=(further(900),))) == ["apple=1", "core=5"]
    assert taken(ask("apple", further=(further(100),))) == ["apple=2", "core=5"]


def test_versions_are_kept(solver, ask, repository) -> None:
    for version in ("1", "2"):
        repository.add("apple", version)
        repository.add("pear", version)
    answer = ask("apple", "pear", keep={"apple": "1", "gone": "7"})
    assert taken(answer) == ["apple=1", "pear=2"]
    assert answer.unlocked == answer.vanished == []


def test_what_stands_against_it_is_not_kept(libsolv, ask, repository) -> None:
    repository.add("apple", "1", Depends="core (= 1)")
    repository.add("apple", "2", Depends="core (= 2)")
    repository.add("core", "1")
    repository.add("core", "2")
    repository.add("pear", "1")
    repository.add("pear", "2")
    answer = ask("apple", "core", "pear", pin={"apple": "2"}, keep={"core": "1", "pear": "1"})
    assert taken(answer) == ["apple=2", "core=2", "pear=1"]
    assert answer.unlocked == ["core"]


def test_what_no_index_has_any_more_is_told(solver, ask, repository) -> None:
    repository.add("apple", "2")
    answer = ask("apple", keep={"apple": "1"})
    assert taken(answer) == ["apple=2"]
    assert answer.vanished == ["apple"]


def test_a_kept_alternative_stays(libsolv, ask, repository) -> None:
    repository.add("apple", Depends="first | second")
    repository.add("first")
    repository.add("second")
    assert names(ask("apple", keep={"apple": "1", "second": "1"})) == {"apple", "second"}


def test_an_older_version_where_the_newest_cannot_be(libsolv, ask, repository) -> None:
    repository.add("apple", "1", Depends="core (<< 2)")
    repository.add("core", "1")
    repository.add("core", "2")
    assert taken(ask("apple")) == ["apple=1", "core=1"]


def test_an_unknown_package_has_near_names(solver, ask, repository) -> None:
    for name in ("openssh-server", "openssh-client", "nginx"):
        repository.add(name)
    with pytest.raises(SolveError, match="there is no package openssh-sever") as caught:
        ask("openssh-sever")
    assert "openssh-server" in (caught.value.hint or "")


def test_a_virtual_package_has_its_providers_named(libsolv, ask, repository) -> None:
    repository.add("postfix", Provides="mta")
    repository.add("exim", Provides="mta")
    with pytest.raises(SolveError, match="mta is a virtual package") as caught:
        ask("mta")
    assert "exim, postfix" in (caught.value.hint or "")


def test_a_version_that_is_not_there_is_explained(libsolv, ask, repository) -> None:
    repository.add("apple", Depends="stem")
    repository.add("stem", Depends="root (>= 2)")
    repository.add("root", "1.3")
    repository.add("root", "1.4")
    with pytest.raises(SolveError) as caught:
        ask("apple")
    assert caught.value.message == (
        "no set of packages fits: you asked for apple, which needs stem, which needs root (>= 2); "
        "the newest root in the suites is 1.4"
    )


def test_a_dependency_that_nothing_has_is_explained(libsolv, ask, repository) -> None:
    repository.add("apple", Depends="nowhere | elsewhere (>= 1)")
    with pytest.raises(SolveError) as caught:
        ask("apple")
    assert (
        "you asked for apple, which needs nowhere | elsewhere (>= 1); there is no nowhere in the "
        "suites, there is no elsewhere in the suites"
    ) in caught.value.message


def test_an_exclusion_that_something_needs_is_explained(libsolv, ask, repository) -> None:
    repository.add("apple", Depends="stem")
    repository.add("stem")
    with pytest.raises(SolveError) as caught:
        ask("apple", exclude=["stem"])
    assert (
        "you asked for apple, which needs stem; stem is excluded (packages.exclude)"
        in caught.value.message
    )


def test_a_conflict_is_explained_from_both_sides(libsolv, ask, repository) -> None:
    repository.add("apple", Depends="red")
    repository.add("pear", Depends="green")
    repository.add("red", "3", Conflicts="green (<< 5)")
    repository.add("green", "4")
    with pytest.raises(SolveError) as caught:
        ask("apple", "pear")
    message = caught.value.message
    assert "you asked for apple, which needs red" in message
    assert "you asked for pear, which needs green" in message
    assert "red 3 conflicts with green 4 (green (<< 5))" in message


def test_the_base_can_be_in_the_way(libsolv, ask, repository) -> None:
    repository.add("sysv", Essential="yes")
    repository.add("systemd", Conflicts="sysv")
    with pytest.raises(SolveError) as caught:
        ask("systemd", base="essential")
    assert "you asked for systemd" in caught.value.message
    assert "the base system has sysv" in caught.value.message


def test_two_versions_at_once_are_explained(libsolv, ask, repository) -> None:
    repository.add("apple", Depends="core (= 1)")
    repository.add("pear", Depends="core (= 2)")
    repository.add("core", "1")
    repository.add("core", "2")
    with pytest.raises(SolveError) as caught:
        ask("apple", "pear")
    message = caught.value.message
    assert "you asked for apple, which needs core (= 1)" in message
    assert "you asked for pear, which needs core (= 2)" in message
    assert "only one version of core can be installed" in message


def test_asked_for_and_excluded(libsolv, ask, repository) -> None:
    repository.add("apple")
    with pytest.raises(SolveError, match="both asked for and excluded"):
        ask("apple", exclude=["apple"])


def test_the_tools_are_named_when_they_are_the_problem(libsolv, store, repository) -> None:
    repository.add("apple", Depends="nowhere")
    repository.publish()
    (index,) = load_indexes([repository.source()], store, "amd64")
    base = SolverRepository("rock", index.files[0].path, 500, True)
    with pytest.raises(SolveError, match=r"no set of packages fits \(for the tools\)"):
        solve([Question("tools", ["apple"], base="none")], [base], "amd64")


def test_apt_gives_a_reason_too(ask, repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solving, "_PYTHON", "/nonexistent/python3")
    repository.add("apple", Depends="root (>= 2)")
    repository.add("root", "1.4")
    with pytest.raises(SolveError, match=r"apple : Depends: root \(>= 2\)"):
        ask("apple")


def test_a_damaged_cache_is_made_again(libsolv, ask, repository, store) -> None:
    repository.add("apple")
    ask("apple")
    for suffix in ("solv", "offsets", "facts"):
        (cached,) = (store.root / "indexes").glob(f"*.{suffix}")
        good = cached.read_bytes()
        middle = len(good) // 2
        flipped = good[:middle] + bytes([good[middle] ^ 0xFF]) + good[middle + 1 :]
        for damage in (b"", good[:middle], b"\0" * len(good), flipped):
            cached.write_bytes(damage)
            assert taken(ask("apple")) == ["apple=1"]
        cached.unlink()
        assert taken(ask("apple")) == ["apple=1"]
        assert cached.exists()


def test_an_index_that_is_none_is_an_error(libsolv, tmp_path: Path) -> None:
    path = tmp_path / "x.Packages"
    path.write_bytes(b"\0\1\2 this is no index\n\n\nPackage\n")
    base = SolverRepository("rock", path, 500, True)
    with pytest.raises(SolveError):
        solve([Question("system", ["apple"], base="none")], [base], "amd64")
