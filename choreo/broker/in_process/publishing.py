"""Publishing to an embedded broker: each publish gets the one answer that is its own."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Final, Literal

from choreo.amqp import decode, encode, reply_codes
from choreo.broker.core import Ack, AmqpError, BasicProperties, Channel, Nack, Returned, Sent, Sink
from choreo.broker.in_process.host import Host
from choreo.broker.in_process.mailbox import Mailbox
from choreo.envelope import new_id
from choreo.message import Message
from choreo.transport import FRAME_MAX, Confirmed, Publication, Refused, Unknown, nacked

GONE: Final = "the connection was lost before the confirmation"
_REFUSALS: Final[dict[int, Literal["missing", "rejected"]]] = {
    reply_codes.NOT_FOUND: "missing",
    reply_codes.ACCESS_REFUSED: "rejected",
    reply_codes.PRECONDITION_FAILED: "rejected",
}
_LARGEST_HEADERS: Final = FRAME_MAX - 20  # bytes: what one frame of RabbitMQ's usual size holds
_PERSISTENT: Final = 2

_CONFIRMED: Final = Confirmed()


class _Publish:
    """One publish until its answer is there."""

    __slots__ = ("answer", "exchange", "message", "refusal", "routing_key", "timer")

    def __init__(self, answer: asyncio.Future[Publication], message: Message, exchange: str, routing_key: str) -> None:
        self.answer = answer
        self.message = message
        self.exchange = exchange
        self.routing_key = routing_key
        self.refusal: Refused | None = None
        self.timer: asyncio.TimerHandle | None = None

    def end(self, publication: Publication) -> None:
        """Give the answer, if somebody still waits for it."""
        if self.timer is not None:
            self.timer.cancel()
        if not self.answer.done():
            self.answer.set_result(publication)


class Publishing:
    """Publishes on a channel that `open_channel` opens; the broker closes it over what it rejects, then on another one.

    `lost` is told what ends the whole session.
    """

    def __init__(self, host: Host, open_channel: Callable[[Sink], Channel], lost: Callable[[AmqpError], None]) -> None:
        self._host = host
        self._open_channel = open_channel
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._post: Mailbox[tuple[_Publish, Publication]] = Mailbox(
            lambda answer: answer[0].end(answer[1]), host.latency
        )
        self._channel: Channel | None = None
        self._count = 0  # publishes on this channel, as the broker counts them too
        self._in_flight: dict[int, _Publish] = {}  # not answered by the broker
        self._unanswered: dict[_Publish, None] = {}  # the answer is not there
        self._ended = False

    def publish(
        self, message: Message, exchange: str, routing_key: str, timeout: float, *, mandatory: bool
    ) -> asyncio.Future[Publication]:
        """Return the future answer to a publish, known after at most `timeout` seconds."""
        each = _Publish(self._loop.create_future(), message, exchange, routing_key)
        if self._ended:
            each.end(Unknown(GONE))
            return each.answer
        try:
            properties = _properties(message, exchange, routing_key)
        except (ValueError, TypeError, RecursionError, struct.error) as error:
            over = error.over if isinstance(error, encode.TooLongError) else 0
            each.end(Refused("rejected", f"it cannot be written: {error}", over))
            return each.answer
        each.timer = self._loop.call_later(timeout, each.end, Unknown(f"no confirmation within {timeout:g} s"))
        self._unanswered[each] = None
        each.answer.add_done_callback(lambda _: self._unanswered.pop(each, None))
        self._host.catch_up()
        channel = self._opened()
        self._count += 1
        self._in_flight[self._count] = each
        try:
            channel.publish(exchange, routing_key, properties, message.body, mandatory=mandatory)
        except AmqpError as error:
            self._closed(self._in_flight.pop(self._count), error)
        return each.answer

    def end(self) -> None:
        """Answer everything that has no answer yet."""
        self._ended = True
        self._post.end()
        for each in tuple(self._unanswered):
            each.end(Unknown(GONE))

    def _opened(self) -> Channel:
        if self._channel is None:
            self._channel = self._open_channel(self._hear)
            self._channel.confirm_select()
            self._count = 0
        return self._channel

    def _closed(self, each: _Publish, error: AmqpError) -> None:
        """Note that the broker has closed the channel over `each`. It has answered all others before."""
        reason = _REFUSALS.get(error.code)
        self._channel = None
        self._post.put((each, Refused(reason, error.text) if reason is not None else Unknown(error.text)))
        if error.closes_connection:
            self._lost(error)

    def _hear(self, sent: Sent) -> None:
        """Note what the broker says in the middle of its work: a return belongs to the publish that it works on."""
        match sent:
            case Returned(_, text, exchange, routing_key):
                why = f"{exchange} has no queue bound for {routing_key!r}: {text}"
                self._in_flight[self._count].refusal = Refused("returned", why)
            case Ack(tag):
                each = self._in_flight.pop(tag)
                self._answer(each, each.refusal or _CONFIRMED)
            case Nack(tag):
                each = self._in_flight.pop(tag)
                self._answer(each, nacked(each.exchange, each.routing_key))

    def _answer(self, each: _Publish, answer: Publication) -> None:
        if self._host.answered is not None:
            self._host.answered(each.message, each.exchange, each.routing_key, answer)
        self._post.put((each, answer))


def _properties(message: Message, exchange: str, routing_key: str) -> BasicProperties:
    """Return the properties as they would come out of a wire. Raises what `encode` raises for what AMQP cannot say."""
    encode.short(exchange)
    encode.short(routing_key)
    wire = encode.properties(message, message.message_id or new_id())
    if len(wire) > _LARGEST_HEADERS:
        raise encode.TooLongError(len(wire), FRAME_MAX, len(wire) - _LARGEST_HEADERS)
    read = decode.message(wire, b"")
    return BasicProperties(
        content_type=read.content_type,
        content_encoding=read.content_encoding,
        headers=read.headers,
        delivery_mode=_PERSISTENT,
        priority=read.priority,
        correlation_id=read.correlation_id,
        reply_to=read.reply_to,
        message_id=read.message_id,
        timestamp=read.timestamp,
        type=read.type,
        app_id=read.app_id,
    )
