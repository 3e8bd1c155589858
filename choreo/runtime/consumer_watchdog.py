"""Sees a consumer that should receive and does not, whoever has lost it: a broker, a proxy, a defect.

Heartbeats go on then, and so does the connection. Only the queue and the window together tell.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, NoReturn

from choreo.errors import BrokerUnreachable, ChoreoError
from choreo.runtime.due import DueEvents
from choreo.runtime.subscription import Subscription
from choreo.transport import Session

PERIOD: Final = 5.0  # seconds between two looks
PATIENCE: Final = 5.0  # seconds for an answer


async def watch(
    session: Session,
    subscriptions: Sequence[Subscription | DueEvents],
    period: float = PERIOD,
    patience: float = PATIENCE,
) -> NoReturn:
    """Look after `subscriptions` until one of them is deaf, and raise BrokerUnreachable that says which and why.

    Deaf is a window that has room, and that got nothing between two looks although messages were ready at both; or
    whose queue has no consumer at all. A broker that does not answer for `patience` seconds is no better.
    """
    marks: dict[str, object] = {}
    while True:
        await asyncio.sleep(period)
        for subscription in subscriptions:
            mark = subscription.mark
            asking = asyncio.ensure_future(session.stats(subscription.queue))
            try:
                await asyncio.wait((asking,), timeout=patience)
                answered = asking.done()
            finally:
                asking.cancel()  # and not waited for: its goodbye would not be answered either
            if not answered:
                raise BrokerUnreachable(f"the broker has not answered for {patience:g} s how {subscription.queue} is")
            try:
                found = asking.result()
            except ChoreoError:
                continue  # what keeps the broker from answering ends the session, if it lasts
            if mark is None or subscription.mark != mark:
                marks.pop(subscription.queue, None)
                continue
            if found is None:
                raise BrokerUnreachable(f"the queue {subscription.queue!r} was deleted, and what it held is gone")
            if not found.consumers:
                raise BrokerUnreachable(f"the broker has lost the consumer of {subscription.queue}")
            if found.ready and marks.get(subscription.queue) == mark:
                raise BrokerUnreachable(
                    f"{subscription.queue} has {found.ready} messages ready, and none has come for {period:g} s"
                )
            marks[subscription.queue] = mark if found.ready else None
