"""When a consumer counts as deaf: look by look, of a window and its queue."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from choreo.errors import BrokerUnreachable
from choreo.runtime import lookout
from choreo.transport import QueueStats


@dataclass(frozen=True, slots=True)
class Look:
    """What a look finds: the window's mark before and after it asked, messages ready, consumers."""

    mark: object
    ready: int = 0
    consumers: int = 1
    then: object = ...


class FakeWindow:
    queue = "queue"
    mark: object = None


class FakeSession:
    """Answers as `looks` say, one after the other, and then says that the session is over."""

    def __init__(self, window: FakeWindow, looks: Sequence[Look | BrokerUnreachable | None]) -> None:
        self.over = asyncio.Event()
        self._window = window
        self._looks = list(looks)
        self._prepare()

    async def stats(self, queue: str) -> QueueStats | None:
        if not self._looks:
            self.over.set()
            await asyncio.Event().wait()
        look = self._looks.pop(0)
        self._prepare()
        if isinstance(look, BrokerUnreachable):
            raise look
        if isinstance(look, Look) and look.then is not ...:
            self._window.mark = look.then
        return None if look is None else QueueStats(queue, look.ready, look.consumers)

    def _prepare(self) -> None:
        def prepare() -> None:
            self._window.mark = look.mark if isinstance(look, Look) else 0

        look = self._looks[0] if self._looks else None
        asyncio.get_running_loop().call_soon(prepare)


async def verdict(looks: Sequence[Look | BrokerUnreachable | None]) -> str | None:
    """Return what the lookout complains of, None when it is content with all of `looks`."""
    window: Any = FakeWindow()
    session: Any = FakeSession(window, looks)
    watching = asyncio.create_task(lookout.watch(session, [window], period=0.001))
    over = asyncio.create_task(session.over.wait())
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
        ([None], "lost the consumer of queue"),
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
