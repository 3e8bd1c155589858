"""The smallest AMQP client that a referee needs: it fills queues, sends at a pace, and looks at what is left.

It belongs to no contender, speaks over one blocking socket, and hands out frames as bytes: a backlog is one message
that a contender published itself, copied as it came, with only the ids and the order's number changed.
"""

from __future__ import annotations

import re
import select
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import unquote, urlsplit

from pamqp import commands, frame, header

_HEAD: Final = struct.Struct(">BHI")  # type, channel, size of the payload
_ACK: Final = struct.Struct(">HHQB")  # class, method, delivery tag, multiple
_METHOD, _HEADER, _BODY, _HEARTBEAT = 1, 2, 3, 8
_BATCH: Final = 500  # messages in one write
_WINDOW: Final = 5000  # messages without a confirm
_PATIENCE: Final = 60.0  # seconds for any answer of the broker
_ANSWER: Final = 10.0  # seconds for the last answer of a contender

# What has to differ from copy to copy, at its length: the order's number, and the end of any UUID, dashed or not.
VARYING: Final = re.compile(rb"(?<=o-)\d{8}|(?<=[0-9a-f]{20})[0-9a-f]{12}(?![0-9a-f])|(?<=[0-9a-f]{4}-)[0-9a-f]{12}")
ORDER: Final = re.compile(rb"o-(\d{8})")


@dataclass(frozen=True, slots=True)
class Copies:
    """A message as it stands on the wire, to be published any number of times."""

    parts: tuple[bytes, ...]
    widths: tuple[int, ...]
    message: tuple[str, bytes, bytes]

    @classmethod
    def of(cls, exchange: str, routing_key: str, head: bytes, content: bytes) -> Copies:
        """Return copies of the message with the raw header payload `head` and the body `content`."""
        publish = frame.marshal(commands.Basic.Publish(exchange=exchange, routing_key=routing_key), 1)
        whole = publish + _frame(_HEADER, head) + _frame(_BODY, content)
        found = list(VARYING.finditer(whole))
        edges = [0, *(edge for each in found for edge in each.span()), len(whole)]
        parts = tuple(whole[edges[i] : edges[i + 1]] for i in range(0, len(edges), 2))
        return cls(parts, tuple(len(each.group()) for each in found), (routing_key, head, content))

    def to(self, exchange: str) -> Copies:
        """Return the same message for another exchange."""
        return Copies.of(exchange, *self.message)

    def copy(self, number: int) -> bytes:
        """Return the frames of copy `number`."""
        pieces = [self.parts[0]]
        for width, part in zip(self.widths, self.parts[1:], strict=True):
            pieces += (b"%0*d" % (width, number), part)
        return b"".join(pieces)


class Wire:
    """One connection with one channel, as a context manager."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._login = f"\0{unquote(parts.username or 'guest')}\0{unquote(parts.password or 'guest')}"
        self._vhost = unquote(parts.path[1:]) or "/"
        self._socket = socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 5672), _PATIENCE)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray()
        self._confirmed = 0
        self._published = 0

    def __enter__(self) -> Self:
        self._socket.sendall(frame.marshal(header.ProtocolHeader(), 0))
        self._expect("Connection.Start")
        self._send(commands.Connection.StartOk({}, "PLAIN", self._login), 0)
        tune = self._expect("Connection.Tune")
        self._send(commands.Connection.TuneOk(tune.channel_max, tune.frame_max, 0), 0)
        self._send(commands.Connection.Open(self._vhost), 0)
        self._expect("Connection.OpenOk")
        self._call(commands.Channel.Open())
        self._call(commands.Confirm.Select())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._socket.close()

    def declare(self, queue: str) -> None:
        """Declare a plain durable quorum queue."""
        self._call(commands.Queue.Declare(queue=queue, durable=True, arguments={"x-queue-type": "quorum"}))

    def exchange(self, name: str) -> None:
        """Declare a durable topic exchange."""
        self._call(commands.Exchange.Declare(exchange=name, exchange_type="topic", durable=True))

    def bind(self, queue: str, exchange: str, key: str) -> None:
        """Bind `queue` to `exchange`."""
        self._call(commands.Queue.Bind(queue=queue, exchange=exchange, routing_key=key))

    def purge(self, queue: str) -> None:
        """Empty `queue`."""
        self._call(commands.Queue.Purge(queue=queue))

    def ready(self, queue: str) -> int:
        """Return how many messages wait in `queue`."""
        return int(self._look(queue).message_count)

    def consumers(self, queue: str) -> int:
        """Return how many consumers `queue` has."""
        return int(self._look(queue).consumer_count)

    def sample(self, queue: str) -> Copies:
        """Take one message out of `queue`, which holds one, and return it ready to be copied."""
        self._send(commands.Basic.Get(queue=queue, no_ack=True))
        got = self._expect("Basic.GetOk", "Basic.GetEmpty")
        assert got.name == "Basic.GetOk", f"{queue} is empty"
        head, content = self._content()
        return Copies.of(got.exchange, got.routing_key, head, content)

    def publish(self, exchange: str, routing_key: str, content: bytes) -> None:
        """Publish one message of JSON without headers."""
        properties = commands.Basic.Properties(content_type="application/json", delivery_mode=2)
        head = frame.marshal(header.ContentHeader(body_size=len(content), properties=properties), 1)[_HEAD.size : -1]
        self.fill(Copies.of(exchange, routing_key, head, content), 1)

    def fill(self, copies: Copies, count: int) -> None:
        """Publish `count` copies, as fast as the broker confirms them."""
        goal = self._published + count
        for begin in range(0, count, _BATCH):
            numbers = range(begin, min(begin + _BATCH, count))
            self._socket.sendall(b"".join(map(copies.copy, numbers)))
            self._published += len(numbers)
            while self._published - self._confirmed > _WINDOW:
                self._confirm()
        while self._confirmed < goal:
            self._confirm()

    def paced(self, copies: Copies, queue: str, count: int, rate: float) -> list[float]:
        """Publish `count` copies at `rate` a second, and return how many seconds each one's answer took.

        The answer is the message with the same order's number that arrives in `queue`; an empty text stands for the one
        of the last time.
        """
        if queue:
            self._call(commands.Basic.Consume(queue=queue, no_ack=True))
        sent = [0.0] * count
        took: list[float] = []
        begin = time.perf_counter()
        number = 0
        while len(took) < count:
            now = time.perf_counter()
            due = begin + number / rate
            if number < count and now >= due:
                message = copies.copy(number)
                sent[number] = time.perf_counter()
                self._socket.sendall(message)
                number += 1
                continue
            wait = due - now if number < count else _ANSWER
            if not select.select([self._socket], [], [], wait)[0]:
                if number == count:
                    raise TimeoutError(f"{count - len(took)} of {count} events were never answered")
                continue
            data = self._socket.recv(1 << 16)
            arrived = time.perf_counter()
            self._buffer += data
            for kind, payload in self._frames():
                if kind == _BODY and (order := ORDER.search(payload)):
                    took.append(arrived - sent[int(order[1])])
        return took

    def _look(self, queue: str) -> Any:
        return self._call(commands.Queue.Declare(queue=queue, passive=True))

    def _call(self, method: Any) -> Any:
        self._send(method)
        return self._expect(f"{method.name}Ok")

    def _send(self, method: Any, channel: int = 1) -> None:
        self._socket.sendall(frame.marshal(method, channel))

    def _expect(self, *names: str) -> Any:
        while True:
            kind, payload = self._next()
            if kind != _METHOD:
                continue
            method: Any = frame.unmarshal(_frame(kind, payload))[2]
            if method.name in names:
                return method
            if method.name in {"Channel.Close", "Connection.Close"}:
                raise ConnectionError(f"the broker said {method.reply_code}: {method.reply_text}")

    def _content(self) -> tuple[bytes, bytes]:
        _, head = self._next()
        size = struct.unpack_from(">Q", head, 4)[0]
        content = b""
        while len(content) < size:
            content += self._next()[1]
        return head, content

    def _confirm(self) -> None:
        kind, payload = self._next()
        if kind == _METHOD and payload[:4] == b"\x00\x3c\x00\x50":
            _, _, tag, multiple = _ACK.unpack(payload)
            self._confirmed = tag if multiple else self._confirmed + 1
        elif kind == _METHOD:
            raise ConnectionError(f"the broker took not all of a backlog: {frame.unmarshal(_frame(kind, payload))[2]}")

    def _next(self) -> tuple[int, bytes]:
        while True:
            for found in self._frames():
                return found
            data = self._socket.recv(1 << 18)
            if not data:
                raise ConnectionError("the broker has closed the connection")
            self._buffer += data

    def _frames(self) -> Iterator[tuple[int, bytes]]:
        while len(self._buffer) >= _HEAD.size:
            kind, _, size = _HEAD.unpack_from(self._buffer)
            end = _HEAD.size + size
            if len(self._buffer) <= end:
                return
            payload = bytes(self._buffer[_HEAD.size : end])
            del self._buffer[: end + 1]
            if kind != _HEARTBEAT:
                yield kind, payload


def _frame(kind: int, payload: bytes, channel: int = 1) -> bytes:
    return _HEAD.pack(kind, channel, len(payload)) + payload + b"\xce"
