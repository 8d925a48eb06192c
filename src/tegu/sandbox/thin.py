"""`tegu run`: one program in a new box, with this terminal as its own, as fast as Python starts.

Stands alone on purpose: nothing but built-in modules is imported before the supervisor has the
order (`python3 -S -I thin.py -- CMD` needs no package path at all). What needs more (help, starting
the supervisor, an error that must be explained) imports the rest when it comes to that.
"""

import _socket
import os
import sys

__all__ = ["main"]

_USAGE = """usage: tegu run [OPTIONS] [--] COMMAND [ARGUMENT...]
       tegu run --image IMAGE [OPTIONS] [--] [COMMAND [ARGUMENT...]]

Run a command in a new box: a container without network (unless --network says otherwise), with a
file system of its own that ends with it. Its standard streams are yours; its exit code is the
result (128 + N after signal N, 124 after --timeout, 126 or 127 when it cannot start).

  -t, --template NAME  what it sees as its "/": a template of `tegu sandbox template list`, a
                       directory, or "host": this machine's programs (default)
      --image IMAGE    a template of an image, fetched at its first use: docker://REF,
                       oci:DIR[:TAG], oci-archive:FILE or docker-archive:FILE
      --entrypoint P   run P instead of the image's own entry point ("": none); without this,
                       COMMAND takes the place of the image's arguments
      --class CLASS    how strongly it is held: see `tegu sandbox doctor` (default: container)
  -e, --env NAME=VALUE a variable, as often as wanted
  -w, --cwd DIR        working directory in the box (default: the image's, or /)
  -u, --user ID        run as UID, UID:GID or UID:GID,GID... (default: the image's, or root)
      --timeout S      kill everything in the box after S seconds
      --memory SIZE    at most this much memory, as in 256M
      --cpus N         at most N processors, as in 0.5
      --pids N         at most N processes and threads (default: 512)
      --files N        at most N open files of one process (default: 1024)
      --disk SIZE      at most this much written (default: 256M)
      --network WHAT   "none" (default), "full", or "allow:" and names, addresses and ports:
                       allow:example.org,*.example.net:443,10.0.0.0/8
      --publish [HOST:]GUEST
                       let a port of this machine's loopback lead to one of the box
      --no-init        let the command be process 1 of the box: less memory, fewer signals
      --read-only      only /tmp, /run and /dev/shm can be written to
      --json           print the outcome as JSON on stderr when it has ended
  -h, --help           this text

Example: tegu run --memory 256M --timeout 10 -- python3 -c 'print(1 + 1)'
         tegu run --image oci:/srv/images/app:v1 -- sh -c 'id; pwd'
"""
_OPTIONS = {
    "-t": "template",
    "--template": "template",
    "--image": "image",
    "--entrypoint": "entrypoint",
    "-u": "user",
    "--user": "user",
    "--class": "kind",
    "-w": "cwd",
    "--cwd": "cwd",
    "--timeout": "timeout",
    "--memory": "memory",
    "--cpus": "cpus",
    "--pids": "pids",
    "--files": "files",
    "--disk": "disk",
    "--network": "network",
}
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class _UsageError(Exception):
    pass


def _quote(text: str) -> str:
    """Return `text` as JSON: the json module takes longer to load than all else together."""
    out = ['"']
    for c in text:
        o = ord(c)
        if c in '"\\':
            out.append("\\" + c)
        elif 0x20 <= o < 0x7F:
            out.append(c)
        elif o < 0x10000:
            out.append(f"\\u{o:04x}")
        else:
            o -= 0x10000
            out.append(f"\\u{0xD800 | o >> 10:04x}\\u{0xDC00 | o & 0x3FF:04x}")
    return "".join(out) + '"'


def _number(name: str, text: str, whole: bool) -> str:
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        raise _UsageError(f"{name}: {text!r} is not a number") from None
    if str(value) in ("nan", "inf", "-inf"):
        raise _UsageError(f"{name}: {text!r} is not a number")
    return str(value)


def _size(name: str, text: str) -> str:
    digits = text.rstrip("iBb")
    unit = digits[-1:].upper()
    factor = _UNITS.get(unit)
    if factor is not None:
        digits = digits[:-1]
    if not digits.replace(".", "", 1).isascii() or not digits.replace(".", "", 1).isdigit():
        raise _UsageError(f"{name}: {text!r} is not a size (write 64M, 1.5G or bytes)")
    if len(digits) > 30:
        raise _UsageError(f"{name}: a size of {len(digits)} digits is out of range")
    return str(int(float(digits) * (factor or 1)))


def _parse(args: list[str]) -> tuple[dict[str, str], dict[str, str], list[str], bool]:
    """Return (values by name, variables, command, --json)."""
    values: dict[str, str] = {}
    env: dict[str, str] = {}
    i = 0
    as_json = False
    while i < len(args):
        word = args[i]
        if word == "--":
            i += 1
            break
        if not word.startswith("-") or word == "-":
            break
        if word in ("-h", "--help"):
            sys.stdout.write(_USAGE)
            raise SystemExit(0)
        if word in ("--json", "--read-only", "--no-init"):
            as_json = as_json or word == "--json"
            values[word] = "true"
            i += 1
            continue
        name, mark, value = word.partition("=") if word.startswith("--") else (word, "", "")
        if name not in _OPTIONS and name not in ("-e", "--env", "--publish"):
            raise _UsageError(f"there is no option {name}")
        if not mark:
            i += 1
            if i >= len(args):
                raise _UsageError(f"{name} needs a value")
            value = args[i]
        i += 1
        if name in ("-e", "--env"):
            variable, mark, content = value.partition("=")
            if not mark or not variable:
                raise _UsageError(f"{name}: {value!r} is not NAME=VALUE")
            env[variable] = content
        elif name == "--publish":
            values[name] = f"{values[name]} {value}" if name in values else value
        else:
            values[_OPTIONS[name]] = value
    return values, env, args[i:], as_json


def _image(values: dict[str, str], env: dict[str, str], command: list[str]) -> list[str]:
    """Put what an image says of programs where the caller says nothing; return the command."""
    word = values.get("template", "")
    source = values.get("image")
    if source is not None and word:
        raise _UsageError("--image and --template are two names of one thing: give one")
    if source is None and not _named(word):
        if "entrypoint" in values:
            raise _UsageError("--entrypoint is for images: see --image")
        if not command:
            raise _UsageError("there is no command to run")
        return command
    _rest()
    from tegu.sandbox.images import find_image, obtain

    image = find_image(word) if source is None else obtain(source, _progress)
    if image is None:
        raise _UsageError(f"there is no template {word}")
    values["template"] = str(image.root)
    values.setdefault("cwd", image.cwd)
    if values.get("kind") != "process":
        values.setdefault("user", image.user)
    for name, value in image.env.items():
        env.setdefault(name, value)
    return image.command(command, values.get("entrypoint"))


def _named(word: str) -> bool:
    """Whether a word is the name of an image's template: see tegu.sandbox.images.catalog."""
    if not word or "/" in word or word == "host":
        return False
    state = os.environ.get("TEGU_SANDBOX_STATE")
    if not state and os.geteuid() == 0:
        state = "/var/lib/tegu/sandbox"
    elif not state:
        home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")  # noqa: PTH111
        state = f"{home}/tegu/sandbox"
    return os.access(f"{state}/images/names/{word}.json", os.F_OK)


def _progress(what: str) -> None:
    if os.isatty(2):
        sys.stderr.write(f"tegu: {what}\n")


def _request(values: dict[str, str], env: dict[str, str], command: list[str]) -> str:
    limits = [
        f'"{name}":{_size("--" + name, values[name])}'
        if name in ("memory", "disk")
        else f'"{name}":{_number("--" + name, values[name], name != "cpus")}'
        for name in ("memory", "disk", "pids", "files", "cpus")
        if name in values
    ]
    box = [f'"limits":{{{",".join(limits)}}}']
    template = values.get("template", "host")
    if template != "host":
        template = os.path.abspath(template)  # noqa: PTH100
    box.append(f'"template":{_quote(template)}')
    if "kind" in values:
        box.append(f'"kind":{_quote(values["kind"])}')
    if "network" in values:
        box.append(f'"network":{_quote(values["network"])}')
    if "--publish" in values:
        box.append(f'"publish":[{",".join(map(_quote, values["--publish"].split()))}]')
    if "--read-only" in values:
        box.append('"read_only":true')
    if "--no-init" in values:
        box.append('"init":false')
    run = [f'"argv":[{",".join(map(_quote, command))}]']
    run.append('"env":{' + ",".join(f"{_quote(k)}:{_quote(v)}" for k, v in env.items()) + "}")
    if "user" in values:
        run.append(f'"user":{_quote(values["user"])}')
    if "cwd" in values:
        run.append(f'"cwd":{_quote(values["cwd"])}')
    if "timeout" in values:
        run.append(f'"timeout":{_number("--timeout", values["timeout"], False)}')
    return f'{{"n":1,"op":"once","box":{{{",".join(box)}}},"run":{{{",".join(run)}}}}}'


def _path() -> str:
    named = os.environ.get("TEGU_SANDBOX_SOCKET")
    if named:
        return named
    if os.geteuid() == 0:
        return "/run/tegu/sandbox.sock"
    base = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    return base + "/tegu/sandbox.sock"


def _rest() -> None:
    """Make the package importable when this file was started on its own."""
    source = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120
    if source not in sys.path:
        sys.path.insert(0, source)


def _connect() -> _socket.socket:
    link = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    try:
        link.connect(_path())
    except (FileNotFoundError, ConnectionRefusedError):
        link.close()
        _rest()
        from tegu.sandbox.launch import connect

        return connect()
    return link


def _streams() -> list[int]:
    """Return 0, 1 and 2, with /dev/null for what is closed."""
    fds = []
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            fds.append(opened)
        else:
            fds.append(fd)
    return fds


def _feed(link: _socket.socket, reader: int, writer: int) -> None:
    """Pump our standard input into a pipe until there is an answer; put back what nobody read."""
    import fcntl
    import select
    import termios

    os.set_blocking(writer, False)
    poll = select.poll()
    poll.register(link, select.POLLIN)
    poll.register(writer, select.POLLOUT)
    rest = b""
    while link.fileno() not in [fd for fd, _ in poll.poll()]:
        rest = rest or os.read(0, 65536)
        if not rest:
            poll.unregister(writer)
            os.close(writer)
            continue
        try:
            rest = rest[os.write(writer, rest) :]
        except BlockingIOError:
            continue
    pending = fcntl.ioctl(reader, termios.FIONREAD, bytes(4))
    unread = len(rest) + int.from_bytes(pending, sys.byteorder)
    if unread:
        os.lseek(0, -unread, os.SEEK_CUR)  # as if the program itself had read the file


def _converse(args: list[str]) -> int:
    values, env, command, as_json = _parse(args)
    command = _image(values, env, command)
    request = _request(values, env, command).encode()
    streams = _streams()  # first: a socket may otherwise become number 0
    # S_ISREG or S_ISBLK: the box could open the file again through /proc/self/fd/0, for writing.
    writer = -1
    if os.fstat(streams[0]).st_mode & 0o170000 in (0o100000, 0o060000):
        streams[0], writer = os.pipe()
    link = _connect()
    rights = b"".join(fd.to_bytes(4, sys.byteorder) for fd in streams)
    link.sendmsg([request], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
    if writer >= 0:
        _feed(link, streams[0], writer)
    answer = link.recv(65536)
    if not answer:
        sys.stderr.write("tegu: the supervisor has ended, and the box with it\n")
        return 20
    # The usual end, without a parser: our own supervisor's words, in a fixed order.
    if answer.startswith(b'{"n":1,"ok":{"code":') and not as_json:
        head = answer[20:]
        if b'"timed_out":false,"out_of_memory":false' in head:
            return int(head[: head.index(b",")])
    return _explain(answer, as_json)


def _explain(answer: bytes, as_json: bool) -> int:
    import json

    message = json.loads(answer)
    if as_json:
        sys.stderr.write(json.dumps(message.get("ok", {"error": message.get("error")})) + "\n")
    if "error" in message:
        error = message["error"]
        if not as_json:
            sys.stderr.write(f"tegu: {error['message']}\n")
            if error.get("hint"):
                sys.stderr.write(f"      {error['hint']}\n")
        if "errno" in error:
            return 127 if error["errno"] == 2 else 126
        return {"UsageError": 2, "UnsupportedError": 12}.get(error["kind"], 20)
    outcome = message["ok"]
    if outcome["timed_out"]:
        if not as_json:
            sys.stderr.write("tegu: timeout: everything in the box was killed\n")
        return 124
    if outcome["out_of_memory"] and not as_json:
        sys.stderr.write("tegu: killed at the memory limit\n")
    return int(outcome["code"])


def main(args: list[str]) -> int:
    """Run a command as `args` say; returns the exit code."""
    try:
        return _converse(args)
    except _UsageError as e:
        sys.stderr.write(f"tegu: run: {e}\n      see 'tegu run --help'\n")
        return 2
    except KeyboardInterrupt:
        return 130  # our connection closes, and the supervisor kills the box
    except OSError as e:
        what = f"{e.filename}: " if e.filename else ""
        sys.stderr.write(f"tegu: run: {what}{e.strerror or e}\n")
        return 20
    except Exception as e:  # a TeguError, whose module is not loaded in the usual case
        message = getattr(e, "message", None)
        if message is None:
            raise
        sys.stderr.write(f"tegu: {message}\n")
        hint = getattr(e, "hint", None)
        if hint:
            sys.stderr.write(f"      {hint}\n")
        return int(getattr(e, "exit_code", 20))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
