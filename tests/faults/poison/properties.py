"""Poison in the properties and in the routing key.

Not here is what RabbitMQ refuses itself [3.10.8, 4.0.5, 4.3.6]: lengths that lie, properties that are cut off or have
bytes behind them, a user-id other than one's own, an expiration that is not a whole number from 0 in ASCII; 3.10 also
refuses delivery modes besides 1 and 2.
"""

from __future__ import annotations

import struct
from typing import Final

from choreo.message import Reason
from tests.faults.poison.letter import USUAL, Poison

_NOT_UTF_8: Final = b"\xff\xfe\x80"
_CONTROL: Final = b"a\0b\x1b[2J"

# Property, what it holds, how that ends.
_VALUES: Final = (
    ("content_type", b"", None),
    ("content_type", b"APPLICATION/JSON; charset=utf-8", None),
    ("content_type", b"application/vnd.shop+json", None),
    ("content_type", b"text/plain", Reason.CONTENT_TYPE),
    ("content_type", b"application/jsonp", Reason.CONTENT_TYPE),
    ("content_type", b"application/json\0", Reason.CONTENT_TYPE),
    ("content_type", b"application/x-python-serialize", Reason.CONTENT_TYPE),
    ("content_type", b"x" * 255, Reason.CONTENT_TYPE),
    ("content_type", _NOT_UTF_8, Reason.CONTENT_TYPE),
    ("content_encoding", b"", None),
    ("content_encoding", b"UTF-8", None),
    ("content_encoding", b"identity", None),
    ("content_encoding", b"gzip", Reason.CONTENT_TYPE),
    ("content_encoding", b"br, gzip", Reason.CONTENT_TYPE),
    ("content_encoding", _NOT_UTF_8, Reason.CONTENT_TYPE),
    ("message_id", b"", None),
    ("message_id", b" ", None),
    ("message_id", b"x" * 255, None),
    ("message_id", _NOT_UTF_8, Reason.HEADERS),
    ("message_id", "ä".encode() * 127 + b"\xc3", Reason.HEADERS),
    ("message_id", _CONTROL, Reason.HEADERS),
    ("correlation_id", b"", None),
    ("correlation_id", b"x" * 255, None),
    ("correlation_id", _NOT_UTF_8, Reason.HEADERS),
    ("correlation_id", _CONTROL, Reason.HEADERS),
    ("app_id", _NOT_UTF_8, Reason.HEADERS),
    ("app_id", _CONTROL, Reason.HEADERS),
    ("type", _NOT_UTF_8, None),
    ("type", _CONTROL, None),
    ("reply_to", _NOT_UTF_8, None),
    ("priority", b"\x00", None),
    ("priority", b"\xff", None),
    ("timestamp", struct.pack(">Q", 0), None),
    ("timestamp", struct.pack(">Q", 1_700_000_000_000), None),  # in milliseconds, as from many a JavaScript
    ("timestamp", struct.pack(">Q", 2**62), Reason.HEADERS),
    ("timestamp", struct.pack(">Q", 2**63), Reason.HEADERS),
    ("timestamp", struct.pack(">Q", 2**64 - 1), Reason.HEADERS),
    ("delivery_mode", b"\x01", None),
    ("expiration", b"3600000", None),
    ("expiration", b"315360000000", None),  # ten years, the longest that RabbitMQ takes
    ("user_id", b"guest", None),
    ("cluster_id", _NOT_UTF_8, None),
)

_KEYS: Final = {
    "one that nobody takes": b"stolen",
    "one that begins like the topic": b"placed.x",
    "upper case": b"PLACED",
    "not UTF-8": b"\xff\xfe",
    "truncated UTF-8": b"placed\xc3",
    "zero byte": b"placed\0",
    "terminal's orders": b"\x1b[2J",
    "words without letters": b"...",
    "the way of a delay": b"." + b"0." * 20 + b"agent.shop",
    "245 bytes": b"x" * 245,
}

PROPERTIES: Final = (
    *(
        Poison(f"{name}: {value[:24]!r} ({len(value)} bytes)", end, properties=USUAL | {name: value})
        for name, value, end in _VALUES
    ),
    Poison("no properties at all", None, properties={}),
    *(Poison(f"routing key: {name}", Reason.UNEXPECTED, key=key) for name, key in _KEYS.items()),
)
