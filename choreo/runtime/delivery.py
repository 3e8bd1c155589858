"""A delivery's way: opened, validated, reacted to, what follows published and confirmed, settled.

Every delivery is settled here and nowhere else, and always in this order: publish, confirm, then acknowledge. A crash
anywhere before the acknowledgement brings the delivery back; a crash just before it makes a duplicate, never a loss.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from itertools import count
from typing import Any, Final

import structlog

from choreo import clock, dead_letter, forks
from choreo.agent import Agent
from choreo.envelope import SMALL, Envelope, open_envelope, require_room, returned_topic
from choreo.errors import EnvelopeError, NotEmitted, PublishFailed
from choreo.event import Event, declaration
from choreo.message import ATTEMPT, CE, FIRST_FAILURE, TOPIC, Message, Reason
from choreo.observe import logs
from choreo.outcome import DeadLetter, Otherwise, TryLater, TryNow, decide
from choreo.reaction import Context, Reaction
from choreo.runtime.calling import about_a_reaction, begin, call, end_child
from choreo.runtime.emission import require_stored, sealed
from choreo.runtime.healing import Heal, nothing
from choreo.runtime.returns import Returns
from choreo.runtime.suspects import Rounds
from choreo.runtime.underway import Underway
from choreo.topology import Names, return_key, topic_of
from choreo.transport import Confirmed, Delivery, Refused, Session

# When the broker takes neither the retry nor the dead letter of a delivery, it is held and tried again: seconds, the
# last one for ever. The delivery stays unsettled meanwhile: nothing is lost, and the prefetch bounds their number.
_HOLD: Final = (0.2, 1.0, 5.0, 15.0)
_PATIENCE: Final = 600.0  # seconds for the confirmation of a retry or a dead letter; a lost session ends it sooner


Hold = Callable[[asyncio.Future[None], float], None]


def no_place(_over: asyncio.Future[None], _at_most: float) -> None:
    """Hold nothing; see `task_pool.Seat.hold`."""


@dataclass(slots=True)
class Counters:
    """What became of an agent's deliveries since the process began."""

    handled: int = 0
    retried: int = 0
    dead: int = 0
    emitted: int = 0


class _SessionLostError(Exception):
    """The session ended under a delivery, which the broker gives to somebody else."""


@dataclass(slots=True)
class _Case:
    """One delivery and what is known of it so far. `tries` includes the one under way. For the others see `deliver`."""

    session: Session
    delivery: Delivery
    topic: str
    leave: Callable[[], None]
    hold: Hold
    tries: int = 1
    first_failure: datetime | None = None
    envelope: Envelope | None = None
    reaction: Reaction | None = None
    event: Event | Envelope | None = None


@dataclass(frozen=True, slots=True)
class DeliveryProcessor:
    """Carries the deliveries of one agent. Wired once, when the worker starts."""

    agent: Agent
    names: Names
    executor: Executor
    max_body: int
    publish_timeout: float
    code_version: str | None = None
    resources: Any = None
    counters: Counters = field(default_factory=Counters)
    rounds: Rounds = field(default_factory=Rounds)
    heal: Heal = nothing
    held: set[int] = field(default_factory=set)  # by id(): deliveries for which the broker takes nothing
    on_held: Callable[[], None] = lambda: None
    underway: Underway = field(default_factory=Underway)
    returns: Returns = field(default_factory=Returns)
    ending: asyncio.Event = field(default_factory=asyncio.Event)  # set before the worker cancels what still runs
    log: structlog.typing.FilteringBoundLogger = field(default_factory=logs.of_deliveries)

    async def deliver(
        self,
        session: Session,
        delivery: Delivery,
        leave: Callable[[], None] = lambda: None,
        hold: Hold = no_place,
    ) -> None:
        """Take `delivery` to settled. Only cancellation and a lost session leave it for a redelivery.

        `leave` is called when none of the user's code will run any more, and only the broker's word is waited for.
        `hold` is called when a thread goes on all the same, with what is done at its end, and the seconds for which it
        counts at most.
        """
        if session.lost.done():
            return  # arrived while the session went; it will arrive again
        case = _Case(
            session, delivery, topic_of(self.names, delivery.exchange, delivery.routing_key) or "", leave, hold
        )
        try:
            failure = await self._try(case)
            while failure is not None:
                failure = await self._recover(case, failure)
            delivery.consumer.acknowledge(delivery)
        except _SessionLostError:
            return
        except asyncio.CancelledError:
            self._log(case).warning("cut off", next="requeued, to be delivered again")
            delivery.consumer.requeue(delivery)
            raise

    async def _try(self, case: _Case) -> BaseException | None:
        """Open, call, emit. Return the failure, or None when all that follows is confirmed."""
        began = time.perf_counter()
        try:
            opened, reaction = self._open(case)
            arguments = (case.event, self._context(case, opened, reaction)) if reaction.takes_context else (case.event,)
            if (case.tries > 1 or case.delivery.redelivered) and self.underway:
                await self.underway.wait(opened, reaction)
            if reaction.in_thread:
                goes_on = partial(self._goes_on, case, opened, reaction)
                given = begin(reaction, reaction.function, arguments, self.executor, goes_on)
            else:
                given = begin(reaction, reaction.function, arguments, None)
            if isinstance(given, list):
                events = given
            else:
                events = await self.underway.until_done(opened.id, case.delivery, given, self.ending)
            if forks.forked:
                end_child(reaction)
            if events:
                await self._emit(case, opened, reaction, events)
        except BaseException as error:  # also what ends a process elsewhere: here it ends one attempt
            if forks.forked and case.reaction is not None:
                end_child(case.reaction)
            if self._is_ours(error):
                raise
            return error
        self.counters.handled += 1
        if self.log.is_enabled_for(logging.DEBUG):
            seconds = round(time.perf_counter() - began, 6)
            self._log(case).debug("handled", emitted=_topics(events), seconds=seconds)
        return None

    def _goes_on(self, case: _Case, opened: Envelope, reaction: Reaction, over: asyncio.Future[None]) -> None:
        """Note that a thread goes on after its deadline: its event is under way, and its place taken, until it ends."""
        self.underway.goes_on(opened.id, over)
        case.hold(over, reaction.timeout)

    async def _recover(self, case: _Case, error: BaseException) -> BaseException | None:
        """Do what the policy says about `error`. Return the next failure, or None when the delivery can be settled."""
        if case.session.lost.done():
            raise _SessionLostError
        now = clock.now()
        case.first_failure = case.first_failure or now
        elapsed = (now - case.first_failure).total_seconds()
        try:
            decision = decide(case.reaction, error, attempt=case.tries, elapsed=elapsed)
        except BaseException as second:  # noqa: BLE001 - a policy may hold predicates of the user's
            error, decision = _after(error, second), DeadLetter(Reason.FAILED)
        match decision:
            case TryNow():
                self._log(case).warning("failed", error=logs.shown(error), next="retry at once")
                case.tries += 1
                return await self._try(case)
            case TryLater(delay):
                self._log(case).warning("failed", error=logs.shown(error), next=f"retry in {delay} s")
                await self._store(case, self.names.delay, return_key(self.agent.name, delay), self._retry(case))
                self.counters.retried += 1
            case Otherwise():
                return await self._otherwise(case, error)
            case DeadLetter(reason):
                await self._bury(case, error, reason)
        return None

    @about_a_reaction
    def _open(self, case: _Case) -> tuple[Envelope, Reaction]:
        """Read envelope and event and find the reaction, once. Raises EnvelopeError with the dead letter's reason."""
        if case.envelope is not None and case.reaction is not None and case.event is not None:
            return case.envelope, case.reaction
        if (opened := case.envelope) is None:
            message = case.delivery.message
            case.topic = case.topic or returned_topic(message)
            opened = case.envelope = open_envelope(message, case.topic, max_body=self.max_body)
            case.tries, case.first_failure = opened.attempt, opened.first_failure
            if opened.attempt == 1 and len(message.raw or b"") > SMALL:
                require_room(message, case.session.server.frame_max)
        reaction = case.reaction = self.agent.reaction_to(opened.topic)
        if reaction is None:
            raise EnvelopeError(
                Reason.UNEXPECTED, f"agent {self.agent.name} has no reaction to the topic {opened.topic!r}"
            )
        bound = reaction.max_hops or self.agent.max_hops
        if opened.hops >= bound:
            raise EnvelopeError(
                Reason.LOOP,
                f"{opened.topic} {opened.id} is {opened.hops} hops away from the event that began it,"
                f" and max_hops is {bound}",
            )
        bound = reaction.max_tree or self.agent.max_tree
        if opened.tree > bound:
            raise EnvelopeError(
                Reason.LOOP,
                f"{opened.topic} {opened.id} is one of {opened.tree} events of its generation, and max_tree is {bound}",
            )
        if case.delivery.redelivered:
            self.rounds.begin(case.delivery, reaction)
        case.event = opened.event(reaction.consumes[opened.topic]) if reaction.consumes else opened
        return opened, reaction

    def _context(self, case: _Case, opened: Envelope, reaction: Reaction) -> Context:
        return Context(
            event_id=opened.id,
            topic=opened.topic,
            correlation_id=opened.correlation_id,
            causation_id=opened.causation_id,
            attempt=case.tries,
            hops=opened.hops,
            agent=self.agent.name,
            reaction=reaction.name,
            resources=self.resources,
            headers=opened.headers,
        )

    async def _emit(
        self,
        case: _Case,
        opened: Envelope,
        reaction: Reaction,
        events: list[Event],
        *,
        last_word: bool = False,
    ) -> None:
        """Publish what follows and wait until all of it is confirmed; raise what stands in the way of that."""
        messages = sealed(self.agent, reaction, opened, events, last_word=last_word, max_body=self.max_body)
        if not opened.hops:
            self.returns.count(self.agent, opened, messages)
        confirmations = [
            case.session.publish(
                message,
                exchange=self.names.events,
                routing_key=message.type or "",
                timeout=self.publish_timeout,
            )
            for message in messages
        ]
        case.leave()
        # A single one is awaited as it is: gathering costs a turn of the loop.
        several = len(confirmations) > 1
        results = await asyncio.gather(*confirmations) if several else [await confirmations[0]]
        for event, result in zip(events, results, strict=True):
            if type(result) is Refused and result.reason == "missing":
                await self.heal(case.session)
            require_stored(event, result)
        self.counters.emitted += len(events)

    async def _otherwise(self, case: _Case, error: BaseException) -> BaseException | None:
        """Emit the reaction's last word. If that fails too, only the dead letter is left, with both errors in it."""
        if case.event is None:  # what failed was the reading of it: there is nothing to give to the last word
            await self._bury(case, error, Reason.FAILED)
            return None
        opened, reaction = self._open(case)
        last_word = reaction.otherwise
        assert last_word is not None
        try:
            executor = None if inspect.iscoroutinefunction(last_word) else self.executor
            goes_on = partial(self._goes_on, case, opened, reaction)
            events = await call(reaction, last_word, (case.event, error), executor, goes_on)
            if events:
                await self._emit(case, opened, reaction, events, last_word=True)
        except (PublishFailed, NotEmitted) as error_of_emission:
            return error_of_emission
        except BaseException as second:
            if self._is_ours(second):
                raise
            await self._bury(case, _after(error, second), Reason.FAILED)
            return None
        self.counters.handled += 1
        self._log(case).warning("failed", error=logs.shown(error), next="otherwise", emitted=_topics(events))
        return None

    def _retry(self, case: _Case) -> Message:
        """Return the message for its next attempt. It keeps its id, also a derived one: all attempts emit alike."""
        assert case.envelope is not None
        assert case.first_failure is not None
        return case.delivery.message.forwarded(
            {
                ATTEMPT: case.tries,
                TOPIC: case.topic,
                FIRST_FAILURE: case.first_failure.isoformat(),
                CE + "id": case.envelope.id,
            }
        )

    async def _bury(self, case: _Case, error: BaseException, reason: str) -> None:
        letter = dead_letter.write(
            case.delivery.message,
            topic=case.topic,
            agent=self.agent.name,
            reason=reason,
            error=error,
            reaction=case.reaction.name if case.reaction is not None else None,
            attempts=case.tries,
            first_failure=case.first_failure,
            code_version=self.code_version,
        )
        if case.envelope is not None:
            letter.headers[CE + "id"] = case.envelope.id  # also one that came without: --id can name it
        await self._store(case, self.names.dead, self.agent.name, letter)
        self.counters.dead += 1
        self._log(case).warning("dead letter", reason=str(reason), error=logs.shown(error))

    async def _store(self, case: _Case, exchange: str, routing_key: str, message: Message) -> None:
        """Publish a retry or a dead letter until it is confirmed; the delivery stays unsettled as long as it is not."""
        case.leave()
        try:
            await self._publish_until_stored(case, exchange, routing_key, message)
        finally:
            if id(case) in self.held:
                self.held.remove(id(case))
                self.on_held()

    async def _publish_until_stored(self, case: _Case, exchange: str, routing_key: str, message: Message) -> None:
        for attempt in count():
            # Patient: under a memory alarm the first copy is stored when the alarm ends, and so would be every other.
            result = await case.session.publish(message, exchange=exchange, routing_key=routing_key, timeout=_PATIENCE)
            if isinstance(result, Confirmed):
                return
            if isinstance(result, Refused) and result.over and dead_letter.shorten(message, result.over):
                continue  # a frame has no room for all of a dead letter
            if case.session.lost.done():
                break
            if isinstance(result, Refused) and result.reason != "rejected" and await self.heal(case.session):
                continue
            pause = _HOLD[min(attempt, len(_HOLD) - 1)]
            self._log(case).error("held", exchange=exchange, error=result.detail, next=f"retry in {pause} s")
            self.held.add(id(case))
            self.on_held()
            await asyncio.wait((case.session.lost,), timeout=pause)
        raise _SessionLostError  # the loop above ends in no other way

    def _is_ours(self, error: BaseException) -> bool:
        """Say whether the worker cancels this delivery, as against a reaction that cancels itself."""
        if not isinstance(error, asyncio.CancelledError):
            return False
        task = asyncio.current_task()
        while task is not None and task.cancelling() and not self.ending.is_set():
            task.uncancel()
        return self.ending.is_set()

    def _log(self, case: _Case) -> structlog.typing.FilteringBoundLogger:
        opened, message = case.envelope, case.delivery.message
        bound: structlog.typing.FilteringBoundLogger = self.log.bind(
            agent=self.agent.name,
            reaction=case.reaction.name if case.reaction is not None else None,
            topic=case.topic,
            event_id=opened.id if opened is not None else message.message_id,
            correlation_id=opened.correlation_id if opened is not None else message.correlation_id,
            attempt=case.tries,
        )
        return bound


def _topics(events: list[Event]) -> list[str]:
    return [declaration(event).topic for event in events]


def _after(first: BaseException, second: BaseException) -> BaseException:
    """Return `second` as what was raised while `first` was handled, also where its class lets nothing be set."""
    BaseException.__setattr__(second, "__context__", first)
    return second
