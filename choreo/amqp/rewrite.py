"""A message that came from the wire, as it goes there again: what has not changed keeps the bytes that it came with.

Types of numbers, names that come twice, the order of the headers, properties that choreo knows nothing of: a retry, a
dead letter and its replay have them as their publisher wrote them. Four things would be acted upon by the broker once
more, and so are not where they were, but with their bytes in the header `choreo-aside`:

- `expiration`, which would destroy a retry in its delay, and a dead letter in its queue; a replay may have it anew;
- `user-id`, which must be the connection's own user, and choreo's is another;
- CC and BCC, which would route the copy to further queues;
- `x-death` and the like of a message that was dead-lettered elsewhere before: brokers before 4.0.1 would drop it as a
  cycle. What the broker writes there on choreo's own ways is left out.

RabbitMQ sorts the headers by name when it adds its own [3.10.8], so their order is noted before the first way. What it
delivers sorted and with the first of each name from the beginning [4.3.6], nobody can know otherwise.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from choreo.amqp import decode, encode
from choreo.message import (
    ASIDE,
    BCC,
    CC,
    CE,
    DEATHS,
    EXPIRATION,
    FIRST_DEATH,
    FIRST_FAILURE,
    LAST_DEATH,
    ORDER,
    TOPIC,
    Message,
    is_note,
)

_HEADERS: Final = 0x2000
_EXPIRATION: Final = 0x0100
_USER_ID: Final = 0x0010
# Flag and bytes of each property in their order, 0: a short string, -1: a table. Source: AMQP 0-9-1, class basic.
_PROPERTIES: Final = (
    (0x8000, 0),
    (0x4000, 0),
    (_HEADERS, -1),
    (0x1000, 1),
    (0x0800, 1),
    (0x0400, 0),
    (0x0200, 0),
    (_EXPIRATION, 0),
    (0x0080, 0),
    (0x0040, 8),
    (0x0020, 0),
    (_USER_ID, 0),
    (0x0008, 0),
)
_SIZES: Final = dict(zip(b"tbBsuIilLfdDTV", (1, 1, 1, 2, 2, 4, 4, 8, 8, 4, 8, 5, 8, 0), strict=True))
_ID: Final = (CE + "id").encode()
_COPIES: Final = (CC, BCC)
_DEATHS: Final = (DEATHS, FIRST_DEATH, LAST_DEATH)
_U32: Final = struct.Struct(">I")


def properties(message: Message) -> bytes:
    """Return flags and values of `message`, which came from the wire, with the headers that it has now.

    Raises what `encode.properties` raises, for headers that are new.
    """
    raw = message.raw
    assert raw is not None
    was = decode.plainly(raw, b"")
    flags, parts, at = raw[0] << 8 | raw[1], [], 2
    table, aside = b"", []
    for flag, size in _PROPERTIES:
        if flag == _EXPIRATION and message.expiration is not None:
            at += 1 + raw[at] if flags & flag else 0
            flags |= flag
            parts.append(encode.short(message.expiration))
            continue
        if not flags & flag:
            if flag == _HEADERS:
                parts.append(b"")  # its place
            continue
        end = at + (size or 1 + raw[at])
        if size < 0:
            end = at + 4 + _U32.unpack_from(raw, at)[0]
            table = raw[at + 4 : end]
            parts.append(b"")
        elif flag in (_EXPIRATION, _USER_ID):
            flags &= ~flag
            name = EXPIRATION.encode() if flag == _EXPIRATION else b"user-id"
            aside.append(bytes((len(name),)) + name + b"S" + _U32.pack(raw[at]) + raw[at + 1 : end])
        else:
            parts.append(raw[at:end])
        at = end
    place = (flags >> 15) + (flags >> 14 & 1)
    parts[place] = _table(message, was, table if was.unread is None else b"", aside)
    return (flags | _HEADERS).to_bytes(2) + b"".join(parts) + raw[at:]


def _table(message: Message, was: Message, table: bytes, aside: list[bytes]) -> bytes:
    now, kept = message.headers, set()
    for name, value in was.headers.items() if table else ():
        if name in now and type(now[name]) is type(value) and now[name] == value:
            kept.add(name)
    # Whether this is its first way of choreo's. A letter that the broker wrote is replayed without what it says there.
    first = TOPIC not in was.headers and FIRST_FAILURE in now
    theirs: list[bytes] = []
    notes: list[bytes] = []
    before = b""
    for name, field in _fields(table):
        if name in kept:
            if name == ASIDE and field[1 + field[0]] == 0x46:  # F
                before = _aside_before(field[1 + field[0] + 5 :], message)
            else:
                (notes if is_note(name) else theirs).append(field)
        elif name not in now and (name in _COPIES or (name.startswith(_DEATHS) and first)):
            aside.append(field)
    order = now.get(ORDER)
    if isinstance(order, bytes | bytearray):
        theirs = _in_order(theirs, order)
    elif order is None and TOPIC not in was.headers and (ranks := _ranks(theirs)):
        notes.append(encode.table({ORDER: bytearray(ranks)})[4:])
    notes.append(encode.table({name: value for name, value in now.items() if name not in kept})[4:])
    if (before or aside) and (ASIDE not in now or ASIDE in kept):
        content = before + b"".join(aside)
        notes.append(bytes((len(ASIDE),)) + ASIDE.encode() + b"F" + _U32.pack(len(content)) + content)
    whole = b"".join((*theirs, *notes))
    return _U32.pack(len(whole)) + whole


def _aside_before(content: bytes, message: Message) -> bytes:
    """Return what stays aside of what has been: not the time to live that is in its place again."""
    if message.expiration is None:
        return content
    return b"".join(field for name, field in _fields(content) if name != EXPIRATION)


def _ranks(fields: list[bytes]) -> bytes:
    """Return the place of each field among them by name, nothing when they stand in that order."""
    by_name = sorted(range(len(fields)), key=lambda index: _name(fields[index]))
    if by_name == sorted(by_name):
        return b""
    ranks = [0] * len(fields)
    for rank, index in enumerate(by_name):
        ranks[index] = rank
    return struct.pack(f">{len(ranks)}H", *ranks)


def _in_order(fields: list[bytes], order: bytes | bytearray) -> list[bytes]:
    """Return fields in the order that `_ranks` gave of them, an id that choreo has added behind them."""
    added = [field for field in fields if _name(field) == _ID][-1:] if len(fields) * 2 == len(order) + 2 else []
    by_name = sorted((field for field in fields if not any(field is each for each in added)), key=_name)
    ranks = [rank for (rank,) in struct.iter_unpack(">H", order)] if len(order) % 2 == 0 else []
    if sorted(ranks) != list(range(len(by_name))):
        return fields
    return [by_name[rank] for rank in ranks] + added


def _name(field: bytes) -> bytes:
    return field[1 : 1 + field[0]]


def _fields(table: bytes) -> Iterator[tuple[str, bytes]]:
    """Return the name of each field of a table that can be read, and the field whole."""
    at = 0
    while at < len(table):
        start, at = at, at + 1 + table[at]
        name = table[start + 1 : at].decode("utf-8", "surrogateescape")
        size = _SIZES.get(table[at])
        at += 1 + size if size is not None else 5 + _U32.unpack_from(table, at + 1)[0]
        yield name, table[start:at]
