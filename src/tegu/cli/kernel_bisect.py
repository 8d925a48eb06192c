"""`tegu kernel bisect`: which commit, package or image was the first bad one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tegu.cli import kernel_candidates as candidates
from tegu.cli.output import note, print_json, print_table, spinner

if TYPE_CHECKING:
    from tegu.lab import Bootable, Found, Trial, TrialSettings

__all__ = ["add_to"]

APPEND = "root=PARTLABEL=root rootfstype=ext4 rw console=ttyS0,115200n8 no_timer_check"


def add_to(app: typer.Typer) -> None:
    """Add the verb to `tegu kernel`."""
    app.command(
        epilog="Example: tegu kernel bisect --packages debs/ --good 6.12.100-1 --bad 6.12.107-1 "
        "--image out/tegu.qcow2 -- 'sysctl -n net.ipv4.tcp_tw_timeout'"
    )(bisect)


def bisect(
    test: Annotated[
        list[str],
        typer.Argument(
            help="After `--`: a command for the machine's shell, run as root (exit 0 good, 125 "
            "cannot tell, else bad), or a plan (a local file NAME.toml)."
        ),
    ],
    good: Annotated[str, typer.Option(help="The newest that is known to be good.")],
    bad: Annotated[str, typer.Option(help="The oldest that is known to be bad.")],
    repo: Annotated[
        Path | None, typer.Option("--repo", "-C", help="Commits of this git repository.")
    ] = None,
    packages: Annotated[
        list[Path] | None,
        typer.Option(help="Kernel packages, or a directory of them; repeatable. By version."),
    ] = None,
    versions_of: Annotated[
        str | None,
        typer.Option(
            help="All versions of this kernel package (or pattern, 'linux-image-6.12.*-cloud-*') "
            "in the definition's repositories."
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="The definition that names them [Tegu's].")
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(help="Images of releases, oldest first, or a directory, by name; repeatable."),
    ] = None,
    image: Annotated[
        Path | None, typer.Option(help="The image whose system the kernels are started with.")
    ] = None,
    build: Annotated[
        str | None,
        typer.Option(
            help="Builds a commit: a line for sh in its work tree, that leaves an image, a kernel "
            "package or a kernel in $OUT [our recipe, by ccache]."
        ),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", "-r", help="Our kernel [distro/kernel/kernel.toml].")
    ] = None,
    repeat: Annotated[
        int, typer.Option(min=1, help="Run the test up to so many times on each.")
    ] = 1,
    rule: Annotated[
        str, typer.Option(help="What several runs come to: any-bad or majority.")
    ] = "any-bad",
    boot_failure: Annotated[
        str, typer.Option(help="What a machine that does not start is: skip or bad.")
    ] = "skip",
    state: Annotated[Path, typer.Option(help="Keeps what was found out.")] = Path(
        "tegu-bisect.json"
    ),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where the same command was interrupted.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write bisect.html and bisect.json into it."),
    ] = None,
    append: Annotated[str, typer.Option(help="Command line of the kernels.")] = APPEND,
    memory: Annotated[str, typer.Option(help="Memory of the machine, such as 768M.")] = "1G",
    cpus: Annotated[int, typer.Option(min=1, help="CPUs of the machine.")] = 2,
    firmware: Annotated[str, typer.Option(help="uefi or bios, for images.")] = "uefi",
    accelerator: Annotated[str, typer.Option(help="auto, kvm or tcg (emulation).")] = "auto",
    boot_timeout: Annotated[float, typer.Option(help="Seconds to wait for the machine.")] = 600,
    test_timeout: Annotated[float, typer.Option(help="Seconds to wait for the test.")] = 600,
    jobs: Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Jobs [CPUs].")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find the first bad commit, kernel package or image, each tried in a throw-away machine.

    Both ends are tried first. What cannot be built or tried is skipped. A test that fails only now
    and then needs --repeat. Interrupted, it goes on with --resume.
    """
    from tegu.errors import UsageError
    from tegu.lab import BisectState, TrialSettings, bisect_page, find_first_bad, found_json
    from tegu.lab.disk import parse_size
    from tegu.lab.interrupt import ended_by_signals

    if sum(bool(s) for s in (repo, packages, versions_of, images)) != 1:
        raise UsageError(
            "name one of --repo, --packages, --versions-of and --images: where to look"
        )
    if rule not in ("any-bad", "majority"):
        raise UsageError(f"{rule!r} is no rule", hint="any-bad or majority")
    if boot_failure not in ("skip", "bad"):
        raise UsageError(f"--boot-failure {boot_failure!r}", hint="skip or bad")
    if (build or recipe) and not repo:
        raise UsageError("--build and --recipe are for commits (--repo)")
    settings = TrialSettings(
        memory=parse_size(memory),
        cpus=cpus,
        accelerator=accelerator,
        firmware=firmware,
        boot_timeout=boot_timeout,
        test_timeout=test_timeout,
        boot_failure="bad" if boot_failure == "bad" else "skip",
    )
    with ended_by_signals(), ExitStack() as stack:
        if repo is not None:
            known = stack.enter_context(
                candidates.commits(
                    repo, good, bad, image, append, build=build, recipe=recipe, jobs=jobs
                )
            )
        elif packages or versions_of:
            base = candidates.base_image(image)
            files = (
                candidates.given_packages(packages)
                if packages
                else candidates.published_packages(versions_of or "", file)
            )
            known = stack.enter_context(candidates.packages(files, good, bad, base, append))
        else:
            known = candidates.images(images or [], good, bad)
        question = {
            "kind": known.kind,
            "good": known.good,
            "bad": known.bad,
            "candidates": known.space.suspects([known.good], known.bad),
            "test": " ".join(test),
            "build": build,
            "image": str(image.resolve()) if image else None,
            "append": append if known.kind != "images" else None,
            "repeat": repeat,
            "rule": rule,
            "boot failure": boot_failure,
            "memory": memory,
            "cpus": cpus,
        }
        kept = BisectState(state, question, resume=resume)
        say = stack.enter_context(spinner())
        tries = stack.enter_context(_attempts(known, test, settings, say))
        found = find_first_bad(
            known.space,
            known.good,
            known.bad,
            tries,
            repeat=repeat,
            rule="majority" if rule == "majority" else "any-bad",
            known=kept.trials,
            on_trial=kept.add,
            on_step=lambda s: say(f"{s.candidate[:40]}: {s.verdict}"),
        )
        named = {*found.suspects, *(s.candidate for s in found.steps)}
        titles = {c: t for c in named if (t := known.titles(c))}
    body = {**found_json(question, found), "titles": titles}
    if output is not None:
        import json

        from tegu.files import write_atomic

        write_atomic(output / "bisect.html", bisect_page(found, question, titles))
        write_atomic(output / "bisect.json", json.dumps(body, indent=1) + "\n")
    if as_json:
        print_json(body)
    else:
        _show(found, titles)


def _show(found: Found, titles: dict[str, str]) -> None:
    def title(name: str) -> str:
        short = name[:12] if len(name) == 40 and name in titles else name
        return f"{short} {titles.get(name, '')}".strip()

    print_table(
        ["verdict", "candidate", "role", "suspects", "trials", "because"],
        [
            [
                s.verdict,
                title(s.candidate),
                s.role,
                s.suspects,
                "".join(t.verdict[0] for t in s.trials),
                s.trials[-1].why,
            ]
            for s in found.steps
        ],
    )
    if found.first_bad is not None:
        print(f"first bad: {title(found.first_bad)}")
    else:
        print("first bad: one of")
        for name in found.suspects:
            print(f"  {title(name)}")
    flaky = [s.candidate for s in found.steps if s.flaky]
    if flaky:
        note(f"the test was good and bad on the same: {', '.join(flaky)}")


@contextmanager
def _attempts(
    known: candidates.Candidates,
    test: Sequence[str],
    settings: TrialSettings,
    say: Callable[[str], None],
) -> Iterator[Callable[[str], Trial]]:
    """Yield what tries a candidate once; the last one made stays, for when it is tried again."""
    from tegu.errors import BuildError
    from tegu.lab import Trial, load_plan, try_command, try_plan

    plan = None
    if len(test) == 1 and test[0].endswith(".toml") and Path(test[0]).is_file():
        plan = load_plan(Path(test[0]))
    last: dict[str, Bootable | Trial] = {}

    def attempt(candidate: str) -> Trial:
        def tell(text: str) -> None:
            say(f"{candidate[:40]}: {text}")

        if candidate not in last:
            last.clear()
            try:
                last[candidate] = known.make(candidate, tell)
            except BuildError as e:
                last[candidate] = Trial("skip", 0.0, e.message, None, e.hint or "")
        what = last[candidate]
        if isinstance(what, Trial):
            return what
        if plan is not None:
            return try_plan(what, plan, settings, tell)
        return try_command(what, test[0] if len(test) == 1 else test, settings, tell)

    yield attempt
