"""How header fields are written, also those that no client library would write."""

from __future__ import annotations

import struct

from tests.faults.raw_amqp import short, sized


def field(name: str | bytes, kind: str, content: bytes) -> bytes:
    """Return a field of a table: its name, the letter of its type, its value as it stands on the wire."""
    return short(name if isinstance(name, bytes) else name.encode()) + kind.encode() + content


def text(name: str | bytes, content: str | bytes) -> bytes:
    """Return a field that holds a string."""
    return field(name, "S", sized(content if isinstance(content, bytes) else content.encode()))


def number(name: str, value: int) -> bytes:
    """Return a field that holds a whole number of 64 bits."""
    return field(name, "l", struct.pack(">q", value))


def table(name: str, *inner: bytes) -> bytes:
    """Return a field that holds a table."""
    return field(name, "F", sized(b"".join(inner)))


def array(name: str, *items: bytes) -> bytes:
    """Return a field that holds an array. An item is the letter of its type and its value."""
    return field(name, "A", sized(b"".join(items)))


def item(content: str | bytes) -> bytes:
    """Return a string as an item of an array."""
    return b"S" + sized(content if isinstance(content, bytes) else content.encode())


def nested(kind: str, depth: int) -> bytes:
    """Return a field with `depth` tables or arrays within each other; RabbitMQ has no bound for them."""
    value = b"t\x01"
    for _ in range(depth):
        value = kind.encode() + sized(short(b"n") + value if kind == "F" else value)
    return short(b"deep") + value
