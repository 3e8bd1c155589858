"""What came from the wire goes there again byte for byte: as a retry, as a dead letter, and when that is replayed."""

from __future__ import annotations

import random
import struct
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any

import pytest

from choreo import dead_letter
from choreo.amqp import decode, encode, rewrite
from choreo.message import ASIDE, CE, MAX_HEADER_BYTES, MAX_HEADERS, Message, excess, growth, identity
from tests.faults.poison.fields import array, field, item, number, table, text
from tests.faults.raw_amqp import pack, short, sized, unpack
from tests.unit.test_dead_letter import raised
from tests.unit.test_header_fuzz import Maker

TOPIC = "order.placed"


def came(**properties: bytes) -> Message:
    """A message as it is read from the wire."""
    return decode.message(pack(**properties), b"{}")


def retried(message: Message, attempt: int = 1) -> Message:
    """A message as it comes back for its next try."""
    notes = {"choreo-attempt": attempt, "choreo-topic": TOPIC, "choreo-first-failure": "2026-01-31T12:00:00+00:00"}
    identified = {CE + "id": message.message_id or identity(message, TOPIC)}
    return again(message.forwarded(notes | identified), is_sorted=True)


def again(message: Message, *, is_sorted: bool = False) -> Message:
    """A message as the broker delivers it; a second time, or from a delay, with its headers sorted."""
    wire = rewrite.properties(message)
    if is_sorted:
        start = wire.index(table := unpack(wire)["headers"])
        fields = b"".join(whole for _, whole in sorted(split(table), key=itemgetter(0)))
        wire = wire[:start] + fields + wire[start + len(table) :]
    return decode.message(wire, message.body)


def buried(message: Message, **changes: Any) -> Message:
    given: dict[str, Any] = {"reaction": "r", "attempts": 1, "first_failure": None, "code_version": "1"}
    given["error"] = ValueError("no")
    return dead_letter.write(message, topic=TOPIC, agent="a", reason="failed", **(given | changes))


def replayed(letter: Message) -> Message:
    return again(dead_letter.revived(letter, dead_letter.read(letter, agent="a")))


def split(table: bytes) -> list[tuple[bytes, bytes]]:
    """The fields of a table with their names, doubled ones too, in order."""
    return [(name.encode("utf-8", "surrogateescape"), whole) for name, whole in rewrite._fields(table)]


def theirs(message: Message) -> tuple[dict[str, bytes], list[bytes]]:
    """The properties, and the fields of the headers that choreo has not written."""
    assert message.raw is not None
    found = unpack(message.raw)
    fields = split(found.pop("headers", b""))
    ours = (
        b"choreo-attempt",
        b"choreo-topic",
        b"choreo-first-failure",
        b"choreo-dead-",
        b"choreo-aside",
        b"choreo-order",
    )
    return found, [whole for name, whole in fields if not name.startswith(ours)]


def test_types_repetitions_and_order_are_kept() -> None:
    """Short numbers stay short, of two equal names both stay, and what choreo does not read stays as well."""
    headers = (
        text("h", "x")
        + field("n", "b", b"\x07")
        + text("h", "y")
        + field("f", "f", struct.pack(">f", 1.5))
        + text(b"\xff", b"\xfe")
        + field("d", "D", b"\x02\x00\x00\x00\x64")
        + table("t", number("i", 1), text("i", "2"))
    )
    message = came(headers=headers, delivery_mode=b"\x01", type=b"\xff", cluster_id=b"c", priority=b"\x09")
    replay = replayed(again(buried(retried(message)), is_sorted=True))
    for once_more in (retried(message), again(buried(message)), replay):
        properties, fields = theirs(once_more)
        assert properties == {"delivery_mode": b"\x01", "type": b"\xff", "cluster_id": b"c", "priority": b"\x09"}
        fields = [each for each in fields if each != text("ce-id", identity(message, TOPIC))]
        assert sorted(fields) == sorted(whole for _, whole in split(headers))
        sequence = b"".join(fields) == headers
        assert sequence or once_more is not replay


def test_message_without_headers_and_properties_gets_only_notes() -> None:
    message = came()
    assert replayed(again(buried(message))).raw == pack(headers=text("choreo-topic", TOPIC))
    assert retried(message).message_id is None


def test_what_the_broker_would_act_upon_is_set_aside() -> None:
    """A retry that expires, or goes to more queues, or is refused for its user, would be lost, or be two."""
    copies, death = array("CC", item("elsewhere"), b"I\x00\x00\x00\x01"), array("x-death", item("no"))
    first = text("x-first-death-queue", "q")
    message = came(headers=copies + text("mine", "1") + death + first, expiration=b"100", user_id=b"guest")
    kept = text("expiration", "100") + text("user-id", "guest") + copies + death + first
    for once_more in (
        retried(message),
        retried(retried(message), 2),
        again(buried(message)),
        replayed(again(buried(retried(message)))),
        again(buried(replayed(again(buried(message))))),
    ):
        assert once_more.raw is not None
        found = dict(split(unpack(once_more.raw)["headers"]))
        assert found[ASIDE.encode()] == short(ASIDE.encode()) + b"F" + sized(kept)
        assert not {b"CC", b"x-death", b"x-first-death-queue"} & found.keys()
        assert not {"expiration", "user_id"} & unpack(once_more.raw).keys()
        assert once_more.headers[ASIDE]["CC"] == ["elsewhere", 1]


def expiring(letter: Message) -> Message:
    return again(dead_letter.revived(letter, dead_letter.read(letter, agent="a"), expiring=True))


def test_time_to_live_is_in_its_place_again_where_that_is_asked_for() -> None:
    """With its bytes and nowhere else, be it after a retry; the next try sets it aside as the first one did."""
    message = came(headers=array("CC", item("elsewhere")), expiration=b"100", user_id=b"guest", app_id=b"shop")
    for letter in (
        again(buried(message)),
        again(buried(retried(message))),
        again(buried(retried(message), attempts=2)),
    ):
        assert dead_letter.aside(letter) == ["expiration", "user-id", "CC"]
        living = expiring(letter)
        assert living.raw is not None
        properties = unpack(living.raw)
        assert (properties["expiration"], properties["app_id"]) == (b"100", b"shop")
        assert living.headers[ASIDE] == {"user-id": "guest", "CC": ["elsewhere"]}
        once_more = retried(living)
        assert once_more.raw is not None
        assert "expiration" not in unpack(once_more.raw)
        assert once_more.headers[ASIDE] == {"user-id": "guest", "CC": ["elsewhere"], "expiration": "100"}
    alone = expiring(again(buried(came(expiration=b"100"))))
    assert ASIDE not in alone.headers


@pytest.mark.parametrize("given", [b"soon", b"", b"-1", b"9" * 11, "٣".encode()])
def test_what_is_no_time_to_live_is_never_given_to_the_broker(given: bytes) -> None:
    """It would end the channel; such a one is written by hand, for no broker takes it."""
    letter = again(buried(came(expiration=given)))
    living = expiring(letter)
    assert living.raw is not None
    assert "expiration" not in unpack(living.raw)
    assert living.headers[ASIDE] == {"expiration": given.decode()}


def test_time_to_live_of_a_letter_that_the_broker_wrote() -> None:
    """It takes the property away, and notes it in its account of the death."""
    death = {"reason": "expired", "queue": "choreo.a", "original-expiration": "250", "routing-keys": [TOPIC]}
    letter = came(headers=encode.table({"x-death": [death]})[4:])
    assert dead_letter.aside(letter) == ["expiration"]
    living = expiring(letter)
    assert living.raw is not None
    assert unpack(living.raw)["expiration"] == b"250"


def test_nothing_stands_aside_of_most_letters() -> None:
    assert dead_letter.aside(again(buried(came(app_id=b"shop")))) == []
    assert expiring(again(buried(came(app_id=b"shop")))) == replayed(again(buried(came(app_id=b"shop"))))


def test_what_the_broker_wrote_on_choreos_own_ways_is_left_out() -> None:
    """Its account of a delay says nothing of the event, and grows with each try."""
    back = retried(came(headers=text("mine", "1")))
    assert back.raw is not None
    headers = (
        array("x-death", item("the delay")) + field("x-delivery-count", "l", bytes(8)) + unpack(back.raw)["headers"]
    )
    once_more = retried(came(headers=headers), 2)
    assert once_more.headers.keys() == {"mine", "ce-id", "choreo-attempt", "choreo-topic", "choreo-first-failure"}
    assert once_more.headers["choreo-attempt"] == 2


@pytest.mark.parametrize("seed", range(8))
def test_any_message_survives_tries_death_and_replay(seed: int) -> None:
    """Generated properties: what a publisher wrote is there after any number of ways, with its bytes."""
    maker, seen = Maker(random.Random(seed)), 0
    while seen < 400:
        message = decode.plainly(b"".join(maker.properties()), b"{}")
        if message.unread is not None or message.raw is None or message.raw[1] & 2:
            continue
        seen += 1
        properties, fields = theirs(message)
        aside = [properties.pop(name) for name in ("expiration", "user_id") if name in properties]
        once_more = message
        for _ in range(maker.chance.randrange(3)):
            once_more = retried(once_more)
        once_more = again(buried(once_more), is_sorted=maker.chance.random() < 0.5)
        once_more = replayed(once_more) if maker.chance.random() < 0.7 else again(once_more.forwarded({}))
        found, kept = theirs(once_more)
        assert {name: value for name, value in found.items() if name != "headers"} == properties, message.raw
        if "ce-id" not in message.headers:
            kept = [each for each in kept if each[1:6] != b"ce-id"]
        elif message.headers["ce-id"] != once_more.headers["ce-id"]:  # it was none, and a retry has written another
            kept, fields = ([each for each in some if each[1:6] != b"ce-id"] for some in (kept, fields))
        assert kept == fields, message.raw
        assert bool(aside) == (ASIDE in once_more.headers)


def test_unread_headers_are_kept_whole_and_not_replayed_without_a_word() -> None:
    """All their bytes are on the letter, and on what is replayed of it after all."""
    deep = b"\x00F" + sized(b"x")
    for headers in (deep * 3, text("large", "x" * 100_000) + deep):
        message = came(headers=headers, content_type=b"application/json", app_id=b"shop", expiration=b"1")
        assert message.unread == headers
        letter = again(buried(message))
        assert letter.headers["choreo-dead-headers"] == headers
        assert "choreo-dead-headers" in dead_letter.missing(letter)
        living = replayed(letter)
        assert (living.headers["choreo-dead-headers"], living.app_id) == (headers, "shop")
        assert living.headers.keys() == {"choreo-dead-headers", "choreo-topic", ASIDE}
        assert dead_letter.missing(again(buried(living)))
    assert not dead_letter.missing(again(buried(came(headers=text("h", "x")))))


@pytest.mark.parametrize("frame", [4_000, 8_000, 100_000])
@pytest.mark.parametrize(
    "headers",
    [
        text("h", "x"),
        b"".join(text(f"h{each}", "x" * 50) for each in range(60)),
        text("small", "1") + text("large", "x" * 3_900) + text("large", "y" * 3_900),
        text("large", "x" * 99_000),
        array("CC", *(item("x" * 90) for _ in range(90))),
        b"\x00F" + sized(b"x" * 3_900),
        b"\x00F" + sized(b"x" * 120_000),
    ],
    ids=["little", "many", "doubled", "large", "copies", "unread", "much unread"],
)
def test_letter_is_made_to_fit_a_frame(frame: int, headers: bytes) -> None:
    """Notes go first, headers last; when any of those has gone, the letter says so and is not replayed as if it were
    whole."""
    letter = buried(came(headers=headers), error=raised(ValueError("é" * 3_000)))
    while (over := len(rewrite.properties(letter)) - frame) > 0:
        assert dead_letter.shorten(letter, over)
    found = again(letter)
    whole = b"".join(theirs(found)[1]) == headers or found.headers.get("choreo-dead-headers") == headers
    if ASIDE in found.headers and isinstance(found.headers[ASIDE], dict):
        whole = True
    assert whole != ("choreo-dead-dropped-headers" in found.headers)
    assert whole or "no room" in dead_letter.missing(found)
    assert found.headers["choreo-topic"] == TOPIC
    assert dead_letter.read(found, agent="a").reason == "failed"
    if len(headers) + 1_200 < frame:
        assert whole


def test_letter_of_an_older_release_can_be_replayed() -> None:
    """It has its headers as they were read, and what could not be kept by name: then it is asked for."""
    old = text("choreo-topic", TOPIC) + text("choreo-first-failure", "2026-01-31T12:00:00+00:00") + text("ce-id", "e")
    old += text("mine", "1") + text("choreo-dead-reason", "failed") + number("choreo-dead-attempts", 3)
    letter = came(headers=old, content_type=b"application/json", message_id=b"e")
    assert not dead_letter.missing(letter)
    assert replayed(letter).headers == {"choreo-topic": TOPIC, "ce-id": "e", "mine": "1"}
    for note in (text("choreo-dead-dropped-headers", "huge"), field("choreo-dead-headers", "x", sized(b"\xff"))):
        assert dead_letter.missing(came(headers=old + note))


def test_what_was_read_once_is_read_on_every_try() -> None:
    """The notes of broker and choreo do not count: 128 headers of the publisher's are 128 on the last try."""
    for headers in (
        b"".join(text(f"h{each}", "") for each in range(MAX_HEADERS)),
        text("large", "x" * (MAX_HEADER_BYTES - 11)),
    ):
        message = came(headers=headers)
        assert not excess(message.headers)
        back = retried(message)
        back.headers["x-death"] = [{"queue": "q" * 200, "time": datetime(2026, 1, 1, tzinfo=UTC)}] * 10
        assert len(back.headers) > len(message.headers)
        assert not excess(back.headers)
        back.headers["one more"] = ""
        assert excess(back.headers)


def test_a_retry_grows_by_no_more_than_is_said() -> None:
    """Whatever its id and topic are: who has room for that much more on the first try has it on all."""
    for message_id in (b"", b"m", b"\xc3\xa9" * 127):
        for headers in (b"", array("CC", item("x")), text("ce-id", ""), array("x-death", item("x"))):
            message = came(headers=headers, message_id=message_id, expiration=b"1", user_id=b"guest")
            most = growth(message)
            back = message
            for attempt in range(1, 4):
                back = retried(back, attempt)
                assert message.raw is not None
                assert back.raw is not None
                assert len(back.raw) <= len(message.raw) + most
