"""What the broker refuses, with which code and in which words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.conformance.broker.driver import Client, Closed, Driver
from tests.conformance.broker.steps import fill, queue

Name = Callable[[str], str]
INTEGER = '"expected integer, got longstr"'
UNLIKE = "PRECONDITION_FAILED - inequivalent arg"
LOCKED = (
    "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue '{q}' in vhost '/'. It could be originally "
    "declared on another connection or the exclusive property value does not match that of the original declaration."
)


async def refused(client: Client, method: str, *args: Any, **kwargs: Any) -> tuple[int, str]:
    with pytest.raises(Closed) as closed:
        await client.call(method, *args, **kwargs)
    return closed.value.code, closed.value.text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"x-max-length": -5}, "invalid arg 'x-max-length' for {q}: {{value_negative,-5}}"),
        ({"x-max-length": "5"}, f"invalid arg 'x-max-length' for {{q}}: {INTEGER}"),
        ({"x-message-ttl": -5}, "invalid arg 'x-message-ttl' for {q}: {{value_negative,-5}}"),
        ({"x-message-ttl": 2**40}, "invalid arg 'x-message-ttl' for {q}: {{value_too_large,1099511627776}}"),
        ({"x-message-ttl": True}, "invalid arg 'x-message-ttl' for {q}: \"expected integer, got bool\""),
        ({"x-expires": 0}, "invalid arg 'x-expires' for {q}: {{value_zero,0}}"),
        (
            {"x-dead-letter-routing-key": "a"},
            "invalid arg 'x-dead-letter-routing-key' for {q}: routing_key_but_no_dlx_defined",
        ),
        ({"x-overflow": "blah"}, "invalid arg 'x-overflow' for {q}: invalid_overflow"),
        ({"x-queue-type": "blah"}, "invalid arg 'x-queue-type' for {q}: \"unsupported queue type 'blah'\""),
        ({"x-max-priority": 256}, "invalid arg 'x-max-priority' for {q}: {{max_value_exceeded,256}}"),
        (
            {"x-single-active-consumer": "x"},
            "invalid arg 'x-single-active-consumer' for {q}: {{unacceptable_type,longstr}}",
        ),
        ({"x-delivery-limit": 3}, "invalid arg 'x-delivery-limit' for {q} of queue type rabbit_classic_queue"),
        (
            {"x-dead-letter-strategy": "at-least-once"},
            "invalid arg 'x-dead-letter-strategy' for {q} of queue type rabbit_classic_queue",
        ),
        (
            {"x-queue-type": "quorum", "x-max-priority": 3},
            "invalid arg 'x-max-priority' for {q} of queue type rabbit_quorum_queue",
        ),
        (
            {"x-queue-type": "quorum", "x-dead-letter-strategy": "z"},
            "invalid arg 'x-dead-letter-strategy' for {q}: invalid_dlx_strategy",
        ),
        (
            {"x-queue-type": "stream", "x-message-ttl": 4},
            "invalid arg 'x-message-ttl' for {q} of queue type rabbit_stream_queue",
        ),
        ({"x-queue-type": "stream", "x-max-age": "4x"}, "invalid arg 'x-max-age' for {q}: invalid_max_age"),
        (
            {"x-queue-type": "stream", "x-stream-max-segment-size-bytes": 4_000_000_000},
            "Exceeded max value for x-stream-max-segment-size-bytes",
        ),
    ],
    ids=str,
)
async def test_arguments_that_no_queue_has(client: Client, name: Name, arguments: dict[str, Any], words: str) -> None:
    q = name("q")
    code, text = await refused(client, "queue_declare", q, durable=True, arguments=arguments)
    assert (code, text) == (406, "PRECONDITION_FAILED - " + words.format(q=f"queue '{q}' in vhost '/'"))


@pytest.mark.parametrize("kind", ["quorum", "stream"])
@pytest.mark.parametrize(
    ("properties", "wrong"),
    [
        ({}, "non-durable"),
        ({"durable": True, "auto_delete": True}, "auto-delete"),
        ({"durable": True, "exclusive": True}, "exclusive-owner"),
    ],
)
async def test_properties_that_only_classic_queues_have(
    client: Client, name: Name, kind: str, properties: dict[str, bool], wrong: str
) -> None:
    q = name("q")
    code, text = await refused(client, "queue_declare", q, arguments={"x-queue-type": kind}, **properties)
    assert (code, text) == (406, f"PRECONDITION_FAILED - invalid property '{wrong}' for queue '{q}' in vhost '/'")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"arguments": {"x-max-length": 6}}, "'x-max-length' for {q}: received '6' but current is '5'"),
        (
            {"arguments": {"x-max-length": 5, "x-expires": 100_000}},
            "'x-expires' for {q}: received the value '100000' of type 'signedint' but current is none",
        ),
        pytest.param(
            {"arguments": {"x-max-length": 5, "x-queue-type": "quorum"}},
            "'x-queue-type' for {q}: received 'quorum' but current is 'classic'",
            marks=pytest.mark.since(4, 0),
        ),
        (
            {"arguments": {"x-max-length": 5}, "auto_delete": True},
            "'auto_delete' for {q}: received 'true' but current is 'false'",
        ),
        (
            {"arguments": {"x-max-length": 5}, "durable": False},
            "'durable' for {q}: received 'false' but current is 'true'",
        ),
    ],
    ids=str,
)
async def test_a_queue_declared_otherwise(client: Client, name: Name, given: dict[str, Any], words: str) -> None:
    q = await queue(client, name("q"), x_max_length=5)
    code, text = await refused(client, "queue_declare", q, **{"durable": True, **given})
    assert (code, text) == (
        406,
        "PRECONDITION_FAILED - inequivalent arg " + words.format(q=f"queue '{q}' in vhost '/'"),
    )


async def test_what_makes_no_difference(client: Client, name: Name) -> None:
    q = await queue(client, name("q"), x_max_length=5)
    again = {"x-max-length": 5, "x-queue-type": "classic", "x-unknown": 1}
    await client.call("queue_declare", q, durable=True, arguments=again)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"exchange_type": "direct"}, "'type' for {x}: received 'direct' but current is 'topic'"),
        ({"durable": True}, "'durable' for {x}: received 'true' but current is 'false'"),
        ({"auto_delete": True}, "'auto_delete' for {x}: received 'true' but current is 'false'"),
        ({"internal": True}, "'internal' for {x}: received 'true' but current is 'false'"),
        (
            {"arguments": {"alternate-exchange": "f"}},
            "'alternate-exchange' for {x}: received the value 'f' of type 'longstr' but current is none",
        ),
    ],
    ids=str,
)
async def test_an_exchange_declared_otherwise(client: Client, name: Name, given: dict[str, Any], words: str) -> None:
    x = name("x")
    await client.call("exchange_declare", x, "topic")
    kind = given.pop("exchange_type", "topic")
    code, text = await refused(client, "exchange_declare", x, kind, **given)
    given.update({"exchange_type": kind})
    assert (code, text) == (
        406,
        "PRECONDITION_FAILED - inequivalent arg " + words.format(x=f"exchange '{x}' in vhost '/'"),
    )


@pytest.mark.parametrize(
    ("code", "words", "method", "args", "kwargs"),
    [
        (404, "NOT_FOUND - no queue 'nope' in vhost '/'", "queue_declare", ("nope",), {"passive": True}),
        (404, "NOT_FOUND - no queue 'nope' in vhost '/'", "queue_purge", ("nope",), {}),
        (404, "NOT_FOUND - no queue 'nope' in vhost '/'", "queue_bind", ("nope", "amq.topic", "x"), {}),
        (404, "NOT_FOUND - no exchange 'none' in vhost '/'", "queue_bind", ("nope", "none", "x"), {}),
        (404, "NOT_FOUND - no exchange 'none' in vhost '/'", "exchange_bind", ("amq.topic", "none", "x"), {}),
        (404, "NOT_FOUND - no exchange 'none' in vhost '/'", "exchange_bind", ("none", "amq.topic", "x"), {}),
        (404, "NOT_FOUND - no exchange 'none' in vhost '/'", "exchange_declare", ("none",), {"passive": True}),
        (
            403,
            "ACCESS_REFUSED - operation not permitted on the default exchange",
            "exchange_bind",
            ("", "amq.topic", "x"),
            {},
        ),
        (403, "ACCESS_REFUSED - operation not permitted on the default exchange", "queue_bind", ("nope", "", "x"), {}),
        (
            403,
            "ACCESS_REFUSED - operation not permitted on the default exchange",
            "queue_unbind",
            ("nope", "", "x"),
            {},
        ),
        (
            403,
            "ACCESS_REFUSED - operation not permitted on the default exchange",
            "exchange_declare",
            ("", "direct"),
            {},
        ),
        (403, "ACCESS_REFUSED - operation not permitted on the default exchange", "exchange_delete", ("",), {}),
        (
            403,
            "ACCESS_REFUSED - deletion of system exchange 'amq.topic' in vhost '/' not allowed",
            "exchange_delete",
            ("amq.topic",),
            {},
        ),
        (
            403,
            "ACCESS_REFUSED - queue name 'amq.x' contains reserved prefix 'amq.*'",
            "queue_declare",
            ("amq.x",),
            {"durable": True},
        ),
        (
            403,
            "ACCESS_REFUSED - exchange name 'amq.x' contains reserved prefix 'amq.*'",
            "exchange_declare",
            ("amq.x", "direct"),
            {},
        ),
        pytest.param(
            406,
            "PRECONDITION_FAILED - unknown exchange type 'blah'",
            "exchange_declare",
            ("x1", "blah"),
            {},
            marks=pytest.mark.since(4, 0),
        ),
        (
            406,
            f"{UNLIKE} 'type' for exchange 'amq.topic' in vhost '/': received 'direct' but current is 'topic'",
            "exchange_declare",
            ("amq.topic", "direct"),
            {"durable": True},
        ),
        (540, "NOT_IMPLEMENTED - prefetch_size!=0 (3)", "qos", (), {"prefetch_size": 3, "prefetch_count": 1}),
        (540, "NOT_IMPLEMENTED - requeue=false", "recover", (), {"requeue": False}),
        (404, "NOT_FOUND - no previously declared queue", "queue_bind", ("", "amq.topic", ""), {}),
        (404, "NOT_FOUND - no previously declared queue", "queue_purge", ("",), {}),
    ],
)
async def test_refusals(
    client: Client, code: int, words: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    assert await refused(client, method, *args, **kwargs) == (code, words)


@pytest.mark.parametrize(
    ("method", "args"),
    [
        ("queue_delete", ("nope",)),
        ("exchange_delete", ("nope",)),
        ("queue_unbind", ("nope", "amq.topic", "x")),
        ("queue_unbind", ("nope", "nope", "x")),
        ("exchange_unbind", ("amq.topic", "nope", "x")),
    ],
)
async def test_what_is_not_there_can_be_removed(client: Client, method: str, args: tuple[str, ...]) -> None:
    await client.call(method, *args)


@pytest.mark.parametrize(
    ("properties", "words"),
    [
        ({"expiration": "abc"}, "invalid expiration 'abc': no_integer"),
        ({"expiration": "1a"}, "invalid expiration '1a': {leftover_string,\"a\"}"),
        ({"expiration": "-1"}, "invalid expiration '-1': {value_negative,-1}"),
        ({"expiration": "1.5"}, "invalid expiration '1.5': {leftover_string,\".5\"}"),
        ({"expiration": "99999999999999"}, "invalid expiration '99999999999999': {value_too_large,99999999999999}"),
        ({"user_id": "abc"}, "user_id property set to 'abc' but authenticated user was 'guest'"),
        ({"headers": {"CC": "x"}}, 'invalid message: {unacceptable_type_in_header,"CC",longstr}'),
    ],
    ids=str,
)
async def test_messages_that_nobody_can_publish(client: Client, properties: dict[str, Any], words: str) -> None:
    with pytest.raises(Closed) as closed:
        await client.publish("", "amq.topic", "a", **properties)
    assert (closed.value.code, closed.value.text) == (406, "PRECONDITION_FAILED - " + words)


async def test_publishing_where_nobody_may(client: Client, broker: Driver, name: Name) -> None:
    x = name("x")
    await client.call("exchange_declare", x, "topic", internal=True)
    with pytest.raises(Closed) as closed:
        await client.publish("", x, "a")
    assert closed.value.text == f"ACCESS_REFUSED - cannot publish to internal exchange '{x}' in vhost '/'"
    with pytest.raises(Closed) as closed:
        await (await broker.client()).publish("", name("none"), "a")
    assert closed.value.text == f"NOT_FOUND - no exchange '{name('none')}' in vhost '/'"


@pytest.mark.parametrize(
    ("method", "args", "kwargs"),
    [
        ("queue_declare", (), {"exclusive": True}),
        ("queue_declare", (), {"passive": True}),
        ("queue_bind", ("amq.topic", "a"), {}),
        ("queue_purge", (), {}),
        ("queue_delete", (), {}),
    ],
)
async def test_a_queue_of_another_connection(
    broker: Driver, client: Client, name: Name, method: str, args: tuple[str, ...], kwargs: dict[str, bool]
) -> None:
    q = name("q")
    await client.call("queue_declare", q, exclusive=True)
    beside = await broker.client(client)
    await beside.call("queue_declare", q, passive=True)
    assert await refused(await broker.client(), method, q, *args, **kwargs) == (405, LOCKED.format(q=q))
    assert await (await broker.client()).publish("1", key=q) == "ack"


async def test_a_queue_that_is_not_exclusive_cannot_become_so(client: Client, name: Name) -> None:
    q = await queue(client, name("q"))
    assert await refused(client, "queue_declare", q, durable=True, exclusive=True) == (405, LOCKED.format(q=q))


async def test_deleting_on_condition(broker: Driver, client: Client, name: Name) -> None:
    q = await queue(client, name("q"))
    await fill(client, q, "a")
    other = await broker.client()
    assert await refused(other, "queue_delete", q, if_empty=True) == (
        406,
        f"PRECONDITION_FAILED - queue '{q}' in vhost '/' not empty",
    )
    await client.consume(q)
    other = await broker.client()
    assert await refused(other, "queue_delete", q, if_unused=True) == (
        406,
        f"PRECONDITION_FAILED - queue '{q}' in vhost '/' in use",
    )
    x = name("x")
    await client.call("exchange_declare", x, "topic")
    await client.call("queue_bind", q, x, "a")
    assert await refused(client, "exchange_delete", x, if_unused=True) == (
        406,
        f"PRECONDITION_FAILED - exchange '{x}' in vhost '/' in use",
    )


@pytest.mark.parametrize("flag", ["if_unused", "if_empty"])
async def test_a_quorum_queue_is_deleted_without_condition(client: Client, name: Name, flag: str) -> None:
    q = await queue(client, name("q"), x_queue_type="quorum")
    words = f"queue.delete operations with {flag.replace('_', '-')} flag set are not supported by quorum queues"
    assert await refused(client, "queue_delete", q, **{flag: True}) == (
        540,
        f"NOT_IMPLEMENTED - cannot delete queue '{q}' in vhost '/'. {words}",
    )


@pytest.mark.since(4, 3)
async def test_a_single_active_consumer_leaves_nothing_to_get(client: Client, name: Name) -> None:
    words = 'basic.get operations are not supported by <<"quorum">> queues with single active consumer'
    q = await queue(client, name("q"), x_queue_type="quorum", x_single_active_consumer=True)
    with pytest.raises(Closed) as closed:
        await client.get(q)
    assert (closed.value.code, closed.value.text) == (
        405,
        f"RESOURCE_LOCKED - cannot obtain access to locked queue '{q}' in vhost '/'. {words}",
    )


@pytest.mark.parametrize(
    ("match", "words"),
    [
        ("foo", 'Invalid x-match field value <<"foo">>; expected all, any, all-with-x, or any-with-x'),
    ],
)
async def test_headers_bindings_that_mean_nothing(client: Client, name: Name, match: str, words: str) -> None:
    q = await queue(client, name("q"))
    code, text = await refused(client, "queue_bind", q, "amq.headers", "x", arguments={"x-match": match})
    assert (code, text) == (406, "PRECONDITION_FAILED - " + words)


async def test_arguments_that_no_consumer_has(broker: Driver, client: Client, name: Name) -> None:
    q = await queue(client, name("q"))
    with pytest.raises(Closed) as closed:
        await client.consume(q, arguments={"x-priority": "a"})
    assert (
        closed.value.text == f"PRECONDITION_FAILED - invalid arg 'x-priority' for queue '{q}' in vhost '/': {INTEGER}"
    )
    with pytest.raises(Closed) as closed:
        await (await broker.client()).consume(q, arguments={"x-stream-offset": "first"})
    assert closed.value.text == (
        f"PRECONDITION_FAILED - invalid arg 'x-stream-offset' for queue '{q}' in vhost '/' "
        "of queue type rabbit_classic_queue"
    )


@pytest.mark.since(4, 3)
async def test_a_pattern_with_too_many_hashes(client: Client, name: Name) -> None:
    q = await queue(client, name("q"))
    code, text = await refused(client, "queue_bind", q, "amq.topic", "#.#.#.a")
    words = "Topic binding key '#.#.#.a' uses 3 '#' wildcards, at most 2 are allowed"
    assert (code, text) == (406, f"PRECONDITION_FAILED - {words}")
