"""Where messages stand that come back, how they are counted, and when that is too often."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conformance.broker.driver import Client, Driver
from tests.conformance.broker.steps import drain, fill, queue, take

Name = Callable[[str], str]
BOTH = pytest.mark.parametrize("kind", ["classic", "quorum"])


async def test_a_classic_queue_puts_a_message_back_to_its_place(client: Client, name: Name) -> None:
    q = await queue(client, name("q"))
    await fill(client, q, *"abcd")
    got = [await take(client, q) for _ in range(3)]
    await client.call("nack", got[1].tag)
    await client.call("nack", got[0].tag)
    assert await drain(client, q) == ["a", "b", "d"]


@pytest.mark.since(4, 0)
async def test_a_quorum_queue_puts_messages_back_before_all_others_in_the_order_of_coming_back(
    client: Client, name: Name
) -> None:
    q = await queue(client, name("q"), x_queue_type="quorum")
    await fill(client, q, *"abcd")
    got = [await take(client, q) for _ in range(3)]
    await client.call("nack", got[1].tag)
    await client.call("nack", got[0].tag)
    assert await drain(client, q) == ["b", "a", "d"]


@pytest.mark.since(4, 3)
async def test_without_a_delivery_limit_messages_come_back_before_all_others_as_well(
    broker: Driver, client: Client, name: Name
) -> None:
    q = await queue(client, name("q"), x_queue_type="quorum", x_delivery_limit=-1)
    await fill(client, q, *"abcd")
    got = [await take(client, q) for _ in range(3)]
    await client.call("nack", got[1].tag)
    await broker.rest()
    await client.call("nack", got[0].tag)
    await broker.rest()
    assert await drain(client, q) == ["b", "a", "d"]


@pytest.mark.since(4, 0)
@BOTH
async def test_several_come_back_in_the_order_in_which_they_were_delivered(
    broker: Driver, client: Client, name: Name, kind: str
) -> None:
    q = await queue(client, name("q"), x_queue_type=kind)
    await fill(client, q, *"abcd")
    got = [await take(client, q) for _ in range(3)]
    await client.call("nack", got[2].tag, multiple=True)
    await broker.rest()
    assert await drain(client, q) == ["a", "b", "c", "d"]


@BOTH
async def test_a_closed_channel_gives_everything_back_in_order(
    broker: Driver, client: Client, name: Name, kind: str
) -> None:
    q = await queue(client, name("q"), x_queue_type=kind)
    await fill(client, q, *"abcd")
    other = await broker.client()
    await other.call("qos", 3)
    inbox = await other.consume(q)
    await broker.rest()
    assert inbox.bodies == ["a", "b", "c"]
    await other.close()
    await broker.rest()
    assert await drain(client, q) == ["a", "b", "c", "d"]


@pytest.mark.since(4, 3)
async def test_a_closed_channel_gives_back_what_consumers_hold_and_then_what_was_got(
    broker: Driver, client: Client, name: Name
) -> None:
    """A consumer's after the other's, as they came; each basic.get is one by the text of its delivery tag."""
    q = await queue(client, name("q"), x_queue_type="quorum", x_delivery_limit=-1)
    await fill(client, q, *"abcdefghijklmno")
    other = await broker.client(client)
    await other.call("qos", 2)
    await take(other, q)
    for tag in "za":
        await other.consume(q, consumer_tag=tag)
        await broker.rest()
    for _ in range(7):
        await take(other, q)
    await other.close()
    await broker.rest()
    assert await drain(client, q) == [*"bcde", "a", *"jkl", *"fghi", *"mno"]


@BOTH
async def test_a_closed_channel_gives_back_to_a_queue_that_came_after_another_one_of_its_name(
    broker: Driver, client: Client, name: Name, kind: str
) -> None:
    q = await queue(client, name("q"), x_queue_type=kind)
    other = await broker.client()
    for body in "ab":
        await fill(client, q, body)
        await take(other, q)
        if body == "a":
            await client.call("queue_delete", q)
            await queue(client, q, x_queue_type=kind)
    await other.close()
    await broker.rest()
    assert await drain(client, q) == ["b"]


async def seen(client: Client, q: str) -> tuple[bool, object, object]:
    got = await take(client, q)
    await client.call("nack", got.tag)
    return got.redelivered, got.headers.get("x-acquired-count"), got.headers.get("x-delivery-count")


@pytest.mark.since(4, 3)
async def test_a_nack_counts_as_acquired_and_a_reject_as_failed_too(broker: Driver, client: Client, name: Name) -> None:
    q = await queue(client, name("q"), x_queue_type="quorum")
    await fill(client, q, "a")
    assert await seen(client, q) == (False, None, None)
    await broker.rest()
    assert await seen(client, q) == (True, 1, None)
    await broker.rest()
    got = await take(client, q)
    await client.call("reject", got.tag)
    await broker.rest()
    assert await seen(client, q) == (True, 3, 1)


async def test_a_classic_queue_counts_nothing(broker: Driver, client: Client, name: Name) -> None:
    q = await queue(client, name("q"))
    await fill(client, q, "a")
    assert await seen(client, q) == (False, None, None)
    assert await seen(client, q) == (True, None, None)
    got = await take(client, q)
    await client.call("reject", got.tag)
    await broker.rest()
    assert await seen(client, q) == (True, None, None)


@pytest.mark.since(4, 3)
@pytest.mark.parametrize("way", ["channel", "recover", "cancel", "consumer channel"])
async def test_what_counts_as_a_failed_delivery(broker: Driver, client: Client, name: Name, way: str) -> None:
    q = await queue(client, name("q"), x_queue_type="quorum")
    await fill(client, q, "a")
    other = await broker.client()
    if way in ("channel", "recover"):
        await take(other, q)
    else:
        await other.consume(q, consumer_tag="tag")
        await broker.rest()
    if way == "recover":
        await other.call("recover", requeue=True)
    elif way == "cancel":
        await other.call("cancel", "tag")
        await broker.rest()
        assert await client.get(q) is None
        await other.close()
    else:
        await other.close()
    await broker.rest()
    assert await seen(client, q) == {"recover": (True, 1, None)}.get(way, (True, 1, 1))


@pytest.mark.since(4, 3)
async def test_beyond_the_delivery_limit_a_message_is_dead_lettered(broker: Driver, client: Client, name: Name) -> None:
    dlq = await queue(client, name("dlq"))
    q = await queue(
        client,
        name("q"),
        x_queue_type="quorum",
        x_delivery_limit=2,
        x_dead_letter_exchange="",
        x_dead_letter_routing_key=dlq,
    )
    await fill(client, q, "a")
    for _ in range(3):
        got = await take(client, q)
        await client.call("reject", got.tag)
        await broker.rest()
    assert await client.get(q) is None
    dead = await take(client, dlq)
    assert [(death["reason"], death["count"], death["queue"]) for death in dead.headers["x-death"]] == [
        ("delivery_limit", 1, q)
    ]
    assert dead.headers.get("x-delivery-count") is None
    assert dead.redelivered


@pytest.mark.since(4, 3)
@pytest.mark.parametrize("strategy", ["at-most-once", "at-least-once"])
@pytest.mark.parametrize("how", ["nack", "reject", "limit"])
async def test_a_quorum_queue_goes_on_counting_where_the_one_before_stopped(
    broker: Driver, client: Client, name: Name, strategy: str, how: str
) -> None:
    dlq = await queue(client, name("dlq"), x_queue_type="quorum")
    more = {"x_dead_letter_strategy": strategy, "x_overflow": "reject-publish", "x_delivery_limit": 0}
    q = await queue(
        client, name("q"), x_queue_type="quorum", x_dead_letter_exchange="", x_dead_letter_routing_key=dlq, **more
    )
    await fill(client, q, "a")
    got = await take(client, q)
    if how == "limit":
        await client.call("reject", got.tag)
    else:
        await client.call(how, got.tag, requeue=False)
    await broker.rest()
    dead = await take(client, dlq)
    counted = (dead.redelivered, dead.headers.get("x-acquired-count"), dead.headers.get("x-delivery-count"))
    assert counted == {"nack": (False, None, None)}.get(how, (True, 1, 1))


@pytest.mark.since(4, 3)
async def test_a_classic_queue_hands_on_a_count_that_it_does_not_show(
    broker: Driver, client: Client, name: Name
) -> None:
    dlq = await queue(client, name("dlq"), x_queue_type="quorum")
    q = await queue(client, name("q"), x_dead_letter_exchange="", x_dead_letter_routing_key=dlq)
    await fill(client, q, "a")
    got = await take(client, q)
    await client.call("reject", got.tag)
    got = await take(client, q)
    await client.call("reject", got.tag, requeue=False)
    await broker.rest()
    dead = await take(client, dlq)
    assert (dead.redelivered, dead.headers.get("x-delivery-count")) == (True, 2)


async def test_a_count_that_came_along_beyond_the_limit_ends_a_message_that_is_only_given_back(
    broker: Driver, client: Client, name: Name
) -> None:
    dlq = await queue(client, name("dlq"), x_queue_type="quorum", x_delivery_limit=0)
    q = await queue(client, name("q"), x_dead_letter_exchange="", x_dead_letter_routing_key=dlq)
    await fill(client, q, "a")
    await client.call("reject", (await take(client, q)).tag, requeue=False)
    await broker.rest()
    await client.call("nack", (await take(client, dlq)).tag)
    await broker.rest()
    assert await drain(client, dlq) == []


@pytest.mark.since(4, 3)
async def test_who_acknowledges_nothing_has_more_when_all_that_came_back_is_given_out(
    broker: Driver, client: Client, name: Name
) -> None:
    """What a client gets at once is settled a moment later; until then others have their turn."""
    q = await queue(client, name("q"), x_queue_type="quorum", x_delivery_limit=-1)
    await client.call("qos", 1)
    mine = await client.consume(q)
    await fill(client, q, *"ab")
    await take(client, q)
    other = await broker.client(client)
    await other.call("qos", 1)
    theirs = await other.consume(q, no_ack=True)
    await fill(client, q, "c")
    await broker.rest()
    await client.call("recover", requeue=True)
    await broker.rest()
    assert (mine.bodies, theirs.bodies) == (["a", "a"], ["c", "b"])
