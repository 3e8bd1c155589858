"""A rehearsal: what a test can do with it, and what it shows afterwards."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import tenacity

from choreo import Agent, Context, Envelope, Event, Retry
from choreo.errors import PublishRefused, UsageError
from choreo.testing import Hop, NotSettled, Rehearsal, VirtualLoop, rehearse
from choreo.testing.rehearsal import BEGIN


class Placed(Event, topic="rehearsal.placed", external=True):
    order: str


class Paid(Event, topic="rehearsal.paid"):
    order: str


class Refused(Event, topic="rehearsal.refused", terminal=True):
    order: str
    reason: str


class Done(Event, topic="rehearsal.done", terminal=True):
    order: str


class Bank:
    """A bank that cannot be reached for its first `failures` calls."""

    def __init__(self, failures: float = 0) -> None:
        self.failures = failures
        self.charged: list[str] = []
        self.opened = self.closed = 0

    async def charge(self, order: str) -> None:
        self.failures -= 1
        if self.failures >= 0:
            raise OSError("no line")
        self.charged.append(order)


class Cast(SimpleNamespace):
    """Two agents and what they work with."""

    bank: Bank
    till: Agent
    clerk: Agent


def refused(placed: Placed, error: Exception) -> Refused:
    return Refused(order=placed.order, reason=str(error))


def new_cast(failures: float = 0, retry: Retry | None = None, otherwise: Any = None) -> Cast:
    bank = Bank(failures)

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[Bank]:
        bank.opened += 1
        yield bank
        bank.closed += 1

    till = Agent("till", lifespan=lifespan, retry=retry or Retry(on=OSError, attempts=5, first="1m", ceiling="12h"))
    clerk = Agent("clerk")

    @till.on(otherwise=otherwise)
    async def pay(placed: Placed, ctx: Context) -> Paid:
        await ctx.resources.charge(placed.order)
        return Paid(order=placed.order)

    @clerk.on
    def close(paid: Paid) -> list[Done]:
        return [Done(order=paid.order)]

    return Cast(bank=bank, till=till, clerk=clerk)


async def test_agents_run_as_they_are(rehearsal: Rehearsal):
    """Reactions on the loop and in threads, the lifespan once; events have envelopes, and the steps are known."""
    cast = new_cast()
    await rehearsal.start(cast.till, cast.clerk)
    receipt = await rehearsal.publish(Placed(order="1"))
    await rehearsal.settled()

    assert rehearsal.events() == [Paid(order="1"), Done(order="1")]
    assert rehearsal.events(Paid) == [Paid(order="1")]
    paid, done = rehearsal.emitted()
    assert (paid.agent, paid.reaction, paid.envelope.causation_id) == ("till", "till.pay", receipt.id)
    assert (done.agent, done.envelope.causation_id) == ("clerk", paid.envelope.id)
    assert {each.envelope.correlation_id for each in (paid, done)} == {receipt.correlation_id}
    assert [each.reaction for each in rehearsal.attempts()] == ["till.pay", "clerk.close"]
    assert rehearsal.walked == {
        Hop("rehearsal.placed", "till.pay", "rehearsal.paid"),
        Hop("rehearsal.paid", "clerk.close", "rehearsal.done"),
    }
    assert rehearsal.walked == rehearsal.declared
    assert rehearsal.dead_letters == []
    assert cast.bank.opened == 1
    await rehearsal.stop()
    assert cast.bank.closed == 1


async def test_a_ladder_of_a_day_takes_no_time(rehearsal: Rehearsal):
    """Tries of a growing distance, each in the broker's delays; what the steps wait for is virtual."""
    began = time.perf_counter()
    await rehearsal.start(new_cast(failures=4, retry=Retry(on=OSError, wait=tenacity.wait_fixed(21_600))).till)
    await rehearsal.start(new_cast().clerk)
    await rehearsal.publish(Placed(order="1"))
    await rehearsal.advance("1h")
    assert [each.number for each in rehearsal.attempts("till.pay")] == [1]
    assert isinstance(rehearsal.attempts("till.pay")[0].error, OSError)
    await rehearsal.advance("22h")
    assert [each.number for each in rehearsal.attempts("till.pay")] == [1, 2, 3, 4]
    await rehearsal.settled()
    assert [round(each.began / 3600, 2) for each in rehearsal.attempts("till")] == [0, 6, 12, 18, 24]
    assert rehearsal.events(Done) == [Done(order="1")]
    assert time.perf_counter() - began < 5


async def test_elapsed_time_is_virtual(rehearsal: Rehearsal):
    """A policy that stops after a time since the first failure counts virtual time; so do the dead letter's times."""
    stop = Retry(on=OSError, stop=tenacity.stop_after_delay(timedelta(hours=3)), wait=tenacity.wait_fixed(3_600))
    await rehearsal.start(new_cast(failures=99, retry=stop).till)
    await rehearsal.publish(Placed(order="1"))
    await rehearsal.settled()
    [letter] = rehearsal.dead_letters
    assert (letter.agent, letter.reaction, letter.reason, letter.attempts) == ("till", "pay", "exhausted", 4)
    assert letter.first_failure is not None
    assert letter.last_failure is not None
    assert letter.first_failure - BEGIN < timedelta(seconds=1)
    assert timedelta(hours=3) <= letter.last_failure - BEGIN < timedelta(hours=3, minutes=1)
    assert letter.error == "no line"


async def test_the_last_word_is_a_step_too(rehearsal: Rehearsal):
    await rehearsal.start(new_cast(failures=99, otherwise=refused).till)
    await rehearsal.publish(Placed(order="1"))
    await rehearsal.settled()
    assert rehearsal.events() == [Refused(order="1", reason="no line")]
    assert rehearsal.walked == {Hop("rehearsal.placed", "till.pay", "rehearsal.refused")}
    assert rehearsal.declared - rehearsal.walked == {Hop("rehearsal.placed", "till.pay", "rehearsal.paid")}
    assert str(Hop("a", "b.c", "d")) == "a -> b.c -> d"


async def test_resources_are_replaced(rehearsal: Rehearsal):
    """The reaction gets the test's own, and the agent's lifespan is not entered."""
    cast, fake = new_cast(failures=99), Bank()
    await rehearsal.start(cast.till, cast.clerk, resources={"till": fake})
    await rehearsal.publish(Placed(order="1"))
    await rehearsal.settled()
    assert fake.charged == ["1"]
    assert cast.bank.opened == 0


async def test_scheduled_events_come_in_their_time(rehearsal: Rehearsal):
    cast = new_cast()
    await rehearsal.start(cast.till, cast.clerk)
    await rehearsal.publish(Placed(order="1"), delay="2h")
    await rehearsal.advance("1h59m59s")
    assert rehearsal.attempts() == []
    await rehearsal.advance("1s")
    assert [each.event for each in rehearsal.attempts("till")] == [Placed(order="1")]
    assert rehearsal.now == BEGIN + timedelta(hours=2)


async def test_advance_is_over_when_everything_due_has_happened(rehearsal: Rehearsal):
    """Whatever follows at that point of time, however many turns of the loop it takes."""
    done: list[float] = []

    async def work() -> None:
        await asyncio.sleep(10)
        for _ in range(100):
            await asyncio.sleep(0)
        done.append(rehearsal.elapsed)

    working = asyncio.create_task(work())
    await rehearsal.advance("10s")
    assert done == [10]
    await working


async def test_an_agent_that_is_down_finds_its_events_later(rehearsal: Rehearsal):
    """What is for it waits in its queue; `settled` does not wait for it meanwhile."""
    cast = new_cast()
    await rehearsal.start(cast.till, cast.clerk)
    async with rehearsal.down("clerk"):
        await rehearsal.publish(Placed(order="1"))
        await rehearsal.settled()
        await rehearsal.advance("12h")
        assert rehearsal.events() == [Paid(order="1")]
    await rehearsal.settled()
    assert rehearsal.events() == [Paid(order="1"), Done(order="1")]


async def test_stopped_agents_start_again(rehearsal: Rehearsal):
    """Drained in order, with what runs finished; another object of the same name may take its place."""
    first, second = new_cast(), new_cast()
    await rehearsal.start(first.till, first.clerk)
    await rehearsal.publish(Placed(order="1"))
    await rehearsal.stop(first.till)
    assert (first.bank.closed, first.bank.charged) == (1, ["1"])
    await rehearsal.publish(Placed(order="2"))
    await rehearsal.start(second.till)
    await rehearsal.settled()
    assert second.bank.charged == ["2"]
    assert [each.order for each in rehearsal.events(Done)] == ["1", "2"]


async def test_resources_may_be_others_at_the_next_start(rehearsal: Rehearsal):
    """A bank without a line is replaced by one that has it."""
    cast, good = new_cast(), Bank()
    await rehearsal.start(cast.till, cast.clerk, resources={"till": Bank(failures=99)})
    await rehearsal.publish(Placed(order="1"))
    await rehearsal.advance("1m")
    await rehearsal.stop("till")
    await rehearsal.start(cast.till, resources={"till": good})
    await rehearsal.settled()
    assert good.charged == ["1"]


async def test_what_a_lifespan_raises_at_its_end_is_raised(rehearsal: Rehearsal):
    @asynccontextmanager
    async def forgetful() -> AsyncIterator[None]:
        yield
        raise RuntimeError("the key is lost")

    await rehearsal.start(Agent("till", lifespan=forgetful))
    with pytest.raises(RuntimeError, match="the key is lost"):
        await rehearsal.stop()


async def test_nobody_listens(rehearsal: Rehearsal):
    """As with every publisher, and before anything has started too."""
    with pytest.raises(PublishRefused, match=r"no agent listens to 'rehearsal\.placed'") as caught:
        await rehearsal.publish(Placed(order="1"))
    assert caught.value.way_out.endswith("await rehearsal.start(AGENT)")


async def test_a_terminal_event_is_what_a_chain_ends_with(rehearsal: Rehearsal):
    """No agent that was started would make a difference, so none is asked for."""
    await rehearsal.start(new_cast().till)
    with pytest.raises(PublishRefused, match=r"no agent listens to 'rehearsal\.done'") as caught:
        await rehearsal.publish(Done(order="1"))
    assert caught.value.way_out == "it is declared terminal, what a chain of events ends with; publish what begins one"


async def test_what_never_settles_is_named(rehearsal: Rehearsal):
    """The queue, and how much waits in it."""
    await rehearsal.start(new_cast(failures=99).till)
    await rehearsal.publish(Placed(order="1"))
    with pytest.raises(NotSettled, match=r"not settled after .*: choreo\.delay\.\d+ has 1 ready and 0 unsettled"):
        await rehearsal.settled(within="5s")


async def test_what_keeps_an_agent_from_starting_is_raised(rehearsal: Rehearsal):
    @asynccontextmanager
    async def broken() -> AsyncIterator[None]:
        raise RuntimeError("no bank in this town")
        yield

    with pytest.raises(RuntimeError, match="no bank in this town"):
        await rehearsal.start(Agent("till", lifespan=broken))


def test_a_rehearsal_that_cannot_begin_ends_what_has_begun():
    """The agents before the one that does not start are stopped, as at any end."""
    cast = new_cast()

    @asynccontextmanager
    async def broken() -> AsyncIterator[None]:
        raise RuntimeError("no bank in this town")
        yield

    async def begin() -> None:
        with pytest.raises(RuntimeError, match="no bank in this town"):
            async with Rehearsal(cast.till, Agent("other", lifespan=broken)):
                raise AssertionError
        assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(begin())


async def test_agents_by_name_and_by_module(rehearsal: Rehearsal):
    """Names are found as by `choreo run`, modules hold one agent."""
    from agents import notification

    await rehearsal.start("order", notification)
    with pytest.raises(UsageError, match="agent order runs already"):
        await rehearsal.start("order")
    with pytest.raises(UsageError, match="agent payment is not part of this rehearsal; start it first"):
        rehearsal.kill("payment")
    with pytest.raises(UsageError, match="the module empty holds no agent"):
        await rehearsal.start(ModuleType("empty"))


async def test_without_names_the_whole_project_starts(rehearsal: Rehearsal):
    await rehearsal.start()
    assert {each.reaction.partition(".")[0] for each in rehearsal.declared} == {
        "inventory",
        "notification",
        "order",
        "payment",
        "shipping",
    }


async def test_async_generators_and_envelopes(rehearsal: Rehearsal):
    """Every kind of reaction is called as it is: with an envelope, yielding events, without a context."""
    seen: list[str] = []
    audit, printer = Agent("audit"), Agent("printer")

    @audit.on("rehearsal.#")
    async def note(envelope: Envelope) -> None:
        seen.append(envelope.topic)

    @printer.on
    async def many(placed: Placed) -> AsyncIterator[Done]:
        for number in range(3):
            await asyncio.sleep(1)
            yield Done(order=f"{placed.order}/{number}")

    await rehearsal.start(audit, printer)
    await rehearsal.publish(Placed(order="1"))
    await rehearsal.settled()
    assert [each.order for each in rehearsal.events(Done)] == ["1/0", "1/1", "1/2"]
    assert sorted(seen) == ["rehearsal.done"] * 3 + ["rehearsal.placed"]
    assert Hop("rehearsal.done", "audit.note", None) in rehearsal.walked
    assert rehearsal.walked <= rehearsal.declared


def test_run_is_for_plain_tests():
    """It returns what the scenario returns, in an event loop of its own."""

    async def scenario(rehearsal: Rehearsal) -> float:
        await rehearsal.advance("1h")
        return rehearsal.elapsed

    assert Rehearsal(new_cast().till).run(scenario) == 3_600


def test_what_has_happened_can_be_looked_at_afterwards():
    """Events, attempts, time and dead letters, in a plain test, when the loop is gone."""
    rehearsal = Rehearsal(new_cast(failures=99).till)

    async def scenario(rehearsal: Rehearsal) -> None:
        await rehearsal.publish(Placed(order="1"))
        await rehearsal.settled()

    rehearsal.run(scenario)
    assert [each.reason for each in rehearsal.dead_letters] == ["exhausted"]
    assert len(rehearsal.attempts()) == 5
    assert rehearsal.now > BEGIN + timedelta(minutes=1)
    with pytest.raises(UsageError, match="the rehearsal is over already"):
        rehearsal.run(scenario)


def test_nothing_can_be_done_before_it_begins():
    with pytest.raises(UsageError, match="the rehearsal has not begun"):
        asyncio.run(Rehearsal().publish(Placed(order="1")))


async def test_a_real_loop_is_refused():
    """Time would be real there, and the rehearsal a lie."""
    with pytest.raises(UsageError, match="needs a loop with virtual time, and this one is a"):
        async with Rehearsal():
            pass


def test_chance_is_the_seed_s():
    """Also Python's own, which is as it was afterwards."""

    async def draw(rehearsal: Rehearsal) -> tuple[float, str]:
        await rehearsal.start(new_cast().till)
        return random.random(), (await rehearsal.publish(Placed(order="1"))).id

    before = random.getstate()
    first, again, other = (Rehearsal(seed=seed).run(draw) for seed in (7, 7, 8))
    assert random.getstate() == before
    assert first == again
    assert first[0] != other[0]
    assert first[1] != other[1]


def test_time_outside_is_real_again():
    """The clock of choreo is the system's when the rehearsal is over."""
    from choreo import clock

    async def look(rehearsal: Rehearsal) -> bool:
        await rehearsal.advance("1d")
        return clock.now() == rehearsal.now == BEGIN + timedelta(days=1)

    assert Rehearsal().run(look)
    assert abs(clock.now().timestamp() - time.time()) < 60


def test_several_rehearsals_in_one_loop():
    """Each has a broker of its own, and its time begins with it."""

    async def play() -> list[list[Any]]:
        heard = []
        for order in ("1", "2"):
            cast = new_cast()
            async with Rehearsal(cast.till, cast.clerk) as rehearsal:
                await rehearsal.publish(Placed(order=order), delay="1m")
                await rehearsal.settled()
                heard.append([each.event for each in rehearsal.attempts("till")])
                assert round(rehearsal.elapsed) == 60
        return heard

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        assert runner.run(play()) == [[Placed(order="1")], [Placed(order="2")]]


async def test_names_that_nobody_has_are_refused(rehearsal: Rehearsal) -> None:
    """A test that looks for what is not there would be green for ever."""
    agent = Agent("till-of-names")

    @agent.on
    async def charge(placed: Placed) -> None: ...

    with pytest.raises(UsageError, match="resources for tll, who is not there"):
        await rehearsal.start(agent, resources={"tll": None})
    await rehearsal.start(agent)
    assert rehearsal.attempts("till-of-names") == rehearsal.attempts("till-of-names.charge") == []
    with pytest.raises(UsageError, match=r"'till-of-names\.chrge'.*\n?.*till-of-names\.charge"):
        rehearsal.attempts("till-of-names.chrge")
    strange: Any = {"order": 1}
    with pytest.raises(UsageError, match="publish an event"):
        await rehearsal.publish(strange)
    strange = "done"
    with pytest.raises(UsageError, match=r"Point\.DONE"):
        rehearsal.crash(strange)


def test_no_schedule_at_all_proves_nothing() -> None:
    async def scenario(rehearsal: Rehearsal) -> None: ...

    with pytest.raises(UsageError, match="schedules=0"):
        rehearse(scenario, schedules=0)
