"""What the model test plays on a broker: a plan of steps, and everything that its clients see of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final, NamedTuple

from tests.conformance.broker.driver import Arrived, Client, Closed, Driver, Inbox

CLASSIC: Final[dict[str, dict[str, object]]] = {
    "plain": {},
    "ranked": {"x-max-priority": 3},
    "short": {"x-max-length": 3},
    "light": {"x-max-length-bytes": 4},
    "full": {"x-max-length": 3, "x-overflow": "reject-publish"},
    "full, dead letters": {"x-max-length": 3, "x-overflow": "reject-publish-dlx"},
    "one by one": {"x-single-active-consumer": True},
}
_QUORUM: Final[dict[str, object]] = {"x-queue-type": "quorum", "x-delivery-limit": 2}
_LEAST: Final = {"x-overflow": "reject-publish", "x-dead-letter-strategy": "at-least-once"}
QUORUM: Final = {
    "quorum": _QUORUM,
    "quorum, no limit": _QUORUM | {"x-delivery-limit": -1},
    "quorum, short": _QUORUM | {"x-max-length": 3},
    "quorum, full": _QUORUM | {"x-max-length": 4, "x-overflow": "reject-publish"},
    "quorum, at least once": _QUORUM | _LEAST,
    "quorum, one by one": _QUORUM | {"x-single-active-consumer": True},
}
KINDS: Final = CLASSIC | QUORUM
DEAD: Final = "classic", "quorum"
EXCHANGES: Final = ("direct", "fanout", "topic")
DEEDS: Final = (
    # How often each stands here is how often it is done.
    *("publish",) * 6,
    "publish_briefly",
    *("publish_through",) * 2,
    "bind",
    "unbind",
    *("get",) * 3,
    "get_dead",
    *("consume",) * 3,
    *("ack",) * 4,
    *("nack",) * 3,
    *("reject",) * 3,
    *("discard",) * 2,
    "recover",
    "cancel",
    *("close",) * 2,
    "stray",
    "purge",
    "delete",
)
_PRIORITIES: Final = (None, None, None, 0, 1, 2, 5, 40)
_HEADERS: Final = ("x-delivery-count", "x-acquired-count")
LENGTHS: Final = 20, 60  # steps of a plan
_CHANNELS: Final = 4  # at once


class Step(NamedTuple):
    """Something to do; each deed reads the three numbers, 0 to 7, in its own way."""

    do: str
    where: int = 0
    which: int = 0
    how: int = 0


class Plan(NamedTuple):
    """A queue of a kind, a queue for its dead letters, an exchange, and the steps."""

    kind: str
    dead: str
    exchange: str
    steps: list[Step]

    @classmethod
    def random(cls, random: Random) -> Plan:
        """Return what `random` makes up."""
        steps = [Step(random.choice(DEEDS), *random.choices(range(8), k=3)) for _ in range(random.randint(*LENGTHS))]
        return cls(random.choice([*KINDS]), random.choice(DEAD), random.choice(EXCHANGES), steps)

    def dumps(self) -> str:
        """Return it as one line."""
        return json.dumps(self, separators=(",", ":"))

    @classmethod
    def loads(cls, text: str) -> Plan:
        """Return what `dumps` returned the text of."""
        kind, dead, exchange, steps = json.loads(text)
        return cls(kind, dead, exchange, [Step(*step) for step in steps])


@dataclass
class Desk:
    """A channel that gets messages. `seen`: how many of its inbox are told of; `held`: the tags not settled."""

    client: Client
    inbox: Inbox | None = None
    no_ack: bool = False
    seen: int = 0
    held: list[int] = field(default_factory=list)

    def unseen(self) -> list[Arrived]:
        return self.inbox.got[self.seen :] if self.inbox is not None else []


@dataclass
class Play:
    """A plan under way at a broker. `pause`: seconds after each step.

    `expected`: what was seen elsewhere; a broker of which it is known is waited for, for up to `patience` seconds,
    until it has come to the same.
    """

    plan: Plan
    driver: Driver
    expected: list[Any] | None = None
    patience: float = 0.0
    pause: float = 0.0
    seen: list[Any] = field(default_factory=list)
    desks: list[Desk] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)  # of queues and exchanges, and what each is shown as
    published: int = 0

    async def run(self) -> list[Any]:
        """Return what was seen after each step, and what is left at the end. It stops at the first difference."""
        self.queue, self.dead, self.exchange = map(self._made, ("work", "dead", "exchange"))
        self.main = await self.driver.client()
        await self.main.call("queue_declare", self.dead, durable=True, arguments={"x-queue-type": self.plan.dead})
        await self.main.call("exchange_declare", self.exchange, self.plan.exchange)
        await self._declare()
        try:
            for step in self.plan.steps:
                if not await self._look(step.do, await self._try(step)):
                    return self.seen
            while self.desks:
                await self.desks.pop().client.close()
                if not await self._look("closed", None):
                    return self.seen
            await self._drain()
        finally:
            with contextlib.suppress(Closed):  # by the broker, before all was done
                await self.main.call("queue_delete", self.queue)
                await self.main.call("queue_delete", self.dead)
                await self.main.call("exchange_delete", self.exchange)
                for desk in (*self.desks, Desk(self.main)):
                    await desk.client.close()
        return self.seen

    def _made(self, name: str) -> str:
        """Return a name that nobody else has, for what is shown as `name`."""
        made = secrets.token_hex(6)
        self.names[made] = name
        return made

    async def _declare(self) -> None:
        dead = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": self.dead}
        await self.main.call("queue_declare", self.queue, durable=True, arguments=dead | KINDS[self.plan.kind])

    async def _try(self, step: Step) -> object:
        try:
            return await getattr(self, f"_{step.do}")(step)
        except Closed as closed:
            # No other channel is closed by what is done here than the one where it is done.
            self.desks.pop(step.where % len(self.desks))
            return closed.code, self._named(closed.text)

    async def _look(self, deed: str, result: object) -> bool:
        """Take note of what there is to be seen; False when something else was expected."""
        expected = None
        if self.expected is not None:
            expected = self.expected[len(self.seen)] if len(self.seen) < len(self.expected) else ()
        await asyncio.sleep(self.pause)
        end = asyncio.get_running_loop().time() + self.patience
        while (state := (deed, result, *await self._state())) != expected and expected is not None:
            if asyncio.get_running_loop().time() > end:
                break
            await asyncio.sleep(0.002)
        for desk in self.desks:
            new = desk.unseen()
            desk.seen += len(new)
            if not desk.no_ack:
                desk.held += [each.tag for each in new]
        self.seen.append(state)
        return expected is None or state == expected

    async def _state(self) -> tuple[object, ...]:
        ready = [(await self.main.call("queue_declare", name, passive=True))[1] for name in (self.queue, self.dead)]
        return *ready, [[self._shown(each) for each in desk.unseen()] for desk in self.desks]

    async def _drain(self) -> None:
        for queue in (self.queue, self.dead):
            while queue == self.dead or self._may_get():
                got = await self.main.get(queue, no_ack=True)
                if not await self._look(f"left: {self.names[queue]}", got and self._shown(got)) or got is None:
                    break

    def _may_get(self) -> bool:
        return "one by one" not in self.plan.kind

    def _named(self, text: str) -> str:
        for made, name in self.names.items():
            text = text.replace(made, name)
        return text

    def _shown(self, got: Arrived) -> tuple[object, ...]:
        deaths = [
            (each["reason"], each["count"], *map(self._named, (each["queue"], each["exchange"], *each["routing-keys"])))
            for each in got.headers.get("x-death", ())
        ]
        counts = [got.headers.get(name) for name in _HEADERS]
        where = self._named(got.exchange), self._named(got.routing_key)
        # What a quorum queue says to be left has some in it that are expired.
        left = None if self.plan.kind in QUORUM else got.left
        return got.body, got.tag, got.redelivered, left, got.properties["priority"], *where, counts, deaths

    # -- deeds: what a publisher does -----------------------------------------------------------------------------

    def _body(self) -> str:
        self.published += 1
        return str(self.published)

    async def _publish(self, step: Step) -> str:
        priority = _PRIORITIES[step.which] if step.how < 4 else None
        return await self.main.publish(self._body(), key=self.queue, priority=priority)

    async def _publish_briefly(self, step: Step) -> str:
        """Publish what is expired when the next step is done, though it may not be gone."""
        answer = await self.main.publish(self._body(), key=self.queue, expiration="10")
        await self.driver.wait(0.1)
        return answer

    async def _publish_through(self, step: Step) -> str:
        headers = {"CC": [self.queue]} if step.how == 7 else None
        return await self.main.publish(
            self._body(), self.exchange, f"k{step.which % 3}", mandatory=step.how < 4, headers=headers
        )

    async def _bind(self, step: Step) -> None:
        key = f"k{step.which % 3}" if step.how < 6 else "*"
        await self.main.call("queue_bind", self.queue, self.exchange, key)

    async def _unbind(self, step: Step) -> None:
        key = f"k{step.which % 3}" if step.how < 6 else "*"
        await self.main.call("queue_unbind", self.queue, self.exchange, key)

    # -- deeds: what a consumer does ------------------------------------------------------------------------------

    async def _desk(self, step: Step, *, new: bool) -> Desk:
        if not self.desks or (new and len(self.desks) < _CHANNELS):
            self.desks.append(Desk(await self.driver.client(self.main)))
            return self.desks[-1]
        return self.desks[step.where % len(self.desks)]

    async def _consume(self, step: Step) -> None:
        if len(self.desks) == _CHANNELS:
            return
        desk = await self._desk(step, new=True)
        desk.no_ack = step.how == 7
        await desk.client.call("qos", 1 + step.which % 4)
        # In 4.3 a quorum queue's single active consumer that goes while one of higher priority waits, or after that one
        # has gone, may leave messages behind that nobody gets: nothing to compare with.
        ranked = step.how < 3 and self.plan.kind != "quorum, one by one"
        arguments = {"x-priority": step.which} if ranked else {}
        desk.inbox = await desk.client.consume(self.queue, consumer_tag="t", no_ack=desk.no_ack, arguments=arguments)

    async def _get(self, step: Step) -> object:
        if not self._may_get():
            return None
        desk = await self._desk(step, new=step.how < 2)
        got = await desk.client.get(self.queue, no_ack=step.how == 7)
        if got is not None and step.how < 7:
            desk.held.append(got.tag)
        return got and self._shown(got)

    async def _get_dead(self, step: Step) -> object:
        got = await self.main.get(self.dead, no_ack=True)
        return got and self._shown(got)

    def _taken(self, step: Step, *, may_multiple: bool = True) -> tuple[Client, int, bool] | None:
        """Take one or several deliveries out of what a channel holds: (client, tag, multiple)."""
        holding = [desk for desk in self.desks if desk.held]
        if not holding:
            return None
        desk = holding[step.where % len(holding)]
        desk.held.sort()
        tag, multiple = desk.held[step.which % len(desk.held)], may_multiple and step.how < 3
        desk.held = [each for each in desk.held if each > tag or (each < tag and not multiple)]
        return desk.client, tag, multiple

    async def _ack(self, step: Step) -> None:
        if taken := self._taken(step):
            await taken[0].call("ack", taken[1], multiple=taken[2])

    async def _nack(self, step: Step) -> None:
        if taken := self._taken(step):
            await taken[0].call("nack", taken[1], multiple=taken[2])

    async def _discard(self, step: Step) -> None:
        if taken := self._taken(step):
            await taken[0].call("nack", taken[1], multiple=taken[2], requeue=False)

    async def _reject(self, step: Step) -> None:
        if taken := self._taken(step, may_multiple=False):
            await taken[0].call("reject", taken[1], requeue=step.how < 5)

    async def _recover(self, step: Step) -> None:
        if self.desks:
            desk = await self._desk(step, new=False)
            desk.held.clear()
            await desk.client.call("recover", requeue=True)

    async def _cancel(self, step: Step) -> None:
        if self.desks and (desk := await self._desk(step, new=False)).inbox is not None:
            await desk.client.call("cancel", "t")

    async def _close(self, step: Step) -> None:
        if self.desks:
            desk = self.desks.pop(step.where % len(self.desks))
            await desk.client.close()

    async def _stray(self, step: Step) -> None:
        """Settle what was never delivered, which closes the channel."""
        if self.desks:
            await (await self._desk(step, new=False)).client.call("ack", 1000 + step.which)

    # -- deeds: what an operator does -----------------------------------------------------------------------------

    async def _purge(self, step: Step) -> int | None:
        return await self.main.call("queue_purge", self.queue) if step.how < 4 else None

    async def _delete(self, step: Step) -> int | None:
        if step.how > 1:
            return None
        count: int = await self.main.call("queue_delete", self.queue)
        # Under the old name, RabbitMQ has what is still held of the old queue settle messages of the new one, or crash.
        self.queue = self._made("work")
        await self._declare()
        return count
