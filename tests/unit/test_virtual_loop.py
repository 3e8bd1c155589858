"""The loop in virtual time: timers cost nothing, threads are waited for, and what can never come is said."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

from choreo.testing import NothingLeft, VirtualLoop

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def test_a_month_takes_no_time():
    """Timers fire in their order, each at its own time."""
    fired: list[tuple[str, float]] = []

    def note(name: str) -> None:
        fired.append((name, asyncio.get_running_loop().time()))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for name, seconds in (("month", 30 * 86_400), ("second", 1), ("hour", 3_600)):
            loop.call_later(seconds, note, name)
        await asyncio.sleep(40 * 86_400)

    began = time.perf_counter()
    run(main())
    assert fired == [("second", 1), ("hour", 3_600), ("month", 30 * 86_400)]
    assert time.perf_counter() - began < 5


class AtOnce(Executor):
    """Its thread is always quicker than whoever asks."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


def test_thread_that_is_done_before_anybody_looks_is_not_waited_for():
    """From Python 3.13.1 on asyncio hears of it in the loop's own thread, without any call from another."""

    async def main() -> int:
        return await asyncio.get_running_loop().run_in_executor(AtOnce(), int, "42")

    began = time.perf_counter()
    assert run(main()) == 42
    assert time.perf_counter() - began < 4, "five seconds is what one that hangs is given"


def test_deadlines_pass_in_virtual_time():
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3_600):
                await asyncio.Event().wait()
        return asyncio.get_running_loop().time()

    assert run(main()) == 3_600


@pytest.mark.timeout(20)
def test_whoever_waits_for_what_is_left_of_its_time_comes_to_the_end_of_it():
    """However little is left: it may be less than the last bit of the time, and then no sum of the two is later."""

    async def main() -> float:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0.3)
        began = loop.time()
        await asyncio.sleep(0.4)
        while (left := 0.4 - (loop.time() - began)) > 0:  # noqa: ASYNC110 - what this is about
            await asyncio.sleep(left)
        return loop.time()

    assert run(main()) == pytest.approx(0.7)


def test_time_stands_still_while_a_thread_works():
    """A thread takes real time and no virtual one; its deadline does not pass meanwhile."""

    async def main() -> float:
        async with asyncio.timeout(0.001):
            await asyncio.to_thread(time.sleep, 0.05)
        return asyncio.get_running_loop().time()

    assert run(main()) == 0


def test_threads_run_one_after_the_other():
    """In the order in which they were asked for, however long each takes: the same program does the same each time."""
    order: list[str] = []

    def work(name: str, seconds: float) -> None:
        order.append(f"{name} begins")
        time.sleep(seconds)
        order.append(f"{name} ends")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(3) as pool:
            await asyncio.gather(
                loop.run_in_executor(pool, work, "slow", 0.03), loop.run_in_executor(pool, work, "quick", 0)
            )

    run(main())
    assert order == ["slow begins", "slow ends", "quick begins", "quick ends"]


def test_a_thread_may_call_the_loop_and_wait_for_it():
    """Also for something that takes virtual time."""

    async def main() -> tuple[str, float]:
        loop = asyncio.get_running_loop()

        def ask() -> str:
            return asyncio.run_coroutine_threadsafe(asyncio.sleep(3_600, "slept"), loop).result(20)

        return await asyncio.to_thread(ask), loop.time()

    began = time.perf_counter()
    assert run(main()) == ("slept", 3_600)
    assert time.perf_counter() - began < 3


def test_what_a_thread_raises_is_raised():
    async def main() -> None:
        def fail() -> None:
            raise KeyError("x")

        with pytest.raises(KeyError):
            await asyncio.to_thread(fail)

    run(main())


def test_a_thread_that_hangs_does_not_stop_time(monkeypatch: pytest.MonkeyPatch):
    """After a while in real time its deadline passes, as it would in a real process."""
    monkeypatch.setattr("choreo.testing.loop._THREAD_PATIENCE", 0.05)
    end = threading.Event()

    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60):
                await asyncio.to_thread(end.wait, 20)
        end.set()
        return asyncio.get_running_loop().time()

    assert run(main()) == 60


def test_sockets_get_a_little_real_time():
    """What comes from outside comes before time moves."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)

    async def main() -> tuple[bytes, float]:
        threading.Timer(0.01, theirs.send, [b"hello"]).start()
        async with asyncio.timeout(60):
            return await asyncio.get_running_loop().sock_recv(ours, 5), asyncio.get_running_loop().time()

    with ours, theirs:
        assert run(main()) == (b"hello", 0)


def test_waiting_for_nothing_is_an_error():
    """No timer, no thread, no socket: it says which task waits where, instead of hanging."""

    async def main() -> None:
        async def never() -> None:
            await asyncio.Event().wait()

        await never()

    place = r"nothing is left to do, and Task-\d+ waits in .*test_virtual_loop.py:\d+ never"
    with pytest.raises(NothingLeft, match=place):
        run(main())


def test_waiting_for_ever_is_an_error():
    """As long as something is set for some day, time goes on, but not for more than a year."""

    async def main() -> None:
        async def tick() -> None:
            asyncio.get_running_loop().call_later(86_400, lambda: asyncio.ensure_future(tick()))

        await tick()
        await asyncio.Event().wait()

    with pytest.raises(NothingLeft, match="a year of virtual time has passed"):
        run(main())


def test_quiet_and_later():
    """`quiet` comes when nothing can run at this time, `later` when time has moved; neither moves it."""

    async def main() -> list[tuple[str, float]]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        seen: list[tuple[str, float]] = []

        async def work() -> None:
            for _ in range(50):
                await asyncio.sleep(0)
            seen.append(("worked", loop.time()))
            await asyncio.sleep(5)
            seen.append(("woke", loop.time()))

        working = asyncio.create_task(work())
        await loop.quiet()
        seen.append(("quiet", loop.time()))
        assert await loop.later()
        seen.append(("later", loop.time()))
        assert not await loop.later()
        await working
        return seen

    assert run(main()) == [("worked", 0), ("quiet", 0), ("woke", 5), ("later", 5)]
