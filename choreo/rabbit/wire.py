"""Basic properties and header tables as bytes, so that whatever was read from the wire can be written to it again.

pamqp reads what it does not write: strings that are not UTF-8 (it gives bytes), doubles (it writes floats of half the
precision). A message with such a header could be neither retried nor dead-lettered. Source: AMQP 0-9-1 section 4.2.5,
with the types that RabbitMQ and its clients use.
"""

from __future__ import annotations

import struct
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from aiormq.abc import DeliveredMessage
from pamqp import commands

from choreo.message import Message

_PERSISTENT: Final = b"\x02"

# The flag of each property in the first word of a content header, highest bit first as the properties follow it.
_CONTENT_TYPE: Final = 1 << 15
_CONTENT_ENCODING: Final = 1 << 14
_HEADERS: Final = 1 << 13
_DELIVERY_MODE: Final = 1 << 12
_PRIORITY: Final = 1 << 11
_CORRELATION_ID: Final = 1 << 10
_REPLY_TO: Final = 1 << 9
_MESSAGE_ID: Final = 1 << 7
_TIMESTAMP: Final = 1 << 6
_TYPE: Final = 1 << 5
_APP_ID: Final = 1 << 3


class Properties(commands.Basic.Properties):
    """The properties of a message, written by this room instead of by pamqp."""

    def __init__(self, message: Message) -> None:
        super().__init__(message_id=message.message_id)  # aiormq tells returned messages by it
        self._message = message

    def marshal(self) -> bytes:
        """Return flags and values."""
        message = self._message
        message_id = message.message_id or self.message_id  # aiormq gives an id to a message without one
        flags = _HEADERS | _DELIVERY_MODE
        values = [table(message.headers), _PERSISTENT]
        if message.content_encoding is not None:
            flags |= _CONTENT_ENCODING
            values.insert(0, _short(message.content_encoding))
        if message.content_type is not None:
            flags |= _CONTENT_TYPE
            values.insert(0, _short(message.content_type))
        if message.priority is not None:
            flags |= _PRIORITY
            values.append(struct.pack(">B", message.priority))
        for flag, text in ((_CORRELATION_ID, message.correlation_id), (_REPLY_TO, message.reply_to)):
            if text is not None:
                flags |= flag
                values.append(_short(text))
        if message_id is not None:
            flags |= _MESSAGE_ID
            values.append(_short(message_id))
        if message.timestamp is not None:
            flags |= _TIMESTAMP
            values.append(_timestamp(message.timestamp))
        for flag, text in ((_TYPE, message.type), (_APP_ID, message.app_id)):
            if text is not None:
                flags |= flag
                values.append(_short(text))
        return struct.pack(">H", flags) + b"".join(values)


def table(fields: dict[str, Any]) -> bytes:
    """Return a field table: its length in bytes, then name and value of each field."""
    content = b"".join(_short(name) + _value(value) for name, value in fields.items())
    return struct.pack(">I", len(content)) + content


def _value(value: Any) -> bytes:  # noqa: C901 - one case per type of the protocol
    match value:
        case str():
            return _sized(b"S", value.encode())
        case bool():
            return b"t\x01" if value else b"t\x00"
        case int():
            return b"l" + struct.pack(">q", value) if -(2**63) <= value < 2**63 else _sized(b"S", str(value).encode())
        case float():
            return b"d" + struct.pack(">d", value)
        case None:
            return b"V"
        case dict():
            return b"F" + table(value)
        case list() | tuple():
            return _sized(b"A", b"".join(map(_value, value)))
        case bytes():
            return _sized(b"S", value)
        case bytearray() | memoryview():
            return _sized(b"x", bytes(value))
        case datetime():
            return b"T" + _timestamp(value)
        case Decimal():
            return _decimal(value)
    raise TypeError(f"a header cannot hold {value!r:.60}")


def _decimal(value: Decimal) -> bytes:
    sign, digits, exponent = value.as_tuple()
    if isinstance(exponent, int) and -255 <= exponent <= 0:
        number = int("".join(map(str, digits)) or "0") * (-1 if sign else 1)
        if -(2**31) <= number < 2**31:
            return b"D" + struct.pack(">Bi", -exponent, number)
    return _sized(b"S", str(value).encode())


def _timestamp(value: datetime) -> bytes:
    return struct.pack(">Q", max(0, int(value.timestamp())))


def _sized(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack(">I", len(content)) + content


def _short(text: str) -> bytes:
    content = text.encode()
    if len(content) > 255:
        raise ValueError(f"{text!r:.60} has more than the 255 bytes of an AMQP short string")
    return bytes((len(content),)) + content


def received(delivered: DeliveredMessage) -> Message:
    """Return what `delivered` carries."""
    properties = delivered.header.properties
    return Message(
        body=delivered.body,
        headers=properties.headers or {},
        content_type=properties.content_type,
        content_encoding=properties.content_encoding,
        message_id=properties.message_id,
        correlation_id=properties.correlation_id,
        type=properties.message_type,
        app_id=properties.app_id,
        reply_to=properties.reply_to,
        priority=properties.priority,
        timestamp=properties.timestamp,
    )
