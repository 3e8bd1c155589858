"""Poison in the headers.

Not here is what RabbitMQ refuses itself [3.10.8, 4.0.5, 4.3.6]: tables that are cut off or whose lengths lie, types of
fields that it does not know, floats that are no finite number, CC and BCC that are no array.
"""

from __future__ import annotations

import struct
from typing import Final

from choreo.message import MAX_HEADER_DEPTH, MAX_HEADERS, Reason
from tests.faults.poison.fields import array, field, item, nested, number, table, text
from tests.faults.poison.letter import USUAL, Poison
from tests.faults.raw_amqp import sized

_MOST: Final = struct.pack(">q", 2**63 - 1)
_DEATH: Final = table(
    "",
    field("count", "l", _MOST),
    text("reason", "delivery_limit"),
    text("queue", b"\xff"),
    array("routing-keys", b"I\x00\x00\x00\x01"),
    field("time", "T", b"\xff" * 8),
)[1:]

# Every type of a field that RabbitMQ delivers, at its bounds.
_TYPES: Final = {
    "t": (b"\x00", b"\x01"),
    "b": (b"\x80", b"\x7f"),
    "B": (b"\xff",),
    "s": (b"\x80\x00",),
    "u": (b"\xff\xff",),
    "I": (b"\x80\x00\x00\x00",),
    "i": (b"\xff\xff\xff\xff",),
    "l": (struct.pack(">q", -(2**63)), _MOST),
    "f": (struct.pack(">f", 3.4e38), b"\x00\x00\x00\x01"),
    "d": (struct.pack(">d", 1.7e308), b"\x80" + b"\x00" * 7),
    "D": (b"\x00\x7f\xff\xff\xff", b"\xff\x80\x00\x00\x00"),
    "T": (b"\x00" * 8, struct.pack(">Q", 2**62), b"\xff" * 8),
    "V": (b"",),
    "S": (sized(b""), sized(b"\xff\xfe"), sized(b"a\0b\x1b[2J")),
    "x": (sized(b""), sized(bytes(range(256)))),
    "F": (sized(b""), sized(text(b"\xff", b"\xfe"))),
    "A": (sized(b""), sized(item(b"\xff") + b"V" + b"A" + sized(b""))),
}

# One name several times in one table: AMQP forbids it, and RabbitMQ delivers it as it came.
_REPEATED: Final = {
    "twice, and equal": text("h", "x") * 2,
    "twice, and equal, behind another": text("a", "0123") + text("h", "x") * 2,
    "twice, and equal, before another": text("h", "x") * 2 + text("z", "0123"),
    "twice, with other texts": text("h", "x") + text("h", "y"),
    "twice, with texts of other lengths": text("h", "x" * 40) + text("h", ""),
    "twice, of other types": text("h", "x" * 4) + number("h", 1),
    "five times": text("h", "x") * 5,
    "ce-type twice": text("ce-type", "order.placed") * 2,
    "traceparent twice": text("traceparent", "00-" + "1" * 32) + text("traceparent", "00-" + "2" * 32),
    "twice in a table": table("h", text("i", "x"), text("i", "x")),
    "no name, twice": text("", "x") * 2,
    "a name that is not UTF-8, twice": text(b"\xff", "x") * 2,
}

_HARMLESS: Final = {
    "no field": b"",
    "a field without a name": text("", "x"),
    "a name that is not UTF-8": text(b"\xff\xfe", "x"),
    "a name that is truncated UTF-8": text(b"ce-\xc3", "x"),
    "a name with control characters": text(b"a\0\x1b[2J", "x"),
    "a name of 255 bytes": text(b"n" * 255, "x"),
    f"{MAX_HEADERS // 2} fields": b"".join(number(f"h{n}", n) for n in range(MAX_HEADERS // 2)),
    "60,000 bytes": text("large", "x" * 60_000),
    f"{MAX_HEADER_DEPTH - 1} tables": nested("F", MAX_HEADER_DEPTH - 1),
    f"{MAX_HEADER_DEPTH - 1} arrays": nested("A", MAX_HEADER_DEPTH - 1),
    "traceparent that is a number": number("traceparent", -1),
    "traceparent that is not UTF-8": text("traceparent", b"\xff"),
    "tracestate that is a table": table("tracestate"),
    "choreo-version from the future": number("choreo-version", 2**31 - 1),
    "choreo-version 0": number("choreo-version", 0),
    "choreo-attempt at its bound": number("choreo-attempt", 2**31 - 1),
    "choreo-attempt that is void": field("choreo-attempt", "V", b""),
    "choreo-hops just below its bound": number("choreo-hops", 63),
    "ce-id that is empty": text("ce-id", ""),
    "ce-type that is another topic": text("ce-type", "order.stolen"),
    "ce-specversion that is a table": table("ce-specversion"),
}

# What the broker or choreo writes itself: taken off a message or written anew, and never believed.
_OVERWRITTEN: Final = {
    "x-death that is a text": text("x-death", "no"),
    "x-death that is a table": table("x-death", text("reason", "expired")),
    "x-death of texts": array("x-death", item("no"), item(b"\xff")),
    "x-death with absurd values": array("x-death", _DEATH * 3),
    "x-delivery-count that is a text": text("x-delivery-count", "many"),
    "x-delivery-count at its bound": field("x-delivery-count", "l", _MOST),
    "x-delivery-count below 0": number("x-delivery-count", -1),
    "x-first-death-queue that is not UTF-8": text("x-first-death-queue", b"\xff"),
    "choreo-topic that is a number": number("choreo-topic", 5),
    "choreo-topic of another event": text("choreo-topic", "order.stolen"),
    "choreo-first-failure in the year 1": text("choreo-first-failure", "0001-01-01T00:00:00"),
    "choreo-first-failure as a time of AMQP": field("choreo-first-failure", "T", b"\x00" * 8),
    "dead letter's notes": text("choreo-dead-reason", "handled") + text("choreo-dead-attempts", b"\xff"),
    "CC to nobody": array("CC", item("nobody"), item(b"\xff"), item("x" * 300)),
    "BCC to nobody": array("BCC", item("nobody")),
}

_READ: Final = {
    "choreo-attempt too large": number("choreo-attempt", 2**31),
    "choreo-attempt at the bound of its type": field("choreo-attempt", "l", _MOST),
    "choreo-attempt below 0": number("choreo-attempt", -1),
    "choreo-attempt that is a text": text("choreo-attempt", "3"),
    "choreo-attempt that is true": field("choreo-attempt", "t", b"\x01"),
    "choreo-attempt that is a float": field("choreo-attempt", "d", struct.pack(">d", 1.0)),
    "choreo-attempt that is a table": table("choreo-attempt"),
    "choreo-hops below 0": number("choreo-hops", -1),
    "choreo-hops too large": number("choreo-hops", 2**31),
    "choreo-hops that is an array": array("choreo-hops"),
    "choreo-version below 0": number("choreo-version", -1),
    "choreo-version that is a time": field("choreo-version", "T", b"\x00" * 8),
    "choreo-correlation that is not UTF-8": text("choreo-correlation", b"\xff"),
    "choreo-correlation that is a table": table("choreo-correlation", text("a", "b")),
    "choreo-correlation of terminal's orders": text("choreo-correlation", "\x1b[2J"),
    "choreo-causation that is an array": array("choreo-causation", item("a")),
    "ce-id that is a number": number("ce-id", 1),
    "ce-id that is not UTF-8": text("ce-id", b"\xff"),
    "ce-id of bytes": field("ce-id", "x", sized(b"abc")),
    "ce-id of 513 letters": text("ce-id", "x" * 513),
    "ce-id with a line break": text("ce-id", "a\nb"),
    "ce-source that is a table": table("ce-source"),
    "ce-time that is not a time": text("ce-time", "yesterday"),
    "ce-time beyond the year 9999": field("ce-time", "T", struct.pack(">Q", 2**62)),
    "cloudEvents:id that is void in an array": array("cloudEvents:id", b"V"),
    f"{MAX_HEADERS + 1} fields": b"".join(text(f"h{n}", "") for n in range(MAX_HEADERS + 1)),
    "10,000 fields": b"".join(text(f"{n}", "") for n in range(10_000)),
    "100,000 bytes in one field": text("large", "x" * 100_000),
    "100,000 bytes in 100 fields": b"".join(text(f"h{n}", "x" * 1_000) for n in range(100)),
    "100,000 bytes that are not UTF-8": text("large", b"\xff" * 100_000),
    f"{MAX_HEADER_DEPTH} tables": nested("F", MAX_HEADER_DEPTH),
    "600 tables": nested("F", 600),
    "600 arrays": nested("A", 600),
    "16,000 tables": nested("F", 16_000),
    "20,000 arrays": nested("A", 20_000),
}


def _poison(name: str, end: Reason | None, headers: bytes) -> Poison:
    return Poison(f"headers: {name}", end, properties=USUAL | {"headers": headers})


HEADERS: Final = (
    *(
        _poison(f"type {kind}, {value[-8:]!r}", None, field("h", kind, value))
        for kind, values in _TYPES.items()
        for value in values
    ),
    *(_poison(name, None, headers) for name, headers in _REPEATED.items()),
    *(_poison(name, None, headers) for name, headers in _HARMLESS.items()),
    *(_poison(name, None, headers) for name, headers in _OVERWRITTEN.items()),
    *(_poison(name, Reason.HEADERS, headers) for name, headers in _READ.items()),
    _poison("choreo-hops at its bound", Reason.LOOP, number("choreo-hops", 64)),
    _poison("choreo-hops at the bound of its type", Reason.LOOP, number("choreo-hops", 2**31 - 1)),
)
