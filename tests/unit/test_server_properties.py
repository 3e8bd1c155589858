"""Properties as the bytes that came: what the broker finds in them, and what a dead letter's look like."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands

from choreo.amqp import decode, encode, frames
from choreo.broker.server import wire
from choreo.broker.server.properties import RawProperties

HEADERS: dict[str, Any] = {
    "CC": ["a", "b"],
    "number": -7,
    "float": 1.5,
    "flag": True,
    "none": None,
    "bytes": b"\xff\xfe",
    "array": bytearray(b"x"),
    "decimal": Decimal("1.25"),
    "time": datetime(2026, 1, 1, tzinfo=UTC),
    "deep": {"a": [{"b": [1, 2]}]},
}
EVERYTHING = commands.Basic.Properties(
    content_type="t", content_encoding="e", delivery_mode=2, priority=7, correlation_id="c", reply_to="r",
    expiration="5000", message_id="m", timestamp=datetime(2026, 1, 1, tzinfo=UTC), message_type="y", user_id="guest",
    app_id="a",
)  # fmt: skip


def everything() -> bytes:
    """All properties, with headers of every type."""
    raw = EVERYTHING.marshal()
    flags = int.from_bytes(raw[:2]) | 0x2000
    return flags.to_bytes(2) + raw[2:6] + encode.table(HEADERS) + raw[6:]


def test_what_the_broker_reads_is_found():
    found = RawProperties(everything())
    assert (found.delivery_mode, found.priority, found.expiration, found.user_id) == (2, 7, "5000", "guest")
    assert found.headers == HEADERS
    assert found.copies == (["a", "b"], [])


def test_what_is_not_there_is_none():
    found = RawProperties(b"\0\0")
    assert (found.headers, found.copies, found.delivery_mode, found.priority, found.expiration) == (None,) * 5
    assert RawProperties(b"\x20\0" + encode.table({"CCC": "x", "y": "\x02CC"})).copies is None


@pytest.mark.parametrize("expires", [True, False])
def test_headers_are_added_or_replaced_and_nothing_else_changes(expires: bool):
    """Whatever stands before and behind them; a dead letter loses its expiration."""
    found = RawProperties(everything()).with_headers({"x": 1, "number": "none", "flag": None}, expires=expires)
    message = decode.message(found.raw, b"")
    left = {name: value for name, value in HEADERS.items() if name not in ("number", "flag")}
    assert message.headers == left | {"x": 1, "number": "none"}
    assert found.expiration == ("5000" if expires else None)
    assert (message.content_type, message.correlation_id, message.reply_to, message.message_id) == ("t", "c", "r", "m")
    assert (message.type, message.app_id, found.user_id, found.delivery_mode) == ("y", "a", "guest", 2)


def test_headers_where_there_were_none():
    found = RawProperties(b"\x10\0\x02").with_headers({"x": 1}, expires=True)
    assert found.raw == b"\x30\0" + encode.table({"x": 1}) + b"\x02"


def test_headers_stay_the_bytes_that_came():
    """A short number is not made a long one, and what nobody can decode is carried on."""
    fields = b"\x01ss\x00\x07" + b"\x01uu\x00\x07" + b"\x01fS\0\0\0\x01\xff"
    found = RawProperties(b"\x20\0" + struct.pack(">I", len(fields)) + fields)
    more = encode.table({"x": 1})[4:]
    table = struct.pack(">I", len(fields + more)) + fields + more
    assert found.with_headers({"x": 1}, expires=True).raw == b"\x20\0" + table


def test_direct_reply_to_is_replaced_in_its_place():
    raw = commands.Basic.Properties(reply_to="amq.rabbitmq.reply-to", message_id="m", correlation_id="c").marshal()
    found = RawProperties(raw)
    assert found.wants_direct_reply
    message = decode.message(found.replying_to("amq.gen-1").raw, b"")
    assert (message.reply_to, message.message_id, message.correlation_id) == ("amq.gen-1", "m", "c")
    assert not RawProperties(everything()).wants_direct_reply


@given(st.integers(0, 400), st.integers(0, 255))
def test_properties_that_lie_are_a_value_error(at: int, byte: int):
    """One byte wrong: they are read, or refused, and nothing else happens."""
    raw = bytearray(everything())
    raw[at % len(raw)] = byte
    try:
        found = RawProperties(bytes(raw))
    except ValueError:
        return
    assert found.headers is None or isinstance(found.headers, dict)


@given(st.binary(max_size=80))
def test_noise_is_a_value_error(raw: bytes):
    try:
        RawProperties(raw)
    except ValueError:
        return


@pytest.mark.parametrize("cut", [2, 5, 9, 20])
def test_properties_that_are_cut_or_too_long_are_refused(cut: int):
    for raw in (everything()[:-cut], everything() + b"x" * cut, b"\x20\0\xff\xff\xff\xff", b"\0", b""):
        with pytest.raises(ValueError, match="malformed"):
            RawProperties(raw)


@pytest.mark.parametrize("kind", [b"F", b"A"])
def test_tables_and_lists_are_as_deep_as_they_like(kind: bytes):
    """RabbitMQ sets no limit. Beside them, what the broker has to know is read, and dead letters carry them on."""
    name = b"\x01a" if kind == b"F" else b""
    value = b"t\x01"
    for _ in range(5_000):
        inner = name + value
        value = kind + struct.pack(">I", len(inner)) + inner
    fields = b"\x01a" + value + encode.table({"CC": ["k"]})[4:]
    found = RawProperties(b"\x20\0" + struct.pack(">I", len(fields)) + fields)
    assert found.copies == (["k"], [])
    assert found.with_headers({"CC": None}, expires=True).raw[6:] == b"\x01a" + value
    for lie in (value.replace(b"t\x01", b"t"), value.replace(b"t\x01", b"Z\x01"), value.replace(b"t\x01", b"t\x01t")):
        with pytest.raises(ValueError, match=r"malformed|unknown"):
            RawProperties(b"\x20\0" + struct.pack(">I", len(lie) + 2) + b"\x01a" + lie)


@given(st.text(max_size=60), st.text(max_size=60), st.booleans(), st.booleans())
def test_a_publish_is_read_as_it_was_written(exchange: str, key: str, mandatory: bool, immediate: bool):
    names = encode.short(exchange) + encode.short(key)
    payload = frames.NUMBER.pack(frames.PUBLISH) + b"\0\0" + names + bytes((mandatory | immediate << 1,))
    assert frames.publication(payload) == (exchange, key, mandatory, immediate)
    for wrong in (payload[:-1], payload + b"\0", payload[:6]):
        with pytest.raises(ValueError, match="publish"):
            frames.publication(wrong)


def test_bytes_are_shown_as_rabbitmq_shows_them():
    """A text as such, anything else as numbers, and never more than sixteen."""
    assert wire.snippet(b"abc") == 'all octets = <<"abc">>'
    assert wire.snippet(b"a\x00") == "all octets = <<97,0>>"
    assert wire.snippet(b"") == "all octets = <<>>"
    assert wire.snippet(b"x" * 17) == 'first 16 octets = <<"xxxxxxxxxxxxxxxx">>'
