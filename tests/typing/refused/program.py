"""What a type checker must refuse, on the line that is wrong: `# E:` names the error of mypy, then that of pyright."""

from __future__ import annotations

from typing import NamedTuple

import choreo
from choreo import Agent, Context, Envelope, Event, Publisher, Retry
from choreo import Contxt as Contxt  # E: attr-defined, reportAttributeAccessIssue reportUnknownVariableType
from choreo.testing import Rehersal as Rehersal  # E: attr-defined, reportAttributeAccessIssue reportUnknownVariableType


class Placed(Event, topic="typing.placed", version=2):
    order: str
    cents: int = 0


class Paid(Event, topic="typing.paid", terminal=True):
    order: str


class Bank(NamedTuple):
    name: str


agent = Agent("payment", retry=Retry(on=OSError))
Agent("payment", retry=5)  # E: arg-type, reportArgumentType


# An event is made with its fields and does not change.
placed = Placed(order="1")
placed.cents = 1  # E: misc, reportAttributeAccessIssue
placed.more = 1  # E: attr-defined, reportAttributeAccessIssue
Placed()  # E: call-arg, reportCallIssue
Placed(order=1)  # E: arg-type, reportArgumentType
Placed(order="1", more=1)  # E: call-arg, reportCallIssue


# A reaction takes an event, and a context if it wants, and returns events.
async def of_a_number(number: int) -> Paid: ...  # type: ignore[empty-body]
async def of_nothing() -> Paid: ...  # type: ignore[empty-body]
async def of_three(placed: Placed, ctx: Context, more: int) -> Paid: ...  # type: ignore[empty-body]
async def of_no_context(placed: Placed, ctx: str) -> Paid: ...  # type: ignore[empty-body]
async def to_a_number(placed: Placed) -> int: ...  # type: ignore[empty-body]
def to_texts(placed: Placed) -> list[str]: ...  # type: ignore[empty-body]
async def to_an_envelope(envelope: Envelope) -> Envelope: ...  # type: ignore[empty-body]
async def keyword_only(*, placed: Placed) -> Paid: ...  # type: ignore[empty-body]
async def charge(placed: Placed) -> Paid: ...  # type: ignore[empty-body]


agent.on(of_a_number)  # E: type-var, reportArgumentType reportCallIssue
agent.on(of_nothing)  # E: arg-type, reportArgumentType reportCallIssue
agent.on(of_three)  # E: arg-type, reportArgumentType reportCallIssue
agent.on(of_no_context)  # E: arg-type, reportArgumentType reportCallIssue
agent.on(to_a_number)  # E: type-var, reportArgumentType reportCallIssue
agent.on(to_texts)  # E: type-var, reportArgumentType reportCallIssue
agent.on(to_an_envelope)  # E: type-var, reportArgumentType reportCallIssue
agent.on(keyword_only)  # E: arg-type, reportArgumentType reportCallIssue
agent.on(Placed)  # E: arg-type, reportArgumentType reportCallIssue

agent.on("typing.#")(of_a_number)  # E: type-var, reportArgumentType reportCallIssue
agent.on(timeout=5)(of_three)  # E: arg-type, reportArgumentType reportCallIssue
agent.on(timeout=5)(to_a_number)  # E: type-var, reportArgumentType reportCallIssue
agent.on(timout=5)  # E: call-overload, reportCallIssue


@agent.on  # E: type-var, reportArgumentType reportCallIssue reportUntypedFunctionDecorator
async def decorated(placed: Placed) -> str:
    return placed.order


# Its last word takes the event and the error.
def last(placed: Placed, error: Exception) -> Paid: ...  # type: ignore[empty-body]
def last_of_one(placed: Placed) -> Paid: ...  # type: ignore[empty-body]
def last_of_a_text(placed: Placed, error: str) -> Paid: ...  # type: ignore[empty-body]
def last_to_a_number(placed: Placed, error: Exception) -> int: ...  # type: ignore[empty-body]


agent.on(otherwise=last_of_one)  # E: arg-type, reportArgumentType
agent.on(otherwise=last_of_a_text)  # E: type-var, reportArgumentType
agent.on(otherwise=last_to_a_number)  # E: type-var, reportArgumentType


@agent.on
async def pay(placed: Placed, ctx: Context[Bank]) -> None:
    ctx.resources.nmae  # E: attr-defined, reportAttributeAccessIssue reportUnknownMemberType
    ctx.resources = Bank("")  # E: misc, reportAttributeAccessIssue


_ = pay(Paid(order="1"))  # E: arg-type call-arg, reportCallIssue reportUnknownVariableType


async def outside(publisher: Publisher) -> None:
    choreo.connect(publish_timout=5)  # E: call-arg, reportCallIssue
    choreo.connect(max_body="1 MB")  # E: arg-type, reportArgumentType
    choreo.connect(5)  # E: arg-type, reportArgumentType
    await publisher.publish("order.placed")  # E: arg-type, reportArgumentType
    choreo.conect()  # E: attr-defined, reportAttributeAccessIssue reportUnknownMemberType
