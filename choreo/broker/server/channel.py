"""One channel of a client: frames become methods of the core, and what the core sends becomes frames."""

from __future__ import annotations

import struct
from math import isfinite
from typing import Final, NamedTuple, Protocol, cast

from pamqp import base, commands

from choreo.amqp import frames
from choreo.broker.core import Ack, AmqpError, Cancelled, Connection, Consuming, Deliver, Nack, Returned, Sent
from choreo.broker.server import wire
from choreo.broker.server.methods import ANSWERS
from choreo.broker.server.properties import RawProperties

_PUBLISH: Final = frames.NUMBER.pack(frames.PUBLISH)
_ACK: Final = frames.NUMBER.pack(frames.ACK)
_REJECT: Final = frames.NUMBER.pack(frames.REJECT)
_NACK: Final = frames.NUMBER.pack(frames.NACK)
_OPEN_OK: Final = wire.method(0, commands.Channel.OpenOk())[frames.FRAME.size : -1]


class Client(Protocol):
    """What a channel needs of the connection that it belongs to.

    `frame_max`: bytes of a frame. `limit`: bytes of a body. `cancels`: the client wants to hear when its consumer is
    cancelled.
    """

    frame_max: int
    limit: int
    cancels: bool

    def write(self, frames: bytes) -> None:
        """Send frames, with all others of this turn of the loop."""

    def confirm_soon(self, channel: Served) -> None:
        """Call `flush` of `channel` before what is written goes out."""


class Publication(NamedTuple):
    """A basic.publish whose content is still on its way."""

    exchange: str
    routing_key: str
    mandatory: bool


class Served:
    """Channel `number` of `connection`, on behalf of `client`.

    What cannot be answered raises AmqpError; then the channel, or the whole connection, has to be closed. `closing`: it
    was closed by the broker, and what still comes from the client is dropped until it has said that it knows.
    """

    def __init__(self, number: int, connection: Connection, client: Client) -> None:
        self.number = number
        self.closing = False
        self._client = client
        self._write = write = client.write
        self._frame_max = client.frame_max
        self._core = connection.open_channel(number, self._send)
        self._pending: Publication | None = None
        self._properties: RawProperties | None = None
        self._parts: list[bytes] = []
        self._left = 0  # bytes of the body that are still to come
        self._first = self._last = 0  # the publishes that are confirmed, but not yet to the client
        self._quiet = False  # the consumer under way wants no answer
        write(frames.frame(frames.METHOD, number, _OPEN_OK))

    # -- from the client ------------------------------------------------------------------------------------------

    def frame(self, kind: int, payload: bytes) -> None:
        """Take one frame."""
        if kind == frames.METHOD:
            if self._pending is not None:
                what = "header" if self._properties is None else "body"
                raise self._unexpected(f"expected content {what}{self._of_class}, got non content {what} frame instead")
            self._method(payload)
        elif self._pending is None:
            raise AmqpError(505, "expected method frame, got non method frame instead")
        elif self._properties is None:
            self._header(kind, payload)
        else:
            self._body(kind, payload)

    @property
    def _of_class(self) -> str:
        return " for class 60" if self._properties is None else ""

    def _method(self, payload: bytes) -> None:
        number = payload[:4]
        if number == _PUBLISH:
            self._publish(payload)
        elif number == _ACK:
            tag, flags = _settlement(payload)
            self._core.ack(tag, multiple=bool(flags))
        elif number == _NACK:
            tag, flags = _settlement(payload)
            self._core.nack(tag, multiple=bool(flags & frames.MULTIPLE), requeue=bool(flags & frames.REQUEUE))
        elif number == _REJECT:
            tag, flags = _settlement(payload)
            self._core.reject(tag, requeue=bool(flags))
        else:
            self._ask(decoded(payload))

    def _ask(self, asked: base.Frame) -> None:
        match asked:
            case commands.Queue.Declare():
                self._declare(asked)
            case commands.Basic.Consume():
                self._consume(asked)
            case commands.Basic.Get():
                self._get(asked)
            case commands.Channel.Open():
                raise AmqpError(504, "second 'channel.open' seen", (20, 10))
            case _:
                answer = ANSWERS.get(type(asked))
                if answer is None:
                    raise _refused(asked)
                ok = answer(self._core, asked)
                if ok is not None and not getattr(asked, "nowait", False):
                    self._answer(wire.method(self.number, ok))

    def _declare(self, asked: commands.Queue.Declare) -> None:
        ok = self._core.queue_declare(
            asked.queue or "",
            passive=bool(asked.passive),
            durable=bool(asked.durable),
            exclusive=bool(asked.exclusive),
            auto_delete=bool(asked.auto_delete),
            arguments=asked.arguments,
        )
        if not asked.nowait:
            self._answer(wire.queue_ok(self.number, ok.queue, ok.messages, ok.consumers))

    def _consume(self, asked: commands.Basic.Consume) -> None:
        self._quiet = bool(asked.nowait)
        self._core.consume(
            asked.queue or "",
            asked.consumer_tag or "",
            no_ack=bool(asked.no_ack),
            exclusive=bool(asked.exclusive),
            arguments=asked.arguments,
        )

    def _get(self, asked: commands.Basic.Get) -> None:
        got = self._core.get(asked.queue or "", no_ack=bool(asked.no_ack))
        if got is None:
            self._answer(wire.method(self.number, commands.Basic.GetEmpty()))
            return
        start = wire.get_ok(got.delivery_tag, got.exchange, got.routing_key, got.messages, redelivered=got.redelivered)
        raw = cast("RawProperties", got.properties).raw
        self._answer(frames.message(self.number, start, raw, got.body, self._frame_max))

    # -- a message on its way -------------------------------------------------------------------------------------

    def _publish(self, payload: bytes) -> None:
        try:
            exchange, key, mandatory, immediate = frames.publication(payload)
        except ValueError:
            raise undecodable(payload) from None
        if immediate:
            raise AmqpError(540, "immediate=true", (60, 40))
        self._pending = Publication(exchange, key, mandatory)

    def _header(self, kind: int, payload: bytes) -> None:
        if kind != frames.HEADER:
            raise self._unexpected("expected content header for class 60, got non content header frame instead")
        if len(payload) < 14:
            raise AmqpError(501, f"type {kind}, {wire.snippet(payload)}: unknown_frame")
        class_id, _, size = frames.CONTENT.unpack_from(payload)
        if class_id != 60:
            raise self._unexpected(f"expected content header for class 60, got one for class {class_id} instead")
        try:
            self._properties = RawProperties(payload[frames.CONTENT.size :])
        except ValueError:
            raise AmqpError(541, "the properties of the message cannot be decoded", (60, 40)) from None
        if size > self._client.limit:  # the core would say so, but only when all of it is here
            words = f"message size {size} is larger than configured max size {self._client.limit}"
            self._core.close()
            raise AmqpError(406, words, (60, 40))
        self._left = size
        if not size:
            self._complete(b"")

    def _body(self, kind: int, payload: bytes) -> None:
        if kind != frames.BODY:
            raise self._unexpected("expected content body, got non content body frame instead")
        self._left -= len(payload)
        if self._left < 0:
            raise AmqpError(501, "content body frame exceeds remaining content size", (60, 40))
        if self._left:
            self._parts.append(payload)
        elif self._parts:
            self._parts.append(payload)
            self._complete(b"".join(self._parts))
        else:
            self._complete(payload)

    def _complete(self, body: bytes) -> None:
        publication, properties = self._pending, self._properties
        assert publication is not None
        assert properties is not None
        self._pending = self._properties = None
        self._parts.clear()
        exchange, key, mandatory = publication
        self._core.publish(exchange, key, properties, body, mandatory=mandatory)

    def _unexpected(self, detail: str) -> AmqpError:
        return AmqpError(505, detail, (60, 40))

    # -- to the client --------------------------------------------------------------------------------------------

    def _send(self, sent: Sent) -> None:  # the core's sink
        match sent:
            case Deliver(tag, number, redelivered, exchange, key, properties, body):
                start = wire.deliver(tag, number, exchange, key, redelivered=redelivered)
                raw = cast("RawProperties", properties).raw
                self._write(frames.message(self.number, start, raw, body, self._frame_max))
            case Ack(tag):
                if not self._last:
                    self._first = tag
                    self._client.confirm_soon(self)
                self._last = tag
            case Nack(tag):
                self.flush()
                self._write(frames.nack(self.number, tag, multiple=False, requeue=False))
            case Returned(code, text, exchange, key, properties, body):
                start = wire.returned(code, text, exchange, key)
                raw = cast("RawProperties", properties).raw
                self._write(frames.message(self.number, start, raw, body, self._frame_max))
            case Consuming(tag):
                if not self._quiet:
                    self._write(wire.method(self.number, commands.Basic.ConsumeOk(tag)))
            case Cancelled(tag):
                if self._client.cancels:
                    self._write(wire.method(self.number, commands.Basic.Cancel(tag, nowait=True)))

    def _answer(self, frames: bytes) -> None:
        self.flush()
        self._write(frames)

    def flush(self) -> None:
        """Write the confirms that are due, as one: the core confirms in the order of the publishes."""
        if self._last:
            self._write(frames.ack(self.number, self._last, multiple=self._last > self._first))
            self._last = 0

    def refuse(self, error: AmqpError) -> None:
        """Say why the channel is closed."""
        self.flush()
        self.closing = True
        self._core.close()
        self._pending = self._properties = None
        self._parts.clear()
        self._write(wire.close(self.number, error.code, error.text, error.method))

    def close(self) -> None:
        """Close it: the client asked for it, or is gone."""
        self.flush()
        self._core.close()


def decoded(payload: bytes) -> base.Frame:
    """Return a method. Raises AmqpError 501 for what is none, 540 for a method that nobody knows."""
    if len(payload) < 4:
        raise AmqpError(501, f"type {frames.METHOD}, {wire.snippet(payload)}: unknown_frame")
    (number,) = frames.NUMBER.unpack_from(payload)
    known = commands.INDEX_MAPPING.get(number)
    if known is None:
        class_id, method_id = divmod(number, 1 << 16)
        raise AmqpError(540, f"unknown method {{{class_id},{method_id}}}", (class_id, method_id))
    try:
        value: base.Frame = known()
        value.unmarshal(payload[4:])
        _require_numbers(getattr(value, "arguments", None))
    except (ValueError, struct.error, IndexError, RecursionError, OverflowError):
        raise undecodable(payload) from None
    return value


def _require_numbers(value: object) -> None:
    """Raise ValueError for an infinity or a NaN in a table. Over one in a method RabbitMQ drops the connection."""
    if isinstance(value, float) and not isfinite(value):
        raise ValueError(value)
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _require_numbers(each)


def undecodable(payload: bytes) -> AmqpError:
    """Return the error for a method whose fields are not what they should be."""
    (number,) = frames.NUMBER.unpack_from(payload)
    return AmqpError(501, f"cannot decode {wire.words(payload[4:])}", divmod(number, 1 << 16))


def _settlement(payload: bytes) -> tuple[int, int]:
    if len(payload) != 13:
        raise undecodable(payload)
    tag, flags = frames.TAG.unpack_from(payload, 4)
    return tag, flags


def _refused(asked: base.Frame) -> AmqpError:
    """Return the error for a method that the broker does not speak, or that no client may say."""
    class_id, method_id = divmod(asked.index, 1 << 16)
    return AmqpError(503, "unimplemented method", (class_id, method_id))
