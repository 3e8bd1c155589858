"""A client of AMQP 0-9-1 that sends and gets bytes as they are, over one blocking socket.

Client libraries refuse to write what a broken or hostile publisher writes, and to read what the broker then delivers.
Source of all numbers: the AMQP 0-9-1 specification, and RabbitMQ's extensions to it (confirms, basic.nack).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

_METHOD, _HEADER, _BODY = 1, 2, 3
_END: Final = b"\xce"
_TIMEOUT: Final = 30.0  # seconds for any one answer

_START, _TUNE, _OPEN_OK, _CLOSE = (10, 10), (10, 30), (10, 41), (10, 50)
_CHANNEL_OPEN_OK, _CHANNEL_CLOSE = (20, 11), (20, 40)
_DECLARE_OK, _BIND_OK, _SELECT_OK = (50, 11), (50, 21), (85, 11)
_RETURN, _GET_OK, _GET_EMPTY, _ACK, _NACK = (60, 50), (60, 71), (60, 72), (60, 80), (60, 120)

# In the order of their flags, highest bit first, with their size: -1 is a short string, -4 a table, others are bytes.
_PROPERTIES: Final = {
    "content_type": -1,
    "content_encoding": -1,
    "headers": -4,
    "delivery_mode": 1,
    "priority": 1,
    "correlation_id": -1,
    "reply_to": -1,
    "expiration": -1,
    "message_id": -1,
    "timestamp": 8,
    "type": -1,
    "user_id": -1,
    "app_id": -1,
    "cluster_id": -1,
}

# The types of a field that RabbitMQ delivers, and how struct reads them; None has a length of four bytes before it.
FIELDS: Final = {
    "t": ">?",
    "b": ">b",
    "B": ">B",
    "s": ">h",
    "u": ">H",
    "I": ">i",
    "i": ">I",
    "l": ">q",
    "f": ">f",
    "d": ">d",
    "D": ">Bi",
    "T": ">Q",
    "V": ">",
    "S": None,
    "x": None,
    "F": None,
    "A": None,
}


class NotTakenError(Exception):
    """The broker closed the channel or the connection, gave a message back or did not take it."""


@dataclass(frozen=True, slots=True)
class Raw:
    """A message that was got from a queue, its properties and its key as they stood on the wire."""

    key: bytes
    properties: bytes
    body: bytes


class RawChannel:
    """One connection with one channel on a node on this machine, in confirm mode. Close it before its node ends."""

    def __init__(self, port: int, vhost: str = "/") -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else each confirm takes 80 ms [measured]
        self._reader = self._socket.makefile("rb")
        self._sent = 0
        self._unconfirmed: set[int] = set()
        self._socket.sendall(b"AMQP\x00\x00\x09\x01")
        self._expect(_START)
        login = short(b"PLAIN") + sized(b"\0guest\0guest") + short(b"en_US")
        self._method((10, 11), sized(b"") + login, channel=0)
        tuned = self._expect(_TUNE)
        self._frame_max = int.from_bytes(tuned[2:6], "big")
        self._method((10, 31), tuned[:6] + b"\x00\x00", channel=0)
        self._method((10, 40), short(vhost.encode()) + b"\x00\x00", channel=0)
        self._expect(_OPEN_OK)
        self._method((20, 10), b"\x00")
        self._expect(_CHANNEL_OPEN_OK)
        self._method((85, 10), b"\x00")
        self._expect(_SELECT_OK)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.close()
        self._socket.close()

    def bind(self, queue: str, exchange: str, key: bytes) -> None:
        """Bind `queue` to `exchange`."""
        names = short(queue.encode()) + short(exchange.encode()) + short(key)
        self._method((50, 20), b"\x00\x00" + names + b"\x00" + sized(b""))
        self._expect(_BIND_OK)

    def ready(self, queue: str) -> int:
        """Return how many messages are ready in `queue`, which must exist."""
        self._method((50, 10), b"\x00\x00" + short(queue.encode()) + b"\x01" + sized(b""))
        _, counts = cut_short(self._expect(_DECLARE_OK))
        return int.from_bytes(counts[:4], "big")

    def send(self, exchange: str, key: bytes, properties: bytes, body: bytes) -> None:
        """Publish with `mandatory`, without waiting for the confirm. `properties`: flags and values, see `pack`."""
        self._sent += 1
        self._unconfirmed.add(self._sent)
        self._method((60, 40), b"\x00\x00" + short(exchange.encode()) + short(key) + b"\x01")
        self._write(_HEADER, 1, struct.pack(">HHQ", 60, 0, len(body)) + properties)
        piece = self._frame_max - 8
        for at in range(0, len(body), piece):
            self._write(_BODY, 1, body[at : at + piece])

    def confirm(self) -> None:
        """Wait until all that was sent is confirmed. Raises NotTakenError."""
        while self._unconfirmed:
            arguments = self._expect(_ACK)
            tag, multiple = struct.unpack(">Q?", arguments[:9])
            self._unconfirmed -= {each for each in self._unconfirmed if each <= tag} if multiple else {tag}

    def get(self, queue: str) -> Raw | None:
        """Return the next message of `queue`, which is back in it when the channel closes; None: there is no more."""
        self._method((60, 70), b"\x00\x00" + short(queue.encode()) + b"\x00")
        kind, arguments = self._answer()
        if kind == _GET_EMPTY:
            return None
        assert kind == _GET_OK, kind
        _, rest = cut_short(arguments[9:])  # delivery tag and redelivered stand before the exchange
        key, _ = cut_short(rest)
        kind_of_frame, header = self._read()
        assert kind_of_frame == _HEADER
        size, body = int.from_bytes(header[4:12], "big"), bytearray()
        while len(body) < size:
            body += self._read()[1]
        return Raw(key, header[12:], bytes(body))

    def get_all(self, queue: str) -> Iterator[Raw]:
        """Return what is in `queue`; see `get`."""
        while (found := self.get(queue)) is not None:
            yield found

    def _expect(self, kind: tuple[int, int]) -> bytes:
        found, arguments = self._answer()
        if found != kind:
            raise NotTakenError(f"{found} in place of {kind}: {arguments!r}")
        return arguments

    def _answer(self) -> tuple[tuple[int, int], bytes]:
        """Return class, number and arguments of the next method."""
        kind_of_frame, payload = self._read()
        assert kind_of_frame == _METHOD, kind_of_frame
        kind = struct.unpack(">HH", payload[:4])
        if kind in (_CLOSE, _CHANNEL_CLOSE, _RETURN):
            text, _ = cut_short(payload[6:])
            raise NotTakenError(f"{int.from_bytes(payload[4:6], 'big')} {text.decode(errors='replace')}")
        if kind == _NACK:
            raise NotTakenError("nacked")
        return (kind[0], kind[1]), payload[4:]

    def _method(self, kind: tuple[int, int], arguments: bytes, channel: int = 1) -> None:
        self._write(_METHOD, channel, struct.pack(">HH", *kind) + arguments)

    def _write(self, kind: int, channel: int, payload: bytes) -> None:
        self._socket.sendall(frame(kind, channel, payload))

    def _read(self) -> tuple[int, bytes]:
        head = self._reader.read(7)
        if len(head) < 7:
            raise NotTakenError("the broker closed the connection without a word")
        kind, _, size = struct.unpack(">BHI", head)
        return kind, self._reader.read(size + 1)[:-1]


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    """Return a frame: 1 is a method, 2 a content header, 3 a piece of a body."""
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + _END


def short(content: bytes) -> bytes:
    """Return a short string: its length in one byte, then its bytes."""
    return bytes((len(content),)) + content


def sized(content: bytes) -> bytes:
    """Return a long string, a table or an array: its length in four bytes, then its bytes."""
    return struct.pack(">I", len(content)) + content


def pack(**values: bytes) -> bytes:
    """Return flags and values of the properties given, short strings and headers without their length."""
    flags, packed = 0, b""
    for bit, (name, size) in enumerate(_PROPERTIES.items()):
        if name in values:
            flags |= 1 << 15 - bit
            packed += {-1: short, -4: sized}.get(size, bytes)(values[name])
    return struct.pack(">H", flags) + packed


def unpack(properties: bytes) -> dict[str, bytes]:
    """Return the properties by name, as `pack` takes them."""
    flags, rest = int.from_bytes(properties[:2], "big"), properties[2:]
    found = {}
    for bit, (name, size) in enumerate(_PROPERTIES.items()):
        if flags & 1 << 15 - bit:
            found[name], rest = _cut(rest, size)
    return found


def fields(table: bytes) -> dict[bytes, tuple[str, bytes]]:
    """Return the fields of a table by name: the letter of their type, and their bytes without a length."""
    return {name: (kind, content) for name, kind, content in listed(table)}


def listed(table: bytes) -> list[tuple[bytes, str, bytes]]:
    """Return the fields of a table in their order, also those whose name comes twice."""
    found = []
    while table:
        name, rest = cut_short(table)
        kind, content, table = _cut_field(rest)
        found.append((name, kind, content))
    return found


def _cut_field(data: bytes) -> tuple[str, bytes, bytes]:
    kind = chr(data[0])
    form = FIELDS[kind]
    content, rest = _cut(data[1:], -4 if form is None else struct.calcsize(form))
    return kind, content, rest


def cut_short(data: bytes) -> tuple[bytes, bytes]:
    """Return the short string that `data` begins with, and what follows it."""
    return data[1 : 1 + data[0]], data[1 + data[0] :]


def _cut(data: bytes, size: int) -> tuple[bytes, bytes]:
    if size == -1:
        return cut_short(data)
    if size == -4:
        size, data = int.from_bytes(data[:4], "big"), data[4:]
    return data[:size], data[size:]
