"""The shapes of our own API: fields of bodies, and of answers."""

from __future__ import annotations

from typing import Any

from tegu.sandbox.web.fields import Field

__all__ = ["ANSWERS", "MOVE", "NEW_SANDBOX", "RUN", "SIGNAL", "SIZE", "START", "TIMEOUT"]

NEW_SANDBOX = (
    Field("template", "text", "A template's name (default: base)."),
    Field("class", "text", "How strongly it is held (default: container)."),
    Field("timeout", "number", "Seconds that it lives (default: 300)."),
    Field("on_timeout", "text", "What then happens (default: kill).", choices=("kill", "pause")),
    Field("wake", "flag", "Whether a call on it resumes it when it is paused."),
    Field("memory", "whole or text", "Bytes at most, or text such as 256M."),
    Field("cpus", "number", "Processors at most, as in 0.5."),
    Field("pids", "whole", "Processes and threads at most."),
    Field("files", "whole", "Open files of one process at most."),
    Field("disk", "whole or text", "Bytes written at most, or text such as 1G."),
    Field("read_only", "flag", "Only /tmp, /run and /dev/shm can be written to."),
    Field("hostname", "text", "Its host name."),
    Field("network", "text or texts", "What it may reach: none, full, or names and addresses."),
    Field("env", "table", "Variables of all its programs."),
    Field("metadata", "table", "What its owner notes about it."),
)
TIMEOUT = (Field("seconds", "number", "Seconds from now.", required=True),)
_PROGRAM = (
    Field(
        "command", "text or texts", "A list is run as it is; text goes to /bin/sh.", required=True
    ),
    Field("env", "table", "Variables, added to the sandbox's."),
    Field("cwd", "text", "Working directory (default: /)."),
    Field("timeout", "number", "Seconds after which it is killed with all that it left."),
)
RUN = (
    *_PROGRAM,
    Field("stdin", "text", "What it reads (default: nothing)."),
    Field("stdin_base64", "base64", "The same, as bytes."),
    Field(
        "max_output", "whole", "Bytes of each output that are kept (at most and default 16 MiB)."
    ),
)
START = (
    *_PROGRAM,
    Field("tag", "text", "A name to find it by."),
    Field("stdin", "flag", "Whether it has a stdin to write to (default: true)."),
    Field("terminal", "object", "Give it a terminal: {rows, columns}."),
)
SIGNAL = (Field("signal", "text or whole", "As in TERM, INT, KILL, or a number.", required=True),)
SIZE = (
    Field("rows", "whole", "Rows.", required=True),
    Field("columns", "whole", "Columns.", required=True),
)
MOVE = (
    Field("from", "text", "The path.", required=True),
    Field("to", "text", "The new path.", required=True),
)

_TEXT: dict[str, Any] = {"type": "string"}
_WHOLE: dict[str, Any] = {"type": "integer"}
_NUMBER: dict[str, Any] = {"type": "number"}
_FLAG: dict[str, Any] = {"type": "boolean"}
_TABLE: dict[str, Any] = {"type": "object", "additionalProperties": _TEXT}


def _maybe(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "type": [schema["type"], "null"]}


def _record(*optional: str, **properties: dict[str, Any]) -> dict[str, Any]:
    names = {name.rstrip("_"): schema for name, schema in properties.items()}
    required = [name for name in names if name not in optional]
    return {
        "type": "object",
        "properties": names,
        "required": required,
        "additionalProperties": False,
    }


ANSWERS: dict[str, dict[str, Any]] = {
    "Sandbox": _record(
        "token",
        id=_TEXT,
        state={"enum": ["running", "paused"]},
        template=_TEXT,
        class_=_TEXT,
        created={**_NUMBER, "description": "Seconds since 1970."},
        ends={**_maybe(_NUMBER), "description": "When its time is over; null while it is paused."},
        on_timeout={"enum": ["kill", "pause"]},
        wake=_FLAG,
        metadata=_TABLE,
        memory=_maybe(_WHOLE),
        cpus=_maybe(_NUMBER),
        pids=_WHOLE,
        files=_WHOLE,
        disk=_WHOLE,
        read_only=_FLAG,
        network={"anyOf": [{"enum": ["none", "full"]}, {"type": "array", "items": _TEXT}]},
        token={**_TEXT, "description": "Opens its processes and files over the E2B wire."},
    ),
    "Page": _record(
        sandboxes={"type": "array", "items": {"$ref": "#/components/schemas/Sandbox"}},
        next={**_maybe(_TEXT), "description": "What to say as `after`; null on the last page."},
    ),
    "Health": _record(
        version=_TEXT,
        sandboxes=_WHOLE,
        paused=_WHOLE,
        started=_WHOLE,
        templates={"type": "array", "items": _TEXT},
    ),
    "Sample": _record(
        time=_NUMBER,
        cpus=_NUMBER,
        cpu_seconds=_NUMBER,
        cpu_percent={**_NUMBER, "description": "Of one processor, since the sample before."},
        memory=_WHOLE,
        memory_total=_WHOLE,
        disk=_WHOLE,
        disk_total=_WHOLE,
        processes=_WHOLE,
    ),
    "LogLine": _record(time=_NUMBER, text=_TEXT),
    "Result": _record(
        "stdout",
        "stderr",
        "stdout_base64",
        "stderr_base64",
        exit_code={**_WHOLE, "description": "128 + N when signal N killed it."},
        signal=_WHOLE,
        timed_out=_FLAG,
        out_of_memory=_FLAG,
        seconds=_NUMBER,
        user=_NUMBER,
        system=_NUMBER,
        max_rss=_WHOLE,
        truncated={**_FLAG, "description": "There was more output than was to be kept."},
        stdout=_TEXT,
        stderr=_TEXT,
        stdout_base64={**_TEXT, "description": "Instead of stdout, when that is no UTF-8."},
        stderr_base64={**_TEXT, "description": "Instead of stderr, when that is no UTF-8."},
    ),
    "Process": _record(
        pid=_WHOLE,
        command={"type": "array", "items": _TEXT},
        cwd=_TEXT,
        tag=_maybe(_TEXT),
        state={"enum": ["running", "ended"]},
        exit_code=_maybe(_WHOLE),
        lost={**_WHOLE, "description": "Bytes of output dropped while nobody was attached."},
    ),
    "File": _record(
        name=_TEXT,
        path=_TEXT,
        kind={"enum": ["file", "directory", "link", "other"]},
        size=_WHOLE,
        mode=_WHOLE,
        permissions=_TEXT,
        owner=_TEXT,
        group=_TEXT,
        modified={**_NUMBER, "description": "Seconds since 1970."},
        target={**_maybe(_TEXT), "description": "Where a link leads."},
        metadata=_TABLE,
    ),
    "Error": _record(
        "hint",
        code={**_WHOLE, "description": "The HTTP status."},
        message=_TEXT,
        error_code={**_TEXT, "description": "Its kind, as Connect RPC names it."},
        hint={**_TEXT, "description": "What to do."},
    ),
}
