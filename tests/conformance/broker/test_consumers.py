"""Who gets which message."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conformance.broker.driver import Client, Closed, Driver
from tests.conformance.broker.steps import drain, fill, queue, take

Name = Callable[[str], str]
BOTH = pytest.mark.parametrize("kind", ["classic", "quorum"])


@BOTH
async def test_consumers_take_turns(broker: Driver, client: Client, name: Name, kind: str) -> None:
    q = await queue(client, name("q"), x_queue_type=kind)
    one, two = await client.consume(q), await client.consume(q)
    await fill(client, q, *"abcde")
    await broker.rest()
    assert (one.bodies, two.bodies) == (["a", "c", "e"], ["b", "d"])


@BOTH
async def test_prefetch_is_each_consumers(broker: Driver, client: Client, name: Name, kind: str) -> None:
    q = await queue(client, name("q"), x_queue_type=kind)
    await fill(client, q, *"abcdef")
    await client.call("qos", 2)
    one, two = await client.consume(q), await client.consume(q)
    await broker.rest()
    assert (one.bodies, two.bodies) == (["a", "b"], ["c", "d"])
    await client.call("ack", two.got[0].tag)
    await broker.rest()
    assert (one.bodies, two.bodies) == (["a", "b"], ["c", "d", "e"])


async def test_who_acknowledges_nothing_has_its_prefetch_at_a_quorum_queue(
    broker: Driver, client: Client, name: Name
) -> None:
    """It shows in how what comes back at once is shared out."""
    q = await queue(client, name("q"), x_queue_type="quorum")
    holder = await broker.client()
    await holder.consume(q)
    await fill(client, q, *"abcd")
    await client.call("qos", 1)
    one = await client.consume(q, no_ack=True)
    await client.call("qos", 3)
    two = await client.consume(q)
    await holder.close()
    await broker.rest()
    assert (one.bodies, two.bodies) == (["a"], ["b", "c", "d"])


@pytest.mark.since(4, 3)
@BOTH
async def test_a_global_prefetch_is_each_consumers_as_well(
    broker: Driver, client: Client, name: Name, kind: str
) -> None:
    q = await queue(client, name("q"), x_queue_type=kind)
    await fill(client, q, *"abcdef")
    await client.call("qos", prefetch_count=2, global_=True)
    one, two = await client.consume(q), await client.consume(q)
    await broker.rest()
    assert (one.bodies, two.bodies) == (["a", "b"], ["c", "d"])


@BOTH
async def test_a_higher_priority_goes_first(broker: Driver, client: Client, name: Name, kind: str) -> None:
    q = await queue(client, name("q"), x_queue_type=kind)
    await client.call("qos", 2)
    low = await client.consume(q)
    high = await client.consume(q, arguments={"x-priority": 5})
    await fill(client, q, *"abc")
    await broker.rest()
    assert (high.bodies, low.bodies) == (["a", "b"], ["c"])


@BOTH
async def test_a_cancelled_consumer_keeps_what_it_has(broker: Driver, client: Client, name: Name, kind: str) -> None:
    q = await queue(client, name("q"), x_queue_type=kind)
    await fill(client, q, "a", "b")
    await client.call("qos", 1)
    inbox = await client.consume(q)
    await broker.rest()
    await client.call("cancel", inbox.tag)
    assert await drain(client, q) == ["b"]
    await client.call("nack", inbox.got[0].tag)
    await broker.rest()
    assert await drain(client, q) == ["a"]
    assert not inbox.cancelled


@BOTH
async def test_a_deleted_queue_cancels_its_consumers(broker: Driver, client: Client, name: Name, kind: str) -> None:
    q = await queue(client, name("q"), x_queue_type=kind)
    inbox = await client.consume(q)
    other = await broker.client()
    await fill(other, q, "a")
    await broker.rest()
    await other.call("queue_delete", q)
    await broker.rest()
    assert isinstance(inbox.cancelled, bool)
    await client.call("ack", inbox.got[0].tag)
    await client.call("queue_declare", q, durable=True)


@BOTH
async def test_without_acknowledgement_nothing_is_held(broker: Driver, client: Client, name: Name, kind: str) -> None:
    q = await queue(client, name("q"), x_queue_type=kind)
    await client.call("qos", 1)
    inbox = await client.consume(q, no_ack=True)
    await fill(client, q, *"abc")
    await broker.rest()
    assert inbox.bodies == ["a", "b", "c"]
    with pytest.raises(Closed) as closed:
        await client.call("ack", inbox.got[0].tag)
    assert closed.value.text == "PRECONDITION_FAILED - unknown delivery tag 1"


async def test_tags_go_on_over_consumers_and_gets(broker: Driver, client: Client, name: Name) -> None:
    q = await queue(client, name("q"))
    await fill(client, q, *"abc")
    assert (await take(client, q)).tag == 1
    got = await client.get(q, no_ack=True)
    assert got is not None
    assert (got.tag, got.left) == (2, 1)
    inbox = await client.consume(q)
    await broker.rest()
    assert [each.tag for each in inbox.got] == [3]


async def test_acknowledging_up_to_a_tag(broker: Driver, client: Client, name: Name) -> None:
    q = await queue(client, name("q"))
    await fill(client, q, *"abcd")
    got = [await take(client, q) for _ in range(4)]
    await client.call("ack", got[1].tag)
    await client.call("ack", got[2].tag, multiple=True)
    await client.call("nack", 0, multiple=True)
    await broker.rest()
    assert await drain(client, q) == ["d"]


@pytest.mark.parametrize("method", ["ack", "nack", "reject"])
async def test_a_tag_can_be_settled_once(client: Client, name: Name, method: str) -> None:
    q = await queue(client, name("q"))
    await fill(client, q, "a")
    got = await take(client, q)
    await client.call("ack", got.tag)
    with pytest.raises(Closed) as closed:
        await client.call(method, got.tag)
    assert (closed.value.code, closed.value.text) == (406, "PRECONDITION_FAILED - unknown delivery tag 1")


async def test_up_to_a_tag_that_is_settled_is_an_error(client: Client, name: Name) -> None:
    q = await queue(client, name("q"))
    await fill(client, q, "a", "b")
    got = [await take(client, q) for _ in range(2)]
    await client.call("ack", got[0].tag)
    with pytest.raises(Closed):
        await client.call("ack", got[0].tag, multiple=True)


@pytest.mark.since(4, 0)
@BOTH
async def test_a_single_active_consumer_gets_all_until_it_goes(
    broker: Driver, client: Client, name: Name, kind: str
) -> None:
    q = await queue(client, name("q"), x_queue_type=kind, x_single_active_consumer=True)
    await client.call("qos", 1)
    one, two, three = [await client.consume(q) for _ in range(3)]
    await fill(client, q, *"abc")
    await broker.rest()
    assert (one.bodies, two.bodies, three.bodies) == (["a"], [], [])
    await client.call("cancel", one.tag)
    await broker.rest()
    assert (one.bodies, two.bodies, three.bodies) == (["a"], ["b"], [])
    await client.call("ack", one.got[0].tag)
    await client.call("ack", two.got[0].tag)
    await broker.rest()
    assert (one.bodies, two.bodies, three.bodies) == (["a"], ["b", "c"], [])


@BOTH
async def test_the_next_single_active_consumer_begins_with_what_came_back(
    broker: Driver, client: Client, name: Name, kind: str
) -> None:
    q = await queue(client, name("q"), x_queue_type=kind, x_single_active_consumer=True)
    await fill(client, q, *"abc")
    first = await broker.client()
    await first.call("qos", 1)
    await first.consume(q)
    await broker.rest()
    next_one = await client.consume(q)
    await first.close()
    await broker.rest()
    assert next_one.bodies == ["a", "b", "c"]


@pytest.mark.since(4, 0)
@BOTH
async def test_priority_among_single_active_consumers(broker: Driver, client: Client, name: Name, kind: str) -> None:
    q = await queue(client, name("q"), x_queue_type=kind, x_single_active_consumer=True)
    await client.call("qos", 1)
    low = await client.consume(q)
    await fill(client, q, *"abc")
    await broker.rest()
    high = await client.consume(q, arguments={"x-priority": 5})
    await broker.rest()
    assert (low.bodies, high.bodies) == (["a"], [])
    await client.call("ack", low.got[0].tag)
    await broker.rest()
    assert (low.bodies, high.bodies) == ((["a"], ["b"]) if kind == "quorum" else (["a", "b"], []))


@pytest.mark.since(4, 0)
async def test_a_single_active_consumer_that_has_to_go_gets_no_more(broker: Driver, client: Client, name: Name) -> None:
    q = await queue(client, name("q"), x_queue_type="quorum", x_single_active_consumer=True)
    await client.call("qos", 2)
    low = await client.consume(q)
    await fill(client, q, *"abcd")
    await broker.rest()
    high = await client.consume(q, arguments={"x-priority": 5})
    await client.call("ack", low.got[0].tag)
    await broker.rest()
    assert (low.bodies, high.bodies) == (["a", "b"], [])
    await client.call("ack", low.got[1].tag)
    await broker.rest()
    assert (low.bodies, high.bodies) == (["a", "b"], ["c", "d"])


@pytest.mark.since(4, 0)
@BOTH
async def test_of_those_that_wait_to_be_the_single_active_one_a_quorum_queue_takes_the_highest_prefetch(
    broker: Driver, client: Client, name: Name, kind: str
) -> None:
    q = await queue(client, name("q"), x_queue_type=kind, x_single_active_consumer=True)
    clients, inboxes = [], []
    for prefetch in (3, 1, 2, 2, 4):
        clients.append(await broker.client())
        await clients[-1].call("qos", prefetch)
        inboxes.append(await clients[-1].consume(q))
        await broker.rest()
    await fill(client, q, "a")
    order = []
    for _ in clients:
        await broker.rest()
        order.append(next(at for at, inbox in enumerate(inboxes) if inbox.got and at not in order))
        await clients[order[-1]].close()
    assert order == ([0, 4, 2, 3, 1] if kind == "quorum" else [0, 1, 2, 3, 4])


async def test_an_exclusive_consumer_is_alone(broker: Driver, client: Client, name: Name) -> None:
    q = await queue(client, name("q"))
    await client.consume(q, exclusive=True)
    other = await broker.client()
    with pytest.raises(Closed) as closed:
        await other.consume(q)
    assert (closed.value.code, closed.value.text) == (
        403,
        f"ACCESS_REFUSED - queue '{q}' in vhost '/' in exclusive use",
    )


async def test_a_consumer_tag_is_one_consumers(client: Client, name: Name) -> None:
    q = await queue(client, name("q"))
    inbox = await client.consume(q)
    await client.call("cancel", inbox.tag)
    await client.consume(q, consumer_tag=inbox.tag)


async def test_classic_priorities(broker: Driver, client: Client, name: Name) -> None:
    q = await queue(client, name("q"), x_max_priority=5)
    for body, priority in (("none", None), ("low", 1), ("high", 5), ("higher", 9), ("also low", 1)):
        await client.publish(body, key=q, priority=priority)
    got = [await take(client, q) for _ in range(3)]
    assert [each.body for each in got] == ["high", "higher", "low"]
    assert got[1].properties["priority"] == 9
    await client.call("nack", got[2].tag, multiple=True)
    await broker.rest()
    assert await drain(client, q) == ["high", "higher", "low", "also low", "none"]


@pytest.mark.since(4, 3)
async def test_quorum_priorities(broker: Driver, client: Client, name: Name) -> None:
    q = await queue(client, name("q"), x_queue_type="quorum")
    for body, priority in (("none", None), ("4", 4), ("0", 0), ("5", 5), ("31", 31), ("99", 99), ("3", 3)):
        await client.publish(body, key=q, priority=priority)
    assert await drain(client, q) == ["31", "99", "5", "none", "4", "3", "0"]


async def test_an_unused_queue_expires(broker: Driver, client: Client, name: Name) -> None:
    q = await queue(client, name("q"), x_expires=1500)  # two waits are more, one is less by what a busy machine is late
    inbox = await client.consume(q)
    await broker.wait(1.8)
    await client.call("queue_declare", q, passive=True)
    await client.call("cancel", inbox.tag)
    await broker.wait(0.9)
    await client.call("queue_declare", q, passive=True)
    await broker.wait(0.9)
    await client.get(q)
    await broker.wait(0.9)
    await client.call("queue_declare", q, passive=True)
    await broker.wait(2.0)
    with pytest.raises(Closed) as closed:
        await client.call("queue_declare", q, passive=True)
    assert closed.value.code == 404


async def test_a_queue_that_deletes_itself(broker: Driver, client: Client, name: Name) -> None:
    q = name("q")
    await client.call("queue_declare", q, auto_delete=True)
    other = await broker.client()
    one, two = await other.consume(q), await other.consume(q)
    await other.call("cancel", one.tag)
    await broker.rest()
    assert await client.call("queue_declare", q, passive=True) == (q, 0, 1)
    await other.call("cancel", two.tag)
    await broker.rest()
    with pytest.raises(Closed) as closed:
        await client.call("queue_declare", q, passive=True)
    assert closed.value.text == f"NOT_FOUND - no queue '{q}' in vhost '/'"


async def test_recover_gives_back_to_whoever(broker: Driver, client: Client, name: Name) -> None:
    q = await queue(client, name("q"))
    await fill(client, q, "a", "b")
    inbox = await client.consume(q)
    await broker.rest()
    await client.call("recover", requeue=True)
    await broker.rest()
    assert inbox.bodies == ["a", "b", "a", "b"]
    assert [each.redelivered for each in inbox.got] == [False, False, True, True]
    assert [each.tag for each in inbox.got] == [1, 2, 3, 4]
