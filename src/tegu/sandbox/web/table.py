"""The operations of our own API, in the order in which they are described."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tegu.sandbox.web import schemas
from tegu.sandbox.web.fields import Field
from tegu.sandbox.web.operation import Answer, Operation
from tegu.sandbox.web.sockets import PROCESS_PROTOCOL, WATCH_PROTOCOL

if TYPE_CHECKING:
    from tegu.sandbox.web.api import Api

__all__ = ["operations"]

_NO_BODY = Answer(204, "Done.")


def operations(api: Api) -> list[Operation]:
    """Return all operations, in the order of the description."""
    one = "/sandboxes/{sandbox}"
    process = f"{one}/processes/{{pid}}"
    path = Field("path", "text", "A path in the sandbox.", required=True)
    sandbox = Answer(200, "The sandbox.", "Sandbox")
    return [
        Operation(
            "GET",
            "/health",
            "health",
            "Say that the service works, and how many sandboxes it holds.",
            Answer(200, "It works.", "Health"),
            api.health,
        ),
        Operation(
            "POST",
            "/sandboxes",
            "createSandbox",
            "Make a sandbox.",
            Answer(201, "The sandbox, with its access token.", "Sandbox"),
            api.create,
            body=schemas.NEW_SANDBOX,
        ),
        Operation(
            "GET",
            "/sandboxes",
            "listSandboxes",
            "List the sandboxes, the oldest first.",
            Answer(200, "One page.", "Page"),
            api.list,
            query=(
                Field("limit", "whole", "At most so many (default 100)."),
                Field("after", "text", "Those after this one: `next` of the page before."),
            ),
        ),
        Operation("GET", one, "getSandbox", "Find a sandbox.", sandbox, api.get),
        Operation(
            "DELETE",
            one,
            "killSandbox",
            "End a sandbox with all that is in it; answered when nothing is left.",
            _NO_BODY,
            api.kill,
        ),
        Operation(
            "POST",
            f"{one}/timeout",
            "setTimeout",
            "Let a sandbox live for so many seconds from now.",
            sandbox,
            api.timeout,
            body=schemas.TIMEOUT,
        ),
        Operation(
            "POST",
            f"{one}/pause",
            "pauseSandbox",
            "Stop every program where it stands. Its time stands still.",
            sandbox,
            api.pause,
        ),
        Operation(
            "POST",
            f"{one}/resume",
            "resumeSandbox",
            "Let a paused sandbox go on, and live for so many seconds.",
            sandbox,
            api.resume,
            body=schemas.TIMEOUT,
        ),
        Operation(
            "GET",
            f"{one}/metrics",
            "getMetrics",
            "What a sandbox uses: now, and every five seconds of the last hour.",
            Answer(200, "The oldest first.", "Sample", many=True),
            api.metrics,
        ),
        Operation(
            "GET",
            f"{one}/log",
            "getLog",
            "What happened to a sandbox: its programs' starts and ends, pauses, timeouts.",
            Answer(200, "The oldest first.", "LogLine", many=True),
            api.log,
        ),
        Operation(
            "POST",
            f"{one}/run",
            "run",
            "Run a program to its end. Giving the call up kills it.",
            Answer(200, "How it ended.", "Result"),
            api.run,
            body=schemas.RUN,
        ),
        Operation(
            "POST",
            f"{one}/processes",
            "startProcess",
            "Start a program, and leave it running.",
            Answer(201, "The process.", "Process"),
            api.start,
            body=schemas.START,
        ),
        Operation(
            "GET",
            f"{one}/processes",
            "listProcesses",
            "List the programs that were started here, and those that ended lately.",
            Answer(200, "In order of their start.", "Process", many=True),
            api.processes,
        ),
        Operation(
            "GET",
            process,
            "getProcess",
            "Find a program.",
            Answer(200, "The process.", "Process"),
            api.process,
        ),
        Operation(
            "GET",
            f"{process}/stream",
            "attach",
            "Attach to a program: its output as it comes, its input, signals, its size.",
            Answer(101, "The stream."),
            api.attach,
            websocket=PROCESS_PROTOCOL,
        ),
        Operation(
            "POST",
            f"{process}/stdin",
            "sendInput",
            "Send the body to its stdin or terminal.",
            _NO_BODY,
            api.input,
            query=(Field("end", "flag", "End its stdin afterwards."),),
            raw=True,
        ),
        Operation(
            "POST",
            f"{process}/signal",
            "sendSignal",
            "Send a signal to the program; KILL ends it with all that it left.",
            _NO_BODY,
            api.signal,
            body=schemas.SIGNAL,
        ),
        Operation(
            "POST",
            f"{process}/size",
            "resize",
            "Change the size of its terminal.",
            _NO_BODY,
            api.resize,
            body=schemas.SIZE,
        ),
        Operation(
            "GET",
            f"{one}/files/content",
            "readFile",
            "Read a file. A Range header gives a part of it.",
            Answer(200, "Its content.", media="application/octet-stream"),
            api.read,
            query=(path,),
        ),
        Operation(
            "PUT",
            f"{one}/files/content",
            "writeFile",
            "Write a file; it is replaced if it is there, directories above it are made.",
            Answer(200, "The file.", "File"),
            api.write,
            query=(path,),
            raw=True,
        ),
        Operation(
            "GET",
            f"{one}/files",
            "listFiles",
            "List a directory.",
            Answer(200, "Its entries, by name.", "File", many=True),
            api.files,
            query=(path, Field("depth", "whole", "How many levels (default 1).")),
        ),
        Operation(
            "GET",
            f"{one}/files/stat",
            "statFile",
            "Look at a path. A link is itself.",
            Answer(200, "The file.", "File"),
            api.stat,
            query=(path,),
        ),
        Operation(
            "DELETE",
            f"{one}/files",
            "removeFile",
            "Remove a file, a link, or a directory with all that is in it.",
            _NO_BODY,
            api.remove,
            query=(path,),
        ),
        Operation(
            "POST",
            f"{one}/files/directory",
            "makeDirectory",
            "Make a directory and those above it; it may be there already.",
            Answer(200, "The directory.", "File"),
            api.mkdir,
            body=(path,),
        ),
        Operation(
            "POST",
            f"{one}/files/move",
            "moveFile",
            "Rename a file or a directory; what was there is replaced.",
            Answer(200, "The file.", "File"),
            api.move,
            body=schemas.MOVE,
        ),
        Operation(
            "GET",
            f"{one}/files/watch",
            "watchFiles",
            "Watch a directory.",
            Answer(101, "The stream."),
            api.watch,
            query=(path, Field("recursive", "flag", "And all below it.")),
            websocket=WATCH_PROTOCOL,
        ),
        Operation(
            "*",
            f"{one}/ports/{{port}}/{{path:.*}}",
            "forward",
            "Send the request on to what listens at a port in the sandbox; a WebSocket as well. Of "
            "the headers Authorization and X-API-Key stay behind.",
            Answer(200, "What it answers."),
            api.port,
            any_query=True,
        ),
    ]
