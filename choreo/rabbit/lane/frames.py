"""AMQP frames as bytes: the few methods that the lane reads and writes. Pure.

A frame is type, channel, size, payload and the octet 0xCE. A method's payload begins with its class and number, here
one 32-bit word.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
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
CONTENT: Final = struct.Struct(">BHIHHQ")  # a whole content header frame up to its properties: …, class, weight, size
TAG: Final = struct.Struct(">QB")  # delivery tag and one octet of flags

CONNECTION_CLOSE: Final = 10 << 16 | 50
CONNECTION_BLOCKED: Final = 10 << 16 | 60
CONNECTION_UNBLOCKED: Final = 10 << 16 | 61
CHANNEL_CLOSE: Final = 20 << 16 | 40
CHANNEL_CLOSE_OK: Final = 20 << 16 | 41
PUBLISH: Final = 60 << 16 | 40
RETURN: Final = 60 << 16 | 50
DELIVER: Final = 60 << 16 | 60
ACK: Final = 60 << 16 | 80
NACK: Final = 60 << 16 | 120

BEAT: Final = bytes((HEARTBEAT, 0, 0, 0, 0, 0, 0, END))

_SETTLE: Final = struct.Struct(">BHIIQBB")
_MULTIPLE: Final = 1
_REQUEUE: Final = 2
_MANDATORY: Final = 1


def ack(channel: int, tag: int, *, multiple: bool) -> bytes:
    """Return basic.ack."""
    return _SETTLE.pack(METHOD, channel, 13, ACK, tag, _MULTIPLE if multiple else 0, END)


def requeue(channel: int, tag: int, *, multiple: bool) -> bytes:
    """Return basic.nack of what is to be delivered again."""
    return _SETTLE.pack(METHOD, channel, 13, NACK, tag, _REQUEUE | (_MULTIPLE if multiple else 0), END)


def publish(exchange: str, routing_key: str, *, mandatory: bool) -> bytes:
    """Return the payload of basic.publish. Raises ValueError for a name beyond 255 bytes."""
    flags = bytes((_MANDATORY if mandatory else 0,))
    return NUMBER.pack(PUBLISH) + b"\0\0" + encode.short(exchange) + encode.short(routing_key) + flags


def method(channel: int, payload: bytes) -> bytes:
    """Return a method frame."""
    return FRAME.pack(METHOD, channel, len(payload)) + payload + b"\xce"


def content(channel: int, properties: bytes, body: bytes, frame_max: int) -> Iterator[bytes]:
    """Return the frames of a message behind its method: the header, and the body in as many pieces as it takes."""
    yield CONTENT.pack(HEADER, channel, 12 + len(properties), 60, 0, len(body)) + properties + b"\xce"
    room = frame_max - OVERHEAD
    for start in range(0, len(body), room):
        piece = body[start : start + room] if len(body) > room else body
        yield FRAME.pack(BODY, channel, len(piece)) + piece + b"\xce"
