"""Which queues a message comes to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.conformance.broker.driver import Client, Closed, Driver
from tests.conformance.broker.steps import drain, queue, take

Name = Callable[[str], str]


async def bound(client: Client, name: Name, kind: str, key: str, **arguments: Any) -> tuple[str, str]:
    x, q = name("x"), await queue(client, name("q"))
    await client.call("exchange_declare", x, kind)
    await client.call("queue_bind", q, x, key, arguments=arguments)
    return x, q


@pytest.mark.parametrize(
    ("pattern", "key", "there"),
    [
        ("a.*", "a.b", True),
        ("a.*", "a", False),
        ("a.*", "a.b.c", False),
        ("a.#", "a", True),
        ("a.#", "a.b.c", True),
        ("#", "", True),
        ("#", "a.b", True),
        ("", "", True),
        ("", "a", False),
        ("*", "", False),
        ("*.*", "a.", True),
        ("a..b", "a..b", True),
        ("#.b", "b", True),
        ("#.b", "a.c.b", True),
        ("#.b.#", "a.b.c", True),
        ("#.b.#", "a.c", False),
        ("a.#.*.c", "a.b.c", True),
        ("a.#.*.c", "a.c", False),
        ("a.*", "a.#", True),
        ("a.b", "a.#", False),
        ("#.#.a", "b.b.b.b.a", True),
    ],
)
async def test_topics(client: Client, name: Name, pattern: str, key: str, there: bool) -> None:
    x, q = await bound(client, name, "topic", pattern)
    assert await client.publish("1", x, key, mandatory=True) == ("ack" if there else "returned")
    assert await drain(client, q) == (["1"] if there else [])


@pytest.mark.parametrize(("kind", "there"), [("direct", False), ("fanout", True)])
async def test_direct_and_fanout(client: Client, name: Name, kind: str, there: bool) -> None:
    x, q = await bound(client, name, kind, "k")
    assert await client.publish("1", x, "k") == "ack"
    assert await client.publish("2", x, "other") == "ack"
    assert await drain(client, q) == (["1", "2"] if there else ["1"])


@pytest.mark.parametrize(
    ("wanted", "headers", "there"),
    [
        ({"x-match": "all", "a": 1, "b": "x"}, {"a": 1, "b": "x", "c": 2}, True),
        ({"x-match": "all", "a": 1, "b": "x"}, {"a": 1}, False),
        ({"a": 1}, {"a": 1}, True),
        ({"a": 1}, {"a": "1"}, False),
        ({"a": 1}, {"a": True}, False),
        ({"x-match": "any", "a": 1, "b": "x"}, {"b": "x"}, True),
        ({"x-match": "any", "a": 1}, {"b": "x"}, False),
        ({"x-match": "any"}, {"a": 1}, False),
        ({"x-match": "all"}, {}, True),
        ({"x-match": "all", "x-a": 1}, {}, True),
        ({"x-match": "all-with-x", "x-a": 1}, {}, False),
        ({"x-match": "any-with-x", "x-a": 1}, {"x-a": 1}, True),
        ({"x-match": "any", "x-a": 1}, {"x-a": 1}, False),
        ({"x-match": "all", "a": None}, {"a": 7}, True),
    ],
    ids=str,
)
async def test_headers(
    client: Client, name: Name, wanted: dict[str, Any], headers: dict[str, Any], there: bool
) -> None:
    x, q = await bound(client, name, "headers", "", **wanted)
    await client.publish("1", x, "", headers=headers)
    assert await drain(client, q) == (["1"] if there else [])


async def test_a_queue_gets_a_message_once(client: Client, name: Name) -> None:
    x, q = await bound(client, name, "topic", "a.*")
    await client.call("queue_bind", q, x, "#")
    await client.call("queue_bind", q, x, "a.b")
    await client.publish("1", x, "a.b", headers={"CC": ["a.c"]})
    assert await drain(client, q) == ["1"]


async def test_exchanges_bound_to_exchanges_and_in_a_circle(client: Client, name: Name) -> None:
    x, q = await bound(client, name, "topic", "#.end")
    start = name("start")
    await client.call("exchange_declare", start, "topic")
    await client.call("exchange_bind", x, start, "go.#")
    await client.call("exchange_bind", start, x, "#")
    assert await client.publish("1", start, "go.end", mandatory=True) == "ack"
    assert await client.publish("2", start, "go.on", mandatory=True) == "returned"
    assert await drain(client, q) == ["1"]
    await client.call("exchange_unbind", x, start, "go.#")
    assert await client.publish("3", start, "go.end", mandatory=True) == "returned"


async def test_an_alternate_exchange_gets_what_has_no_route(client: Client, name: Name) -> None:
    x, q = await bound(client, name, "fanout", "")
    first = name("first")
    await client.call("exchange_declare", first, "direct", arguments={"alternate-exchange": x})
    other = await queue(client, name("other"))
    await client.call("queue_bind", other, first, "k")
    assert await client.publish("1", first, "k", mandatory=True) == "ack"
    assert await client.publish("2", first, "none", mandatory=True) == "ack"
    assert (await drain(client, other), await drain(client, q)) == (["1"], ["2"])


async def test_an_alternate_exchange_that_is_not_there(client: Client, name: Name) -> None:
    first = name("first")
    await client.call("exchange_declare", first, "direct", arguments={"alternate-exchange": name("none")})
    assert await client.publish("2", first, "none", mandatory=True) == "returned"


async def test_the_default_exchange_knows_queues_by_name(client: Client, name: Name) -> None:
    q = await queue(client, name("q"))
    assert await client.publish("1", key=q, mandatory=True) == "ack"
    assert await client.publish("2", key=name("none"), mandatory=True) == "returned"
    got = await take(client, q)
    assert (got.exchange, got.routing_key) == ("", q)


async def test_carbon_copies(client: Client, name: Name) -> None:
    for each in "abc":
        await queue(client, name(each))
    headers = {"CC": [name("b")], "BCC": [name("c")]}
    await client.publish("1", key=name("a"), headers=headers)
    for each in "abc":
        got = await take(client, name(each))
        assert (got.routing_key, got.headers) == (name("a"), {"CC": [name("b")]})


async def test_an_auto_delete_exchange_goes_with_its_last_binding(broker: Driver, client: Client, name: Name) -> None:
    x = name("x")
    await client.call("exchange_declare", x, "topic", auto_delete=True)
    one, two = await queue(client, name("one")), await queue(client, name("two"))
    await client.call("queue_bind", one, x, "a")
    await client.call("queue_bind", two, x, "a")
    await client.call("queue_unbind", one, x, "a")
    await client.call("exchange_declare", x, passive=True)
    await client.call("queue_delete", two)
    await broker.rest()
    with pytest.raises(Closed) as closed:
        await client.call("exchange_declare", x, passive=True)
    assert closed.value.code == 404


async def test_bindings_go_with_their_queue(client: Client, name: Name) -> None:
    x, q = await bound(client, name, "direct", "k")
    await client.call("queue_delete", q)
    await queue(client, q)
    assert await client.publish("1", x, "k", mandatory=True) == "returned"


async def test_an_empty_name_is_the_queue_declared_last(client: Client, name: Name) -> None:
    made, _, _ = await client.call("queue_declare", "", exclusive=True)
    assert made.startswith("amq.gen-")
    await client.call("queue_bind", "", "amq.fanout", "")
    await client.call("queue_purge", "")
    with pytest.raises(Closed) as closed:
        await client.call("queue_declare", "", passive=True)
    assert closed.value.text == "NOT_FOUND - no queue '' in vhost '/'"


async def test_one_full_queue_makes_it_a_nack_for_all(client: Client, name: Name) -> None:
    x, q = await bound(client, name, "fanout", "")
    full = name("full")
    given = {"x-max-length": 0, "x-overflow": "reject-publish"}
    await client.call("queue_declare", full, durable=True, arguments=given)
    await client.call("queue_bind", full, x, "")
    assert await client.publish("1", x, "") == "nack"
    assert await drain(client, q) == ["1"]


async def test_exclusive_queues_end_with_their_connection(broker: Driver, client: Client, name: Name) -> None:
    other = await broker.client()
    q = name("q")
    await other.call("queue_declare", q, exclusive=True)
    await other.close()
    with pytest.raises(Closed) as closed:
        await client.call("queue_declare", q, passive=True)
    assert closed.value.code == 405


async def test_transient_messages_and_queues(client: Client, name: Name) -> None:
    q = name("q")
    await client.call("queue_declare", q)
    assert await client.publish("1", key=q, delivery_mode=1) == "ack"
    assert (await take(client, q)).properties["delivery_mode"] == 1
