"""Frames as bytes: the methods that every message costs, read and written without pamqp. Pure.

A hop through the broker is a publish, a confirm, a delivery and an acknowledgement; pamqp takes 9 to 25 µs for each of
them, these functions 1 to 2 [measured: Python 3.11]. All other methods are pamqp's.
"""

from __future__ import annotations

import struct
from typing import Final

from pamqp import base

from choreo.amqp import encode

METHOD: Final = 1
HEADER: Final = 2
BODY: Final = 3
HEARTBEAT: Final = 8
END: Final = 0xCE
OVERHEAD: Final = 8  # bytes of a frame besides its payload

FRAME: Final = struct.Struct(">BHI")  # type, channel, size of the payload
NUMBER: Final = struct.Struct(">HH")  # class and method
CONTENT: Final = struct.Struct(">HHQ")  # class, weight, size of the body
SETTLE: Final = struct.Struct(">QB")  # delivery tag and one octet of flags

BEAT: Final = bytes((HEARTBEAT, 0, 0, 0, 0, 0, 0, END))
GREETING: Final = b"AMQP\x00\x00\x09\x01"

PUBLISH: Final = NUMBER.pack(60, 40)
ACK: Final = NUMBER.pack(60, 80)
REJECT: Final = NUMBER.pack(60, 90)
NACK: Final = NUMBER.pack(60, 120)

_RETURN: Final = NUMBER.pack(60, 50)
_DELIVER: Final = NUMBER.pack(60, 60)
_GET_OK: Final = NUMBER.pack(60, 71)
_CONFIRM: Final = struct.Struct(">BHI4sQBB")
_HEADER: Final = struct.Struct(">BHIHHQ")
_MAX_NAMES: Final = 4096

_shorts: dict[str, bytes] = {}  # names and routing keys repeat from message to message


def short(text: str) -> bytes:
    """Return a short string; one beyond 255 bytes is cut, which only words of ours can be."""
    known = _shorts.get(text)
    if known is None:
        content = text.encode("utf-8", "surrogateescape")
        known = encode.short(text) if len(content) <= 255 else bytes((255,)) + content[:252] + b"..."
        if len(_shorts) >= _MAX_NAMES:
            _shorts.clear()
        _shorts[text] = known
    return known


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    """Return a frame."""
    return b"%b%b\xce" % (FRAME.pack(kind, channel, len(payload)), payload)


def method(channel: int, value: base.Frame) -> bytes:
    """Return one of pamqp's methods as a frame."""
    return frame(METHOD, channel, value.index.to_bytes(4) + value.marshal())


def close(channel: int, code: int, text: str, cause: tuple[int, int]) -> bytes:
    """Return connection.close for channel 0, channel.close for any other."""
    number = NUMBER.pack(20, 40) if channel else NUMBER.pack(10, 50)
    return frame(METHOD, channel, number + code.to_bytes(2) + short(text) + NUMBER.pack(*cause))


def queue_ok(channel: int, queue: str, messages: int, consumers: int) -> bytes:
    """Return queue.declare-ok, whose name may have letters that pamqp refuses."""
    return frame(METHOD, channel, NUMBER.pack(50, 11) + short(queue) + struct.pack(">II", messages, consumers))


def confirm(channel: int, tag: int, *, multiple: bool) -> bytes:
    """Return basic.ack."""
    return _CONFIRM.pack(METHOD, channel, 13, ACK, tag, multiple, END)


def refuse(channel: int, tag: int) -> bytes:
    """Return basic.nack of one publish."""
    return _CONFIRM.pack(METHOD, channel, 13, NACK, tag, 0, END)


def deliver(tag: str, number: int, exchange: str, key: str, *, redelivered: bool) -> bytes:
    """Return the payload of basic.deliver."""
    return b"%b%b%b%b%b" % (_DELIVER, short(tag), SETTLE.pack(number, redelivered), short(exchange), short(key))


def get_ok(number: int, exchange: str, key: str, messages: int, *, redelivered: bool) -> bytes:
    """Return the payload of basic.get-ok."""
    settle = SETTLE.pack(number, redelivered)
    return _GET_OK + settle + short(exchange) + short(key) + messages.to_bytes(4)


def returned(code: int, text: str, exchange: str, key: str) -> bytes:
    """Return the payload of basic.return."""
    return _RETURN + code.to_bytes(2) + short(text) + short(exchange) + short(key)


def content(channel: int, start: bytes, properties: bytes, body: bytes, room: int) -> bytes:
    """Return a method with payload `start` and the message behind it; no frame has more than `room` bytes inside."""
    size = len(body)
    head = _HEADER.pack(HEADER, channel, 12 + len(properties), 60, 0, size)
    opening = b"%b%b\xce%b%b\xce" % (FRAME.pack(METHOD, channel, len(start)), start, head, properties)
    if not size:
        return opening
    if size <= room:
        return b"%b%b%b\xce" % (opening, FRAME.pack(BODY, channel, size), body)
    pieces = (body[at : at + room] for at in range(0, size, room))
    return opening + b"".join(frame(BODY, channel, piece) for piece in pieces)


def publication(payload: bytes) -> tuple[str, str, bool, bool]:
    """Return exchange, routing key, mandatory and immediate of basic.publish. Raises ValueError."""
    end = 7 + payload[6] if len(payload) > 6 else 0
    last = end + 1 + payload[end] if 7 <= end < len(payload) else 0
    if not last or last + 1 != len(payload):
        raise ValueError("no basic.publish")
    flags = payload[last]
    exchange, key = (str(part, "utf-8", "surrogateescape") for part in (payload[7:end], payload[end + 1 : last]))
    return exchange, key, bool(flags & 1), bool(flags & 2)


def words(value: bytes) -> str:
    """Return bytes as RabbitMQ shows the fields of a method in its errors."""
    return f"<<{','.join(map(str, value))}>>"


def snippet(payload: bytes) -> str:
    """Return the beginning of a frame as RabbitMQ shows it in its errors: as a text, if it is one."""
    start = payload[:16]
    text = all(32 <= each < 127 for each in start) and start
    shown = f'<<"{text.decode()}">>' if text else words(start)
    return f"{'all' if len(payload) <= 16 else 'first 16'} octets = {shown}"
