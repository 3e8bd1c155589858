"""One timer for the deadlines of many publishes."""

from __future__ import annotations

import asyncio

from choreo.rabbit.fast_path.deadlines import Deadlines
from tests.waiting import eventually


class Asked:
    """Something that waits for an answer."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()


async def test_who_has_no_answer_in_time_is_told_and_nobody_else() -> None:
    told: list[Asked] = []
    deadlines: Deadlines[Asked] = Deadlines(0.05, lambda each, _: told.append(each))
    answered, late = Asked(), Asked()
    deadlines.add(answered)
    deadlines.add(late)
    answered.answer.set_result(None)
    await eventually(lambda: told == [late])
    assert not deadlines.running


async def test_each_has_its_whole_time() -> None:
    loop = asyncio.get_running_loop()
    told: list[float] = []
    deadlines: Deadlines[Asked] = Deadlines(0.05, lambda *_: told.append(loop.time()))
    began = []
    for _ in range(3):
        began.append(loop.time())
        deadlines.add(Asked())
        await asyncio.sleep(0.02)
    await eventually(lambda: len(told) == 3)
    assert all(end - begin >= 0.049 for begin, end in zip(began, told, strict=True))


async def test_answered_ones_are_not_kept_until_their_time_is_up() -> None:
    deadlines: Deadlines[Asked] = Deadlines(3600, lambda *_: None)
    for _ in range(1000):
        each = Asked()
        deadlines.add(each)
        each.answer.set_result(None)
    assert len(deadlines._waiting) == 1


async def test_one_without_an_answer_does_not_keep_those_behind_it() -> None:
    """A queue without a leader may be silent for as long as a publish may wait, while others answer thousands."""
    told: list[Asked] = []
    deadlines: Deadlines[Asked] = Deadlines(0.5, lambda each, _: told.append(each))
    first = Asked()
    deadlines.add(first)
    most = 0
    for _ in range(20_000):
        each = Asked()
        deadlines.add(each)
        each.answer.set_result(None)
        most = max(most, len(deadlines._waiting))
    assert most < 5_000
    late = Asked()
    deadlines.add(late)
    await eventually(lambda: told == [first, late])


async def test_stopped_they_hold_nothing_and_call_nobody() -> None:
    told: list[Asked] = []
    deadlines: Deadlines[Asked] = Deadlines(0.01, lambda each, _: told.append(each))
    deadlines.add(Asked())
    deadlines.stop()
    await asyncio.sleep(0.03)
    assert (told, len(deadlines._waiting), deadlines.running) == ([], 0, False)
