"""The publisher: how a program that is not an agent, such as a web application, puts events into the choreography."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from choreo import duration
from choreo.config.settings import Settings
from choreo.duration import Duration
from choreo.envelope import seal
from choreo.errors import PublishRefused, PublishUnknown, UsageError
from choreo.event import Event, declaration, known
from choreo.message import Message
from choreo.retry import LONGEST_DELAY
from choreo.runtime.emission import too_large
from choreo.topology import Names, older_schedule_key, schedule_key
from choreo.transport import Confirmed, Connect, Publication, Refused, Session, diversion


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the broker has confirmed: the id of the event, and of the transaction it belongs to."""

    id: str
    correlation_id: str


class _Process:
    """This process. `generation`: another number in each that is forked; to ask for its own is a system call."""

    generation = 0

    @classmethod
    def fork(cls) -> None:
        """Note that this process is a child."""
        cls.generation += 1


os.register_at_fork(after_in_child=_Process.fork)


class Publisher:
    """Publishes events, each confirmed by the broker. An asynchronous context manager; safe to share between tasks.

    It belongs to the event loop and the process that it is opened in; elsewhere, and after its end, it raises
    UsageError. Once closed it may be opened again, anywhere. A session that was lost is replaced on the next publish.
    An event without an answer is never sent again by itself: whether a second copy is harmless is the caller's to know.
    `start`: how an agent is started here, for messages.
    """

    def __init__(
        self, settings: Settings, connect: Connect, *, source: str = "choreo", start: str = "choreo run NAME"
    ) -> None:
        self._settings = settings
        self._connect = connect
        self._source = source
        self._start = start
        self._names = Names(settings.namespace)
        self._session: Session | None = None
        self._guard: AsyncGenerator[None, None] | None = None  # closes the session
        self._connecting = asyncio.Lock()
        # The loop and the process, by generation and number, that its sockets belong to.
        self._home: tuple[asyncio.AbstractEventLoop, int, int] | None = None
        self._entered = 0
        self._closed = False

    async def __aenter__(self) -> Self:
        if self._closed:
            self._session, self._guard, self._home, self._closed = None, None, None, False
            self._connecting = asyncio.Lock()
        self._be_home()
        await self._live()
        self._entered += 1
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered -= 1
        if self._entered > 0:
            return
        try:
            self._be_home()
            if self._guard is not None:
                await self._guard.aclose()
        except UsageError:  # nothing can be closed from here
            if error is None:
                raise
        finally:
            self._closed = True

    def _be_home(self) -> None:
        """Raise UsageError where the session cannot be used: only its own loop reads its sockets."""
        if self._closed:
            raise UsageError(
                "this publisher is closed, its `async with` is over",
                "publish within it, or enter it again",
            )
        if self._home is None:
            self._home = asyncio.get_running_loop(), _Process.generation, os.getpid()
        elif self._home[1] != _Process.generation:
            raise UsageError(
                f"this publisher belongs to process {self._home[2]}, which {os.getpid()} was forked from",
                "open one in each process, after the fork: async with choreo.connect() as publisher",
            )
        elif self._home[0] is not asyncio.get_running_loop():
            raise UsageError(
                "this publisher was opened in another event loop, and works in that one only",
                "open one in each loop; from a thread: asyncio.run_coroutine_threadsafe(publisher.publish(...), loop)",
            )

    async def publish(
        self,
        event: Event,
        *,
        correlation_id: str | None = None,
        event_id: str | None = None,
        delay: Duration | None = None,
    ) -> Receipt:
        """Publish `event`, and return when the broker has stored it for every agent that listens.

        `correlation_id`: the transaction it belongs to, its own if none is named. `event_id`: an id that is the same
        when the caller publishes again after an unknown outcome. `delay`: until it is delivered to whoever is bound
        then; whole seconds, at most 12 days; if nobody is, it becomes a dead letter (`unclaimed`). Raises
        PublishRefused (nobody listens, it is larger than `max_body`, or the broker will never take it), PublishUnknown
        (no answer within `publish_timeout`, the connection was lost, or a queue could not take it, which others may
        have), BrokerUnreachable.
        """
        message = seal(event, source=self._source, event_id=event_id, correlation_id=correlation_id)
        await self.send(message, declaration(event).topic, delay=delay)
        return Receipt(str(message.message_id), str(message.headers["choreo-correlation"]))

    async def send(self, message: Message, topic: str, *, delay: Duration | None = None) -> None:
        """Publish a message that is made already, as `publish` does."""
        if len(message.body) > self._settings.max_body:
            raise PublishRefused(too_large(message, self._settings.max_body), "send less, or raise max_body everywhere")
        pause = _whole_seconds(delay)
        self._be_home()
        session = self._session
        if session is None or session.lost.done():
            session = await self._live()
        match result := await self._publish(session, message, topic, pause):
            case Confirmed():
                return
            case Refused("returned" | "missing"):
                raise PublishRefused(
                    f"no agent listens to {topic!r} in the namespace {self._names.namespace!r}: nothing is stored",
                    self._mend(topic),
                )
            case Refused(_, detail):
                raise PublishRefused(
                    f"{topic} is not stored, and never will be as it is: {detail}",
                    "look at the user's permissions and at the broker's max_message_size",
                )
            case _:
                look = "; choreo inspect queues shows which one is full" if result.nacked else ""
                raise PublishUnknown(
                    f"{topic} {message.message_id} may or may not be stored: {result.detail}",
                    f"publish it again with the same id if a second copy does no harm{look}",
                )

    async def _publish(self, session: Session, message: Message, topic: str, pause: int) -> Publication:
        timeout = self._settings.publish_timeout
        if not pause:
            return await session.publish(message, exchange=self._names.events, routing_key=topic, timeout=timeout)
        result: Publication = Refused("returned", "")
        for key in (schedule_key, older_schedule_key):  # the older one, where only older workers have run so far
            if isinstance(result, Refused) and result.reason == "returned":
                routing_key = key(topic, pause)
                result = await session.publish(
                    message, exchange=self._names.delay, routing_key=routing_key, timeout=timeout
                )
        return result

    def _mend(self, topic: str) -> str:
        """Return what to do when nobody listens to `topic`."""
        kind = known().get(topic)
        if kind is not None and declaration(kind).terminal:
            return "it is declared terminal, what a chain of events ends with; publish what begins one"
        return f"an agent that takes it has to have run once, so that its queue exists: {self._start}"

    async def _live(self) -> Session:
        async with self._connecting:
            if self._session is None or self._session.lost.done():
                before, self._guard = self._guard, None
                if before is not None:
                    await before.aclose()
                elsewhere = diversion()
                self._names = Names(self._settings.namespace if elsewhere is None else elsewhere.namespace)
                self._session = await self._connect()
                self._guard = _closing(self._session)
                await anext(self._guard)
                if self._closed:  # meanwhile: nobody else would close it
                    await self._guard.aclose()
                    self._be_home()
            return self._session


async def _closing(session: Session) -> AsyncGenerator[None, None]:
    """Close `session` at the end. A loop that ends, as asyncio.run's does, ends what it still has of these."""
    try:
        yield
    finally:
        await session.close()


def _whole_seconds(delay: Duration | None) -> int:
    if delay is None:
        return 0
    try:
        length = math.ceil(duration.seconds(delay))
    except ValueError as error:
        raise UsageError(f"delay={delay!r}", str(error)) from None
    if length > LONGEST_DELAY:
        raise UsageError(f"delay={delay!r} is too long", f"the longest is {duration.text(LONGEST_DELAY)}")
    return length
