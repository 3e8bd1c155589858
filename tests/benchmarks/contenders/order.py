"""The same work for all: 512 bytes of JSON, validated by the same model, and the report of a run."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, Self

from pydantic import BaseModel

WINDOW: Final = 500  # publishes outstanding


class Order(BaseModel):
    order: str
    customer: str
    total: Decimal
    currency: str
    items: dict[str, int]
    note: str


def fields(number: int) -> dict[str, Any]:
    """Return one order; its JSON has 512 bytes, without the envelope that a contender puts around it."""
    return {
        "order": f"o-{number:08d}",
        "customer": "customer@example.org",
        "total": "129.90",
        "currency": "EUR",
        "items": {"book": 1, "lamp": 2, "globe": 1},
        "note": "x" * 358,
    }


def body(number: int) -> bytes:
    """Return one order as it stands on the wire."""
    return json.dumps(fields(number)).encode()


@dataclass(frozen=True, slots=True)
class Task:
    """What a contender is asked to do, by variables, because some are started by a program of their own.

    `work` is one of consume, hop, publish, and sample: declare everything, publish one order, and end. `events` are
    published. What is measured begins when number `begin` is done, and ends with number `end`: at both moments as many
    others are under way. Without an `end` the work goes on until it is terminated.
    """

    work: str
    events: int
    begin: int
    end: int
    prefetch: int
    url: str
    namespace: str

    @classmethod
    def given(cls) -> Self:
        """Read the task of this process."""
        given = os.environ
        events, begin, end, prefetch = (int(given[f"BENCH_{name}"]) for name in ("EVENTS", "BEGIN", "END", "PREFETCH"))
        return cls(given["BENCH_WORK"], events, begin, end, prefetch, given["CHOREO_URL"], given["CHOREO_NAMESPACE"])


class Meter:
    """Counts events, and reports the wall and CPU seconds between two of them.

    The referee reads the two lines that it prints, and the broker's CPU time at each. A contender then waits to be
    terminated: one that left at once would take acknowledgements with it that the broker has not dealt with.
    """

    def __init__(self, task: Task) -> None:
        self._begin, self._end = task.begin, task.end
        self._count = itertools.count(1)  # its `next` is atomic: some contenders call from several threads
        self._wall = self._cpu = 0.0

    def seen(self) -> None:
        """Count one event."""
        count = next(self._count)
        if count == self._begin:
            print("begun", flush=True)
            self._wall, self._cpu = time.perf_counter(), time.process_time()
        elif count == self._end:
            wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
            print(json.dumps({"events": count - self._begin, "seconds": wall, "cpu": cpu}), flush=True)


async def pipelined(task: Task, publish: Callable[[int], Awaitable[object]]) -> None:
    """Publish the orders of `task` with WINDOW of them outstanding, as a program does that awaits each publish."""
    import asyncio

    meter = Meter(task)
    numbers = iter(range(task.events))

    async def one_after_another() -> None:
        for number in numbers:
            await publish(number)
            meter.seen()

    await asyncio.gather(*(one_after_another() for _ in range(WINDOW)))
