"""Why, how and where to messages are dead-lettered, and what they tell of it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from tests.conformance.broker.driver import Arrived, Client, Driver
from tests.conformance.broker.steps import drain, fill, queue, take

Name = Callable[[str], str]
BOTH = pytest.mark.parametrize("kind", ["classic", "quorum"])
LEAST = {"x_dead_letter_strategy": "at-least-once", "x_overflow": "reject-publish", "x_queue_type": "quorum"}


def deaths(message: Arrived) -> list[dict[str, Any]]:
    tables = [dict(table) for table in message.headers["x-death"]]
    for table in tables:
        assert isinstance(table.pop("time"), datetime)
    return tables


def told(message: Arrived) -> dict[str, Any]:
    return {key: value for key, value in message.headers.items() if key.startswith(("x-first", "x-last"))}


@pytest.mark.since(4, 0)
@pytest.mark.parametrize("how", ["classic", "quorum", "at-least-once"])
async def test_a_rejected_message_tells_of_its_death(broker: Driver, client: Client, name: Name, how: str) -> None:
    more: dict[str, str] = LEAST if how == "at-least-once" else {"x_queue_type": how}
    x, dlx, q, dlq = name("x"), name("dlx"), name("q"), name("dlq")
    await client.call("exchange_declare", x, "topic")
    await client.call("exchange_declare", dlx, "fanout")
    await queue(client, q, x_dead_letter_exchange=dlx, **more)
    await queue(client, dlq)
    await client.call("queue_bind", q, x, "a.*")
    await client.call("queue_bind", dlq, dlx, "")
    assert await client.publish("1", x, "a.b", headers={"mine": 1}, message_id="m") == "ack"
    await client.call("nack", (await take(client, q)).tag, requeue=False)
    await broker.rest()
    dead = await take(client, dlq)
    assert (dead.exchange, dead.routing_key, dead.redelivered, dead.properties["message_id"]) == (
        dlx,
        "a.b",
        False,
        "m",
    )
    assert deaths(dead) == [{"count": 1, "reason": "rejected", "queue": q, "exchange": x, "routing-keys": ["a.b"]}]
    last = {"x-last-death-reason": "rejected", "x-last-death-queue": q, "x-last-death-exchange": x}
    first = {"x-first-death-reason": "rejected", "x-first-death-queue": q, "x-first-death-exchange": x}
    assert told(dead) == first | last
    assert dead.headers["mine"] == 1


@BOTH
async def test_an_expired_message_keeps_its_expiration_in_its_death_only(
    broker: Driver, client: Client, name: Name, kind: str
) -> None:
    dlq = await queue(client, name("dlq"))
    q = await queue(client, name("q"), x_queue_type=kind, x_dead_letter_exchange="", x_dead_letter_routing_key=dlq)
    await client.publish("1", key=q, expiration="20")
    await broker.wait(0.3)
    dead = await take(client, dlq)
    assert dead.properties["expiration"] is None
    assert deaths(dead) == [
        {"count": 1, "reason": "expired", "queue": q, "exchange": "", "routing-keys": [q], "original-expiration": "20"}
    ]


@pytest.mark.since(4, 0)
@BOTH
async def test_deaths_of_the_same_reason_in_the_same_queue_are_counted(
    broker: Driver, client: Client, name: Name, kind: str
) -> None:
    one = name("one")
    other = await queue(
        client, name("other"), x_queue_type=kind, x_dead_letter_exchange="", x_dead_letter_routing_key=one
    )
    await queue(client, one, x_queue_type=kind, x_dead_letter_exchange="amq.fanout", x_dead_letter_routing_key="k")
    await client.call("queue_bind", other, "amq.fanout", "")
    await client.publish("1", key=one)
    for _ in range(2):
        for each in (one, other):
            await client.call("nack", (await take(client, each)).tag, requeue=False)
            await broker.rest()
    dead = await take(client, one)
    assert deaths(dead) == [
        {"count": 2, "reason": "rejected", "queue": other, "exchange": "amq.fanout", "routing-keys": ["k"]},
        {"count": 2, "reason": "rejected", "queue": one, "exchange": "", "routing-keys": [one]},
    ]
    assert told(dead)["x-last-death-queue"] == other
    assert told(dead)["x-first-death-queue"] == one
    assert told(dead)["x-last-death-exchange"] == "amq.fanout"


@BOTH
async def test_a_cycle_of_expiry_ends_the_message(broker: Driver, client: Client, name: Name, kind: str) -> None:
    q, other = name("q"), name("other")
    await queue(
        client, q, x_queue_type=kind, x_message_ttl=30, x_dead_letter_exchange="", x_dead_letter_routing_key=other
    )
    await queue(
        client, other, x_queue_type=kind, x_message_ttl=30, x_dead_letter_exchange="", x_dead_letter_routing_key=q
    )
    await client.publish("1", key=q)
    await broker.wait(0.5)
    assert await drain(client, q) == []
    assert await drain(client, other) == []


async def test_a_rejection_in_between_makes_it_no_cycle(broker: Driver, client: Client, name: Name) -> None:
    q, other = name("q"), name("other")
    await queue(client, q, x_dead_letter_exchange="", x_dead_letter_routing_key=other)
    await queue(client, other, x_message_ttl=30, x_dead_letter_exchange="", x_dead_letter_routing_key=q)
    await client.publish("1", key=q)
    for _ in range(2):
        await client.call("nack", (await take(client, q)).tag, requeue=False)
        await broker.wait(0.3)
    assert [table["count"] for table in deaths(await take(client, q))] == [2, 2]


@pytest.mark.parametrize("key", [None, "k"])
async def test_dead_letters_go_to_all_keys_unless_one_is_given(
    broker: Driver, client: Client, name: Name, key: str | None
) -> None:
    more = {"x_dead_letter_routing_key": key} if key else {}
    dlx, q = name("dlx"), name("q")
    await client.call("exchange_declare", dlx, "direct")
    await queue(client, q, x_dead_letter_exchange=dlx, **more)
    for each in (q, "cc", "bcc", "k"):
        await queue(client, name(f"dlq-{each}"))
        await client.call("queue_bind", name(f"dlq-{each}"), dlx, each)
    await client.publish("1", key=q, headers={"CC": ["cc"], "BCC": ["bcc"]})
    got = await take(client, q)
    assert got.headers == {"CC": ["cc"]}
    await client.call("nack", got.tag, requeue=False)
    await broker.rest()
    there = [each for each in (q, "cc", "bcc", "k") if await client.get(name(f"dlq-{each}"))]
    assert there == (["k"] if key else [q, "cc", "bcc"])


async def test_the_death_does_not_tell_of_bcc(broker: Driver, client: Client, name: Name) -> None:
    dlq = await queue(client, name("dlq"))
    q = await queue(client, name("q"), x_dead_letter_exchange="", x_dead_letter_routing_key=dlq)
    await client.publish("1", key=q, headers={"CC": ["cc"], "BCC": ["bcc"]})
    await client.call("nack", (await take(client, q)).tag, requeue=False)
    await broker.rest()
    assert deaths(await take(client, dlq))[0]["routing-keys"] == [q, "cc"]


@pytest.mark.since(4, 0)
async def test_what_a_publisher_says_of_deaths_stays_as_it_is_until_there_is_one(
    broker: Driver, client: Client, name: Name
) -> None:
    dlq = await queue(client, name("dlq"))
    q = await queue(client, name("q"), x_dead_letter_exchange="", x_dead_letter_routing_key=dlq)
    claim = {"x-death": [{"queue": q, "reason": "expired", "count": 7}], "x-first-death-queue": "other"}
    await client.publish("1", key=q, headers=claim)
    got = await take(client, q)
    assert got.headers == claim
    await client.call("nack", got.tag, requeue=False)
    await broker.rest()
    dead = await take(client, dlq)
    assert [table["reason"] for table in deaths(dead)] == ["rejected"]
    assert told(dead)["x-first-death-queue"] == q


async def test_without_an_exchange_dead_letters_are_gone(broker: Driver, client: Client, name: Name) -> None:
    q = await queue(client, name("q"), x_dead_letter_exchange=name("none"))
    await client.publish("1", key=q)
    await client.call("nack", (await take(client, q)).tag, requeue=False)
    assert await drain(client, q) == []


@BOTH
async def test_expiry_happens_at_the_head_only(broker: Driver, client: Client, name: Name, kind: str) -> None:
    dlq = await queue(client, name("dlq"))
    q = await queue(client, name("q"), x_queue_type=kind, x_dead_letter_exchange="", x_dead_letter_routing_key=dlq)
    await client.publish("long", key=q, expiration="60000")
    await client.publish("short", key=q, expiration="20")
    await broker.wait(0.3)
    assert await client.call("queue_declare", q, passive=True) == (q, 2, 0)
    assert (await take(client, q)).body == "long"
    await broker.rest()
    assert await drain(client, dlq) == ["short"]


@BOTH
async def test_ttl_zero_is_for_whoever_waits(broker: Driver, client: Client, name: Name, kind: str) -> None:
    q = await queue(client, name("q"), x_queue_type=kind, x_message_ttl=0)
    await client.publish("lost", key=q)
    await broker.wait(0.1)
    assert await drain(client, q) == []
    inbox = await client.consume(q, no_ack=True)
    await client.publish("seen", key=q)
    await broker.rest()
    assert inbox.bodies == ["seen"]


@BOTH
async def test_the_shorter_of_both_times_counts(broker: Driver, client: Client, name: Name, kind: str) -> None:
    q = await queue(client, name("q"), x_queue_type=kind, x_message_ttl=60_000)
    await client.publish("1", key=q, expiration="20")
    await broker.wait(0.3)
    assert await drain(client, q) == []


@pytest.mark.since(4, 3)
async def test_at_least_once_waits_for_a_route(broker: Driver, client: Client, name: Name) -> None:
    dlq, q = name("dlq"), name("q")
    await queue(client, q, x_dead_letter_exchange="", x_dead_letter_routing_key=dlq, x_max_length=3, **LEAST)
    await fill(client, q, "1")
    await client.call("nack", (await take(client, q)).tag, requeue=False)
    await broker.rest()
    assert await client.call("queue_declare", q, passive=True) == (q, 0, 0)
    assert await client.call("queue_purge", q) == 1


@pytest.mark.parametrize("overflow", ["drop-head", "reject-publish-dlx"])
async def test_what_is_too_much_for_a_classic_queue_is_dead_lettered(
    broker: Driver, client: Client, name: Name, overflow: str
) -> None:
    dlq = await queue(client, name("dlq"))
    q = await queue(
        client, name("q"), x_max_length=2, x_overflow=overflow, x_dead_letter_exchange="", x_dead_letter_routing_key=dlq
    )
    answers = [await client.publish(body, key=q) for body in "abc"]
    await broker.rest()
    assert answers == (["ack"] * 3 if overflow == "drop-head" else ["ack", "ack", "nack"])
    assert await drain(client, q) == (["b", "c"] if overflow == "drop-head" else ["a", "b"])
    dead = await take(client, dlq)
    assert (dead.body, dead.headers["x-death"][0]["reason"]) == ("a" if overflow == "drop-head" else "c", "maxlen")


async def test_of_several_rejected_at_once_those_of_higher_priority_die_first(
    broker: Driver, client: Client, name: Name
) -> None:
    dlq = await queue(client, name("dlq"))
    q = await queue(client, name("q"), x_max_priority=3, x_dead_letter_exchange="", x_dead_letter_routing_key=dlq)
    inbox = await client.consume(q)
    for body, priority in (("low", None), ("high", 2), ("also low", 0)):
        await client.publish(body, key=q, priority=priority)
        await broker.rest()
    await client.call("nack", inbox.got[-1].tag, multiple=True, requeue=False)
    await broker.rest()
    assert await drain(client, dlq) == ["high", "low", "also low"]


async def test_of_several_that_were_got_the_first_dies_first(broker: Driver, client: Client, name: Name) -> None:
    dlq = await queue(client, name("dlq"))
    q = await queue(client, name("q"), x_max_priority=3, x_dead_letter_exchange="", x_dead_letter_routing_key=dlq)
    got = []
    for body, priority in (("low", None), ("high", 2), ("also low", 0)):
        await client.publish(body, key=q, priority=priority)
        got.append(await take(client, q))
    await client.call("nack", got[-1].tag, multiple=True, requeue=False)
    await broker.rest()
    assert await drain(client, dlq) == ["low", "high", "also low"]


@BOTH
async def test_several_rejected_at_once_die_before_the_queue_goes_on(
    broker: Driver, client: Client, name: Name, kind: str
) -> None:
    dlq = await queue(client, name("dlq"))
    q = await queue(client, name("q"), x_queue_type=kind, x_dead_letter_exchange="", x_dead_letter_routing_key=dlq)
    await client.call("qos", 2)
    await fill(client, q, *"ab")
    inbox = await client.consume(q)
    await fill(client, q, "c")
    await client.publish("expired", key=q, expiration="20")
    await broker.wait(0.3)
    await client.call("nack", inbox.got[1].tag, multiple=True, requeue=False)
    await broker.rest()
    assert await drain(client, dlq) == ["a", "b", "expired"]


async def test_what_is_expired_dies_when_it_comes_to_the_head_of_a_quorum_queue_that_was_too_long(
    broker: Driver, client: Client, name: Name
) -> None:
    dlq = await queue(client, name("dlq"))
    q = await queue(
        client,
        name("q"),
        x_queue_type="quorum",
        x_max_length=2,
        x_dead_letter_exchange="",
        x_dead_letter_routing_key=dlq,
    )
    holders = []
    for bodies, expiration in (("a", None), ("bc", "20")):
        holders.append(await broker.client())
        await holders[-1].call("qos", len(bodies))
        await holders[-1].consume(q)
        for body in bodies:
            await client.publish(body, key=q, expiration=expiration if body == "c" else None)
    await broker.wait(0.3)
    await holders[1].close()
    await broker.rest()
    assert await drain(client, dlq) == []
    await holders[0].close()
    await broker.rest()
    assert (await drain(client, dlq), await drain(client, q)) == (["b", "c"], ["a"])


async def test_drop_head_at_a_quorum_queue(broker: Driver, client: Client, name: Name) -> None:
    q = await queue(client, name("q"), x_queue_type="quorum", x_max_length=2)
    await fill(client, q, *"abcd")
    assert await drain(client, q) == ["c", "d"]


async def test_reject_publish_at_a_classic_queue(client: Client, name: Name) -> None:
    q = await queue(client, name("q"), x_max_length=2, x_overflow="reject-publish")
    assert [await client.publish(body, key=q) for body in "abc"] == ["ack", "ack", "nack"]
    await take(client, q)
    assert [await client.publish(body, key=q) for body in "de"] == ["ack", "nack"]


async def test_reject_publish_at_a_quorum_queue_lasts_until_a_fifth_is_free(
    broker: Driver, client: Client, name: Name
) -> None:
    q = await queue(client, name("q"), x_queue_type="quorum", x_max_length=5, x_overflow="reject-publish")
    answers = []
    for body in "abcdefgh":
        answers.append(await client.publish(body, key=q))
        await broker.rest()
    assert answers == ["ack"] * 6 + ["nack"] * 2
    again = []
    for _ in range(3):
        await client.get(q, no_ack=True)
        await broker.rest()
        again.append(await client.publish("x", key=q))
        await broker.rest()
    assert again == ["nack", "ack", "ack"]


async def test_a_full_quorum_queue_takes_publishes_again_though_what_was_delivered_has_come_back(
    broker: Driver, client: Client, name: Name
) -> None:
    q = await queue(client, name("q"), x_queue_type="quorum", x_max_length=5, x_overflow="reject-publish")
    for body in "abcdef":
        assert await client.publish(body, key=q) == "ack"
        await broker.rest()
    held = await take(client, q)
    await client.get(q, no_ack=True)
    await client.call("nack", held.tag)
    await broker.rest()
    assert await client.publish("g", key=q) == "ack"
    await broker.rest()
    assert await client.publish("h", key=q) == "nack"


async def test_length_counts_what_is_ready(broker: Driver, client: Client, name: Name) -> None:
    q = await queue(client, name("q"), x_max_length=1)
    await fill(client, q, "a")
    held = await take(client, q)
    await fill(client, q, "b")
    await client.call("nack", held.tag)
    await broker.rest()
    assert await drain(client, q) == ["b"]


async def test_bytes_are_those_of_bodies(client: Client, name: Name) -> None:
    q = await queue(client, name("q"), x_max_length_bytes=10)
    await fill(client, q, "a" * 4, "b" * 4, "c" * 4)
    assert await drain(client, q) == ["b" * 4, "c" * 4]


async def test_a_message_larger_than_the_queue_is_dropped_at_once(client: Client, name: Name) -> None:
    q = await queue(client, name("q"), x_max_length_bytes=10)
    await fill(client, q, "a" * 11)
    assert await drain(client, q) == []
