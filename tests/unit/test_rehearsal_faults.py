"""What goes wrong on purpose: duplicates, disorder, crashes at each point, and schedules drawn from a seed."""

from __future__ import annotations

import asyncio
import gc
import re
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from choreo import Agent, Context, Event, Retry
from choreo.errors import UsageError
from choreo.testing import Exploration, Faults, FaultUnused, Point, Rehearsal, ScheduleFailed, rehearse
from tests.conftest import environment


class Placed(Event, topic="fault.placed", external=True):
    order: str


class Paid(Event, topic="fault.paid"):
    order: str


class Done(Event, topic="fault.done", terminal=True):
    order: str


class Shop:
    """Two agents. The till is `safe` when it charges once for each key, which any redelivery has again."""

    def __init__(self, *, safe: bool = True, in_thread: bool = False, failures: int = 0) -> None:
        self.charged: Counter[str] = Counter()
        self.begun: list[str] = []
        self.failures = failures
        self._safe = safe
        self._keys: set[str] = set()
        self.till = Agent("till", retry=Retry(on=OSError, attempts=3, first="1s"))
        self.clerk = Agent("clerk")

        def charge(placed: Placed, ctx: Context) -> Paid:
            self.begun.append(placed.order)
            self.failures -= 1
            if self.failures >= 0:
                raise OSError("no line")
            if not (self._safe and ctx.key in self._keys):
                self.charged[placed.order] += 1
            self._keys.add(ctx.key)
            return Paid(order=placed.order)

        if in_thread:
            self.till.on(charge)
        else:

            @self.till.on
            async def pay(placed: Placed, ctx: Context) -> Paid:
                await asyncio.sleep(0.01)
                return charge(placed, ctx)

        @self.clerk.on
        async def close(paid: Paid) -> Done:
            return Done(order=paid.order)


async def test_a_delivery_comes_again(rehearsal: Rehearsal):
    """Its acknowledgement is lost: it is handled twice, what it emits has the same id, and is one event."""
    shop = Shop(safe=False)
    await rehearsal.start(shop.till, shop.clerk)
    rehearsal.repeat(Placed, "till")
    await rehearsal.publish(Placed(order="1"))
    await rehearsal.settled()
    assert shop.charged == {"1": 2}
    first, second = rehearsal.emitted(Paid)
    assert first.envelope.id == second.envelope.id
    assert rehearsal.events(Paid) == [Paid(order="1")]
    assert rehearsal.faults == ["0.010 s: till gets fault.placed again, its acknowledgement being lost"]


async def test_an_event_is_stored_twice(rehearsal: Rehearsal):
    """Both copies come, to everyone who listens."""
    shop = Shop()
    await rehearsal.start(shop.till, shop.clerk)
    rehearsal.double(Paid)
    await rehearsal.publish(Placed(order="1"))
    await rehearsal.settled()
    assert [each.event for each in rehearsal.attempts("clerk")] == [Paid(order="1")] * 2
    assert len({each.event_id for each in rehearsal.attempts("clerk")}) == 1


async def test_a_delivery_comes_late(rehearsal: Rehearsal):
    """Behind those that were published after it."""
    shop = Shop()
    await rehearsal.start(shop.till, shop.clerk)
    await rehearsal.advance("1s")
    rehearsal.hold("10s", Placed, "till")
    for order in ("1", "2", "3"):
        await rehearsal.publish(Placed(order=order))
    await rehearsal.settled()
    assert shop.begun == ["2", "3", "1"]
    assert 11 <= rehearsal.elapsed < 12


async def test_a_delivery_that_is_held_from_the_start_is_held_as_long(rehearsal: Rehearsal):
    """A worker begins with one delivery at a time and subscribes anew when it takes more: that does not let it go."""
    shop = Shop()
    await rehearsal.start(shop.till, shop.clerk)
    rehearsal.hold("10s", Placed, "till")
    for order in ("1", "2", "3"):
        await rehearsal.publish(Placed(order=order))
    await rehearsal.settled()
    assert shop.begun == ["2", "3", "1"]
    assert 10 <= rehearsal.elapsed < 11
    assert len(rehearsal.faults) == 1


async def test_what_the_test_publishes_is_stored_twice(rehearsal: Rehearsal):
    """As by a program that got no answer and tried again with the same id."""
    shop = Shop()
    await rehearsal.start(shop.till, shop.clerk)
    rehearsal.double(Placed)
    await rehearsal.publish(Placed(order="1"))
    await rehearsal.settled()
    assert shop.begun == ["1", "1"]
    assert shop.charged == {"1": 1}


async def test_who_is_down_on_purpose_is_not_brought_back_by_a_kill(rehearsal: Rehearsal):
    shop = Shop()
    await rehearsal.start(shop.till, shop.clerk)
    async with rehearsal.down("till"):
        rehearsal.kill("till")
        await rehearsal.publish(Placed(order="1"))
        await rehearsal.advance("1h")
        assert shop.begun == []
    await rehearsal.settled()
    assert shop.begun == ["1"]


# How often the reaction begins, how often the money is taken, and whether the clerk hears of it twice.
COST = {
    Point.ARRIVED: (1, 1, 1),
    Point.BEGUN: (1, 1, 1),
    Point.DONE: (2, 2, 1),
    Point.PUBLISHED: (2, 2, 2),
    Point.CONFIRMED: (2, 2, 2),
    Point.SETTLED: (1, 1, 1),
}


@pytest.mark.parametrize("in_thread", [False, True], ids=["on the loop", "in a thread"])
@pytest.mark.parametrize("point", Point)
async def test_crash_at_each_point(rehearsal: Rehearsal, point: Point, in_thread: bool):
    """Nothing is lost at any of them; what is done twice is what was done before the point."""
    shop = Shop(safe=False, in_thread=in_thread)
    await rehearsal.start(shop.till, shop.clerk)
    taking = Paid if point in (Point.PUBLISHED, Point.CONFIRMED) else Placed
    rehearsal.crash(point, "till", taking=taking)
    await rehearsal.publish(Placed(order="1"))
    await rehearsal.settled()
    assert rehearsal.events() == [Paid(order="1"), Done(order="1")]
    begun, charged, heard = COST[point]
    assert len(shop.begun) == begun
    assert shop.charged == {"1": charged}
    assert len(rehearsal.attempts("clerk")) == heard
    assert [each.partition(": ")[2] for each in rehearsal.faults] == [
        f"till crashes with {'fault.paid' if taking is Paid else 'fault.placed'}: {point}"
    ]
    assert rehearsal.dead_letters == []


@pytest.mark.parametrize("point", [Point.PUBLISHED, Point.CONFIRMED])
async def test_crash_beside_a_retry(rehearsal: Rehearsal, point: Point):
    """The retry is stored, its delivery is not settled: one copy too many, none too few."""
    shop = Shop(failures=1)
    await rehearsal.start(shop.till, shop.clerk)
    rehearsal.crash(point, "till", taking=Placed)
    await rehearsal.publish(Placed(order="1"))
    await rehearsal.settled()
    assert len(shop.begun) == 3
    assert shop.charged == {"1": 1}
    assert rehearsal.events(Done) == [Done(order="1")]


async def test_a_process_that_ends_does_no_more(rehearsal: Rehearsal):
    """What it was in the middle of has no effect any more, and is done by the next one."""
    shop = Shop()
    await rehearsal.start(shop.till, shop.clerk)
    await rehearsal.publish(Placed(order="1"))
    await rehearsal.advance(0.005)
    rehearsal.kill("till", back_after="1h")
    await rehearsal.advance("30m")
    assert shop.begun == []
    await rehearsal.settled()
    assert shop.charged == {"1": 1}
    first, second = rehearsal.attempts("till")
    assert isinstance(first.error, asyncio.CancelledError)
    assert 3_600 < second.began < 3_601


async def test_what_was_killed_leaves_nothing_behind(rehearsal: Rehearsal):
    """No task of it goes on, and none ends with an exception that nobody has looked at."""
    unseen: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))

    @asynccontextmanager
    async def forgetful() -> AsyncIterator[None]:
        try:
            yield
        finally:
            raise RuntimeError("the key is lost")

    agent = Agent("till", lifespan=forgetful)

    @agent.on
    async def pay(placed: Placed) -> None:
        await asyncio.sleep(1)

    await rehearsal.start(agent)
    for seconds in (0, 0.05, 0.15, 0.5):  # at its beginning it subscribes twice
        await rehearsal.publish(Placed(order="1"))
        await rehearsal.advance(seconds)
        rehearsal.kill("till")
        await rehearsal.advance("1s")
    await rehearsal.advance("1m")
    names = [task.get_name() for task in asyncio.all_tasks()]
    assert names.count("window of choreo.till") == names.count("process of till") == 1
    rehearsal.kill("till")
    await rehearsal.advance("1s")
    gc.collect()
    assert unseen == []
    with pytest.raises(RuntimeError, match="the key is lost"):
        await rehearsal.stop()


async def test_a_crash_loop_ends_in_a_dead_letter(rehearsal: Rehearsal):
    """The broker counts what came back with a crash, and buries it beyond the delivery limit; others get through."""
    shop = Shop()
    await rehearsal.start(shop.till, shop.clerk)
    rehearsal.crash(Point.BEGUN, "till", times=21)
    await rehearsal.publish(Placed(order="1"))
    await rehearsal.settled()
    [letter] = rehearsal.dead_letters
    assert (letter.agent, letter.topic, letter.reason) == ("till", "fault.placed", "crashed")
    await rehearsal.publish(Placed(order="2"))
    await rehearsal.settled()
    assert rehearsal.events(Done) == [Done(order="2")]


def scenario_of(orders: int = 4, **options: Any) -> Any:
    async def scenario(rehearsal: Rehearsal) -> None:
        """Whatever happens, each order is charged once and comes to its end."""
        shop = Shop(**options)
        await rehearsal.start(shop.till, shop.clerk)
        for number in range(orders):
            await rehearsal.publish(Placed(order=str(number)))
        await rehearsal.settled()
        assert rehearsal.dead_letters == []
        assert {each.order for each in rehearsal.events(Done)} == set(map(str, range(orders)))
        assert set(shop.charged.values()) == {1}, f"charged {dict(shop.charged)}"

    return scenario


@pytest.mark.parametrize("in_thread", [False, True], ids=["on the loop", "in a thread"])
def test_what_is_safe_holds_on_all_schedules(in_thread: bool):
    """A till that takes each key once survives everything, and that was not for want of trying."""
    explored = rehearse(scenario_of(in_thread=in_thread), schedules=40)
    assert isinstance(explored, Exploration)
    assert explored.schedules == 40
    assert explored.faults > 80
    assert {str(each) for each in explored.walked} == {
        f"fault.placed -> till.{'charge' if in_thread else 'pay'} -> fault.paid",
        "fault.paid -> clerk.close -> fault.done",
    }


def test_what_is_not_safe_is_found():
    """A till that charges for every delivery: the first schedule with a duplicate of one is named with its seed, and
    that seed alone fails again in the same way."""
    with pytest.raises(ScheduleFailed, match="AssertionError: charged") as caught:
        rehearse(scenario_of(safe=False), schedules=100, faults=Faults(lost=0.02, crashes=0, doubled=0, late=0))
    found = caught.value
    assert isinstance(found.__cause__, AssertionError)
    assert not getattr(found.__cause__, "__notes__", [])  # the story is told once
    assert f"seed={found.seed}, schedules=1" in found.way_out
    assert re.search(r"till gets fault.placed again|till is down for", found.message)
    with pytest.raises(ScheduleFailed) as again:
        rehearse(
            scenario_of(safe=False),
            seed=found.seed,
            schedules=1,
            faults=Faults(lost=0.02, crashes=0, doubled=0, late=0),
        )
    assert again.value.message == found.message.replace(found.message.partition(" fails")[0], "schedule 1 of 1", 1)


def explored(faults: Faults, orders: int = 3) -> Rehearsal:
    rehearsal = Rehearsal(faults=faults)
    rehearsal.run(scenario_of(orders=orders))
    return rehearsal


QUIET: dict[str, Any] = {"latency": 0, "lost": 0, "doubled": 0, "late": 0, "crashes": 0, "outages": 0}


def test_outages():
    """Each agent is killed once, and is back in its time."""

    async def scenario(rehearsal: Rehearsal) -> None:
        shop = Shop()
        await rehearsal.start(shop.till, shop.clerk)
        await rehearsal.advance("6s")
        await rehearsal.publish(Placed(order="1"))
        await rehearsal.settled()
        assert rehearsal.events(Done) == [Done(order="1")]

    rehearsal = Rehearsal(faults=Faults(**QUIET | {"outages": 1, "outage": 3_600}))
    rehearsal.run(scenario)
    downs = [re.fullmatch(r"([\d.]+) s: (\w+) is down for (\d+) s", each) for each in rehearsal.faults]
    assert {each and each[2] for each in downs} == {"till", "clerk"}
    assert rehearsal.elapsed > max(int(each[3]) for each in downs if each)


def test_latency_takes_time():
    """Everything that comes from the broker: without it, the same takes what the reactions take."""
    quick, slow = explored(Faults(**QUIET)), explored(Faults(**QUIET | {"latency": 10}))
    assert quick.elapsed < 0.1
    assert slow.elapsed > 1


def test_crashes_come_to_an_end():
    """However likely, there are only so many in one schedule: it is to be explored, and not to go on for ever."""
    rehearsal = Rehearsal(faults=Faults(crashes=1, most_crashes=2, lost=0, doubled=0, late=0, outages=0))
    rehearsal.run(scenario_of(orders=1))
    assert len(rehearsal.faults) == 2
    assert all("crashes with" in each for each in rehearsal.faults)


def test_no_schedule_leaves_a_task_behind():
    """A worker that ends in whatever state lets nobody begin any more: what is cancelled does not start another one."""
    play, left = scenario_of(8), list[str]()

    async def scenario(rehearsal: Rehearsal) -> None:
        await play(rehearsal)
        await rehearsal.stop()
        left.extend(task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task())

    hard = Faults(lost=0.2, doubled=0.2, late=0.3, crashes=0.15, most_crashes=12, outages=0.5, latency=0.5)
    rehearse(scenario, schedules=10, seed=1000, faults=hard)
    assert left == []


def test_logs_of_many_schedules_are_left_out(capsys: pytest.CaptureFixture[str]):
    """Those of one that is run alone are there."""
    rehearse(scenario_of(orders=1), schedules=2)
    assert "worker" not in capsys.readouterr().out
    rehearse(scenario_of(orders=1), schedules=1)
    assert "worker" in capsys.readouterr().out


def test_a_scenario_that_waits_for_nothing_fails_too():
    """Its error is that of the loop, and the schedule is named all the same."""

    async def scenario(rehearsal: Rehearsal) -> None:
        await asyncio.Event().wait()

    with pytest.raises(ScheduleFailed, match="NothingLeft: nothing is left to do") as caught:
        rehearse(scenario, schedules=3, seed=5)
    assert caught.value.seed == 5


def test_a_defect_that_needs_disorder_is_found():
    """An agent that takes for granted that events arrive in the order of their publishing."""

    async def scenario(rehearsal: Rehearsal) -> None:
        heard: list[int] = []
        naive = Agent("naive")

        @naive.on
        async def count(placed: Placed) -> None:
            heard.append(int(placed.order))

        await rehearsal.start(naive)
        for number in range(3):
            await rehearsal.publish(Placed(order=str(number)))
        await rehearsal.settled()
        assert heard == sorted(heard)

    with pytest.raises(ScheduleFailed, match=r"naive gets fault\.placed late"):
        rehearse(scenario, faults=Faults(lost=0, doubled=0, crashes=0, outages=0, latency=0))


PROGRAM = """
import sys
from tests.unit.test_rehearsal_faults import scenario_of
from choreo.testing import Faults, Rehearsal
import structlog
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
for seed in range(5):
    rehearsal = Rehearsal(seed=seed, faults=Faults(crashes=0.1))
    rehearsal.run(scenario_of(in_thread=bool(seed % 2)))
    print(rehearsal.story())
    print([(each.time, each.envelope.id) for each in rehearsal.emitted()])
    print([(each.began, each.ended, each.reaction, each.number) for each in rehearsal.attempts()])
"""


def test_a_seed_is_the_same_in_every_process():
    """Whatever the hashes of that process are, the schedule is the same to the last digit."""
    printed = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env=environment({"PYTHONHASHSEED": seed}),
            capture_output=True,
            text=True,
            timeout=100,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1
    assert "crashes with" in printed.pop()


@pytest.mark.parametrize("wrong", [{"late": 1.5}, {"latency": -1}])
def test_chances_are_chances(wrong: dict[str, Any]):
    name = next(iter(wrong))
    with pytest.raises(UsageError, match=f"Faults has {name}="):
        Faults(**wrong)


@pytest.mark.parametrize(
    ("order", "said"),
    [
        (lambda it: it.crash(Point.DONE, "till", taking=Done), "crash(Point.DONE) of till, taking fault.done"),
        (lambda it: it.repeat(Placed, "nobody"), "repeat(fault.placed) at nobody"),
        (lambda it: it.repeat(), "repeat(any event) at any agent"),
        (lambda it: it.double(Placed, times=3), "double(fault.placed) (3 of 3 times)"),
        (lambda it: it.hold("10s", Paid, "clerk"), "hold(10s, fault.paid) at clerk"),
    ],
)
def test_a_fault_that_never_happens_fails_the_rehearsal(order: Callable[[Rehearsal], None], said: str):
    """A test that passes because nothing went wrong would show nothing. `maybe` says that it may be so."""

    async def scenario(rehearsal: Rehearsal) -> None:
        shop = Shop()
        await rehearsal.start(shop.till, shop.clerk)
        order(rehearsal)

    with pytest.raises(FaultUnused, match=re.escape(f"never happened: {said}")) as caught:
        Rehearsal().run(scenario)
    assert "maybe=True" in caught.value.way_out
    assert "rehearsal with seed" in caught.value.__notes__[0]
    with pytest.raises(ScheduleFailed, match="FaultUnused"):
        rehearse(scenario, schedules=1)


def test_a_fault_that_happens_too_seldom_is_said():
    async def scenario(rehearsal: Rehearsal) -> None:
        shop = Shop()
        await rehearsal.start(shop.till, shop.clerk)
        rehearsal.double(Placed, times=3)
        await rehearsal.publish(Placed(order="1"))
        await rehearsal.settled()

    with pytest.raises(FaultUnused, match=re.escape("double(fault.placed) (2 of 3 times)")):
        Rehearsal().run(scenario)


def test_maybe_lets_a_fault_stay_unused():
    async def scenario(rehearsal: Rehearsal) -> None:
        shop = Shop()
        await rehearsal.start(shop.till, shop.clerk)
        rehearsal.crash(Point.DONE, maybe=True)
        rehearsal.repeat(maybe=True)
        rehearsal.double(maybe=True)
        rehearsal.hold("1s", maybe=True)

    Rehearsal().run(scenario)


def test_a_scenario_that_fails_does_not_fail_for_its_faults():
    async def scenario(rehearsal: Rehearsal) -> None:
        rehearsal.crash(Point.DONE)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Rehearsal().run(scenario)


async def test_the_end_of_a_terminal_events_publish_is_a_point_too(rehearsal: Rehearsal):
    """Nobody listens to it, and its process can end when it knows that."""
    shop = Shop()
    await rehearsal.start(shop.till, shop.clerk)
    rehearsal.crash(Point.CONFIRMED, "clerk")
    await rehearsal.publish(Placed(order="1"))
    await rehearsal.settled()
    assert [each.partition(": ")[2] for each in rehearsal.faults] == ["clerk crashes with fault.done: confirmed"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: lambda _: None, "<lambda> is a plain function, and a scenario is a coroutine function"),
        (lambda: scenario_of()(Rehearsal()), "scenario() is given, called already"),
        (lambda: 17, "17 is not a scenario"),
    ],
)
def test_what_is_no_scenario_is_said(given: Callable[[], Any], message: str):
    """On its first schedule and not as a failure of it."""
    with pytest.raises(UsageError, match=re.escape(message)):
        rehearse(given())
