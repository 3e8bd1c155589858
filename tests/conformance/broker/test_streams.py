"""Streams, as far as a journal needs them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.conformance.broker.driver import Client, Closed, Driver
from tests.conformance.broker.steps import fill, queue

Name = Callable[[str], str]


@pytest.fixture
async def stream(broker: Driver, client: Client, name: Name) -> str:
    q = await queue(client, name("s"), x_queue_type="stream")
    for body in "abcd":
        await fill(client, q, body)
        await broker.rest()
    await client.call("qos", 10)
    return q


@pytest.mark.parametrize(
    ("offset", "bodies"), [("first", "abcd"), ("last", "d"), ("next", ""), (None, ""), (0, "abcd"), (2, "cd"), (9, "")]
)
async def test_offsets(broker: Driver, client: Client, stream: str, offset: object, bodies: str) -> None:
    inbox = await client.consume(stream, arguments={} if offset is None else {"x-stream-offset": offset})
    await broker.rest()
    assert inbox.bodies == list(bodies)
    assert [each.headers["x-stream-offset"] for each in inbox.got] == ["abcd".index(each) for each in bodies]
    await fill(client, stream, "e")
    await broker.rest()
    assert inbox.bodies == [*bodies, *([] if offset == 9 else ["e"])]
    assert not any(each.redelivered for each in inbox.got)


@pytest.mark.parametrize("offset", ["1h", "past"])
async def test_from_a_time_on(broker: Driver, client: Client, stream: str, offset: str) -> None:
    at = datetime.now(UTC) - timedelta(hours=1) if offset == "past" else offset
    if type(broker).__name__ == "EmbeddedDriver" and offset == "past":
        at = datetime.fromtimestamp(1_600_000_000, UTC)
    inbox = await client.consume(stream, arguments={"x-stream-offset": at})
    await broker.rest()
    assert inbox.bodies == list("abcd")


@pytest.mark.since(4, 0)
async def test_credit_comes_back_with_any_settlement(broker: Driver, client: Client, stream: str) -> None:
    await client.call("qos", 1)
    inbox = await client.consume(stream, arguments={"x-stream-offset": "first"})
    for method in ("ack", "nack", "reject"):
        await broker.rest()
        await client.call(method, inbox.got[-1].tag)
    await broker.rest()
    assert inbox.bodies == list("abcd")
    assert (await client.call("queue_declare", stream, passive=True))[2] == 0


async def test_each_consumer_reads_all(broker: Driver, client: Client, stream: str) -> None:
    one = await client.consume(stream, arguments={"x-stream-offset": "first"})
    two = await client.consume(stream, arguments={"x-stream-offset": "first"})
    await broker.rest()
    assert one.bodies == two.bodies == list("abcd")


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("get", "basic.get not supported by stream queues"),
        ("queue_purge", "queue.purge not supported by stream queues"),
    ],
)
async def test_what_a_stream_cannot_do(client: Client, stream: str, method: str, words: str) -> None:
    with pytest.raises(Closed) as closed:
        await (client.get(stream) if method == "get" else client.call(method, stream))
    assert (closed.value.code, closed.value.text) == (540, f"NOT_IMPLEMENTED - {words} queue '{stream}' in vhost '/'")


ARGUMENT = "PRECONDITION_FAILED - invalid arg"
OFFSET = '{{invalid_stream_offset_arg,{{longstr,<<"x">>}}}}'


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        pytest.param(
            {"no_ack": True},
            540,
            "NOT_IMPLEMENTED - automatic acknowledgement not supported by stream {q}",
            marks=pytest.mark.since(4, 0),
        ),
        ({"arguments": {"x-priority": 1}}, 406, f"{ARGUMENT} 'x-priority' for {{q}} of queue type rabbit_stream_queue"),
        pytest.param(
            {"arguments": {"x-stream-offset": "x"}},
            406,
            f"{ARGUMENT} 'x-stream-offset' for {{q}}: {OFFSET}",
            marks=pytest.mark.since(4, 3),
        ),
    ],
)
async def test_a_consumer_that_a_stream_cannot_have(
    client: Client, stream: str, options: dict[str, Any], code: int, words: str
) -> None:
    with pytest.raises(Closed) as closed:
        await client.consume(stream, **options)
    assert (closed.value.code, closed.value.text) == (code, words.format(q=f"queue '{stream}' in vhost '/'"))


@pytest.mark.since(4, 0)
async def test_a_consumer_without_prefetch(client: Client, stream: str) -> None:
    await client.call("qos", 0)
    with pytest.raises(Closed) as closed:
        await client.consume(stream)
    assert closed.value.text == (
        f"PRECONDITION_FAILED - consumer prefetch count is not set for stream queue '{stream}' in vhost '/'"
    )
