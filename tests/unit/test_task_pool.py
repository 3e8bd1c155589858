"""What has arrived and has not begun, and the pool of tasks that takes it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from choreo.runtime.task_pool import Arrivals, Seat
from tests.waiting import eventually

Work = Callable[[int, Seat[int]], Awaitable[None]]


class Pool:
    """Tasks that take numbers, at most `most` of them."""

    def __init__(self, places: int, most: int, work: Work, share: int = 1000) -> None:
        self.arrivals: Arrivals[int] = Arrivals(places, share, self.another)
        self.tasks: list[asyncio.Task[None]] = []
        self.took: list[list[int]] = []
        self.most = most
        self.work = work

    def another(self) -> bool:
        if len(self.tasks) >= self.most:
            return False
        self.took.append([])
        self.tasks.append(asyncio.create_task(self.run(self.took[-1])))
        return True

    async def run(self, took: list[int]) -> None:
        seat, now = self.arrivals.seat(), None
        while (number := await seat.take() if now is None else now) is not None:
            took.append(number)
            await self.work(number, seat)
            if seat.spent:
                await seat.rest()
            now = seat.take_now()

    @property
    def all(self) -> list[int]:
        return sorted(number for took in self.took for number in took)


@pytest.fixture
async def gate() -> AsyncIterator[asyncio.Event]:
    gate = asyncio.Event()
    yield gate
    gate.set()


async def never_waits(number: int, seat: Seat[int]) -> None: ...


async def test_one_task_that_never_waits_takes_everything() -> None:
    """In order, and without a turn of the loop for each."""
    pool = Pool(16, 100, never_waits)
    for number in range(500):
        pool.arrivals.put(number)
    await asyncio.sleep(0)
    assert pool.took[0] == list(range(500))
    assert len(pool.tasks) <= 2


async def test_with_its_share_the_pool_lets_the_loop_turn_and_the_same_task_goes_on() -> None:
    pool, turns = Pool(16, 100, never_waits, share=10), 0
    for number in range(100):
        pool.arrivals.put(number)
    while len(pool.all) < 100:
        await asyncio.sleep(0)
        turns += 1
        assert len(pool.all) <= 10 * turns
    assert pool.took[0] == list(range(100))
    assert turns <= 12


async def test_others_go_on_when_who_rests_is_cancelled() -> None:
    async def work(number: int, seat: Seat[int]) -> None:
        if number == 1:
            asyncio.get_running_loop().call_soon(pool.tasks[0].cancel)

    pool = Pool(4, 2, work, share=2)
    for number in range(10):
        pool.arrivals.put(number)
    await eventually(lambda: len(pool.all) == 10)
    assert pool.took[0] == [0, 1]


async def test_as_many_run_at_once_as_there_are_places(gate: asyncio.Event) -> None:
    running = most = 0

    async def work(number: int, seat: Seat[int]) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1

    pool = Pool(3, 100, work)
    for number in range(10):
        pool.arrivals.put(number)
    await eventually(lambda: running == 3)
    for _ in range(5):
        await asyncio.sleep(0)
    assert (running, len(pool.tasks), len(pool.arrivals)) == (3, 3, 7)
    gate.set()
    await eventually(lambda: len(pool.all) == 10)
    assert most == 3


async def test_who_leaves_early_makes_room_for_another_and_gives_its_place_once(gate: asyncio.Event) -> None:
    async def work(number: int, seat: Seat[int]) -> None:
        seat.leave()
        seat.leave()
        await gate.wait()

    pool = Pool(1, 4, work)
    for number in range(10):
        pool.arrivals.put(number)
    await eventually(lambda: len(pool.all) == 4)
    assert len(pool.tasks) == 4  # as many as there may be
    gate.set()
    await eventually(lambda: len(pool.all) == 10)
    assert pool.arrivals._free == 1


async def test_task_cancelled_as_it_is_woken_leaves_its_turn_to_another(gate: asyncio.Event) -> None:
    async def work(number: int, seat: Seat[int]) -> None:
        if number == 0:
            await gate.wait()

    pool = Pool(4, 2, work)
    pool.arrivals.put(0)
    pool.arrivals.put(1)
    await eventually(lambda: pool.all == [0, 1])
    idle = next(task for task, took in zip(pool.tasks, pool.took, strict=True) if 1 in took)
    pool.arrivals.put(2)
    idle.cancel()
    gate.set()
    await eventually(lambda: pool.all == [0, 1, 2])


async def test_task_cancelled_while_it_waits_is_not_woken(gate: asyncio.Event) -> None:
    pool = Pool(4, 1, never_waits)
    pool.arrivals.put(0)
    await eventually(lambda: pool.all == [0])
    pool.tasks[0].cancel()
    pool.most = 2
    pool.arrivals.put(1)
    await eventually(lambda: pool.all == [0, 1])


async def test_closed_it_lets_all_go_and_gives_nothing_more(gate: asyncio.Event) -> None:
    async def work(number: int, seat: Seat[int]) -> None:
        if number == 0:
            await gate.wait()

    pool = Pool(1, 4, work)
    for number in range(3):
        pool.arrivals.put(number)
    await eventually(lambda: pool.all == [0])
    assert pool.arrivals.take_all() == [1, 2]
    pool.arrivals.close()
    pool.arrivals.put(3)
    gate.set()
    await asyncio.wait(pool.tasks)
    assert pool.all == [0]
