"""ttrpc over NRI's multiplexed connection: frames in, frames out, no thread.

One socket carries several logical connections: each piece has the connection's number and its own
length before it, big-endian (containerd/nri, pkg/net/multiplex). On a logical connection, ttrpc
frames have length, stream, type and flags before the message (containerd/ttrpc, PROTOCOL.md).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tegu.errors import QosError

if TYPE_CHECKING:
    from tegu.qos.kubernetes.nri_pb2 import Response

__all__ = [
    "PLUGIN",
    "RUNTIME",
    "ClosedError",
    "Frame",
    "Link",
    "ProtocolError",
    "Splitter",
    "pieces",
]

PLUGIN, RUNTIME = 1, 2
"""Logical connections: calls to the plugin, and calls of the plugin to the runtime."""
REQUEST, RESPONSE = 1, 2
_PIECE = struct.Struct(">II")
_FRAME = struct.Struct(">IIBB")
_MOST_PIECE = 1 << 24
_MOST_FRAME = 4 << 20
_WRITE = 4096
"""Bytes of a piece we write: the runtime reads through buffers of this size, and refuses more."""


class ProtocolError(QosError):
    """The runtime sent what is not NRI."""


class ClosedError(QosError):
    """The runtime closed the connection."""


@dataclass(frozen=True)
class Frame:
    """One ttrpc message: the logical connection, its stream, REQUEST or RESPONSE, the bytes."""

    connection: int
    stream: int
    kind: int
    data: bytes


@dataclass
class Splitter:
    """Takes bytes as they come, gives frames when they are whole."""

    _raw: bytearray = field(default_factory=bytearray)
    _logical: dict[int, bytearray] = field(default_factory=dict)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that `data` completes; raises ProtocolError on lengths beyond all."""
        self._raw += data
        while len(self._raw) >= _PIECE.size:
            connection, length = _PIECE.unpack_from(self._raw)
            if length > _MOST_PIECE:
                raise ProtocolError(f"NRI: a piece of {length} bytes")
            end = _PIECE.size + length
            if len(self._raw) < end:
                return
            waiting = self._logical.setdefault(connection, bytearray())
            waiting += self._raw[_PIECE.size : end]
            del self._raw[:end]
            yield from self._frames(connection, waiting)

    def _frames(self, connection: int, waiting: bytearray) -> Iterator[Frame]:
        while len(waiting) >= _FRAME.size:
            length, stream, kind, _flags = _FRAME.unpack_from(waiting)
            if length > _MOST_FRAME:
                raise ProtocolError(f"ttrpc: a message of {length} bytes")
            end = _FRAME.size + length
            if len(waiting) < end:
                return
            data = bytes(waiting[_FRAME.size : end])
            del waiting[:end]
            yield Frame(connection, stream, kind, data)


def pieces(frame: Frame) -> bytes:
    """Return `frame` as it is sent."""
    data = _FRAME.pack(len(frame.data), frame.stream, frame.kind, 0) + frame.data
    parts = (data[i : i + _WRITE] for i in range(0, len(data), _WRITE))
    return b"".join(_PIECE.pack(frame.connection, len(p)) + p for p in parts)


class Link:
    """A connected socket that calls the runtime and answers its calls, one after the other."""

    def __init__(
        self,
        sock: socket.socket,
        answer: Callable[[str, bytes], bytes],
        settle: Callable[[bool], None],
    ) -> None:
        """`answer` gets a method's name and its request, and returns the response.

        It raises NotImplementedError for a method it does not have. `settle` is called when the
        responses are sent, and, with true, when the socket's timeout went by without a call.
        """
        self._sock = sock
        self._answer = answer
        self._settle = settle
        self._splitter = Splitter()
        self._streams = 1

    def call(self, service: str, method: str, payload: bytes) -> None:
        """Send a request; `run` reports when it fails."""
        from tegu.qos.kubernetes.nri_pb2 import Request

        data = Request(service=service, method=method, payload=payload).SerializeToString()
        self._send(Frame(RUNTIME, self._streams, REQUEST, data))
        self._streams += 2  # odd numbers are the client's

    def run(self) -> None:
        """Answer until the other side closes (ClosedError), or the socket is shut down.

        Raises QosError when a call of ours was refused.
        """
        while True:
            try:
                data = self._sock.recv(1 << 16)
            except TimeoutError:
                self._settle(True)
                continue
            except OSError as e:
                raise ClosedError(f"NRI: {e.strerror or e}") from e
            if not data:
                raise ClosedError("the container runtime closed the connection")
            for frame in self._splitter.feed(data):
                self._take(frame)
            self._settle(False)

    def _take(self, frame: Frame) -> None:
        from google.protobuf.message import DecodeError

        from tegu.qos.kubernetes.nri_pb2 import Request, Response

        try:
            if frame.connection == RUNTIME and frame.kind == RESPONSE:
                status = Response.FromString(frame.data).status
                if status.code:
                    raise QosError(f"the container runtime refuses: {status.message}")
            elif frame.connection == PLUGIN and frame.kind == REQUEST:
                request = Request.FromString(frame.data)
                response = self._respond(request.method, request.payload)
                data = response.SerializeToString()
                self._send(Frame(PLUGIN, frame.stream, RESPONSE, data))
        except DecodeError as e:
            raise ProtocolError(f"NRI: not a message: {e}") from e

    def _respond(self, method: str, payload: bytes) -> Response:
        from tegu.qos.kubernetes.nri_pb2 import Response, Status

        try:
            return Response(payload=self._answer(method, payload))
        except NotImplementedError:
            code = 12  # google.rpc.Code UNIMPLEMENTED
            return Response(status=Status(code=code, message=f"{method} is not known here"))

    def _send(self, frame: Frame) -> None:
        try:
            self._sock.sendall(pieces(frame))
        except OSError as e:
            raise ClosedError(f"NRI: {e.strerror or e}") from e
