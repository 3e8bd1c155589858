"""One process of an agent, inside the process of the test: a worker of its own, which can end at any point.

What has ended does no more: its session is gone, whatever it held is back in the queue, and its tasks are cancelled.
Unlike at the end of a real process, `finally` blocks and the ends of lifespans do run.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Final

from choreo.agent import Agent, Lifespan
from choreo.broker import in_process
from choreo.config.settings import Settings
from choreo.envelope import Envelope
from choreo.errors import BrokerUnreachable
from choreo.event import Event
from choreo.reaction import Context, Reaction
from choreo.runtime.calling import listed, unfolded
from choreo.runtime.due import DueEvents
from choreo.runtime.publisher import Publisher
from choreo.runtime.worker import Worker
from choreo.testing.faults import Fates, Point
from choreo.testing.faulty_session import FaultySession
from choreo.testing.loop import VirtualLoop
from choreo.testing.record import Record
from choreo.topology import Names, Topology

RESTART: Final = 1.0  # seconds until a supervisor has started a process anew
_NEVER: Final = 1e9  # seconds: nobody loses a consumer here

OWN: Final = object()  # as resources: what the agent's own lifespan yields


class Killed(asyncio.CancelledError):
    """The process has ended here: whoever gets this goes no further."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What all processes of a rehearsal have in common."""

    host: in_process.Host
    settings: Settings
    fates: Fates
    record: Record


@dataclass(frozen=True, slots=True)
class Play:
    """What a rehearsal has once it has begun; `zero` is the time of the loop then."""

    loop: VirtualLoop
    zero: float
    stage: Stage
    publisher: Publisher


class Process:
    """Runs `agent` on `stage`, again and again. `resources`: what reactions get instead of what its lifespan yields."""

    def __init__(self, stage: Stage, agent: Agent, resources: Any = OWN) -> None:
        self.agent = agent
        self.down = True  # on purpose
        self._stage = stage
        self._lifespan = agent.lifespan if resources is OWN else _given(resources)
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._life: _Life | None = None
        self._ending: set[asyncio.Task[bool]] = set()
        self._restart: asyncio.TimerHandle | None = None

    @property
    def ready(self) -> bool:
        """Whether it consumes."""
        return self._life is not None and self._life.worker.ready

    async def start(self) -> None:
        """Start it, and return when it consumes. Raises what keeps it from that."""
        self._begin()
        assert self._life is not None
        try:
            await self._life.begun()
        except BaseException:
            self._life, self.down = None, True
            raise

    def check(self) -> None:
        """Raise what has ended the worker, if that was none of the test's doing."""
        if self._life is not None and self._life.running.done():
            self._life.running.result()

    async def stop(self) -> None:
        """Drain it, and return when it has ended. Raises what it ends with."""
        self._forget_restart()
        self.down = True
        life, self._life = self._life, None
        if life is not None:
            life.worker.stop()
            await life.running
        await self.gone()

    async def gone(self) -> None:
        """Return when all that was killed has ended."""
        if self._ending:
            await asyncio.wait(self._ending)

    def kill(self, back_after: float | None = RESTART) -> None:
        """End it at once, in the middle of whatever it does. It is back after so many seconds; None: it stays down."""
        if threading.get_ident() != self._thread:
            self._loop.call_soon_threadsafe(self.kill, back_after)
            return
        if self.down:
            return
        self._forget_restart()
        self.down = back_after is None
        if self._life is not None:
            self._ending.add(self._life.running)
            self._life.running.add_done_callback(self._ended)
            self._life.end()
            self._life = None
        if back_after is not None:
            self._restart = self._loop.call_later(back_after, self._begin)

    def _begin(self) -> None:
        self._forget_restart()
        self.down = False
        self._life = _Life(self._stage, self.agent, self._lifespan, self.kill)

    def _forget_restart(self) -> None:
        if self._restart is not None:
            self._restart.cancel()
            self._restart = None

    def _ended(self, running: asyncio.Task[bool]) -> None:
        self._ending.discard(running)
        if not running.cancelled():
            running.exception()  # how it ends is nobody's business: a process that is killed does not say


class _Life:
    """A process from its start to its end. `killed` is called when it ends itself at a point."""

    def __init__(self, stage: Stage, agent: Agent, lifespan: Lifespan | None, killed: Callable[[], None]) -> None:
        self._stage = stage
        self._agent = agent
        self._killed = killed
        self._alive = True
        self._session: FaultySession | None = None
        self._ready = asyncio.Event()
        acting = agent.rewired(self._watched, lifespan)
        self.worker = Worker([acting], stage.settings, self._connect, look_every=_NEVER, publishes_due=False)
        self.worker.watch(lambda worker: self._ready.set() if worker.ready else None)
        self.running = asyncio.create_task(self.worker.run(), name=f"process of {agent.name}")

    async def begun(self) -> None:
        """Return when it consumes. Raises what keeps it from that."""
        waiting = asyncio.ensure_future(self._ready.wait())
        try:
            await asyncio.wait((waiting, self.running), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if self.running.done():
            self.running.result()

    def end(self) -> None:
        """End it at once."""
        self._alive = False
        if self._session is not None:
            self._session.cut(BrokerUnreachable("the process has ended"))
        self.running.cancel()

    def passes(self, point: Point, topic: str) -> bool:
        """Say whether a delivery goes on behind `point`; if not, the process has ended."""
        if self._alive and self._stage.fates.crashes(point, self._agent.name, topic):
            self._alive = False
            self._killed()
        return self._alive

    def call(self, reaction: Reaction, event: Event | Envelope, ctx: Context) -> _Call:
        """Surround one call of a reaction."""
        return _Call(self, self._stage.record, reaction, event, ctx)

    async def _connect(self) -> FaultySession:
        stage = self._stage
        session = await in_process.connect(stage.host)
        self._session = FaultySession(session, self._agent.name, stage.fates, stage.record, self.passes)
        return self._session

    def _watched(self, reaction: Reaction) -> Reaction:
        """Return `reaction` with a function around its own that takes note, and at which the process can end."""
        return replace(reaction, function=_around(reaction, self), takes_context=True)


class _Call:
    """One call of a reaction, from its begin to its end. Of an exception nothing is touched: a class may forbid it."""

    def __init__(self, life: _Life, record: Record, reaction: Reaction, event: Event | Envelope, ctx: Context) -> None:
        self._life = life
        self._record = record
        self._reaction = reaction
        self._event = event
        self._ctx = ctx

    def __enter__(self) -> None:
        if not self._life.passes(Point.BEGUN, self._ctx.topic):
            raise Killed
        self._attempt = self._record.began(self._reaction, self._event, self._ctx.event_id, self._ctx.attempt)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._record.ended(self._attempt, self._reaction, error)
        if error is None and not self._life.passes(Point.DONE, self._ctx.topic):
            raise Killed


@asynccontextmanager
async def publishing_due(host: in_process.Host, names: Names) -> AsyncIterator[None]:
    """Publish scheduled events when their time has come, as any worker does: none of the agents need be up for it."""
    session = await in_process.connect(host)
    try:
        await session.declare(Topology.of([], names.namespace))
        due = DueEvents(session, names)
        await due.open()
        yield
    finally:
        await session.close()


def _around(reaction: Reaction, life: _Life) -> Callable[..., Any]:
    """Return a function of the same kind as the reaction's: a coroutine, an async generator, or a plain one."""
    function = reaction.function

    def arguments(event: Event | Envelope, ctx: Context) -> tuple[Any, ...]:
        return (event, ctx) if reaction.takes_context else (event,)

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def call(event: Event | Envelope, ctx: Context) -> Any:
            with life.call(reaction, event, ctx):
                return listed(await unfolded(function(*arguments(event, ctx))))

    elif inspect.isasyncgenfunction(function):

        @functools.wraps(function)
        async def call(event: Event | Envelope, ctx: Context) -> Any:
            with life.call(reaction, event, ctx):
                async for each in function(*arguments(event, ctx)):
                    yield each

    else:

        @functools.wraps(function)
        def call(event: Event | Envelope, ctx: Context) -> Any:
            with life.call(reaction, event, ctx):
                result = function(*arguments(event, ctx))
                later = inspect.isawaitable(result) or isinstance(result, AsyncIterable)
                return result if later else listed(result)

    return call


def _given(resources: Any) -> Lifespan:
    @asynccontextmanager
    async def lifespan() -> AsyncIterator[Any]:
        yield resources

    return lifespan
