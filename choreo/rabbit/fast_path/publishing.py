"""A channel that publishes with confirms. Each publish gets the one answer that is its own, in one of three kinds.

A confirm names a publish by its number. A return names nothing: it is told by exchange, routing key, message id and
size, the oldest that fits; it comes before the confirm of the same publish. Whoever stops waiting leaves the entry
standing until the broker has answered it, so that a late answer is not taken for another's.
"""

from __future__ import annotations

import asyncio
import re
import struct
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from typing import Final

from aiormq.abc import AbstractChannel

from choreo.amqp import decode, encode, frames, reply_codes, rewrite
from choreo.envelope import new_id
from choreo.message import Message
from choreo.rabbit.fast_path.deadlines import Deadlines
from choreo.rabbit.fast_path.protocol import FastPath
from choreo.transport import Confirmed, Publication, Refused, Unknown, nacked

_CONFIRMED: Final = Confirmed()
_MOST_AT_ONCE: Final = 1 << 20  # bytes written in one turn of the loop
_MAX_TEMPLATES: Final = 4096
_USUAL_FRAME_MAX: Final = 131_072  # bytes
_HEADER_OVERHEAD: Final = frames.CONTENT_FRAME.size + 1
_EXCHANGE: Final = re.compile(r"exchange '([^']*)' in vhost")
_TOPIC: Final = re.compile(r"access to topic '([^']*)' in exchange '([^']*)'")
_TOO_LARGE: Final = re.compile(r"message size (\d+) is larger than configured max size")


class _Publish:
    """One publish, from being asked for to its answer."""

    __slots__ = ("answer", "exchange", "frames", "message_id", "refusal", "routing_key", "size")

    def __init__(
        self, answer: asyncio.Future[Publication], exchange: str, routing_key: str, message_id: str | None
    ) -> None:
        self.answer = answer
        self.exchange = exchange
        self.routing_key = routing_key
        self.message_id = message_id
        self.size = 0
        self.frames = b""  # until they are written
        self.refusal: Refused | None = None

    def end(self, publication: Publication) -> None:
        """Give the answer, if somebody still waits for it."""
        if not self.answer.done():
            self.answer.set_result(publication)


class Publishing:
    """Publishes on the channel that `use` names; when the broker closes it, the next one must have the same number.

    While it is closed, or the connection takes nothing, publishes wait up to their deadline.
    """

    def __init__(
        self,
        fast_path: FastPath,
        frame_max: int,
        on_nack: Callable[[], None],
        on_silence: Callable[[float], None],
    ) -> None:
        self._fast_path = fast_path
        self._on_nack = on_nack
        self._on_silence = on_silence
        self._patience = 2 * fast_path.heartbeat
        self._answered_at = 0.0  # or when the first of those in flight was written
        self._watching = False
        self._number = 0
        self._frame_max = frame_max or _USUAL_FRAME_MAX
        self._loop = asyncio.get_running_loop()
        self._open = False
        self._count = 0  # publishes since the channel was opened, as the broker counts them too
        self._waiting: deque[_Publish] = deque()
        self._in_flight: dict[int, _Publish] = {}  # in the order of their numbers
        self._templates: dict[tuple[str, str, bool], bytes] = {}
        self._deadlines: dict[float, Deadlines[_Publish]] = {}  # by timeout
        self._writing = False
        self._ended: str | None = None

    def use(self, channel: AbstractChannel) -> None:
        """Publish on `channel` from now on: it is open, with confirms on."""
        self.channel, self._number, self._open, self._count = channel, channel.number, True, 0
        self._fast_path.take(self._number, self)
        self.writable()

    def publish(
        self, message: Message, *, exchange: str, routing_key: str, timeout: float, mandatory: bool
    ) -> asyncio.Future[Publication]:
        """Return the future answer to a publish, known after at most `timeout` seconds."""
        # One that came without an id goes on without: whoever derives an id from it derives the same as before.
        own = message.message_id if message.raw is not None else message.message_id or new_id()
        each = _Publish(self._loop.create_future(), exchange, routing_key, own)
        if self._ended is not None:
            each.end(Unknown(self._ended))
            return each.answer
        try:
            each.size = len(message.body)
            each.frames = self._frames(each, message, mandatory=mandatory)
        except (ValueError, TypeError, RecursionError, struct.error) as error:
            over = error.over if isinstance(error, encode.TooLongError) else 0
            each.end(Refused("rejected", f"it cannot be written: {error}", over))
            return each.answer
        deadlines = self._deadlines.get(timeout) or self._new_deadlines(timeout)
        deadlines.add(each)
        self._forget()
        self._waiting.append(each)
        self.writable()
        return each.answer

    async def settled(self) -> None:
        """Return when everything that was asked for has its answer."""
        answers = [each.answer for each in (*self._in_flight.values(), *self._waiting)]
        if answers:
            await asyncio.wait(answers)

    def end(self, reason: str) -> None:
        """Answer everything that has no answer, and whatever is asked for from now on, with `reason`."""
        self._ended, self._open = reason, False
        for each in (*self._in_flight.values(), *self._waiting):
            each.end(Unknown(reason))
        self._in_flight.clear()
        self._waiting.clear()
        for deadlines in self._deadlines.values():
            deadlines.stop()

    def method(self, number: int, payload: bytes) -> bool:
        """Take the confirms."""
        if number not in (frames.ACK, frames.NACK):
            return False
        self._answered_at = self._loop.time()
        tag, flags = frames.TAG.unpack_from(payload)
        if flags & 1:
            # In flight they stand in the order of their tags; 0 means all.
            tags = list(self._in_flight)
            for each in tags[: bisect_right(tags, tag)] if tag else tags:
                self._answered(each, stored=number == frames.ACK)
        else:
            self._answered(tag, stored=number == frames.ACK)
        return True

    def content(self, payload: bytes, properties: bytes, body: bytes) -> None:
        """Take a return: the next confirm of that publish says that the broker has done with it, not that it has it."""
        text, behind = decode.short(payload, 2)
        exchange, behind = decode.short(payload, behind)
        routing_key, _ = decode.short(payload, behind)
        place = (exchange, routing_key, decode.message(properties, b"").message_id, len(body))
        for each in self._in_flight.values():
            if each.refusal is None and (each.exchange, each.routing_key, each.message_id, each.size) == place:
                each.refusal = Refused("returned", f"{exchange} has no queue bound for {routing_key!r}: {text}")
                return

    def closed(self, code: int, reason: str) -> None:
        """Answer what was in flight: the broker has closed the channel over one of them, or the connection is gone."""
        self._open = False
        refused = _refused(code, reason, list(self._in_flight.values()))
        for each in self._in_flight.values():
            if each in refused:
                each.end(Refused("missing" if code == reply_codes.NOT_FOUND else "rejected", reason))
            else:
                why = f": {reason}" if reason else ""
                each.end(Unknown(f"the connection was lost before the confirmation{why}"))
        self._in_flight.clear()

    def writable(self) -> None:
        """Write what waits, at the end of this turn of the loop, unless nothing may be written now."""
        if self._waiting and not self._writing:
            self._writing = True
            self._loop.call_soon(self._write)

    def _frames(self, each: _Publish, message: Message, *, mandatory: bool) -> bytes:
        key = (each.exchange, each.routing_key, mandatory)
        method = self._templates.get(key)
        if method is None:
            if len(self._templates) >= _MAX_TEMPLATES:
                self._templates.clear()
            payload = frames.publish(each.exchange, each.routing_key, mandatory=mandatory)
            method = frames.frame(frames.METHOD, self._number, payload)
            self._templates[key] = method
        if message.raw is not None:
            properties = rewrite.properties(message)
        else:
            properties = encode.properties(message, each.message_id)
        over = len(properties) + _HEADER_OVERHEAD - self._frame_max
        if over > 0:
            raise encode.TooLongError(len(properties), self._frame_max, over)
        return method + frames.content(self._number, properties, message.body, self._frame_max)

    def _new_deadlines(self, timeout: float) -> Deadlines[_Publish]:
        self._deadlines = {each.timeout: each for each in self._deadlines.values() if each.running}
        return self._deadlines.setdefault(timeout, Deadlines(timeout, self._out_of_time))

    def _forget(self) -> None:
        """Drop what nobody waits for any more, and was never sent: a broker may be blocked for hours."""
        while self._waiting and self._waiting[0].answer.done():
            self._waiting.popleft()

    def _write(self) -> None:
        self._writing = False
        chunk, size = [], 0
        while (
            self._waiting
            and self._open
            and size < _MOST_AT_ONCE
            and not (self._fast_path.blocked or self._fast_path.full)
        ):
            each = self._waiting.popleft()
            if each.answer.done():
                continue  # out of time, or nobody waits any more: it was never sent
            self._count += 1
            self._in_flight[self._count] = each
            chunk.append(each.frames)
            size += len(each.frames)
            each.frames = b""
        if chunk:
            if len(self._in_flight) == len(chunk):
                self._answered_at = self._loop.time()
            if self._patience and not self._watching:
                self._watching = True
                self._loop.call_later(self._patience, self._look)
            self._fast_path.write(chunk[0] if len(chunk) == 1 else b"".join(chunk))
            self.writable()

    def _look(self) -> None:
        """Say so when the broker owes answers and gives none.

        A node of a cluster that is cut off from the others may keep its clients and their heartbeats, and confirm
        nothing [measured: 4.3.6].
        """
        self._watching = False
        if self._fast_path.blocked:
            self._answered_at = self._loop.time()
        silence = self._loop.time() - self._answered_at
        if self._in_flight and silence >= self._patience:
            self._on_silence(silence)
        elif self._in_flight:
            self._watching = True
            self._loop.call_later(self._patience - silence, self._look)

    def _answered(self, tag: int, *, stored: bool) -> None:
        each = self._in_flight.pop(tag, None)
        if each is None:
            return
        if each.refusal is not None:
            each.end(each.refusal)
        elif stored:
            each.end(_CONFIRMED)
        else:
            each.end(nacked(each.exchange, each.routing_key))
            self._on_nack()

    def _out_of_time(self, each: _Publish, timeout: float) -> None:
        what = f"not sent within {timeout:g} s" if each.frames else f"no confirmation within {timeout:g} s"
        why = f": the broker blocks publishers, {self._fast_path.blocked}" if self._fast_path.blocked else ""
        each.end(Unknown(f"{what}{why}"))
        each.frames = b""  # what was not sent by now is not sent any more
        self._forget()


def _refused(code: int, reason: str, in_flight: list[_Publish]) -> list[_Publish]:
    """Return those that the broker has certainly not stored, when it closed the channel over one that it rejects.

    What is too large is so whenever it comes. An exchange may have been there for the first and gone for the last of
    several: the broker works in order, and takes nothing more after the one that it rejects, so the last is refused.
    """
    if code == reply_codes.PRECONDITION_FAILED and (found := _TOO_LARGE.search(reason)):
        return [each for each in in_flight if each.size == int(found[1])]
    if code == reply_codes.ACCESS_REFUSED and (found := _TOPIC.search(reason)):
        return [each for each in in_flight if (each.routing_key, each.exchange) == (found[1], found[2])][-1:]
    if code in (reply_codes.NOT_FOUND, reply_codes.ACCESS_REFUSED) and (found := _EXCHANGE.search(reason)):
        return [each for each in in_flight if each.exchange == found[1]][-1:]
    return []
