"""The command line of an OCI runtime, as its callers write it: options, then a command.

runtime-tools' command-line-interface.md and runc's manual pages; argparse alone would take longer
to load than most commands take.
"""

from __future__ import annotations

from tegu.errors import UsageError

__all__ = ["COMMANDS", "GLOBAL", "Command", "help_text", "parse"]


class Command:
    """A command: `options` by their names, each with what it takes ("" for a switch)."""

    __slots__ = ("example", "options", "positional", "summary")

    def __init__(self, summary: str, positional: str, example: str, options: str) -> None:
        self.summary = summary
        self.positional = positional
        self.example = example
        self.options = _options(options)


def _options(text: str) -> dict[str, tuple[tuple[str, ...], str, str]]:
    """Return {name: (all names, what it takes, what it is for)} from a table of lines."""
    found: dict[str, tuple[tuple[str, ...], str, str]] = {}
    for line in text.strip().splitlines():
        names, takes, purpose = (part.strip() for part in line.split("|"))
        every = tuple(n.strip() for n in names.split(","))
        for name in every:
            found[name] = (every, takes, purpose)
    return found


GLOBAL = _options("""
--root | DIR | where state is kept (default: /run/tegu-oci, else below XDG_RUNTIME_DIR)
--log | FILE | append errors and warnings to FILE
--log-format | FORMAT | text or json (default: text)
--log-level | LEVEL | debug, info, warning or error (default: warning)
--debug | | the same as --log-level debug
--systemd-cgroup | | let systemd make control groups; cgroupsPath is slice:prefix:name
--cgroup-manager | NAME | cgroupfs, systemd or disabled (default: cgroupfs)
--class | NAME | container or gvisor, for what has no annotation io.tegu.class (default: container)
--rootless | ANSWER | accepted for callers of runc; found out by itself
--version, -v | | print the version
--help, -h | | this text
""")

_CREATE = """
--bundle, -b | DIR | directory with config.json (default: .)
--pid-file | FILE | write the first process's pid to FILE
--console-socket | PATH | UNIX socket that takes the terminal
--preserve-fds | N | hand down N more descriptors, from 3 on
--no-pivot | | for a root that pivot_root(2) cannot leave (initramfs)
--no-new-keyring | | keep the caller's session keyring
"""
_HELP = "--help, -h | | this text\n"

COMMANDS = {
    "create": Command(
        "make a container that waits for `start`", "ID",
        "tegu-oci create --bundle /tmp/bundle web", _CREATE + _HELP),
    "start": Command("start the program of a created container", "ID", "tegu-oci start web", _HELP),
    "run": Command(
        "create, start, wait for the end, delete; exit code: the program's", "ID",
        "tegu-oci run --bundle /tmp/bundle web",
        _CREATE + "--detach, -d | | do not wait\n--keep | | do not delete it at its end\n" + _HELP),
    "state": Command("print a container's state as JSON", "ID", "tegu-oci state web", _HELP),
    "kill": Command(
        "send a signal (default: TERM) to a container", "ID [SIGNAL]", "tegu-oci kill web KILL",
        "--all, -a | | to all of its processes\n" + _HELP),
    "delete": Command(
        "remove a container that has ended", "ID", "tegu-oci delete --force web",
        "--force, -f | | kill it first; it need not be there\n" + _HELP),
    "exec": Command(
        "start another program in a container; exit code: the program's", "ID [COMMAND ARGS...]",
        "tegu-oci exec --env A=1 web ls -l /",
        """
--process, -p | FILE | process.json: a `process` as in config.json
--detach, -d | | do not wait
--tty, -t | | with a terminal
--console-socket | PATH | UNIX socket that takes the terminal
--pid-file | FILE | write its pid to FILE
--cwd | DIR | working directory
--env, -e | NAME=VALUE | a variable, as often as wanted
--user, -u | UID[:GID] | user and group
--additional-gids, -g | GID | a further group, as often as wanted
--cap, -c | NAME | a further capability, as often as wanted
--no-new-privs | | no more privileges by set-user-ID programs
--preserve-fds | N | hand down N more descriptors, from 3 on
--process-label | LABEL | SELinux label
--apparmor | PROFILE | AppArmor profile
""" + _HELP),
    "ps": Command(
        "list a container's processes", "ID [PS OPTIONS...]", "tegu-oci ps --format json web",
        "--format, -f | FORMAT | table or json\n--json | | the same as --format json\n" + _HELP),
    "list": Command(
        "list containers", "", "tegu-oci list --format json",
        "--format, -f | FORMAT | table or json\n--json | | the same as --format json\n"
        "--quiet, -q | | ids only\n" + _HELP),
    "pause": Command("stop all processes of a container", "ID", "tegu-oci pause web", _HELP),
    "resume": Command("let a paused container go on", "ID", "tegu-oci resume web", _HELP),
    "update": Command(
        "change a container's limits", "ID", "tegu-oci update --pids-limit 100 web",
        """
--resources, -r | FILE | linux.resources as JSON; - is stdin
--memory | BYTES | limit on memory
--memory-reservation | BYTES | memory that is kept for it
--memory-swap | BYTES | limit on memory and swap together; -1 for none
--cpu-share | N | weight of processor time
--cpu-quota | USEC | processor time in a period
--cpu-period | USEC | length of a period
--cpu-burst | USEC | time saved up from earlier periods
--cpuset-cpus | LIST | processors
--cpuset-mems | LIST | memory nodes
--blkio-weight | N | weight of disk time, 10 to 1000
--pids-limit | N | limit on processes
""" + _HELP),
    "events": Command(
        "print usage of control groups as JSON, again and again", "ID",
        "tegu-oci events --stats web",
        "--stats | | once\n--interval | SECONDS | as in 5, 5s or 500ms (default: 5s)\n" + _HELP),
    "features": Command(
        "print what this runtime implements, as JSON", "", "tegu-oci features", _HELP),
    "spec": Command(
        "write a config.json to begin with", "", "tegu-oci spec --bundle /tmp/bundle",
        "--bundle, -b | DIR | where (default: .)\n--rootless | | for a user without privileges\n"
        + _HELP),
    "checkpoint": Command("save a container (unsupported)", "ID", "tegu-oci checkpoint web", _HELP),
    "restore": Command("restore a container (unsupported)", "ID", "tegu-oci restore web", _HELP),
}  # fmt: skip

Values = dict[str, list[str]]
"""Given options by their first name, with their values ([""] for a switch)."""


def parse(words: list[str]) -> tuple[Values, str, Values, list[str]]:
    """Return global options, the command ("" for none), its options, and the other words.

    Raises UsageError.
    """
    first, rest = _take(words, GLOBAL, stop=True)
    if not rest or "--help" in first or "--version" in first:
        return first, "", {}, rest
    name = rest[0]
    command = COMMANDS.get(name)
    if command is None:
        raise UsageError(f"no such command: {name}", hint="tegu-oci --help")
    # What follows the id of exec and ps is another program's.
    found, others = _take(rest[1:], command.options, stop=name in ("exec", "ps"))
    if "--help" in found:
        return first, name, found, others
    least = len([w for w in command.positional.split() if not w.startswith("[") and w == "ID"])
    most = 99999 if "..." in command.positional else len(command.positional.split())
    if not least <= len(others) <= most:
        usage = f"usage: tegu-oci {name} [OPTIONS] {command.positional}".rstrip()
        raise UsageError(f"{name}: {'too many' if len(others) > most else 'missing'} words",
                         hint=usage)  # fmt: skip
    return first, name, found, others


def _take(
    words: list[str], options: dict[str, tuple[tuple[str, ...], str, str]], *, stop: bool
) -> tuple[Values, list[str]]:
    found: Values = {}
    others: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        if word == "--":
            others += left
            break
        if not word.startswith("-") or word == "-":
            others.append(word)
            if stop:
                others += left
                break
            continue
        name, equals, value = word.partition("=")
        if name not in options and f"-{name}" in options and len(name) > 2:
            name = f"-{name}"  # -bundle, as programs in Go take it
        if name not in options:
            raise UsageError(f"no such option: {name}")
        every, takes, _ = options[name]
        if takes and not equals:
            if not left:
                raise UsageError(f"{name}: needs {takes}")
            value = left.pop(0)
        if not takes and equals:
            if value.lower() in ("false", "0", "f"):
                continue
            if value.lower() not in ("true", "1", "t"):
                raise UsageError(f"{name}: true or false, not {value}")
        found.setdefault(every[0], []).append(value)
    return found, others


def help_text(name: str = "") -> str:
    """Return the help of a command, or of all."""
    lines: list[str] = []
    if name:
        command = COMMANDS[name]
        lines += [f"usage: tegu-oci {name} [OPTIONS] {command.positional}".rstrip(), ""]
        lines += [command.summary[0].upper() + command.summary[1:] + ".", ""]
        lines += _rows(command.options)
        lines += ["", f"Example: {command.example}"]
    else:
        lines += ["usage: tegu-oci [OPTIONS] COMMAND ...", ""]
        lines += ["Run containers as the OCI runtime specification describes them.", ""]
        lines += [f"  {n:<11}{c.summary}" for n, c in COMMANDS.items()]
        lines += ["", *_rows(GLOBAL)]
        lines += ["", "Example: podman --runtime $(command -v tegu-oci) run --rm debian date"]
    return "\n".join(lines) + "\n"


def _rows(options: dict[str, tuple[tuple[str, ...], str, str]]) -> list[str]:
    rows: list[str] = []
    for name, (every, takes, purpose) in options.items():
        if name == every[0]:
            rows.append(f"  {', '.join(reversed(every)) + ' ' + takes:<28} {purpose}")
    return rows
