"""What is written can be read again, as pamqp reads it too; what cannot be read is kept, and nothing raises."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import header

from choreo.amqp import decode, encode
from choreo.message import FarTime, Message

TIMES = st.integers(0, 2**32 - 1).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))
NAMES = st.text(max_size=40)
SCALARS = st.one_of(
    st.text(max_size=30),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.none(),
    TIMES,
    st.binary(max_size=30).map(bytearray),
    st.decimals(-1000, 1000, places=2),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=12
)
TEXTS = st.none() | st.text(max_size=60)
MESSAGES = st.builds(
    Message,
    body=st.binary(max_size=20),
    headers=st.dictionaries(NAMES, VALUES, max_size=6),
    content_type=TEXTS,
    content_encoding=TEXTS,
    message_id=TEXTS,
    correlation_id=TEXTS,
    type=TEXTS,
    app_id=TEXTS,
    reply_to=TEXTS,
    priority=st.none() | st.integers(0, 255),
    timestamp=st.none() | TIMES,
)


def read(properties: bytes) -> Message:
    return decode.message(properties, b"")


@given(MESSAGES)
def test_what_is_written_is_read_again(message: Message) -> None:
    assert decode.message(encode.properties(message, message.message_id), message.body) == message


@given(MESSAGES)
def test_pamqp_reads_the_same(message: Message) -> None:
    """Times after 2106 apart, which it takes for milliseconds."""
    written = encode.properties(message, message.message_id)
    theirs = header.ContentHeader()
    theirs.unmarshal(struct.pack(">HHQ", 60, 0, 0) + written)
    ours = read(written)
    assert theirs.properties.message_id == ours.message_id
    assert theirs.properties.content_type == ours.content_type
    assert theirs.properties.timestamp == ours.timestamp
    assert theirs.properties.priority == ours.priority
    assert list(theirs.properties.headers or {}) == list(ours.headers)


@given(st.binary(max_size=200))
def test_no_bytes_make_it_raise(data: bytes) -> None:
    read(data)


@given(MESSAGES, st.data())
def test_no_damage_makes_it_raise(message: Message, data: st.DataObject) -> None:
    written = bytearray(encode.properties(message, message.message_id))
    for _ in range(3):
        written[data.draw(st.integers(0, len(written) - 1))] = data.draw(st.integers(0, 255))
    read(bytes(written))
    read(bytes(written[: data.draw(st.integers(0, len(written)))]))


def table(*fields: bytes) -> bytes:
    content = b"".join(fields)
    return struct.pack(">H", 1 << 13) + struct.pack(">I", len(content)) + content


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"\1nt\1", True),
        (b"\1nb\xff", -1),
        (b"\1nB\xff", 255),
        (b"\1ns\xff\xfe", -2),
        (b"\1nu\xff\xfe", 65534),
        (b"\1nI\xff\xff\xff\xff", -1),
        (b"\1ni\xff\xff\xff\xff", 2**32 - 1),
        (b"\1nl" + b"\xff" * 8, -1),
        (b"\1nL" + b"\xff" * 8, -1),
        (b"\1nf" + struct.pack(">f", 0.5), 0.5),
        (b"\1nd" + struct.pack(">d", 0.1), 0.1),
        (b"\1nD\2" + struct.pack(">i", -150), Decimal("-1.50")),
        (b"\1nT" + struct.pack(">Q", 0), datetime(1970, 1, 1, tzinfo=UTC)),
        (b"\1nT" + struct.pack(">Q", 2**62), FarTime(2**62)),
        (b"\1nV", None),
        (b"\1nS\0\0\0\2\xff\xfe", b"\xff\xfe"),
        (b"\1nx\0\0\0\1\0", bytearray(b"\0")),
        (b"\1nF\0\0\0\3\1aV", {"a": None}),
        (b"\1nA\0\0\0\2Vt\1"[:-2] + b"V", [None, None]),
    ],
)
def test_every_field_type_is_read(field: bytes, value: Any) -> None:
    message = read(table(field))
    assert message.headers == {"n": value}
    assert message.unread is None


def nested(depth: int) -> bytes:
    inner = b"\1nV"
    for _ in range(depth):
        inner = b"\1nF" + struct.pack(">I", len(inner)) + inner
    return inner


@pytest.mark.parametrize(
    "field",
    [b"\1nZ\0\0", b"\1n\0", b"\1nS\xff\xff\xff\xffabc", b"\x20n", b"\1nA\0\0\0\1t", nested(600), b"\1nF\0\0\0\5\1aV"],
    ids=["unknown type", "type 0", "length that lies", "name cut", "array cut", "600 deep", "table that lies"],
)
def test_table_that_cannot_be_read_is_kept_as_it_came(field: bytes) -> None:
    """What stands behind the table is read all the same."""
    written = bytearray(table(field)) + b"\4id-1"
    written[1] |= 1 << 7
    message = read(bytes(written))
    assert message.headers == {}
    assert message.unread == field
    assert message.message_id == "id-1"


def test_texts_in_another_encoding_come_back_byte_by_byte() -> None:
    message = Message(b"", headers={b"\xe9".decode("utf-8", "surrogateescape"): b"\xff"}, content_type=None)
    message.message_id = b"\xff\xfe".decode("utf-8", "surrogateescape")
    written = encode.properties(message, message.message_id)
    assert b"\2\xff\xfe" in written
    assert b"\1\xe9S" in written
    assert read(written) == message


def test_properties_that_choreo_has_no_use_for_are_passed_over() -> None:
    flags = 1 << 8 | 1 << 4 | 1 << 2 | 1 << 3 | 1 << 12
    message = read(struct.pack(">H", flags) + b"\2" + b"\x0560000" + b"\5guest" + b"\3app" + b"\7cluster")
    assert message == Message(b"", content_type=None, app_id="app")
