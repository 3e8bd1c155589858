"""When a consumer counts as deaf: look by look, of a window and its queue."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from choreo.errors import BrokerUnreachable
from choreo.runtime import consumer_watchdog
from choreo.transport import QueueStats

PERIOD = 0.05  # seconds


@dataclass(frozen=True, slots=True)
class Look:
    """What a look finds: the window's mark before and after it asked, messages ready, consumers."""

    mark: object
    ready: int = 0
    consumers: int = 1
    then: object = ...


class FakeSubscription:
    """Has the mark that the present look finds, and after its question the one that it finds then."""

    queue = "queue"

    def __init__(self, looks: Sequence[Look | BrokerUnreachable | None]) -> None:
        self._looks = list(looks)
        self._asked = False
        self.over = asyncio.Event()

    @property
    def mark(self) -> object:
        look = self._looks[0] if self._looks else None
        if not isinstance(look, Look):
            return 0
        return look.then if self._asked and look.then is not ... else look.mark

    async def stats(self, queue: str) -> QueueStats | None:
        """Answer as `looks` say, one after the other, and then say that it is over."""
        if not self._looks:
            self.over.set()
            await asyncio.Event().wait()
        self._asked = True
        asyncio.get_running_loop().call_later(PERIOD / 2, self._next)
        look = self._looks[0]
        if isinstance(look, BrokerUnreachable):
            raise look
        return None if look is None else QueueStats(queue, look.ready, look.consumers)

    def _next(self) -> None:
        self._asked = False
        del self._looks[0]


async def verdict(looks: Sequence[Look | BrokerUnreachable | None]) -> str | None:
    """Return what the lookout complains of, None when it is content with all of `looks`."""
    fake: Any = FakeSubscription(looks)  # and the session that tells of it
    watching = asyncio.create_task(consumer_watchdog.watch(fake, [fake], period=PERIOD))
    over = asyncio.create_task(fake.over.wait())
    await asyncio.wait((watching, over), timeout=5, return_when=asyncio.FIRST_COMPLETED)
    over.cancel()
    if not watching.done():
        watching.cancel()
        return None
    error = watching.exception()
    assert isinstance(error, BrokerUnreachable)
    return error.message


@pytest.mark.parametrize(
    ("looks", "word"),
    [
        ([Look(7, ready=3), Look(7, ready=2)], "2 messages ready"),
        ([Look(7, ready=0), Look(7, ready=3), Look(7, ready=3)], "3 messages ready"),
        ([Look(7, ready=3), BrokerUnreachable("busy"), Look(7, ready=3)], "3 messages ready"),
        ([Look(7, consumers=0)], "lost the consumer of queue"),
        ([None], "was deleted, and what it held is gone"),
    ],
    ids=["nothing comes", "nothing comes any more", "an answer fails", "no consumer", "no queue"],
)
async def test_consumer_is_deaf(looks: list[Look | BrokerUnreachable | None], word: str) -> None:
    found = await verdict(looks)
    assert found is not None
    assert word in found


@pytest.mark.parametrize(
    "looks",
    [
        [Look(7, ready=0), Look(7, ready=0), Look(7, ready=0)],
        [Look(7, ready=3), Look(8, ready=3), Look(9, ready=3)],
        [Look(None, ready=3), Look(None, ready=3), Look(None, ready=3, consumers=0)],
        [Look(7, ready=3), Look(None, ready=3), Look(7, ready=3)],
        [Look(7, ready=3), Look(7, ready=0), Look(7, ready=3)],
        [Look(7, ready=3, then=8), Look(7, ready=3, then=None), Look(7, consumers=0, then=None)],
    ],
    ids=["empty queue", "something came", "full", "full meanwhile", "empty meanwhile", "changed while it asked"],
)
async def test_consumer_is_not_deaf(looks: list[Look | BrokerUnreachable | None]) -> None:
    assert await verdict(looks) is None


async def test_broker_that_does_not_answer_is_given_up() -> None:
    """Its heartbeats may go on, as those of a node do that is cut off from its cluster."""

    class Silent(FakeSubscription):
        async def stats(self, queue: str) -> QueueStats | None:
            await asyncio.Event().wait()
            return None

    fake: Any = Silent([Look(1)])
    with pytest.raises(BrokerUnreachable, match="has not answered"):
        await asyncio.wait_for(consumer_watchdog.watch(fake, [fake], period=0.01, patience=0.01), 5)
