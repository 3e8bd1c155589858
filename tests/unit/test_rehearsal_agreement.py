"""A rehearsal and a worker come to the same: for every shape of event of a generated corpus."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError, field_validator

from choreo import Agent, Event
from choreo.broker import in_process
from choreo.broker.in_process import look
from choreo.config.settings import Settings
from choreo.runtime.publisher import Publisher
from choreo.runtime.worker import Worker
from choreo.testing import Rehearsal
from choreo.testing.loop import VirtualLoop
from choreo.topology import Names
from tests.unit.test_codec import classes


class Began(Event, topic="test-agreement.began", external=True):
    pass


def emitting(event: Event) -> Agent:
    """Return an agent that emits `event`, which no agent takes."""
    agent = Agent("emitter")

    async def emit(began: Began) -> Any:
        return event

    emit.__annotations__ = {"began": Began, "return": type(event)}
    agent.on(emit)
    return agent


def rehearsed(agent: Agent) -> list[str]:
    """Return why the emitter's delivery has died in a rehearsal."""

    async def scenario(rehearsal: Rehearsal) -> list[str]:
        await rehearsal.start(agent)
        await rehearsal.publish(Began())
        await rehearsal.settled()
        return [letter.reason for letter in rehearsal.dead_letters]

    return Rehearsal().run(scenario)


def worked(agent: Agent) -> list[str]:
    """Return why it has died in a worker, beside a broker that nobody watches."""

    async def play() -> list[str]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        host = in_process.Host(clock=loop.time)
        worker = Worker([agent], Settings(), lambda: in_process.connect(host), look_every=1e9)
        ready = asyncio.Event()
        worker.watch(lambda each: ready.set() if each.ready else None)
        running = asyncio.create_task(worker.run())
        await ready.wait()
        async with Publisher(Settings(), lambda: in_process.connect(host)) as publisher:
            await publisher.publish(Began())
        await asyncio.sleep(600)
        worker.stop()
        await running
        dead = look(host, Names("choreo").dlq(agent.name))
        host.close()
        return [str(each.headers["choreo-dead-reason"]) for each in dead]

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(play())


@settings(max_examples=40)
@given(st.data())
def test_a_rehearsal_comes_to_what_a_worker_comes_to(data: st.DataObject) -> None:
    """What kills the emitter's delivery in one kills it in the other, for the same reason, and nothing else does."""
    kind, values = data.draw(classes(terminal=True))
    assume(isinstance(kind, type))
    assert isinstance(kind, type)
    try:
        event = kind.model_validate(
            {name: data.draw(each) for name, each in values.items()}, by_name=True, by_alias=False
        )
    except ValidationError:
        return
    agent = emitting(event)
    assert rehearsed(agent) == worked(agent)


def test_an_emission_that_no_reader_can_read_is_no_failure_of_the_emitter() -> None:
    """A rehearsal looks on and decides nothing: also where a validator has changed its mind since."""
    allowed = [True]

    class Fickle(Event, topic="test-agreement.fickle", terminal=True):
        first: int

        @field_validator("first")
        @classmethod
        def known(cls, value: int) -> int:
            if len(allowed) > 2:
                raise ValueError("changed its mind")
            allowed.append(True)
            return value

    agent = emitting(Fickle(first=1))

    async def scenario(rehearsal: Rehearsal) -> None:
        await rehearsal.start(agent)
        await rehearsal.publish(Began())
        await rehearsal.settled()
        assert rehearsal.dead_letters == []
        [emission] = rehearsal.emitted()
        assert emission.envelope.topic == "test-agreement.fickle"

    Rehearsal().run(scenario)
