"""Messages that are laid out alike: the same properties and headers in the same order, and texts of the same lengths.

Events of one kind from one agent are: ids and times differ, and nothing else does. A layout that comes again and again
is read as a whole, by one regular expression that takes out what differs, in half the time that the fields take one by
one [2 us, 8 headers]. What does not match it to the byte is read in the ordinary way.

Header names, values and their order are whatever a publisher makes them, and it decides what is learned. So a layout is
made only of properties that are, to the last byte, what choreo writes for the message that was read from them: then no
name stands there twice, nothing is left over, and a text may change without moving anything behind it. A layout that
does not read its own sample as the plain reader did is not used.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import fields, replace
from operator import attrgetter, itemgetter
from typing import Any, Final, NamedTuple

from choreo.amqp import encode
from choreo.message import Message, excess, moment

_OFTEN: Final = 32  # messages of one length, until the layout of the next one is learned; compiling takes 200 us
_MOST: Final = 256  # layouts in all, for a process's life: one that makes up names must not make it learn for ever
_ALIKE: Final = 4  # layouts of one length, which are tried in turn
_LONGEST: Final = 4096  # bytes of properties; compiling what is longer would stop the event loop

# Flag, name in `Message`, and bytes: 0 is a text with its length before it. Source: AMQP 0-9-1, class basic.
_PROPERTIES: Final = (
    (0x8000, "content_type", 0),
    (0x4000, "content_encoding", 0),
    (0x2000, "headers", 4),
    (0x1000, "", 1),  # delivery mode
    (0x0800, "priority", 1),
    (0x0400, "correlation_id", 0),
    (0x0200, "reply_to", 0),
    (0x0100, "", 0),  # expiration
    (0x0080, "message_id", 0),
    (0x0040, "timestamp", 8),
    (0x0020, "type", 0),
    (0x0010, "", 0),  # user id
    (0x0008, "app_id", 0),
)
_FIXED: Final = ("content_type", "content_encoding", "priority")  # alike in all messages of a layout
_FLAGS: Final = sum(flag for flag, _, _ in _PROPERTIES)
_U64: Final = struct.Struct(">Q")


class _Place(NamedTuple):
    """Where a field stands: the `width` bytes before `end` are what may differ of it, none if nothing may."""

    name: str
    end: int
    width: int
    header: bool = False


class _Read(NamedTuple):
    """Properties that have been read field by field."""

    data: bytes
    places: list[_Place]
    values: list[Any]

    def differing(self, other: _Read) -> set[int]:
        """Return the indexes of the fields in which `other` differs."""
        return {index for index, (mine, its) in enumerate(zip(self.values, other.values, strict=False)) if mine != its}

    def may_differ(self, indexes: Iterable[int]) -> bool:
        """Say whether all these fields are such that a pattern can take them out."""
        return all(self.places[index].width for index in indexes)


class Layout:
    """What messages have in common with one that was `read` as `message`, but for the fields `differing`."""

    def __init__(self, read: _Read, message: Message, differing: set[int]) -> None:
        self.first = read
        self.differing = differing
        self._headers = message.headers.copy()
        self._date = 0  # where it stands, if it may differ
        names: list[str] = []  # of the headers that may differ
        properties: list[str] = []  # and of the properties, all of them in the order in which their values come
        text, pattern, behind = read.data.decode("latin-1"), "", 0
        for index in sorted(differing):
            name, end, width, header = read.places[index]
            pattern += re.escape(text[behind : end - width])
            behind = end
            if name == "timestamp" and not header:
                self._date = end - width
                pattern += f"[\\0-\\xff]{{{width}}}"
            else:
                (names if header else properties).append(name)
                pattern += f"([\\0-\\x7f]{{{width}}})"
        self._match = re.compile(pattern + re.escape(text[behind:])).fullmatch
        self._names = names
        self._numbers = [name for name in names if type(self._headers[name]) is int]
        # All else of a message is picked from the values that differ, the time, and what does not differ.
        others = [each.name for each in fields(Message)[2:]]
        self._others = attrgetter(*others)(replace(message, checked=True))
        there = [""] * len(names) + properties + ["timestamp" if self._date else "", "raw"] + others
        self._picked = itemgetter(*map(there.index, others))

    def read(self, properties: bytes, text: str, body: bytes) -> Message | None:
        """Return the message with `properties`, None if they are laid out otherwise; `text` has a character a byte."""
        match = self._match(text)
        if match is None:
            return None
        values: tuple[Any, ...] = match.groups()
        headers = self._headers.copy()
        for name, value in zip(self._names, values, strict=False):  # those of properties come behind
            headers[name] = value
        for name in self._numbers:
            headers[name] = ord(headers[name])
        time = moment(_U64.unpack_from(properties, self._date)[0]) if self._date else None
        return Message(body, headers, *self._picked((*values, time, properties, *self._others)))


class Layouts:
    """The layouts that have come often. What properties are laid out like is asked by their length."""

    def __init__(self) -> None:
        self._known: dict[int, list[Layout]] = {}
        self._unknown: dict[int, int] = {}  # how many of each length have been read otherwise
        self._firsts: dict[int, _Read | None] = {}  # one of those, from a while ago
        self._count = 0

    def read(self, properties: bytes, body: bytes) -> Message | None:
        """Return the message; None when its fields have to be read one by one."""
        known = self._known.get(len(properties))
        if known is not None:
            text = properties.decode("latin-1")
            for layout in known:
                message = layout.read(properties, text, body)
                if message is not None:
                    return message
        return None

    def learn(self, properties: bytes, message: Message) -> None:
        """Note that `properties` have been read field by field, as `message`; learn what is often laid out like them.

        The fields that may differ are those in which two messages of one layout did, some time apart. Never raises:
        `message` has been read, and what cannot be learned from costs it nothing.
        """
        length = len(properties)
        if length > _LONGEST or self._count >= _MOST:
            return
        if length not in self._unknown and len(self._unknown) >= _MOST:
            self._unknown.clear()
            self._firsts.clear()
        times = self._unknown.get(length, 0) + 1
        self._unknown[length] = times % _OFTEN
        if times == _OFTEN // 2:  # not before: of most lengths there are few
            self._firsts[length] = _read(properties, message)
        elif times == _OFTEN:
            self._learn(self._firsts.pop(length, None), _read(properties, message), message)

    def _learn(self, first: _Read | None, read: _Read | None, message: Message) -> None:
        if first is None or read is None or first.places != read.places or excess(message.headers):
            return
        alike = self._known.setdefault(len(read.data), [])
        differing = read.differing(first)
        for number, known in enumerate(alike):
            wider = differing | known.differing | read.differing(known.first)
            if known.first.places == read.places and read.may_differ(wider):
                if (layout := _made(read, message, wider)) is not None:
                    alike[number] = layout
                    self._count += 1
                return
        if len(alike) < _ALIKE and read.may_differ(differing):
            layout = _made(read, message, differing)
            if layout is not None:
                alike.append(layout)
                self._count += 1


def _made(read: _Read, message: Message, differing: set[int]) -> Layout | None:
    """Return a layout that reads its own sample as the plain reader did; None for any other."""
    layout = Layout(read, message, differing)
    again = layout.read(read.data, read.data.decode("latin-1"), message.body)
    same = again == replace(message, checked=True) and repr(again) == repr(replace(message, checked=True))
    return layout if same else None


def _read(data: bytes, message: Message) -> _Read | None:
    """Return where the fields of `message` stand in `data`; None when they are not written as choreo writes them."""
    found = _Read(data, [], [])
    flags, end = data[0] << 8 | data[1], 2
    if flags & ~_FLAGS:
        return None
    for flag, name, size in _PROPERTIES:
        if not flags & flag:
            continue
        if name == "headers":
            table = encode.table(message.headers)
            if data[end : end + len(table)] != table:
                return None  # a name twice, or a value in another type than choreo's
            end += 4
            for header, value in message.headers.items():
                if isinstance(value, (dict, list, bytearray)):
                    return None
                end += len(encode.table({header: value})) - 4
                found.places.append(_Place(header, end, _width(value), header=True))
                found.values.append(value)
            continue
        end += size or 1 + data[end]
        if name:
            value = getattr(message, name)
            width = 0 if name in _FIXED else size or _width(value)
            found.places.append(_Place(name, end, width))
            found.values.append(value)
    return found if end == len(data) else None


def _width(value: Any) -> int:
    """Return how many bytes hold what may differ of `value`."""
    if type(value) is str and value.isascii():
        return len(value)
    return 1 if type(value) is int and 0 <= value < 128 else 0
