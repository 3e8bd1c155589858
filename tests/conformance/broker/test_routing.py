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


@pytest.mark.since(4, 3)
@pytest.mark.parametrize("kind", ["x-local-random", "x-modulus-hash"])
async def test_exchanges_that_pick_one_queue(client: Client, name: Name, kind: str) -> None:
    """A message comes to one of the queues, once, also one with several keys; all queues get some. A hash of the keys
    picks the same one for the same keys."""
    x = name("x")
    await client.call("exchange_declare", x, kind)
    assert await client.publish("0", x, "k", mandatory=True) == "returned"
    queues = [await queue(client, name(f"q{number}")) for number in range(3)]
    for each in queues:
        await client.call("queue_bind", each, x, "")
    for number in range(60):
        headers = {"CC": ["a", "b"]} if number % 2 else {}
        assert await client.publish(f"{number % 20}", x, f"k{number % 20}", headers=headers, mandatory=True) == "ack"
    got = [await drain(client, each) for each in queues]
    assert sum(map(len, got)) == 60
    assert all(got)
    if kind == "x-modulus-hash":
        assert not any(set(one) & set(other) for one in got for other in got if one is not other)


@pytest.mark.since(4, 3)
async def test_what_a_local_random_exchange_does_not_lead_to(broker: Driver, name: Name) -> None:
    """Classic queues without a key, and nothing else."""
    client = await broker.client()
    x, y = name("x"), name("y")
    await client.call("exchange_declare", x, "x-local-random")
    await client.call("exchange_declare", y, "fanout")
    q = await queue(client, name("q"))
    quorum = await queue(client, name("quorum"), x_queue_type="quorum")
    for method, place, words in (
        ("queue_bind", (q, x, "k"), "Non empty binding 'k' key not permitted"),
        ("queue_bind", (quorum, x, ""), "Queue type rabbit_quorum_queue not valid for this exchange type"),
        ("exchange_bind", (y, x, ""), "Destination not found"),
    ):
        with pytest.raises(Closed) as refused:
            await (await broker.client()).call(method, *place)
        assert (refused.value.code, refused.value.text) == (406, f"PRECONDITION_FAILED - {words}")


async def test_what_is_deleted_takes_its_bindings_along(client: Client, name: Name) -> None:
    """Those to a queue and to an exchange, and those from an exchange; an auto-delete exchange goes with its last one.
    What is declared anew has none."""
    x, y, gone = name("x"), name("y"), name("gone")
    q, other = await queue(client, name("q")), await queue(client, name("other"))
    for each, auto in ((x, False), (y, False), (gone, True)):
        await client.call("exchange_declare", each, "fanout", auto_delete=auto)
    for source in (x, y, gone):
        await client.call("queue_bind", q, source, "")
    await client.call("queue_bind", other, x, "")
    await client.call("exchange_bind", y, x, "")
    await client.call("queue_delete", q)
    await queue(client, q)
    assert await client.publish("1", x, "", mandatory=True) == "ack"
    assert (await drain(client, q), await drain(client, other)) == ([], ["1"])
    await client.call("exchange_declare", gone, "direct")  # not the one that was there
    await client.call("queue_bind", q, y, "")
    await client.call("exchange_delete", y)
    await client.call("exchange_declare", y, "fanout")
    assert await client.publish("2", y, "", mandatory=True) == "returned"
    assert await client.publish("3", x, "") == "ack"
    assert (await drain(client, q), await drain(client, other)) == ([], ["3"])
