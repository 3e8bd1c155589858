"""A bank that is not there: the client of a flaky payment service, without the service.

About one order in four meets a bank that is unreachable for its first attempts, one in twenty a bank that stays
so, and one in twelve has its card declined. The number of the attempt stands in for time, which heals real ones.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from hashlib import blake2b

from agents._luck import draw, strikes

LATENCY = 0.02  # seconds


class Unreachable(Exception):
    """The bank did not answer. Trying again may help."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the bank says to a charge: a `receipt`, or a `refusal` that no further attempt will change."""

    receipt: str = ""
    refusal: str = ""


class Client:
    """A connection to the bank. `key` makes a request safe to repeat: one key moves money once."""

    async def charge(self, order: str, total: Decimal, currency: str, *, key: str, attempt: int) -> Answer:
        """Take `total` for `order`. Raises Unreachable."""
        await self._reach(order, attempt)
        if strikes("card", order, odds=1 / 12):
            return Answer(refusal=f"the card was declined for {total} {currency}")
        return Answer(receipt=_receipt(key))

    async def refund(self, order: str, *, key: str, attempt: int) -> Answer:
        """Refund what was taken for `order`. Raises Unreachable."""
        await self._reach(order, attempt)
        return Answer(receipt=_receipt(key))

    async def _reach(self, order: str, attempt: int) -> None:
        await asyncio.sleep(LATENCY)
        if attempt <= failing_tries(order):
            raise Unreachable("the bank could not be reached")


@asynccontextmanager
async def connect() -> AsyncIterator[Client]:
    """Open one connection for the process; a real client would close its pool of sockets at the end."""
    yield Client()


def failing_tries(order: str) -> float:
    """Return how many attempts fail for `order`: none for most, one or two for some, all of them for a few."""
    luck = draw("bank", order)
    if luck < 1 / 20:
        return float("inf")
    return 2 if luck < 1 / 8 else 1 if luck < 3 / 10 else 0


def _receipt(key: str) -> str:
    return f"R-{blake2b(key.encode(), digest_size=4).hexdigest()}"
