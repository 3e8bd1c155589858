"""A rehearsal: agents as they are, on a broker in the same process, in time that costs nothing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Final, Self, TypeVar, overload

from choreo import clock, duration
from choreo.broker import in_process
from choreo.broker.core import QueueOk
from choreo.config.settings import Settings
from choreo.dead_letter import DeadLetter
from choreo.duration import Duration
from choreo.errors import FaultUnused, NotSettled, UsageError
from choreo.event import Event, declaration
from choreo.runtime.publisher import Publisher, Receipt
from choreo.testing import letters, seeds
from choreo.testing.bridge import bridged
from choreo.testing.cast import Cast, agents_of, name_of
from choreo.testing.faults import NONE, Fates, Faults, Point
from choreo.testing.loop import VirtualLoop
from choreo.testing.process import OWN, RESTART, Play, Process, Stage, publishing_due
from choreo.testing.record import Attempt, E, Emission, Hop, Record, declared, topic_named
from choreo.testing.scenario import going, onward
from choreo.topology import Names

BEGIN: Final = datetime(2030, 1, 1, tzinfo=UTC)  # when every rehearsal begins

T = TypeVar("T")


class Rehearsal:
    """Runs agents in virtual time; ``async with Rehearsal(payment) as rehearsal:`` on a VirtualLoop, or `run`.

    `agents`: those that start with it, as Agent objects, modules, or names as `choreo run` takes them. `resources`: by
    an agent's name, what its reactions get in place of what its lifespan would yield. `seed` decides everything that is
    left to chance, also what Python's `random` gives; `faults` is what goes wrong by chance, nothing unless given.
    `settings`: in place of the defaults; variables and files are not read. Whoever connects meanwhile connects to it.
    """

    def __init__(
        self,
        *agents: Cast,
        resources: Mapping[str, Any] | None = None,
        seed: int | None = None,
        faults: Faults = NONE,
        settings: Settings | None = None,
    ) -> None:
        self.seed = seeds.chosen() if seed is None else seed
        self._cast = agents
        self._resources = dict(resources or {})
        self._settings = settings or Settings()
        self._names = Names(self._settings.namespace)
        self._record = Record(self._names, lambda: self.elapsed)
        self._fates = Fates(self.seed, faults, self._record.note)
        self._processes: dict[str, Process] = {}
        self._stack = AsyncExitStack()
        self._told = False
        self._seen: list[DeadLetter] = []
        self._left: list[DeadLetter] = []
        self._begun: Play | None = None

    # -- running it -----------------------------------------------------------------------------------------------

    @property
    def begun(self) -> bool:
        """Whether anything has run in it, or does."""
        return self._begun is not None

    def run(self, scenario: Callable[[Self], Awaitable[T]]) -> T:
        """Run `scenario` from its beginning to its end, on an event loop of its own. Once for each rehearsal."""
        __tracebackhide__ = True  # pytest then shows the scenario, and not how it came to run

        async def play() -> T:
            __tracebackhide__ = True
            async with self:
                return await going(scenario, self)

        try:
            with asyncio.Runner(loop_factory=VirtualLoop) as runner:
                return runner.run(play())
        except Exception as error:
            self._annotate(error)
            error.__traceback__ = onward(error.__traceback__)
            raise

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        if not isinstance(loop, VirtualLoop):
            raise UsageError(
                f"a rehearsal needs a loop with virtual time, and this one is a {type(loop).__name__}",
                "let rehearsal.run(scenario) make it, or asyncio.Runner(loop_factory=VirtualLoop)",
            )
        if self._begun is not None:
            raise UsageError("the rehearsal is over already", "make another one: each has a broker of its own")
        host = in_process.Host(
            clock=lambda: BEGIN.timestamp() + loop.time(),
            latency=self._fates.latency if self._fates.faults.latency else None,
            answered=self._record.answered,
        )
        publisher = Publisher(
            self._settings, lambda: in_process.connect(host), source="rehearsal", start="await rehearsal.start(AGENT)"
        )
        self._begun = Play(loop, loop.time(), Stage(host, self._settings, self._fates, self._record), publisher)
        self._stack.enter_context(clock.told(lambda: self.now, loop.time))
        self._stack.enter_context(bridged(host, loop, self._settings.namespace))
        self._stack.callback(random.setstate, random.getstate())
        random.seed(self.seed)
        self._stack.callback(host.close)
        self._stack.push_async_exit(publisher)
        try:
            await self._stack.enter_async_context(publishing_due(host, self._names))
            if self._cast:
                await self.start(*self._cast)
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        async with self._stack as stack:
            stack.callback(self._take_stock)  # when all have stopped
            for process in self._processes.values():
                stack.push_async_callback(process.stop if error is None else process.gone)
                if error is not None:
                    process.kill(None)
        if isinstance(error, Exception):
            self._annotate(error)
        elif error is None and (unused := self._fates.unused()):
            raise FaultUnused(
                f"ordered, and it never happened: {'; '.join(unused)}",
                "order it before the event that it is for is published, correct agent, event or point,"
                " or say maybe=True where it need not happen",
            )

    async def start(self, *agents: Cast, resources: Mapping[str, Any] | None = None) -> None:
        """Start agents, or start those anew that are down; without any, all of the project.

        Returns when they consume. `resources` as for the rehearsal. Raises what keeps an agent from starting.
        """
        cast = agents_of(agents)
        known = {*self._processes, *(agent.name for agent in cast)}
        if strange := set(resources or {}) - known:
            raise UsageError(
                f"resources for {', '.join(sorted(strange))}, who is not there",
                f"there are: {', '.join(sorted(known))}",
            )
        self._resources |= resources or {}
        for agent in cast:
            before = self._processes.get(agent.name)
            if before is not None and not before.down:
                raise UsageError(f"agent {agent.name} runs already", "stop it before it starts again")
            process = Process(self._play.stage, agent, self._resources.get(agent.name, OWN))
            self._processes[agent.name] = process
            self._record.agents[agent.name] = agent
            if before is None:
                self._plan_outage(agent.name)
            else:
                await before.gone()
            await process.start()

    async def stop(self, *agents: Cast) -> None:
        """Let agents finish what they do, and stop; their queues stay. Without any, all of them."""
        for process in self._chosen(agents):
            await process.stop()

    # -- what a test does -----------------------------------------------------------------------------------------

    async def publish(
        self,
        event: Event,
        *,
        delay: Duration | None = None,
        correlation_id: str | None = None,
        event_id: str | None = None,
    ) -> Receipt:
        """Publish `event` as `choreo.connect` does, and return when the broker has it. Raises PublishRefused."""
        if not isinstance(event, Event):
            raise UsageError(f"published was {event!r:.60}", "publish an event: an object of a class of Event")
        event_id = event_id or f"{self._fates.random.getrandbits(128):032x}"
        options: Any = {"delay": delay, "correlation_id": correlation_id, "event_id": event_id}
        if self._fates.doubles(declaration(event).topic):
            await self._play.publisher.publish(event, **options)
        return await self._play.publisher.publish(event, **options)

    async def settled(self, *, within: Duration = "30d") -> None:
        """Let time pass until nothing waits any more: every delivery is settled, every delay is over.

        What waits for an agent that is down is left aside. Raises NotSettled, which says what waits and where, when
        `within` of virtual time is not enough, and what has ended an agent that should run.
        """
        end = self._play.loop.time() + duration.seconds(within)
        await self._play.loop.quiet()
        while waiting := self._waiting():
            if not await self._play.loop.later() or self._play.loop.time() > end:
                raise NotSettled(
                    f"not settled after {duration.text(self.elapsed)}: {'; '.join(waiting)}",
                    "look at rehearsal.attempts(), or give it longer: settled(within=...)",
                )

    async def advance(self, time: Duration) -> None:
        """Let `time` pass, and everything happen that is due by then."""
        await asyncio.sleep(duration.seconds(time))
        await self._play.loop.quiet()

    @asynccontextmanager
    async def down(self, agent: Cast) -> AsyncIterator[None]:
        """Kill `agent`, and start it again at the end of the block: what is for it waits in its queue meanwhile."""
        [process] = self._chosen([agent])
        process.kill(None)
        await process.gone()
        yield
        [process] = self._chosen([agent])
        if process.down:
            await process.start()

    def kill(self, agent: Cast, *, back_after: Duration = RESTART) -> None:
        """End the process of `agent` at once, in the middle of what it does; it is started anew after a second."""
        for process in self._chosen([agent]):
            process.kill(duration.seconds(back_after))

    def crash(
        self,
        at: Point,
        agent: Cast | None = None,
        *,
        taking: type[Event] | str | None = None,
        times: int = 1,
        maybe: bool = False,
    ) -> None:
        """Have a process end when a delivery passes the point `at`: that of `agent`, with the event `taking`.

        None stands for whichever is next. The process is started anew after a second. At the points `published` and
        `confirmed`, `taking` is the event that is published. As with `repeat`, `double` and `hold`: the rehearsal ends
        with FaultUnused when it does not happen so many `times`, unless `maybe`.
        """
        self._fates.order(Point(at), name_of(agent), topic_named(taking), times, maybe=maybe)

    def repeat(
        self,
        taking: type[Event] | str | None = None,
        agent: Cast | None = None,
        *,
        times: int = 1,
        maybe: bool = False,
    ) -> None:
        """Have the next deliveries that fit come again after they were settled: their acknowledgement is lost."""
        self._fates.order("lost", name_of(agent), topic_named(taking), times, maybe=maybe)

    def double(self, event: type[Event] | str | None = None, *, times: int = 1, maybe: bool = False) -> None:
        """Have the next events that are published stored twice: both copies, with one id, come to all who listen."""
        self._fates.order("doubled", None, topic_named(event), times, maybe=maybe)

    def hold(
        self,
        by: Duration,
        taking: type[Event] | str | None = None,
        agent: Cast | None = None,
        *,
        times: int = 1,
        maybe: bool = False,
    ) -> None:
        """Have the next deliveries that fit come later by so much, behind those that follow them."""
        seconds = duration.seconds(by)
        self._fates.order("late", name_of(agent), topic_named(taking), times, seconds, maybe=maybe)

    # -- what a test looks at -------------------------------------------------------------------------------------

    @property
    def elapsed(self) -> float:
        """Seconds of virtual time since the rehearsal began."""
        return self._begun.loop.time() - self._begun.zero if self._begun is not None else 0.0

    @property
    def now(self) -> datetime:
        """The virtual time; every rehearsal begins with the year 2030."""
        return BEGIN + timedelta(seconds=self.elapsed)

    @overload
    def emitted(self) -> list[Emission[Event]]: ...

    @overload
    def emitted(self, kind: type[E]) -> list[Emission[E]]: ...

    def emitted(self, kind: type[Event] | None = None) -> list[Any]:
        """Return what agents have emitted, of class `kind` or all, in the order in which the broker stored it."""
        return [each for each in self._record.emissions if kind is None or isinstance(each.event, kind)]

    @overload
    def events(self) -> list[Event]: ...

    @overload
    def events(self, kind: type[E]) -> list[E]: ...

    def events(self, kind: type[Event] | None = None) -> list[Any]:
        """Return the emitted events themselves, each once, however often it was emitted or delivered."""
        return list({each.envelope.id: each.event for each in self.emitted(kind or Event)}.values())

    def attempts(self, reaction: str | None = None) -> list[Attempt]:
        """Return the calls of a reaction, "payment.charge", of all of an agent, "payment", or just all of them."""
        return self._record.attempts_of(reaction)

    @property
    def dead_letters(self) -> list[DeadLetter]:
        """What lies in the dead-letter queues now, by agent, the oldest first."""
        self._seen = letters.lying(self._play.stage.host, self._names, self._processes)
        return list(self._seen)

    @property
    def unseen(self) -> list[DeadLetter]:
        """The dead letters that were left at the end and that nobody had looked at. The fixture fails with them."""
        return [each for each in self._left if each not in self._seen]

    @property
    def faults(self) -> list[str]:
        """What went wrong on purpose, and when."""
        return list(self._record.faults)

    @property
    def walked(self) -> set[Hop]:
        """The hops that really happened: from an event through a reaction to an event. Compare `declared`."""
        return set(self._record.walked)

    @property
    def declared(self) -> set[Hop]:
        """The hops that the signatures of the agents allow; those not in `walked` were not rehearsed."""
        return declared(self._record.agents.values())

    def story(self) -> str:
        """Return what a person needs to see it happen again: the seed, and what went wrong, on purpose or not."""
        lines = [f"rehearsal with seed {self.seed}, after {duration.text(round(self.elapsed, 3))}"]
        return "\n  ".join([*lines, *self._record.faults, *map(letters.account, self._left)])

    # -- inside ---------------------------------------------------------------------------------------------------

    def _take_stock(self) -> None:
        self._left = letters.lying(self._play.stage.host, self._names, self._processes)

    def _annotate(self, error: BaseException) -> None:
        """Put the story on what has ended it, once."""
        if not self._told:
            self._told = True
            error.add_note(self.story())

    @property
    def _play(self) -> Play:
        if self._begun is None:
            raise UsageError(
                "the rehearsal has not begun",
                "let rehearsal.run(scenario) begin it, or async with, or a coroutine test",
            )
        return self._begun

    def _plan_outage(self, agent: str) -> None:
        if (outage := self._fates.outage()) is None:
            return
        begin, length = outage

        def kill() -> None:
            process = self._processes[agent]
            if not process.down:
                self._record.note(f"{agent} is down for {length:.0f} s")
                process.kill(length)

        self._play.loop.call_later(begin, kill)

    def _waiting(self) -> list[str]:
        """Say what is left to do."""
        for process in self._processes.values():
            process.check()
        self._play.stage.host.catch_up()
        left = [f"{name} restarts" for name, each in self._processes.items() if not (each.down or each.ready)]
        up = [name for name, process in self._processes.items() if not process.down]
        watched = {queue(name) for name in up for queue in (self._names.queue, self._names.retries)}
        for queue in self._play.stage.host.broker.queues():
            if queue.queue in watched or queue.queue.startswith(f"{self._names.delay}."):
                left += self._held(queue)
        return left

    def _held(self, queue: QueueOk) -> list[str]:
        unsettled = self._play.stage.host.broker.unsettled(queue.queue)
        left = f"{queue.queue} has {queue.messages} ready and {unsettled} unsettled"
        return [left] if queue.messages or unsettled else []

    def _chosen(self, agents: Sequence[Cast]) -> list[Process]:
        names = [name_of(each) for each in agents] if agents else list(self._processes)
        unknown = next((name for name in names if name not in self._processes), None)
        if unknown is not None:
            known = ", ".join(self._processes) or "none"
            raise UsageError(f"agent {unknown} is not part of this rehearsal", f"start it first; there are: {known}")
        return [self._processes[name] for name in names if name is not None]
