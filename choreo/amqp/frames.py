"""Frames of AMQP 0-9-1 as bytes, and the methods that every message costs, for both sides. Pure.

A frame is type, channel, size, payload and the octet 0xCE. A method's payload begins with its class and number, here
one 32-bit word. A hop is a publish, a confirm, a delivery and an acknowledgement: pamqp takes 9 to 25 µs for each of
them, these functions 1 to 2 [measured: Python 3.11]. All other methods are pamqp's.
"""

from __future__ import annotations

import struct
from typing import Final

from choreo.amqp import encode

METHOD: Final = 1
HEADER: Final = 2
BODY: Final = 3
HEARTBEAT: Final = 8
END: Final = 0xCE
OVERHEAD: Final = 8  # bytes of a frame besides its payload

FRAME: Final = struct.Struct(">BHI")  # type, channel, size of the payload
NUMBER: Final = struct.Struct(">I")  # class and method
CONTENT: Final = struct.Struct(">HHQ")  # a content header up to its properties: class, weight, size of the body
CONTENT_FRAME: Final = struct.Struct(">BHIHHQ")  # both in one: the whole header frame up to its properties
TAG: Final = struct.Struct(">QB")  # delivery tag and one octet of flags

GREETING: Final = b"AMQP\x00\x00\x09\x01"
BEAT: Final = bytes((HEARTBEAT, 0, 0, 0, 0, 0, 0, END))

CONNECTION_CLOSE: Final = 10 << 16 | 50
CONNECTION_BLOCKED: Final = 10 << 16 | 60
CONNECTION_UNBLOCKED: Final = 10 << 16 | 61
CHANNEL_OPEN: Final = 20 << 16 | 10
CHANNEL_CLOSE: Final = 20 << 16 | 40
CHANNEL_CLOSE_OK: Final = 20 << 16 | 41
DECLARE_OK: Final = 50 << 16 | 11
PUBLISH: Final = 60 << 16 | 40
RETURN: Final = 60 << 16 | 50
DELIVER: Final = 60 << 16 | 60
GET_OK: Final = 60 << 16 | 71
ACK: Final = 60 << 16 | 80
REJECT: Final = 60 << 16 | 90
NACK: Final = 60 << 16 | 120

MULTIPLE: Final = 1  # flag of ack and nack
REQUEUE: Final = 2  # flag of nack
MANDATORY: Final = 1  # flags of publish
IMMEDIATE: Final = 2

_SETTLE: Final = struct.Struct(">BHIIQBB")  # a whole frame


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    """Return a frame."""
    return b"%b%b\xce" % (FRAME.pack(kind, channel, len(payload)), payload)


def ack(channel: int, tag: int, *, multiple: bool) -> bytes:
    """Return basic.ack: of a delivery, or of a publish."""
    return _SETTLE.pack(METHOD, channel, 13, ACK, tag, MULTIPLE if multiple else 0, END)


def nack(channel: int, tag: int, *, multiple: bool, requeue: bool) -> bytes:
    """Return basic.nack: of a delivery, which may be delivered again, or of a publish, which is refused."""
    flags = (MULTIPLE if multiple else 0) | (REQUEUE if requeue else 0)
    return _SETTLE.pack(METHOD, channel, 13, NACK, tag, flags, END)


def publish(exchange: str, routing_key: str, *, mandatory: bool) -> bytes:
    """Return the payload of basic.publish. Raises ValueError for a name beyond 255 bytes."""
    flags = bytes((MANDATORY if mandatory else 0,))
    return NUMBER.pack(PUBLISH) + b"\0\0" + encode.short(exchange) + encode.short(routing_key) + flags


def publication(payload: bytes) -> tuple[str, str, bool, bool]:
    """Return exchange, routing key, mandatory and immediate of basic.publish. Raises ValueError."""
    end = 7 + payload[6] if len(payload) > 6 else 0
    last = end + 1 + payload[end] if 7 <= end < len(payload) else 0
    if not last or last + 1 != len(payload):
        raise ValueError("no basic.publish")
    flags = payload[last]
    exchange, key = (str(part, "utf-8", "surrogateescape") for part in (payload[7:end], payload[end + 1 : last]))
    return exchange, key, bool(flags & MANDATORY), bool(flags & IMMEDIATE)


def message(channel: int, method: bytes, properties: bytes, body: bytes, frame_max: int) -> bytes:
    """Return the frames of a message: the payload of its method, the header, the body in as many pieces as it takes."""
    size = len(body)
    if 0 < size <= frame_max - OVERHEAD:  # nearly all: at once, a microsecond less
        return b"%b%b\xce%b%b\xce%b%b\xce" % (
            FRAME.pack(METHOD, channel, len(method)),
            method,
            CONTENT_FRAME.pack(HEADER, channel, CONTENT.size + len(properties), 60, 0, size),
            properties,
            FRAME.pack(BODY, channel, size),
            body,
        )
    return frame(METHOD, channel, method) + content(channel, properties, body, frame_max)


def content(channel: int, properties: bytes, body: bytes, frame_max: int) -> bytes:
    """Return the frames of a message behind its method; none is longer than `frame_max` bytes."""
    size, room = len(body), frame_max - OVERHEAD
    head = CONTENT_FRAME.pack(HEADER, channel, CONTENT.size + len(properties), 60, 0, size)
    if not size:
        return b"%b%b\xce" % (head, properties)
    if size <= room:
        return b"%b%b\xce%b%b\xce" % (head, properties, FRAME.pack(BODY, channel, size), body)
    pieces = (frame(BODY, channel, body[at : at + room]) for at in range(0, size, room))
    return b"%b%b\xce%b" % (head, properties, b"".join(pieces))
