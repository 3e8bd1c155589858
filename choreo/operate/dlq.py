"""An agent's dead-letter queue: look at what lies there, replay it to that agent alone, or drop it. AMQP alone."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Final

from choreo import dead_letter
from choreo.agent import NAME
from choreo.body.codec import masked
from choreo.dead_letter import DeadLetter
from choreo.errors import (
    ChoreoError,
    ConfigurationError,
    InvalidName,
    PublishFailed,
    UnknownAgent,
)
from choreo.message import EXPIRATION, HIDDEN, Message
from choreo.operate.peek import Hand, Hands
from choreo.operate.repair import Failure, Repair
from choreo.runtime.policies import before_looking
from choreo.topology import Names, replay_key
from choreo.transport import Confirmed, Delivery, Management, QueueStats, Session

REPLAYED_AT_ONCE: Final = 100  # letters of one hand, in memory with their bodies
DROPPED_AT_ONCE: Final = 500  # letters of one hand, in memory without their bodies
AT_ONCE: Final = 0.5  # seconds after a replay in which a letter that died again is noticed
_LOOKS: Final = 10  # in that time
_NOTICED: Final = 1_000  # letters that are looked through for it
GIVE_UP: Final = 10  # letters that could not be replayed: what ails the broker then will not spare the next one

Progress = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter and what is known of it; its body is empty where nobody asked for it."""

    facts: DeadLetter
    delivery: Delivery
    hand: Hand


class _Incomplete(str):
    """Why a letter is not replayed that could only be replayed in part."""

    __slots__ = ()


Act = Callable[[Letter], Awaitable[str | None]]


@dataclass(frozen=True, slots=True)
class Look:
    """What a look has found. `ready`: letters that were there; `seen`: how many of them have been looked at.

    `others`: consumers besides us. What they hold could not be seen, and is not counted either.
    """

    letters: tuple[Letter, ...]
    ready: int
    seen: int
    others: int


class DeadLetterQueue:
    """The dead-letter queue of `agent`, whose code need not be here: who repairs may have none of it.

    `known`: names of agents, for the message when there is no such queue. `publish_timeout`: seconds. Raises
    InvalidName.
    """

    def __init__(
        self, session: Session, names: Names, agent: str, *, publish_timeout: float = 10.0, known: Sequence[str] = ()
    ) -> None:
        check_name(agent)
        self.agent = agent
        self.queue = names.dlq(agent)
        self._session = session
        self._names = names
        self._publish_timeout = publish_timeout
        self._known = known

    async def stats(self) -> QueueStats:
        """Return how many letters are there, not counting what somebody holds. Raises UnknownAgent."""
        found = await self._session.stats(self.queue)
        if found is not None:
            return found
        near = get_close_matches(self.agent, self._known, n=1)
        hint = f"did you mean {near[0]}? " if near and near[0] != self.agent else ""
        raise UnknownAgent(
            f"there is no dead-letter queue {self.queue} on this broker",
            f"{hint}the queue is made when the agent first runs there; check the name (known here:"
            f" {', '.join(self._known) or 'none'}), CHOREO_URL and CHOREO_NAMESPACE",
        )

    async def dangers(self, management: Management | None) -> tuple[str, ...]:
        """Return what to know before looking, or taking: policies that destroy what is looked at, or may do so."""
        told = await management.queue(self.queue) if management is not None else None
        stats = await self._session.stats(self.queue)
        return before_looking(self.queue, self._session.server, told) if stats is not None and stats.ready else ()

    async def look(self, *, limit: int = 50, ids: Sequence[str] = (), bodies: bool = True) -> Look:
        """Return the first `limit` letters, or the first one with each of `ids`. All are back in the queue by then.

        Without `bodies`, bodies, headers and tracebacks are forgotten as soon as they arrive.
        """
        stats = await self.stats()
        search = _Search(self.agent, limit, ids, bodies=bodies)
        async with Hands(self._session, self.queue, stats.consumers) as hands:
            await hands.search(stats.ready, limit, search.see, search.found)
            seen = hands.taken
        return Look(tuple(search.letters), stats.ready, seen, stats.consumers)

    async def replay(
        self,
        *,
        limit: int | None = None,
        ids: Sequence[str] = (),
        progress: Progress = bool,
        incomplete: bool = False,
        expiring: bool = False,
    ) -> Repair:
        """Send letters to this agent's queue and to no other agent's, each as on its first attempt and as it was.

        One whose headers could not be read, or had no room on the letter, is left there unless `incomplete`: then it
        goes without them, and what was kept of them goes with it. What stands aside (`message.ASIDE`) goes in that
        header, and is counted in the result; but with `expiring`, a time to live is in its place and starts again.

        The letters with `ids`, else the first `limit`, else all; but none that comes while this goes on, so that one
        that dies again is not replayed again. One after the other, and each is acknowledged only when its copy is
        confirmed: a crash in between makes one duplicate and never a loss. What a running agent kills again within half
        a second is among the result's `again`, in a queue of up to a thousand letters. Raises ConfigurationError when
        the agent's queue does not exist.
        """
        before = await self.stats()
        queue = self._names.queue(self.agent)
        found = await self._session.stats(queue)
        if found is None:
            # The copy would come back into this very queue, without what is written on the letter.
            raise ConfigurationError(
                f"the queue {queue} does not exist, so nothing can be replayed to it",
                f"start the agent, which creates it, then retry: choreo run {self.agent}",
            )
        asides = Counter[str]()

        async def act(letter: Letter) -> str | None:
            """Replay one letter. Return why it was not, or None."""
            message = letter.delivery.message
            if not incomplete and (missing := dead_letter.missing(message)):
                return _Incomplete(missing)
            reason = await self._send(dead_letter.revived(message, letter.facts, expiring=expiring))
            if reason is None:
                asides.update(name for name in dead_letter.aside(message) if name != EXPIRATION or not expiring)
            return reason

        repair = await self._repair(act, REPLAYED_AT_ONCE, limit, ids, progress, bodies=True)
        repair.aside = asides
        if found.consumers and repair.done and repair.ended is None:
            await self._notice(repair, before.ready - repair.done)
        return repair

    async def _notice(self, repair: Repair, left: int) -> None:
        """Find out which of the replayed letters are back already; `left` are those that were never replayed."""
        there = 0
        for _ in range(_LOOKS):
            await asyncio.sleep(AT_ONCE / _LOOKS)
            there = (await self.stats()).ready
            if there >= left + repair.done:
                break
        if not left < there <= _NOTICED:
            return
        look = await self.look(limit=there, bodies=False)
        for letter in look.letters:
            facts = letter.facts
            if facts.id in repair.replayed and facts.last_failure != repair.replayed[facts.id]:
                why = ": ".join(filter(None, (facts.error_type, facts.error))) or facts.reason
                repair.again.append(Failure(facts.id, facts.topic, why))

    async def drop(self, *, limit: int | None = None, ids: Sequence[str] = (), progress: Progress = bool) -> Repair:
        """Destroy letters: those with `ids`, else the first `limit`, else all; none that comes while this goes on."""
        return await self._repair(_nothing, DROPPED_AT_ONCE, limit, ids, progress, bodies=False)

    async def _send(self, message: Message) -> str | None:
        """Send to the agent's queue. Return why it is not there, or None."""
        result = await self._session.publish(
            message,
            exchange=self._names.retry,
            routing_key=replay_key(self.agent),
            timeout=self._publish_timeout,
        )
        return None if isinstance(result, Confirmed) else result.detail

    async def _repair(
        self,
        act: Act,
        at_once: int,
        limit: int | None,
        ids: Sequence[str],
        progress: Progress,
        *,
        bodies: bool,
    ) -> Repair:
        """Settle the letters for which `act` returns no reason against it."""
        stats = await self.stats()
        repair = Repair(wanted=stats.ready if limit is None else min(limit, stats.ready))
        try:
            async with Hands(self._session, self.queue, stats.consumers) as hands:
                if ids:
                    search = _Search(self.agent, at_once, ids, bodies=bodies)
                    repair.wanted = len(search.wanted)
                    await hands.search(stats.ready, at_once, search.see, search.found)
                    repair.missing = tuple(search.wanted)
                    await self._settle(hands, search.letters, act, repair, progress)
                while not ids and repair.ended is None and hands.taken < repair.wanted:
                    search = _Search(self.agent, min(at_once, repair.wanted - hands.taken), bodies=bodies)
                    await hands.take(search.limit, search.see)
                    await self._settle(hands, search.letters, act, repair, progress)
                    await hands.close_empty()
                    if len(search.letters) < search.limit:
                        break
        except ChoreoError as error:
            repair.ended = error
        if self._session.lost.done():
            repair.ended = self._session.lost.result()
        return repair

    async def _settle(
        self, hands: Hands, letters: Iterable[Letter], act: Act, repair: Repair, progress: Progress
    ) -> None:
        for letter in letters:
            if self._session.lost.done():
                # The broker has taken back everything that is held: to go on would be to do it twice.
                repair.ended = self._session.lost.result()
                return
            one = asyncio.ensure_future(self._settle_one(hands, letter, act, repair, progress))
            try:
                await asyncio.shield(one)
            except asyncio.CancelledError:
                await one  # whoever interrupts this leaves no letter half done
                raise
            if sum(not each.ours for each in repair.failures) == GIVE_UP:
                repair.ended = PublishFailed(f"given up after {GIVE_UP} failures")
                return

    @staticmethod
    async def _settle_one(hands: Hands, letter: Letter, act: Act, repair: Repair, progress: Progress) -> None:
        reason = await act(letter)
        if reason is not None:
            ours = isinstance(reason, _Incomplete)
            repair.failures.append(Failure(letter.facts.id, letter.facts.topic, str(reason), ours))
            return
        await hands.settle(letter.hand, letter.delivery)
        repair.done += 1
        if len(repair.replayed) < _NOTICED:
            repair.replayed[letter.facts.id] = letter.facts.last_failure
        progress()


class _Search:
    """Picks letters as they arrive: those with `ids`, or the first `limit`."""

    def __init__(self, agent: str, limit: int, ids: Iterable[str] = (), *, bodies: bool) -> None:
        self.letters: list[Letter] = []
        self.limit = limit
        self.wanted = dict.fromkeys(ids)
        self._agent = agent
        self._by_id = bool(self.wanted)
        self._bodies = bodies

    def see(self, hand: Hand, delivery: Delivery) -> None:
        """Keep the letter if it is wanted. Of any other, nothing stays in memory."""
        facts = dead_letter.read(delivery.message, agent=self._agent)
        if self._by_id:
            if facts.id not in self.wanted:
                return
            del self.wanted[facts.id]
        elif len(self.letters) == self.limit:
            return
        if not self._bodies:  # nor the traceback, which stands in a header as well and is most of a letter
            facts, delivery.message = replace(facts, body=b"", traceback=None), Message(body=b"")
        self.letters.append(Letter(facts, delivery, hand))

    def found(self) -> bool:
        """Whether nothing is missing. A limit may be longer than the longest hand."""
        return not self.wanted if self._by_id else len(self.letters) == self.limit


def check_name(agent: str) -> None:
    """Raise InvalidName unless `agent` may be the name of an agent."""
    if not NAME.fullmatch(agent):
        raise InvalidName(
            f"{agent[:80]!a} is not an agent name",
            'a name is a lower-case letter, then up to 62 of a-z, 0-9, "_" and "-"',
        )


def summary(facts: DeadLetter) -> dict[str, Any]:
    """Return a dead letter as one row, times in ISO 8601."""
    return {
        "id": facts.id,
        "topic": facts.topic,
        "reason": facts.reason,
        "error_type": facts.error_type,
        "error": facts.error,
        "reaction": facts.reaction,
        "attempts": facts.attempts,
        "first_failure": facts.first_failure and facts.first_failure.isoformat(),
        "last_failure": facts.last_failure and facts.last_failure.isoformat(),
        "correlation_id": facts.correlation_id,
    }


def everything(letter: Letter) -> dict[str, Any]:
    """Return all that is known of a dead letter. `headers` and `body` are what a replay sends; see `readable`."""
    facts, message = letter.facts, letter.delivery.message
    body, is_json = readable(facts.body)
    return summary(facts) | {
        "agent": facts.agent,
        "code_version": facts.code_version,
        "traceback": facts.traceback,
        "content_type": message.content_type,
        "headers": dead_letter.revived(message, facts).headers,
        "size": len(facts.body),
        "is_json": is_json,
        "body": masked(body, message.headers) if is_json else body if HIDDEN not in message.headers else "**********",
    }


def readable(body: bytes) -> tuple[Any, bool]:
    """Return a body as JSON values and True. One that is not strict JSON: as text, other bytes escaped, and False.

    So does JSON that cannot be written again: lone surrogates, numbers beyond what a float can be.
    """
    try:
        value = json.loads(body.decode(), object_pairs_hook=_unique)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return body.decode(errors="backslashreplace"), False
    return value, True


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key that stands there twice would be shown once")
    return dict(pairs)


async def _nothing(_: Letter) -> None:
    """To drop a letter, nothing has to be done before it is acknowledged."""
