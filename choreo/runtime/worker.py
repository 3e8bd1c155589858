"""The worker: some agents in one process, a session with the broker that is replaced when it is lost, and the drain."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import decimal
import random
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from itertools import chain
from typing import Any, Final, NoReturn

import tenacity

from choreo import clock
from choreo.agent import Agent
from choreo.config.settings import Settings
from choreo.errors import BrokerUnreachable, ChoreoError, InternalError
from choreo.logger import get_logger
from choreo.runtime import backoff, consumer_watchdog, lifespan
from choreo.runtime.delivery import Counters, DeliveryProcessor
from choreo.runtime.due import DueEvents
from choreo.runtime.healing import Healer, report_gone
from choreo.runtime.holding import limits
from choreo.runtime.loop_watchdog import Standstill
from choreo.runtime.policies import report_older
from choreo.runtime.subscription import Subscription
from choreo.runtime.suspects import Turns, cause_of_loss
from choreo.runtime.task_pool import Slice, TaskPool
from choreo.runtime.tasks import first_of, owned, unsaid
from choreo.runtime.threads import threads
from choreo.topology import Names, Topology
from choreo.transport import Connect, Delivery, Session

_SAID: Final = 16  # attempts that are each said while nobody answers; after them, one in so many
_LOOK: Final = 1.0  # seconds for the question whether the queues are still there
_SHORT_LIFE: Final = 10.0  # seconds
_END_TIMEOUT: Final = 3.0  # seconds for what is cancelled to requeue its delivery
SUBSCRIBING: Final = "subscribing"  # begins the status from which on messages arrive
GRACE: Final = 4.0  # seconds after the drain time for everything that has to be closed

_logger = get_logger()


class State(StrEnum):
    """Where a worker is in its life."""

    STARTING = "starting"
    CONSUMING = "consuming"
    WAITING = "waiting"  # for a broker that was there and is gone
    DRAINING = "draining"
    STOPPED = "stopped"


class Worker:
    """Runs `agents` until it is told to stop.

    `connect` opens a session with the broker. `state`, and `status` in words, tell the truth at any time; `watch` calls
    back on each change. `look_every`: seconds between two looks at whether the broker still delivers. `publishes_due`:
    whether it takes part in publishing scheduled events whose time has come.
    """

    def __init__(
        self,
        agents: Sequence[Agent],
        settings: Settings,
        connect: Connect,
        look_every: float = consumer_watchdog.PERIOD,
        *,
        publishes_due: bool = True,
    ) -> None:
        self.agents = tuple(agents)
        self.state = State.STARTING
        self.status = "starting"
        self.drained = False  # everything that ran was finished in time
        self.entering = False  # a lifespan is about to begin, and takes its time
        self.standstill: Callable[[], Awaitable[Standstill | None]] = _never
        self._settings = settings
        self._connect = connect
        brokers = settings.brokers()
        self._addresses, self._heartbeat = ", ".join(each.address for each in brokers), brokers[0].heartbeat
        self._names = Names(settings.namespace)
        self._queues = ", ".join(self._names.queue(agent.name) for agent in self.agents)
        self._topology = Topology.of(self.agents, settings.namespace)
        self._healer = Healer(self._topology, Topology.of((), settings.namespace))
        self._waits = ""  # why publishes wait, in the words of `status`
        self._pools: dict[str, TaskPool] = {}
        self._slice = Slice()
        self._look_every = look_every
        self._publishes_due = publishes_due
        self._looking: asyncio.Task[None] | None = None
        self._subscriptions: list[Subscription | DueEvents] = []  # of the session at hand
        self._limits = {agent.name: limits(agent, settings) for agent in self.agents}
        self._draining_since: float | None = None  # a time of the loop
        self._stop = asyncio.Event()
        self._abort = asyncio.Event()
        self._short_lives = 0  # sessions in a row that were lost as soon as they were there
        self._watchers: list[Callable[[Worker], None]] = []
        self._failure: InternalError | None = None

    @property
    def ready(self) -> bool:
        """Whether every agent is consuming, and the broker takes what follows."""
        return self.state is State.CONSUMING and not self._held

    @property
    def counters(self) -> dict[str, Counters]:
        """What became of each agent's deliveries so far."""
        return {name: pool.processor.counters for name, pool in self._pools.items()}

    def watch(self, callback: Callable[[Worker], None]) -> None:
        """Call `callback` on each change of state or status."""
        self._watchers.append(callback)

    def stop(self) -> None:
        """Begin to drain: take nothing new, finish what runs, requeue the rest."""
        self._stop.set()

    def abort(self) -> None:
        """Stop at once: what runs is cancelled and requeued."""
        self._stop.set()
        self._abort.set()

    async def run(self) -> bool:
        """Work until stopped. Return whether everything that ran was finished within the drain time.

        Raises what keeps the worker from starting: BrokerUnreachable after `wait` seconds of trying, AccessRefused,
        TopologyMismatch and other configuration errors at once. Later failures of the broker are waited out.
        InternalError, after the drain, when a task of the worker's own has failed, so that it would only look alive.
        """
        failure: ChoreoError | None = None
        decimal.getcontext()  # who first reckons with decimals in a context would change it
        context = contextvars.copy_context()
        async with contextlib.AsyncExitStack() as stack:
            try:
                for agent in self.agents:
                    resources = await self._enter(stack, agent)
                    processor = self._processor(
                        agent, stack.enter_context(threads(agent.name, self._settings.concurrency)), resources
                    )
                    self._pools[agent.name] = self._pool_of(processor, context)
                stack.push_async_callback(self._end_pools)
                self.drained = await self._consume_until_stopped()
            except lifespan.StoppedError:
                self.drained = True
            except ChoreoError as error:  # raised below: it is no business of the lifespans
                failure = error
        failure = failure or self._failure
        if failure is not None:
            raise failure
        self._change(State.STOPPED, "stopped")
        return self.drained

    async def _enter(self, stack: contextlib.AsyncExitStack, agent: Agent) -> Any:
        if agent.lifespan is not None:
            self._change(State.STARTING, f"starting: the lifespan of agent {agent.name}", logged=False)
        self.entering = True
        try:
            return await lifespan.enter(stack, agent, self._stop, self._leave_by)
        finally:
            self.entering = False

    def fail(self, task: str, error: BaseException) -> None:
        """End: a task that the worker needs has ended with `error`. What runs is finished, the rest is requeued."""
        _logger.critical("task failed inside choreo", task=task, exc_info=error, next="the worker drains and ends")
        if self._failure is None:
            self._failure = InternalError(
                f"the task {task!r} of the worker has failed: {type(error).__name__}",
                "this is a defect of choreo's; the log has its traceback",
            )
            self._failure.__cause__ = error
        self.stop()

    def _leave_by(self) -> float:
        """Return the time of the loop by which lifespans have to end: the drain time and a grace after it."""
        began = self._draining_since or asyncio.get_running_loop().time()
        return began + self._settings.drain + GRACE

    async def _consume_until_stopped(self) -> bool:
        # At the start: patient for `wait` seconds if nobody answers, not at all with a refusal. Later a refusal may be
        # fixed too, and is waited out like everything else.
        self._change(State.STARTING, f"starting: connecting to {self._addresses}", logged=False)
        only_unreachable = tenacity.retry_if_exception_type(BrokerUnreachable)
        session = await self._connected(only_unreachable, tenacity.stop_after_delay(self._settings.wait))
        while session is not None:
            began = clock.monotonic()
            self._change(State.CONSUMING, self._consuming)
            watch = asyncio.create_task(consumer_watchdog.watch(session, self._subscriptions, self._look_every))
            healing = asyncio.create_task(self._healer.watch(session, self._look_every))
            try:
                failing: list[asyncio.Future[Any]] = [watch, healing, *(each.failed for each in self._subscriptions)]
                await first_of(self._stop, session.lost, *failing)
                if self._stop.is_set():
                    return await self._drain(session)
                await self._lost(session, watch, healing)
            finally:
                watch.cancel()
                healing.cancel()
                await self._abandon(session)
            # A session that is lost again as soon as it is there must not become a storm of connections.
            self._short_lives = self._short_lives + 1 if clock.monotonic() - began < _SHORT_LIFE else 0
            await self._sleep(min(0.1 * 2**self._short_lives, 1.0) * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
            session = await self._connected(tenacity.retry_if_exception_type(ChoreoError), tenacity.stop_never)
        return await self._drain(None)

    async def _connected(self, retry: Any, stop: Any) -> Session | None:
        """Connect, declare and consume, again and again as `retry` and `stop` allow. None: stopped meanwhile."""
        tries = tenacity.AsyncRetrying(
            retry=retry,
            stop=stop,
            wait=backoff.pause,
            reraise=True,
            sleep=self._sleep,
            before_sleep=self._not_connected,
        )
        async for attempt in tries:
            if self._stop.is_set():
                return None
            with attempt:
                live = asyncio.ensure_future(self._live_session())
                await first_of(self._stop, live)
                if not live.done():
                    live.cancel()
                    return None
                return live.result()
        return None

    async def _live_session(self) -> Session:
        session = await self._connect()
        turns = Turns(2 * len(self.agents))
        self._subscriptions = [each for agent in self.agents for each in self._subscriptions_of(agent, session, turns)]
        if self._publishes_due:
            self._subscriptions.append(DueEvents(session, self._names))
        self._waits = ""
        session.watch_blocked(self._blocked)
        try:
            if self.state is not State.STARTING:
                # Not for long: a queue whose leader does not answer holds up the question for seconds.
                self._looking = owned(
                    report_gone(session, [each.queue for each in self._subscriptions]), "missing queues", unsaid
                )
                await asyncio.wait((self._looking,), timeout=_LOOK)
            older = await session.declare(self._topology)
            if self.state is State.STARTING:
                report_older(older)
                self._change(State.STARTING, f"{SUBSCRIBING} to {self._queues}", logged=False)
            for subscription in self._subscriptions:
                await subscription.open()
        except BaseException as error:
            if isinstance(error, ChoreoError) and (cause := await self._cause_of_loss()):  # something arrived already
                _logger.warning("session lost", error=str(error), server=session.server.version, **cause)
            await self._abandon(session)
            raise
        return session

    def _blocked(self, reason: str | None) -> None:
        """Tell everybody who watches that publishes wait, or that they do not any more."""
        self._waits = f"; publishes wait: the broker blocks publishers, {reason}" if reason is not None else ""
        if reason is not None:
            _logger.warning("publishes wait", why=f"the broker blocks publishers, {reason}")
        self._show(logged=True)

    def _show(self, *, logged: bool = False) -> None:
        """Tell everybody who watches what keeps a worker that consumes from its work, if anything does."""
        if self.state is State.CONSUMING:
            held = f"; held: {self._held}, as the broker takes neither retry nor dead letter" if self._held else ""
            self._change(State.CONSUMING, f"{self._consuming}{self._waits}{held}", logged=logged)

    @property
    def _held(self) -> int:
        return sum(len(pool.processor.held) for pool in self._pools.values())

    @property
    def _consuming(self) -> str:
        return f"consuming from {self._queues}"

    def _subscriptions_of(self, agent: Agent, session: Session, turns: Turns) -> list[Subscription]:
        pool = self._pools[agent.name]
        found, retries, hold = self._limits[agent.name]
        both = (self._names.queue(agent.name), found), (self._names.retries(agent.name), retries)

        def arrived(delivery: Delivery) -> None:
            pool.arrived.put((session, delivery))

        end = pool.processor.underway.give_up
        return [Subscription(session, queue, prefetch, turns, arrived, hold=hold, end=end) for queue, prefetch in both]

    async def _sleep(self, seconds: float) -> None:
        await first_of(self._stop, timeout=seconds)

    def _not_connected(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        message = error.message if isinstance(error, ChoreoError) else repr(error)
        pause = state.next_action.sleep if state.next_action else 0.0
        attempt = state.attempt_number
        starting = self.state is State.STARTING
        status = f"{'starting: ' if starting else ''}{message} (attempt {attempt})"
        self._change(State.STARTING if starting else State.WAITING, status, logged=False)
        if attempt <= _SAID or attempt % _SAID == 0 or not isinstance(error, BrokerUnreachable):
            _logger.warning("not connected", error=message, attempt=attempt, next_try_in=round(pause, 1))

    async def _lost(self, session: Session, *tasks: asyncio.Task[NoReturn]) -> None:
        """Note that the session is gone or useless: what arrived on it and has not begun will arrive again."""
        watchers: tuple[asyncio.Future[Any], ...] = (*tasks, *(each.failed for each in self._subscriptions))
        failed = [each.exception() for each in watchers if each.done() and not each.cancelled()]
        error = session.lost.result() if session.lost.done() else next(filter(None, failed))
        self._change(State.WAITING, error.message if isinstance(error, ChoreoError) else repr(error))
        cause = await self._cause_of_loss()
        defect = None if isinstance(error, ChoreoError) else error  # its traceback says more
        _logger.warning("session lost", error=str(error), server=session.server.version, exc_info=defect, **cause)
        await self._abandon(session)
        for pool in self._pools.values():
            pool.arrived.take_all()

    async def _cause_of_loss(self) -> dict[str, str]:
        rounds = {name: pool.processor.rounds for name, pool in self._pools.items()}
        return cause_of_loss(await self.standstill(), self._heartbeat, rounds)

    async def _abandon(self, session: Session) -> None:
        for subscription in self._subscriptions:
            subscription.abandon()
        self._subscriptions = []
        await session.close()

    async def _drain(self, session: Session | None) -> bool:
        self._draining_since = asyncio.get_running_loop().time()
        self._change(State.DRAINING, f"draining for at most {self._settings.drain:g} s")
        await asyncio.gather(*(subscription.cancel() for subscription in self._subscriptions))
        for pool in self._pools.values():
            for _, delivery in pool.arrived.take_all():
                delivery.consumer.requeue(delivery)
            pool.arrived.close()
        finished = asyncio.ensure_future(self._all_done())
        ends = (finished, self._abort, session.lost) if session is not None else (finished, self._abort)
        await first_of(*ends, timeout=self._settings.drain)
        drained = finished.done()
        finished.cancel()
        await self._end_pools()
        return drained

    async def _all_done(self) -> None:
        if running := self._running:
            await asyncio.wait(running)

    @property
    def _running(self) -> list[asyncio.Task[None]]:
        return list(chain.from_iterable(pool.running for pool in self._pools.values()))

    async def _end_pools(self) -> None:
        for pool in self._pools.values():
            pool.cancel()
        if running := self._running:
            await asyncio.wait(running, timeout=_END_TIMEOUT)
        for pool in self._pools.values():
            pool.forget()

    def _pool_of(self, processor: DeliveryProcessor, context: contextvars.Context) -> TaskPool:
        return TaskPool(
            processor,
            context,
            concurrency=self._settings.concurrency,
            held=sum(self._limits[processor.agent.name][:2]),
            slice=self._slice,
            pause=self._sleep,
            failed=self.fail,
        )

    def _processor(self, agent: Agent, executor: ThreadPoolExecutor, resources: Any) -> DeliveryProcessor:
        return DeliveryProcessor(
            agent=agent,
            names=self._names,
            executor=executor,
            max_body=self._settings.max_body,
            publish_timeout=self._settings.publish_timeout,
            code_version=self._settings.code_version,
            resources=resources,
            heal=self._healer.heal,
            on_held=self._show,
        )

    def _change(self, state: State, status: str, *, logged: bool = True) -> None:
        if (state, status) == (self.state, self.status):
            return
        self.state, self.status = state, status
        if logged:
            _logger.info("worker", state=str(state), status=status, agents=[agent.name for agent in self.agents])
        for callback in self._watchers:
            try:
                callback(self)
            except Exception:  # what watches decides nothing
                _logger.exception("a watcher of the worker failed", state=str(state))


async def _never() -> Standstill | None:
    return None
