"""Many events: how many are on the way at once, in which order they are counted, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import count
from typing import cast

import pytest

from choreo.errors import BrokerUnreachable, ChoreoError, PartlyDone, PublishRefused, PublishUnknown, UsageError
from choreo.message import Message
from choreo.operate.sending import WINDOW, Pace, Sending, Tally
from choreo.runtime.publisher import Publisher


class Outbox:
    """What Sending needs of a publisher: each message waits for its `answer`."""

    def __init__(self) -> None:
        self.waiting: dict[int, asyncio.Future[None]] = {}
        self.sent = 0
        self.most = 0
        self.delays: set[float | None] = set()
        self.asked = asyncio.Event()

    async def send(self, message: Message, topic: str, *, delay: float | None = None) -> None:
        number = int(message.body)
        self.delays.add(delay)
        self.waiting[number] = asyncio.get_running_loop().create_future()
        self.most = max(self.most, len(self.waiting))
        self.sent += 1
        self.asked.set()
        try:
            await self.waiting[number]
        finally:
            del self.waiting[number]

    async def expect(self, sent: int) -> None:
        """Wait until so many have been sent in all."""
        async with asyncio.timeout(5):
            while self.sent < sent:
                self.asked.clear()
                await self.asked.wait()

    def answer(self, number: int, error: ChoreoError | None = None) -> None:
        if error is None:
            self.waiting[number].set_result(None)
        else:
            self.waiting[number].set_exception(error)


class Scene:
    def __init__(self, total: int, pace: Pace | None = None) -> None:
        self.outbox = Outbox()
        self.confirmed: list[int] = []
        self.told = asyncio.Event()
        self.sending = Sending(cast("Publisher", self.outbox), "a.b", pace or Pace(), self.on_confirmed)
        self.task = asyncio.create_task(self.sending.send(messages(), total))

    def on_confirmed(self, message: Message) -> None:
        self.confirmed.append(int(message.body))
        self.told.set()

    async def end(self) -> Tally:
        async with asyncio.timeout(5):
            return await self.task


def messages() -> Iterator[tuple[int | None, Message]]:
    return ((number + 1, Message(str(number).encode())) for number in count())


async def test_first_goes_alone_then_a_window_full():
    """One refusal is enough to learn that nobody listens; after that, a bounded number is on the way."""
    scene = Scene(WINDOW * 2)
    await scene.outbox.expect(1)
    assert list(scene.outbox.waiting) == [0]
    scene.outbox.answer(0)
    await scene.outbox.expect(1 + WINDOW)
    for number in range(1, WINDOW):
        scene.outbox.answer(number)
        await scene.outbox.expect(1 + WINDOW + number)
    for number in range(WINDOW, WINDOW * 2):
        scene.outbox.answer(number)
    tally = await scene.end()
    assert scene.outbox.most == WINDOW
    assert scene.confirmed == list(range(WINDOW * 2))
    assert str(tally) == "1000 of 1000 events confirmed"
    tally.check()


async def test_confirmed_ones_are_told_in_their_order():
    scene = Scene(4)
    await scene.outbox.expect(1)
    scene.outbox.answer(0)
    await scene.outbox.expect(4)
    for number in (3, 2, 1):
        scene.outbox.answer(number)
    await scene.end()
    assert scene.confirmed == [0, 1, 2, 3]


async def test_first_failure_ends_it():
    """Nothing more is sent, what is on the way is counted, and the line is named."""
    scene = Scene(100_000)
    await scene.outbox.expect(1)
    scene.outbox.answer(0)
    await scene.outbox.expect(1 + WINDOW)
    scene.outbox.answer(1, PublishRefused("full", "make room"))
    scene.outbox.answer(2, PublishUnknown("lost"))
    scene.outbox.answer(3, BrokerUnreachable("gone"))
    for number in range(4, WINDOW + 1):
        scene.outbox.answer(number)
    tally = await scene.end()
    assert (tally.confirmed, tally.refused, tally.unknown) == (WINDOW - 2, 1, 1)
    with pytest.raises(PartlyDone) as caught:
        tally.check()
    assert caught.value.message == (
        "498 of 100000 events confirmed, 1 refused, 1 unknown, 99500 not sent; the first failure: line 2: full"
    )
    assert caught.value.way_out == "make room"


async def test_who_cannot_be_told_ends_it_with_an_account():
    """Nobody reads the receipts, or their disk is full: nothing more is sent, and what is on the way is counted."""
    scene = Scene(100_000)

    def cannot(message: Message) -> None:
        scene.on_confirmed(message)
        if int(message.body) == 1:
            raise ChoreoError("stdout cannot be written")

    scene.sending._on_confirmed = cannot
    await scene.outbox.expect(1)
    for number in range(WINDOW + 1):
        scene.outbox.answer(number)
        await scene.outbox.expect(WINDOW + 1 if number == 0 else 1)
    tally = await scene.end()
    sent = scene.outbox.sent
    assert scene.confirmed == [0, 1]
    assert (tally.confirmed, tally.refused, tally.unknown) == (sent, 0, 0)
    with pytest.raises(PartlyDone) as caught:
        tally.check()
    assert caught.value.message == (
        f"{sent} of 100000 events confirmed, {100_000 - sent} not sent; the first failure: line 2: stdout cannot be"
        f" written; the first {sent} are confirmed, whatever stdout shows of them"
    )


async def test_one_that_is_confirmed_and_not_told_is_partly_done():
    """It must not look like an event that was not sent."""
    scene = Scene(1)

    def cannot(message: Message) -> None:
        raise ChoreoError("stdout cannot be written")

    scene.sending._on_confirmed = cannot
    await scene.outbox.expect(1)
    scene.outbox.answer(0)
    with pytest.raises(PartlyDone, match=r"1 of 1 events confirmed; the first failure: .*stdout"):
        (await scene.end()).check()


async def test_nothing_confirmed_is_the_error_itself():
    for error in (PublishRefused("full"), PublishUnknown("lost"), BrokerUnreachable("gone")):
        for total, text in ((1, error.message), (9, f"line 1: {error.message}")):
            scene = Scene(total)
            await scene.outbox.expect(1)
            scene.outbox.answer(0, error)
            with pytest.raises(type(error), match=text):
                (await scene.end()).check()


async def test_stopped_waits_for_what_is_on_the_way():
    scene = Scene(100_000)
    await scene.outbox.expect(1)
    scene.outbox.answer(0)
    await scene.outbox.expect(1 + WINDOW)
    scene.sending.stop()
    for number in range(1, WINDOW + 1):
        scene.outbox.answer(number)
    assert str(await scene.end()) == "501 of 100000 events confirmed, 99499 not sent"


async def test_aborted_does_not_wait():
    """What was on the way may or may not be stored, and is counted so."""
    scene = Scene(100_000)
    await scene.outbox.expect(1)
    scene.outbox.answer(0)
    await scene.outbox.expect(1 + WINDOW)
    scene.sending.stop()
    scene.sending.abort()
    tally = await scene.end()
    assert str(tally) == "1 of 100000 events confirmed, 500 unknown, 99499 not sent"
    assert scene.outbox.waiting == {}


async def test_stopped_while_it_waits_for_its_turn():
    scene = Scene(2, Pace(interval=1000, delay=5))
    await scene.outbox.expect(1)
    scene.outbox.answer(0)
    await scene.told.wait()
    scene.sending.stop()
    assert (await scene.end()).confirmed == 1
    assert scene.outbox.delays == {5}


async def test_cancelled_leaves_nothing_running():
    scene = Scene(2)
    await scene.outbox.expect(1)
    scene.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await scene.end()
    assert scene.outbox.waiting == {}


async def test_defect_is_no_outcome():
    """What is not an error of choreo's comes through as it is."""
    scene = Scene(2)
    await scene.outbox.expect(1)
    scene.outbox.waiting[0].set_exception(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        await scene.end()


@pytest.mark.parametrize(
    ("rate", "delay", "pace"),
    [(None, None, Pace()), ("50", "1m30s", Pace(0.02, 90)), ("0.5", "0", Pace(2)), (None, "500ms", Pace(0, 0.5))],
)
def test_pace(rate: str | None, delay: str | None, pace: Pace):
    assert Pace.parse(rate, delay) == pace


@pytest.mark.parametrize(
    ("rate", "delay"),
    [(text, None) for text in ("0", "-1", "nan", "inf", "1e-300", "x")]
    + [(None, text) for text in ("", "soon", "-1s", "nan", "13d")],
)
def test_no_pace(rate: str | None, delay: str | None):
    option = "--rate" if rate is not None else "--delay"
    with pytest.raises(UsageError, match=f"{option} '.*' is not allowed; allowed: a "):
        Pace.parse(rate, delay)
