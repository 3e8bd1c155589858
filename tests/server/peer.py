"""A client that says whatever a test wants, byte for byte, over one blocking socket."""

from __future__ import annotations

import socket
import struct
from types import TracebackType
from typing import Self, TypeVar

from pamqp import base, commands, frame, header
from pamqp.common import FieldTable

_F = TypeVar("_F", bound=base.Frame)
TIMEOUT = 10.0  # seconds
GREETING = b"AMQP\x00\x00\x09\x01"


class RefusedError(Exception):
    """The broker closed the channel or the connection in place of an answer."""


class Peer:
    """A connection to `port`; `open` does the handshake."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT)
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def open(
        self,
        *,
        login: bytes = b"\0guest\0guest",
        mechanism: str = "PLAIN",
        vhost: str = "/",
        capabilities: FieldTable | None = None,
        tune: tuple[int, int, int] = (2047, 131_072, 0),
    ) -> Self:
        """Shake hands, up to connection.open-ok."""
        self.raw(GREETING)
        self.start = self.expect(commands.Connection.Start)
        properties: FieldTable = {"capabilities": capabilities or {}}
        answer = commands.Connection.StartOk(properties, mechanism, "", "en_US")
        answer.response = login.decode("latin-1")
        self.send(answer, 0)
        self.tune = self.expect(commands.Connection.Tune)
        self.send(commands.Connection.TuneOk(*tune), 0)
        self.send(commands.Connection.Open(vhost), 0)
        self.expect(commands.Connection.OpenOk)
        return self

    def channel(self, number: int = 1) -> Self:
        """Open a channel."""
        self.send(commands.Channel.Open(), number)
        self.expect(commands.Channel.OpenOk)
        return self

    def raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.socket.sendall(data)

    def send(self, method: base.Frame, channel: int = 1) -> None:
        """Send a method."""
        self.raw(frame.marshal(method, channel))

    def ask(self, method: base.Frame, answer: type[_F], channel: int = 1) -> _F:
        """Send a method, and return what it is answered by."""
        self.send(method, channel)
        return self.expect(answer)

    def publish(self, key: str, body: bytes = b"x", exchange: str = "", *, channel: int = 1, **options: bool) -> None:
        """Publish a message."""
        self.raw(publication(key, body, exchange, channel=channel, **options))

    def next(self) -> tuple[int, int, bytes]:
        """Return type, channel and payload of the next frame. Raises EOFError when the connection is closed."""
        kind, channel, size = struct.unpack(">BHI", self._read(7))
        payload = self._read(size)
        assert self._read(1) == b"\xce"
        return kind, channel, payload

    def expect(self, answer: type[_F]) -> _F:
        """Return the next frame, which is this method."""
        kind, channel, payload = self.next()
        assert kind == 1, (kind, payload)
        found = frame.unmarshal(struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce")[2]
        if not isinstance(found, answer) and isinstance(found, commands.Connection.Close | commands.Channel.Close):
            raise RefusedError(f"{found.reply_code}: {found.reply_text}")
        assert isinstance(found, answer), found
        return found

    def content(self) -> bytes:
        """Return the body of the message whose method was read last."""
        kind, _, payload = self.next()
        assert kind == 2
        size = int.from_bytes(payload[4:12])
        body = b""
        while len(body) < size:
            kind, _, payload = self.next()
            assert kind == 3
            body += payload
        return body

    def closed(self) -> bool:
        """Wait for the end of the connection, whatever comes before it."""
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionResetError:
            pass
        return True

    def _read(self, size: int) -> bytes:
        while len(self._buffer) < size:
            data = self.socket.recv(65536)
            if not data:
                raise EOFError
            self._buffer += data
        found, self._buffer = self._buffer[:size], self._buffer[size:]
        return found


def publication(key: str, body: bytes, exchange: str = "", *, channel: int = 1, **options: bool) -> bytes:
    """Return the frames of a publish."""
    method = commands.Basic.Publish(exchange=exchange, routing_key=key, **options)
    properties = commands.Basic.Properties(delivery_mode=2)
    frames = [frame.marshal(method, channel), frame.marshal(header.ContentHeader(0, len(body), properties), channel)]
    for at in range(0, len(body), 131_064):
        piece = body[at : at + 131_064]
        frames.append(struct.pack(">BHI", 3, channel, len(piece)) + piece + b"\xce")
    return b"".join(frames)
