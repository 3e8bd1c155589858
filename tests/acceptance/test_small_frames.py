"""A broker whose frames are small: the headers of a message travel in one of them, and so do choreo's notes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest
from pydantic import SecretStr

from choreo import dead_letter
from choreo.config.settings import Settings
from choreo.errors import PublishFailed
from choreo.message import Message, Reason, growth
from choreo.operate.dlq import DeadLetterQueue
from choreo.rabbit import session as rabbit
from choreo.reaction import Context
from choreo.retry import Retry
from choreo.testing.rabbitmq.node import Node
from tests.acceptance.test_delivery import A_SECOND, PLACED, Placed, Stage, Unreachable
from tests.faults.poison.fields import text
from tests.faults.raw_amqp import RawChannel, pack
from tests.waiting import eventually

pytestmark = pytest.mark.real_node("frames of another size")

FRAME = 8_192  # the least that RabbitMQ 4.3 lets a client have


@pytest.fixture
async def stage(start_node: Callable[..., Node], namespace: str) -> AsyncIterator[tuple[Stage, RawChannel]]:
    node = start_node(config=[f"frame_max = {FRAME}"])
    settings = Settings(url=SecretStr(node.url), namespace=namespace, drain=10.0, publish_timeout=5.0)
    session = await rabbit.connect(settings.brokers(), name="test")
    assert session.server.frame_max == FRAME
    stage = Stage(settings, session)
    with RawChannel(node.port) as channel:
        yield stage, channel
        await stage.end()


async def test_who_has_no_room_for_a_retry_does_not_run(stage: tuple[Stage, RawChannel]) -> None:
    """Near the size of a frame an event has all its tries, or is a dead letter at once; that is not replayed as whole
    when it had no room itself."""
    played, channel = stage
    payment = played.agent(retry=Retry(on=Unreachable, attempts=2, wait=A_SECOND))
    runs: list[tuple[str, int]] = []

    @payment.on
    async def charge(placed: Placed, ctx: Context) -> None:
        runs.append((placed.order, ctx.attempt))
        if ctx.attempt == 1:
            raise Unreachable

    await played.play(payment)
    most = FRAME - 32 - growth(Message(b""))

    def send(order: str, size: int) -> None:
        rest = size - len(pack(headers=text("z", "") + text("a", "")))
        headers = text("z", "x" * (rest // 2)) + text("a", "y" * (rest - rest // 2))
        channel.send(played.names.events, PLACED.encode(), pack(headers=headers), b'{"order": "%b"}' % order.encode())
        channel.confirm()

    send("fits", most)
    await eventually(lambda: runs == [("fits", 1), ("fits", 2)], within=12, what="the second try")
    send("does not", most + 1)
    send("fills the frame", FRAME - 40)
    letters = [letter for letter, _ in await played.letters(payment, 2)]
    assert [letter.reason for letter in letters] == [Reason.HEADERS, Reason.HEADERS]
    assert "a retry leaves" in str(letters[0].error)
    assert len(runs) == 2
    queue = DeadLetterQueue(played.session, played.names, payment.name)
    missing = [dead_letter.missing(message) for _, message in await played.letters(payment, 2)]
    assert not missing[0]
    assert "no room" in missing[1]
    report = await queue.replay(ids=[str(letters[1].id)])
    with pytest.raises(PublishFailed, match=r"nothing replayed: .* no room") as caught:
        report.check("replayed")
    assert "--without-headers" in str(caught.value.way_out)
    assert (await queue.replay(ids=[str(letters[1].id)], incomplete=True)).done == 1
    await eventually(lambda: len(runs) == 4, within=12, what="both tries without headers")
