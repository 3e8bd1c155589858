"""Basic properties and header tables from bytes. Whatever the broker lets through can be read: nothing here raises.

Texts that are not UTF-8 keep their bytes: properties and names of headers as surrogate escapes, values as `bytes`. What
cannot be read at all (a field type that nobody knows, lengths that lie, tables too deep) is `Message.unread`. Source:
AMQP 0-9-1 section 4.2.5, with the types that RabbitMQ and its clients use.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from typing import Any, Final

from choreo.amqp.header_templates import Layouts
from choreo.message import Message, moment

_MAX_DEPTH: Final = 64  # tables and lists within each other; choreo reads events with half of that
_MAX_NAMES: Final = 4096

_U32: Final = struct.Struct(">I")
_U64: Final = struct.Struct(">Q")
_S32: Final = struct.Struct(">i")
_S64: Final = struct.Struct(">q")

_layouts = Layouts()
_names: dict[bytes, str] = {}  # header names repeat from message to message


class _UnreadableError(Exception):
    """Bytes that are not what the protocol says of them."""


def message(properties: bytes, body: bytes) -> Message:
    """Return the message whose content header holds `properties`, flags first, and whose body is `body`."""
    try:
        found = _layouts.read(properties, body)
    except Exception:  # noqa: BLE001 - a shortcut: where it fails, the plain reader has the word
        found = None
    if found is None:
        found = plainly(properties, body)
        if found.unread is None:
            with suppress(Exception):  # what has been read is not lost over what could be learned from it
                _layouts.learn(properties, found)
    return found


def plainly(properties: bytes, body: bytes) -> Message:
    """Return what `message` does, read field by field: what comes out never depends on what came before."""
    try:
        return _message(properties, body)
    except Exception:  # noqa: BLE001 - whatever the reason: it must cost this message alone, and the session nothing
        return Message(body, content_type=None, unread=properties)


def _message(data: bytes, body: bytes) -> Message:  # noqa: C901, PLR0912 - one step per property
    flags = data[0] << 8 | data[1]
    if flags & 1:
        raise _UnreadableError  # a second word of flags, which AMQP 0-9-1 has no properties for
    pos = 2
    content_type = content_encoding = priority = unread = None
    correlation_id = reply_to = message_id = timestamp = kind = app_id = None
    headers: dict[str, Any] = {}
    if flags & 0x8000:
        content_type, pos = short(data, pos)
    if flags & 0x4000:
        content_encoding, pos = short(data, pos)
    if flags & 0x2000:
        end = pos + 4 + _U32.unpack_from(data, pos)[0]
        try:
            headers = _table(data, pos + 4, end, 1)
        except Exception:  # noqa: BLE001 - see `plainly`; the other properties are read on
            unread = data[pos + 4 : end]
        pos = end
    if flags & 0x1000:
        pos += 1  # delivery mode: choreo's queues keep everything
    if flags & 0x0800:
        priority = data[pos]
        pos += 1
    if flags & 0x0400:
        correlation_id, pos = short(data, pos)
    if flags & 0x0200:
        reply_to, pos = short(data, pos)
    if flags & 0x0100:
        pos += 1 + data[pos]  # expiration
    if flags & 0x0080:
        message_id, pos = short(data, pos)
    if flags & 0x0040:
        timestamp = moment(_U64.unpack_from(data, pos)[0])
        pos += 8
    if flags & 0x0020:
        kind, pos = short(data, pos)
    if flags & 0x0010:
        pos += 1 + data[pos]  # user id
    if flags & 0x0008:
        app_id, pos = short(data, pos)
    if pos > len(data):
        raise _UnreadableError
    # In the order of the fields: by keyword this takes twice as long.
    return Message(
        body,
        headers,
        content_type,
        content_encoding,
        message_id,
        correlation_id,
        kind,
        app_id,
        reply_to,
        priority,
        timestamp,
        unread,
        data,
    )


def short(data: bytes, pos: int) -> tuple[str, int]:
    """Return the short string at `pos`, and the position behind it."""
    end = pos + 1 + data[pos]
    content = data[pos + 1 : end]
    try:
        return content.decode(), end
    except UnicodeDecodeError:
        return content.decode("utf-8", "surrogateescape"), end


def _table(data: bytes, pos: int, end: int, depth: int) -> dict[str, Any]:
    if end > len(data) or depth > _MAX_DEPTH:
        raise _UnreadableError
    fields: dict[str, Any] = {}
    names, size = _names, _U32.unpack_from
    while pos < end:
        start = pos + 1
        pos = start + data[pos]
        name = data[start:pos]
        known = names.get(name)
        if known is None:
            known = _name(name)
        if data[pos] == 0x53:  # S, by far the commonest
            start = pos + 5
            pos = start + size(data, pos + 1)[0]
            content = data[start:pos]
            try:
                fields[known] = content.decode()
            except UnicodeDecodeError:
                fields[known] = content
        else:
            fields[known], pos = _value(data, pos, end, depth)
    if pos != end:
        raise _UnreadableError
    return fields


def _name(name: bytes) -> str:
    if len(_names) >= _MAX_NAMES:
        _names.clear()
    return _names.setdefault(name, name.decode("utf-8", "surrogateescape"))


def _value(data: bytes, pos: int, end: int, depth: int) -> tuple[Any, int]:
    kind = data[pos]
    plain = _PLAIN.get(kind)
    if plain is not None:
        form, convert = plain
        value = form.unpack_from(data, pos + 1)[0]
        return (value if convert is None else convert(value)), pos + 1 + form.size
    match kind:
        case 0x56:  # V
            return None, pos + 1
        case 0x44:  # D
            # As a text, whose digits no decimal context of the user's cuts short.
            return Decimal(f"{_S32.unpack_from(data, pos + 2)[0]}e-{data[pos + 1]}"), pos + 6
        case 0x53 | 0x78 | 0x46 | 0x41:  # S x F A: their length stands before them
            start = pos + 5
            stop = start + _U32.unpack_from(data, pos + 1)[0]
            if stop > end:
                raise _UnreadableError
            return _sized(kind, data, start, stop, depth), stop
    raise _UnreadableError


def _sized(kind: int, data: bytes, start: int, stop: int, depth: int) -> Any:
    match kind:
        case 0x53:
            content = data[start:stop]
            try:
                return content.decode()
            except UnicodeDecodeError:
                return content
        case 0x78:
            return bytearray(data[start:stop])
        case 0x46:
            return _table(data, start, stop, depth + 1)
    if depth >= _MAX_DEPTH:
        raise _UnreadableError
    values = []
    while start < stop:
        value, start = _value(data, start, stop, depth + 1)
        values.append(value)
    if start != stop:
        raise _UnreadableError
    return values


_PLAIN: Final[dict[int, tuple[struct.Struct, Callable[[Any], Any] | None]]] = {
    ord("t"): (struct.Struct(">B"), bool),
    ord("b"): (struct.Struct(">b"), None),
    ord("B"): (struct.Struct(">B"), None),
    ord("s"): (struct.Struct(">h"), None),
    ord("u"): (struct.Struct(">H"), None),
    ord("I"): (struct.Struct(">i"), None),
    ord("i"): (_U32, None),
    ord("l"): (_S64, None),
    ord("L"): (_S64, None),
    ord("f"): (struct.Struct(">f"), None),
    ord("d"): (struct.Struct(">d"), None),
    ord("T"): (_U64, moment),
}
