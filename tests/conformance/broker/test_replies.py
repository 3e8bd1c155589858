"""Direct reply-to: a name that leads to one consumer, and is not a queue otherwise."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pamqp import commands

from tests.conformance.broker.driver import Client, Closed, Driver, Inbox
from tests.conformance.broker.steps import queue, take

Name = Callable[[str], str]
REPLY_TO = "amq.rabbitmq.reply-to"


@pytest.fixture
def any_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have pamqp write the names that RabbitMQ gives, which it takes for impossible."""
    methods = (commands.Queue.Declare, commands.Queue.Bind, commands.Queue.Unbind, commands.Queue.Purge)
    for each in (*methods, commands.Queue.Delete, commands.Basic.Consume, commands.Basic.Get):
        monkeypatch.setattr(each, "validate", lambda _: None)


async def asked(broker: Driver, client: Client, place: str) -> tuple[Inbox, str]:
    """Have `client` wait for replies; return what it gets, and the name that whoever is asked is given."""
    inbox = await client.consume(REPLY_TO, no_ack=True)
    other = await broker.client()
    await queue(other, place)
    assert await client.publish("?", key=place, reply_to=REPLY_TO) == "ack"
    return inbox, str((await take(other, place)).properties["reply_to"])


@pytest.mark.since(4, 3)
async def test_a_reply_comes_to_the_channel_that_asked(broker: Driver, name: Name) -> None:
    """From any connection, by a name that says what it is; each request of a channel is given the same one."""
    client, other = await broker.client(), await broker.client()
    inbox, place = await asked(broker, client, name("requests"))
    assert place.startswith(f"{REPLY_TO}.")
    await client.publish("?", key=name("requests"), reply_to=REPLY_TO)
    assert (await take(other, name("requests"))).properties["reply_to"] == place
    assert await other.publish("1", key=place, mandatory=True) == "ack"
    assert await client.publish("2", key=place, mandatory=True) == "ack"
    await broker.rest()
    assert [(each.body, each.exchange, each.routing_key) for each in inbox.got] == [("1", "", place), ("2", "", place)]


@pytest.mark.since(4, 3)
@pytest.mark.usefixtures("any_name")
async def test_a_live_name_can_be_seen_from_any_connection(broker: Driver, name: Name) -> None:
    """Each declaration of it is a passive one; when the requester has left there is none."""
    client, other = await broker.client(), await broker.client()
    _, place = await asked(broker, client, name("requests"))
    for options in ({"passive": True}, {}, {"durable": True, "exclusive": True}):
        for each in (REPLY_TO, place):
            assert await other.call("queue_declare", each, **options) == (each, 0, 1)
    await client.close()
    await broker.rest()
    with pytest.raises(Closed) as refused:
        await other.call("queue_declare", place, passive=True)
    assert (refused.value.code, refused.value.text) == (404, f"NOT_FOUND - no queue '{place}' in vhost '/'")


@pytest.mark.since(4, 3)
async def test_a_reply_that_comes_too_late_is_dropped(broker: Driver, name: Name) -> None:
    """It is confirmed and not returned, `mandatory` or not. What is not such a name is returned."""
    client, other = await broker.client(), await broker.client()
    inbox, place = await asked(broker, client, name("requests"))
    await client.call("cancel", inbox.tag)
    await broker.rest()
    assert await other.publish("1", key=place, mandatory=True) == "ack"
    await client.close()
    await broker.rest()
    assert await other.publish("2", key=place, mandatory=True) == "ack"
    assert await other.publish("3", key=f"{REPLY_TO}.nobody", mandatory=True) == "returned"
    assert inbox.got == []


@pytest.mark.since(4, 3)
@pytest.mark.usefixtures("any_name")
@pytest.mark.parametrize("method", ["queue_bind", "queue_unbind"])
async def test_a_name_for_replies_is_bound_to_nothing(broker: Driver, name: Name, method: str) -> None:
    client, other = await broker.client(), await broker.client()
    _, place = await asked(broker, client, name("requests"))
    with pytest.raises(Closed) as refused:
        await other.call(method, place, "amq.fanout", "k")
    assert (refused.value.code, refused.value.text) == (
        403,
        "ACCESS_REFUSED - cannot bind or unbind to a volatile (direct reply-to) queue",
    )


@pytest.mark.since(4, 3)
@pytest.mark.usefixtures("any_name")
async def test_only_who_asked_gets_the_replies(broker: Driver, name: Name) -> None:
    """Nobody else may consume or get them; purging and deleting do nothing."""
    client = await broker.client()
    inbox, place = await asked(broker, client, name("requests"))
    with pytest.raises(Closed) as refused:
        await (await broker.client()).consume(place, no_ack=True)
    assert refused.value.code == 406
    assert f"only creator channel may consume from queue '{place}'" in refused.value.text
    with pytest.raises(Closed) as refused:
        await (await broker.client()).get(place, no_ack=True)
    assert refused.value.code == 540
    other = await broker.client()
    assert await other.call("queue_purge", place) == 0
    assert await other.call("queue_delete", place) == 0
    assert await other.publish("!", key=place, mandatory=True) == "ack"
    await broker.rest()
    assert inbox.bodies == ["!"]


@pytest.mark.since(4, 3)
async def test_a_channel_has_one_consumer_of_replies(broker: Driver, name: Name) -> None:
    """Without acknowledgements; when it is cancelled there may be another one, with another name."""
    client = await broker.client()
    inbox, place = await asked(broker, client, name("requests"))
    await client.call("cancel", inbox.tag)
    _, later = await asked(broker, client, name("later"))
    assert place != later
    for options, words in (({"no_ack": True}, "reply consumer already set"), ({}, "reply consumer cannot acknowledge")):
        once = await broker.client()
        if options:
            await once.consume(REPLY_TO, no_ack=True)
        with pytest.raises(Closed) as refused:
            await once.consume(REPLY_TO, consumer_tag="second", **options)
        assert (refused.value.code, refused.value.text) == (406, f"PRECONDITION_FAILED - {words}")
    with pytest.raises(Closed) as refused:
        await (await broker.client()).publish("?", key=name("requests"), reply_to=REPLY_TO)
    assert (refused.value.code, refused.value.text) == (
        406,
        "PRECONDITION_FAILED - fast reply consumer does not exist",
    )
