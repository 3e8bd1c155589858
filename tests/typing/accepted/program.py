"""What a user writes, as the user's type checker sees it. tests/typing/test_checkers.py has mypy and pyright check it.

It is not run. A comment `# is: TYPE` says what mypy must reveal on that line. An ignored error is one that mypy must
find: under --strict an ignore without an error is an error itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import reveal_type

import choreo
from choreo import Agent, Context, Envelope, Event, Retry, upcast
from choreo.testing import Faults, Point, Rehearsal, rehearse


class Placed(Event, topic="typing.placed", version=2):
    order: str
    cents: int = 0

    @upcast(from_version=1)
    @staticmethod
    def default_cents(body: dict[str, object]) -> dict[str, object]:
        return body | {"cents": 0}


class Paid(Event, topic="typing.paid", terminal=True):
    order: str


class Declined(Event, topic="typing.declined", external=True):
    order: str


agent = Agent("payment", retry=Retry(on=OSError, attempts=5, first="1s", ceiling="5m"), timeout="30s")


def declined(placed: Placed, error: Exception) -> Declined:
    return Declined(order=f"{placed.order} {error}")


@agent.on
async def charge(placed: Placed, ctx: Context) -> Paid | Declined:
    ctx.log.info("charging", attempt=ctx.attempt)
    return Paid(order=placed.order)


@agent.on(retry=Retry(on=(OSError, TimeoutError)), otherwise=declined, timeout=5, max_hops=3)
def ship(paid: Paid) -> list[Placed]:
    return [Placed(order=paid.order)]


@agent.on(compensates=charge)
async def refund(declined: Declined) -> AsyncIterator[Paid]:
    yield Paid(order=declined.order)


class Bank:
    async def take(self, order: str, key: str) -> int: ...  # type: ignore[empty-body]


@agent.on
async def collect(external: Declined, ctx: Context[Bank]) -> Paid | None:
    reveal_type(ctx.resources)  # is: Bank
    return Paid(order=external.order) if await ctx.resources.take(external.order, ctx.key) else None


@agent.on(otherwise=lambda placed, error: None, retry=Retry(on=OSError))
def stocked(paid: Paid, ctx: Context) -> set[Placed] | None:
    reveal_type(ctx.resources)  # is: Any
    return {Placed(order=paid.order)}


def broadly(placed: Placed | Paid, error: OSError) -> list[Declined]: ...  # type: ignore[empty-body]
async def later(paid: Paid, error: BaseException) -> Declined: ...  # type: ignore[empty-body]


agent.on(retry=Retry(on=OSError), otherwise=broadly)(ship)
agent.on(retry=Retry(on=OSError), otherwise=later)(ship)


@agent.on("typing.#")
async def note(envelope: Envelope) -> None:
    reveal_type(envelope.json())  # is: Any


# The decorator returns the function unchanged, and its types with it.
reveal_type(charge)  # is: def (Placed, Context[Any]) -> Coroutine[Any, Any, Paid | Declined]
reveal_type(ship)  # is: def (Paid) -> list[Placed]
reveal_type(refund)  # is: def (Declined) -> AsyncIterator[Paid]
reveal_type(note)  # is: def (Envelope) -> Coroutine[Any, Any, None]
reveal_type(agent.reactions)  # is: tuple[Reaction, ...]

ship(Placed(order="1"))  # type: ignore[arg-type]
agent.on(timout=5)(ship)  # type: ignore[call-overload]
Agent("payment", retry=5)  # type: ignore[arg-type]

# An event is made with its fields, checked, and does not change.
placed = Placed(order="1")
reveal_type(placed.cents)  # is: int
reveal_type(placed.model_copy(update={"cents": 1}))  # is: Placed
placed.cents = 1  # type: ignore[misc]
Placed()  # type: ignore[call-arg]
Placed(order=1)  # type: ignore[arg-type]


async def outside() -> None:
    """Publish from a program that is not an agent."""
    async with choreo.connect("amqp://localhost", publish_timeout="5s", password=None, prefetch=1) as publisher:
        reveal_type(publisher)  # is: Publisher
        receipt = await publisher.publish(placed, delay="30s")
        reveal_type(receipt.correlation_id)  # is: str
        await publisher.publish("order.placed")  # type: ignore[arg-type]


async def scenario(rehearsal: Rehearsal) -> int:
    """Rehearse, in a test."""
    await rehearsal.start(agent, "shipping", resources={"payment": None})
    reveal_type(rehearsal.events(Paid))  # is: list[Paid]
    reveal_type(rehearsal.events())  # is: list[Event]
    reveal_type(rehearsal.emitted(Paid)[0].event)  # is: Paid
    rehearsal.crash(Point.DONE, agent, taking=Placed)
    rehearsal.crash("done", agent)  # type: ignore[arg-type]
    return 1


reveal_type(Rehearsal(agent, seed=1).run(scenario))  # is: int
rehearse(scenario, schedules=10, faults=Faults(late=0.5))
