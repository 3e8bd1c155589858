"""Properties as bytes that no client would write, each often enough to be learned: read always as field by field.

`--fuzz-messages 3000000 --fuzz-seed 7` plays more of them, and others; what fails names the seed of its round.
"""

from __future__ import annotations

import decimal
import random
import struct
from collections.abc import Iterator

import pytest

from choreo.amqp import decode, encode, header_templates
from choreo.amqp.header_templates import Layouts
from choreo.message import Message, excess

TIMES = 2 * header_templates._OFTEN  # of each shape: what is learned once may be widened by the next ones
TYPES = b"SSSSSllltbBsuIifdDTVxFAL"
NAMES = (
    b"a",
    b"b",
    b"id",
    b"ce-id",
    b"type",
    b"message_id",
    b"timestamp",
    b"headers",
    b"app_id",
    b"",
    b"\xff",
    b"n" * 9,
)
SIZES = {"t": 1, "b": 1, "B": 1, "s": 2, "u": 2, "I": 4, "i": 4, "l": 8, "L": 8, "f": 4, "d": 8, "D": 5, "T": 8, "V": 0}


def short(content: bytes) -> bytes:
    return bytes((len(content),)) + content


def sized(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content


Shape = list[bytes]  # in which every second part is what may differ among messages of this shape


class Maker:
    """Makes properties from `chance`: shapes, others of a shape, and shapes that are nearly another one."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance

    def text(self, longest: int = 6) -> bytes:
        kind = self.chance.random()
        size = self.chance.randrange(longest)
        if kind < 0.8:
            return bytes(self.chance.choices(b"abc.01\n[\\", k=size))
        return self.chance.randbytes(size) if kind < 0.9 else "é".encode() * size

    def value(self, depth: int = 0) -> Shape:
        """A type and what follows it, mostly in order."""
        kind = chr(self.chance.choice(TYPES))
        if kind in "SxFA":
            inner = self.text()
            if kind in "FA" and depth < 3 and self.chance.random() < 0.8:
                inner = b"".join(self.table(depth + 1) if kind == "F" else self.value(depth + 1))
            return [kind.encode() + struct.pack(">I", len(inner)), inner]
        if kind == "l" and self.chance.random() < 0.8:
            return [b"l" + bytes(7), self.chance.choice((b"\x00", b"\x05", b"\x7f", b"\x80"))]
        return [kind.encode(), self.chance.randbytes(SIZES[kind])]

    def table(self, depth: int = 0) -> Shape:
        fields = []
        for _ in range(self.chance.randrange(5)):
            kind, content = self.value(depth)
            fields.append([short(self.chance.choice(NAMES)) + kind, content])
        if fields and self.chance.random() < 0.5:  # one of them twice, equal or under its name alone
            name, content = twice = self.chance.choice(fields)
            if self.chance.random() < 0.5:
                kind, content = self.value(depth)
                twice = [name[: 1 + name[0]] + kind, content]
            fields.insert(self.chance.randrange(len(fields) + 1), twice)
        return [part for field in fields for part in field]

    def properties(self) -> Shape:
        """Flags, and each property that they name; a table's length may lie."""
        flags, parts = 0, Shape()
        for flag, name, size in (*header_templates._PROPERTIES, (0x0004, "", 0), (0x0002, "", 0)):
            if self.chance.random() > (0.05 if flag < 0x0008 else 0.8 if name == "headers" else 0.4):
                continue
            flags |= flag
            if name == "headers":
                table = self.table()
                lie = self.chance.choice((-2, -1, 1, 3)) if self.chance.random() < 0.05 else 0
                parts += [struct.pack(">I", max(0, sum(map(len, table)) + lie)), b"", *table]
            elif size:
                parts += [b"", self.chance.randbytes(size)]
            else:
                text = self.text()
                parts += [bytes((len(text),)), text]
        return [flags.to_bytes(2), b"", *parts, b"", self.text(3) if self.chance.random() < 0.05 else b""]

    def varying(self, shape: Shape) -> list[int]:
        """Choose which parts differ from message to message: mostly a few texts, as with ids."""
        texts = [at for at in range(1, len(shape), 2) if shape[at] and self.chance.random() < 0.3]
        return [at for at in texts if self.chance.random() < (0.95 if shape[at].isascii() else 0.2)]

    def kin(self, shape: Shape, varying: list[int], wildness: float) -> bytes:
        """Another one of `shape`; the wilder, the more often with bytes that nobody expects."""
        parts = shape.copy()
        for at in varying:
            if self.chance.random() < 0.7:
                parts[at] = bytes(self.chance.choices(b"abc\x01\x02\x03", k=len(parts[at])))
        data = bytearray(b"".join(parts))
        if self.chance.random() < wildness:
            for _ in range(self.chance.choice((1, 1, 2))):
                at = self.chance.randrange(len(data))
                data[at] = self.chance.choice((data[at] ^ 1 << self.chance.randrange(8), self.chance.randrange(256)))
            if self.chance.random() < 0.3:  # a length that takes from its neighbour
                at, other = self.chance.randrange(len(data)), self.chance.randrange(len(data))
                data[at], data[other] = (data[at] + 1) % 256, (data[other] - 1) % 256
        return bytes(data)


def choreos(chance: random.Random) -> bytes:
    """Properties as choreo's own events have them, good ones among all the others."""
    number = f"{chance.randrange(10**6):06d}"
    headers = {
        "ce-id": number,
        "ce-type": "order.placed",
        "choreo-hops": chance.randrange(4),
        "choreo-correlation": number,
    }
    return encode.properties(Message(b"", headers, message_id=number, type="order.placed", app_id="shop"), number)


def streams(chance: random.Random) -> Iterator[bytes]:
    """One round: some shapes, each often, in turn and mixed with good ones and with those that nearly are alike."""
    maker = Maker(chance)
    shapes = [maker.properties() for _ in range(chance.randrange(1, 4))]
    if chance.random() < 0.3:  # two of one length whose parts come in another order
        one = maker.properties()
        rest = list(zip(one[2::2], one[3::2], strict=True))
        shapes += [one, one[:2] + [part for pair in chance.sample(rest, len(rest)) for part in pair]]
    kinds = [(shape, maker.varying(shape)) for shape in shapes]
    alone, wildness = chance.random() < 0.7, chance.choice((0.0, 0.02, 0.3))
    for number in range(TIMES * len(kinds)):
        yield maker.kin(*(kinds[number // TIMES] if alone else chance.choice(kinds)), wildness)
        if chance.random() < 0.2:
            yield choreos(chance)


def read_by(found: Layouts, properties: bytes) -> Message:
    """Read as `decode.message` does, but forgive learning nothing: an error there would mean that it learns blindly."""
    message = found.read(properties, b"{}")
    if message is None:
        message = decode.plainly(properties, b"{}")
        if message.unread is None:
            found.learn(properties, message)
    return message


def play(name: str) -> tuple[int, int, int]:
    """Play a round; return how many messages it has, how many were read by a layout, how many layouts were made."""
    found, fast, number = Layouts(), 0, 0
    for each in streams(random.Random(name)):
        number += 1
        message, plain = read_by(found, each), decode.plainly(each, b"{}")
        if message.checked:
            fast += 1
            plain.checked = True
            assert plain.unread is None, f"round {name}: {each!r}"
            assert not excess(plain.headers), f"round {name}: {each!r}"
        assert repr(message) == repr(plain), f"round {name}: {each!r}"
    return number, fast, found._count


def test_short_cut_and_plain_reader_agree(request: pytest.FixtureRequest) -> None:
    """Whatever bytes come, how often and in whatever mixture: the message is what reading field by field gives."""
    messages, seed = (request.config.getoption(f"--fuzz-{each}") for each in ("messages", "seed"))
    rounds = played = fast = learned = 0
    while played < messages:
        rounds += 1
        played, fast, learned = map(sum, zip((played, fast, learned), play(f"{seed}/{rounds}"), strict=True))
    print(f"{played} messages in {rounds} rounds, {fast} read by one of {learned} layouts")
    assert fast > played / 20
    assert learned > played / 500


@pytest.mark.parametrize("name", ["0/2522"])
def test_rounds_that_were_read_wrongly_once(name: str) -> None:
    """Two equal headers at the end of a table moved whatever stood behind it."""
    play(name)


def test_a_name_that_comes_twice_is_not_learned() -> None:
    """64 messages of equal shape with one header name twice: no error, no wrong id, then or later."""
    field = short(b"trace") + b"S" + sized(b"x")
    for number in range(1, 65):
        identity = f"m{number:02d}".encode()
        table = field + short(b"more") + b"S" + sized(b"y" * (number % 2)) + field
        data = b"\x20\x88" + sized(table) + short(identity) + short(b"shop")
        message = decode.message(data, b"{}")
        assert (message.message_id, message.app_id) == (identity.decode(), "shop")
        assert not message.checked


def test_digits_of_a_decimal_do_not_depend_on_a_context() -> None:
    """A reaction may set a decimal context of its own; what the wire says is not rounded by it, nor refused."""
    data = b"\x20\x00" + sized(short(b"d") + b"D" + struct.pack(">Bi", 2, 123_456_789))
    with decimal.localcontext(decimal.Context(prec=3, traps=[decimal.Inexact, decimal.Rounded])):
        assert decode.plainly(data, b"").headers == {"d": decimal.Decimal("1234567.89")}
