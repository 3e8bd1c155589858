"""The properties of a message as the bytes that came: what the broker has to know is found in them, the rest stays."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any, Final, Self

from choreo.amqp import decode, encode
from choreo.broker.core.message import REPLY_TO
from choreo.message import BCC, CC

_HEADERS: Final = 0x2000
_EXPIRATION: Final = 0x0100
_U32: Final = struct.Struct(">I")
_REPLY_TO: Final = bytes((len(REPLY_TO),)) + REPLY_TO.encode()
# Bytes of a field's value by its type; -1: its length stands before it. RabbitMQ reads these types and no others.
_SIZES: Final = dict(
    zip(b"tbBsuIilLfdDTVSxFA", (1, 1, 1, 2, 2, 4, 4, 8, 8, 4, 8, 5, 8, 0, -1, -1, -1, -1), strict=True)
)
_CC: Final = encode.short(CC)
_BCC: Final = encode.short(BCC)


class RawProperties:
    """`raw`: flags and values, as they stand in a content header. Fulfils `choreo.broker.core.message.Properties`.

    Raises ValueError when they are not what AMQP says of them.
    """

    __slots__ = (
        "_end",
        "_expiration_at",
        "_reply_to_at",
        "_start",
        "delivery_mode",
        "expiration",
        "priority",
        "raw",
        "user_id",
    )

    def __init__(self, raw: bytes) -> None:
        if raw[1:2] and raw[1] & 0x03:  # bits that no property has: RabbitMQ drops them
            raw = bytes((raw[0], raw[1] & 0xFC)) + raw[2:]
        self.raw = raw
        self._start = self._end = 2  # of the header table, its length included
        self._expiration_at = self._reply_to_at = 0
        self.delivery_mode: int | None = None
        self.priority: int | None = None
        self.expiration: str | None = None
        self.user_id: str | None = None
        try:
            end = self._find(raw, raw[0] << 8 | raw[1])
            if self._end > self._start:
                _check_table(raw, self._start + 4, self._end)
        except (IndexError, struct.error):
            end = -1
        if end != len(raw):
            raise ValueError("malformed properties")

    def _find(self, raw: bytes, flags: int) -> int:  # noqa: C901, PLR0912 - one step per property
        """Note what the broker reads; return where the last property ends."""
        at = 2
        if flags & 0x8000:
            at += 1 + raw[at]
        if flags & 0x4000:
            at += 1 + raw[at]
        self._start = self._end = at
        if flags & _HEADERS:
            at += 4 + _U32.unpack_from(raw, at)[0]
            self._end = at
        if flags & 0x1000:
            self.delivery_mode = raw[at]
            at += 1
        if flags & 0x0800:
            self.priority = raw[at]
            at += 1
        if flags & 0x0400:
            at += 1 + raw[at]
        if flags & 0x0200:
            if raw.startswith(_REPLY_TO, at):
                self._reply_to_at = at
            at += 1 + raw[at]
        if flags & _EXPIRATION:
            self._expiration_at = at
            self.expiration, at = decode.short(raw, at)
        if flags & 0x0080:
            at += 1 + raw[at]
        if flags & 0x0040:
            at += 8
        if flags & 0x0020:
            at += 1 + raw[at]
        if flags & 0x0010:
            self.user_id, at = decode.short(raw, at)
        if flags & 0x0008:
            at += 1 + raw[at]
        if flags & 0x0004:
            at += 1 + raw[at]
        return at

    @property
    def headers(self) -> Mapping[str, Any] | None:
        """See Properties."""
        return decode.message(self.raw, b"").headers if self._end > self._start else None

    @property
    def copies(self) -> tuple[list[Any], list[Any]] | None:
        """See Properties."""
        if self._end <= self._start + 4:
            return None
        if self.raw.find(_CC, self._start, self._end) < 0 and self.raw.find(_BCC, self._start, self._end) < 0:
            return None
        found = b"".join(field for name, field in self._fields() if name in (_CC[1:], _BCC[1:]))
        headers = decode.message(_HEADERS.to_bytes(2) + _U32.pack(len(found)) + found, b"").headers
        return (headers.get(CC, []), headers.get(BCC, [])) if headers else None

    @property
    def wants_direct_reply(self) -> bool:
        """Whether the publisher waits for the reply as its own direct reply-to consumer."""
        return self._reply_to_at > 0

    def replying_to(self, queue: str) -> Self:
        """Return these properties with the queue of that consumer as where to reply."""
        at = self._reply_to_at
        return type(self)(self.raw[:at] + encode.short(queue) + self.raw[at + len(_REPLY_TO) :])

    def with_headers(self, headers: Mapping[str, Any], *, expires: bool) -> Self:
        """See Properties."""
        raw, tail = self.raw, self.raw[self._end :]
        flags = (raw[0] << 8 | raw[1]) | _HEADERS
        if self._expiration_at and not expires:
            flags &= ~_EXPIRATION
            at = self._expiration_at
            tail = raw[self._end : at] + raw[at + 1 + raw[at] :]
        names = {name.encode() for name in headers}
        fields = [field for name, field in self._fields() if name not in names]
        fields.append(encode.table({name: value for name, value in headers.items() if value is not None})[4:])
        table = b"".join(fields)
        return type(self)(flags.to_bytes(2) + raw[2 : self._start] + _U32.pack(len(table)) + table + tail)

    def _fields(self) -> Iterator[tuple[bytes, bytes]]:
        """Return the name of each header, and its name and value as they came: what is not asked for is not decoded."""
        raw, at = self.raw, self._start + 4
        while at < self._end:
            start, at = at, at + 1 + raw[at]
            size = _SIZES[raw[at]]
            end = at + 1 + size if size >= 0 else at + 5 + _U32.unpack_from(raw, at + 1)[0]
            yield raw[start + 1 : at], raw[start:end]
            at = end


def _is_no_number(first: int, second: int, ones: int) -> bool:
    """Say whether the exponent that begins a float is one of infinities and NaN; Erlang has neither."""
    return first & 0x7F == 0x7F and second == ones


def _check_table(raw: bytes, at: int, end: int) -> None:  # noqa: C901 - one step per kind of field
    """Raise ValueError unless `raw` has fields from `at` to `end`, and nothing else; names and texts are any bytes.

    Tables may be in each other as deep as they like: that RabbitMQ takes them is reason enough.
    """
    around = [(end, True)]  # where each table and list that `at` is in ends, and whether its values have names
    while around:
        end, named = around[-1]
        if at >= end:
            if at > end:
                raise ValueError("malformed table")
            around.pop()
            continue
        if named:
            at += 1 + raw[at]
        kind = raw[at]
        if kind == 0x53:  # S, by far the commonest
            at += 5 + _U32.unpack_from(raw, at + 1)[0]
            continue
        size = _SIZES.get(kind)
        if size is None:
            raise ValueError("unknown type of a field")
        if size >= 0:
            if (kind == 0x64 and _is_no_number(raw[at + 1], raw[at + 2] & 0xF0, 0xF0)) or (
                kind == 0x66 and _is_no_number(raw[at + 1], raw[at + 2] & 0x80, 0x80)
            ):
                raise ValueError("no number")
            at += 1 + size
            continue
        stop = at + 5 + _U32.unpack_from(raw, at + 1)[0]
        if stop > end:
            raise ValueError("malformed field")
        if kind in b"FA":
            around.append((stop, kind == 0x46))
            at += 5
        else:
            at = stop
