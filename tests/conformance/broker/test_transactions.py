"""What happens in a transaction, at its end, and where it fails."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.conformance.broker.driver import Client, Closed, Driver
from tests.conformance.broker.steps import drain, fill, queue

Name = Callable[[str], str]
KINDS = pytest.mark.parametrize("kind", ["classic", "quorum"])


async def begun(broker: Driver) -> Client:
    """Return a client whose channel is in a transaction."""
    client = await broker.client(confirms=False)
    await client.call("tx_select")
    return client


async def ready(client: Client, queue: str) -> int:
    """How many messages are in a queue, ready to be delivered."""
    _, messages, _ = await client.call("queue_declare", queue, passive=True)
    assert isinstance(messages, int)
    return messages


@KINDS
async def test_publishes_arrive_with_the_commit(broker: Driver, name: Name, kind: str) -> None:
    """All of them, in their order; those of a rollback never do, and neither do those of a channel that is closed."""
    client, other = await begun(broker), await broker.client()
    q = await queue(other, name("q"), x_queue_type=kind)
    for body in "12":
        assert await client.publish(body, key=q) == "sent"
    await broker.rest()
    assert await ready(other, q) == 0
    await client.call("tx_commit")
    assert await drain(other, q) == ["1", "2"]
    await client.publish("3", key=q)
    await client.call("tx_rollback")
    await client.publish("4", key=q)
    await client.call("tx_commit")
    await client.publish("5", key=q)
    await client.close()
    await broker.rest()
    assert await drain(other, q) == ["4"]


async def test_what_nobody_takes_comes_back_with_the_commit(broker: Driver, name: Name) -> None:
    client = await begun(broker)
    await client.publish("1", key=name("nowhere"), mandatory=True)
    await broker.rest()
    assert client.returned == []
    await client.call("tx_commit")
    await broker.rest()
    assert client.returned == ["1"]


async def test_a_message_comes_to_those_that_were_bound_when_it_was_published(broker: Driver, name: Name) -> None:
    client, other = await begun(broker), await broker.client()
    q, x = await queue(other, name("q")), name("x")
    await other.call("exchange_declare", x, "fanout")
    await client.publish("1", x)
    await client.call("queue_bind", q, x, "")
    await client.publish("2", x)
    await client.call("queue_unbind", q, x, "")
    await client.call("tx_commit")
    assert await drain(other, q) == ["2"]


@KINDS
async def test_acknowledgements_count_with_the_commit(broker: Driver, name: Name, kind: str) -> None:
    """Until then a delivery is the channel's and cannot be settled again; with a rollback it can."""
    client, other = await begun(broker), await broker.client()
    q = await queue(other, name("q"), x_queue_type=kind)
    await fill(other, q, "1", "2", "3", "4")
    tags = [got.tag for _ in range(4) if (got := await client.get(q)) is not None]
    await client.call("ack", tags[0])
    await client.call("nack", tags[1], requeue=True)
    await client.call("tx_rollback")
    await client.call("ack", tags[1], multiple=True)  # both again
    await client.call("reject", tags[2], requeue=True)
    await broker.rest()
    assert await ready(other, q) == 0
    await client.call("tx_commit")
    await broker.rest()
    assert await drain(other, q) == ["3"]
    await client.call("ack", tags[3])
    with pytest.raises(Closed) as refused:
        await client.call("ack", tags[3])
    assert (refused.value.code, refused.value.text) == (406, "PRECONDITION_FAILED - unknown delivery tag 4")
    await broker.rest()
    assert await drain(other, q) == ["4"], "what was acknowledged, and not committed, is back"


async def test_a_prefetch_is_free_again_with_the_commit(broker: Driver, name: Name) -> None:
    client, other = await begun(broker), await broker.client()
    q = await queue(other, name("q"))
    await fill(other, q, "1", "2")
    await client.call("qos", 1)
    inbox = await client.consume(q)
    await broker.rest()
    await client.call("ack", inbox.got[0].tag)
    await broker.rest()
    assert inbox.bodies == ["1"]
    await client.call("tx_commit")
    await broker.rest()
    assert inbox.bodies == ["1", "2"]


async def test_a_commit_that_a_queue_refuses_has_failed_in_part(broker: Driver, name: Name) -> None:
    """406, and the rest is done: what other queues have taken, and what was acknowledged."""
    client, other = await begun(broker), await broker.client()
    q, full = (
        await queue(other, name("q")),
        await queue(other, name("full"), x_max_length=1, x_overflow="reject-publish"),
    )
    await fill(other, full, "full")
    await fill(other, q, "acknowledged")
    got = await client.get(q)
    assert got is not None
    await client.call("ack", got.tag)
    for key in (q, full):
        await client.publish("new", key=key)
    with pytest.raises(Closed) as refused:
        await client.call("tx_commit")
    assert (refused.value.code, refused.value.text) == (406, "PRECONDITION_FAILED - partial tx completion")
    await broker.rest()
    assert (await drain(other, q), await drain(other, full)) == (["new"], ["full"])


@pytest.mark.parametrize(
    ("before", "method", "words"),
    [
        (None, "tx_commit", "channel is not transactional"),
        (None, "tx_rollback", "channel is not transactional"),
        ("confirm_select", "tx_select", "cannot switch from confirm to tx mode"),
        ("tx_select", "confirm_select", "cannot switch from tx to confirm mode"),
    ],
)
async def test_what_is_no_transaction(broker: Driver, before: str | None, method: str, words: str) -> None:
    client = await broker.client(confirms=False)
    if before is not None:
        await client.call(before)
    with pytest.raises(Closed) as refused:
        await client.call(method)
    assert (refused.value.code, refused.value.text) == (406, f"PRECONDITION_FAILED - {words}")


async def test_a_publish_that_cannot_be_ends_the_transaction(broker: Driver, name: Name) -> None:
    """At once, as without one; nothing of it happens."""
    client, other = await begun(broker), await broker.client()
    q = await queue(other, name("q"))
    await client.publish("1", key=q)
    with pytest.raises(Closed) as refused:  # noqa: PT012 - of which one it is heard depends on the transport
        await client.publish("2", name("missing"))
        await client.call("tx_commit")
    assert refused.value.code == 404
    await broker.rest()
    assert await drain(other, q) == []


@pytest.mark.parametrize("seed", range(3))
async def test_transactions_at_random(  # noqa: C901 - one branch for each step
    broker: Driver, name: Name, seed: int
) -> None:
    """Two queues, and what a transaction should make of them: a plain list of each tells what is there afterwards."""
    dice = random.Random(seed)
    client, other = await begun(broker), await broker.client()
    queues = [await queue(other, name(f"q{number}")) for number in range(2)]
    there: dict[str, list[str]] = {each: [] for each in queues}
    published: list[tuple[str, str]] = []
    held: dict[int, tuple[str, str]] = {}  # what the channel has got and not settled
    settled: dict[int, tuple[str, str]] = {}  # in this transaction
    for number in range(60):
        match dice.choice(["publish", "publish", "get", "ack", "commit", "rollback"]):
            case "publish":
                published.append((dice.choice(queues), str(number)))
                await client.publish(published[-1][1], key=published[-1][0])
            case "get":
                place = dice.choice(queues)
                got = await client.get(place)
                assert (got and got.body) == (there[place].pop(0) if there[place] else None)
                if got is not None:
                    held[got.tag] = (place, got.body)
            case "ack" if held:
                tag = dice.choice(list(held))
                await client.call("ack", tag)
                settled[tag] = held.pop(tag)
            case "commit":
                await client.call("tx_commit")
                for place, body in published:
                    there[place].append(body)
                published, settled = [], {}
            case "rollback":
                await client.call("tx_rollback")
                held |= settled
                published, settled = [], {}
    await client.close()
    await broker.rest()
    for place, body in (held | settled).values():
        there[place].append(body)
    for each in queues:
        assert sorted(await drain(other, each)) == sorted(there[each])
