"""One client's connection: bytes to frames, the handshake, the heartbeat, and who is told what when it ends."""

from __future__ import annotations

import asyncio
from enum import Enum, auto
from typing import Any, Final, Protocol, cast

from pamqp import base, commands

from choreo import forks
from choreo.amqp import frames
from choreo.broker.core import AmqpError, Broker, Connection
from choreo.broker.server import handshake, wire
from choreo.broker.server.channel import Served, decoded
from choreo.logger import get_logger

_HANDSHAKE: Final = 10.0  # seconds, as with RabbitMQ
# Bytes on their way to a client from which on it gets no more deliveries. They stay in their queues, where they can be
# had by others, are limited, and take no memory twice.
_ENOUGH: Final = 1024 * 1024
# Bytes, with answers, from which on nothing is read from it. RabbitMQ goes on reading for as long as it has memory: a
# client that writes and reads in one thread must not wait for ever for a broker that waits for it.
_PILE: Final = 16 * 1024 * 1024
_FAREWELL: Final = 5.0  # seconds for a client to answer connection.close
_LEAVING: Final = 30.0  # seconds, or one heartbeat if that is less, for a client to go that said connection.close
_CLOSE_OK: Final = wire.method(0, commands.Connection.CloseOk())
_CHANNEL_OPEN: Final = frames.NUMBER.pack(frames.CHANNEL_OPEN)
_CHANNEL_CLOSE: Final = frames.NUMBER.pack(frames.CHANNEL_CLOSE)
_CHANNEL_CLOSE_OK: Final = frames.NUMBER.pack(frames.CHANNEL_CLOSE_OK)
_OF_CHANNELS: Final = (_CHANNEL_CLOSE, _CHANNEL_CLOSE_OK)

_logger = get_logger()


class State(Enum):
    """Where a connection is in its life."""

    GREETING = auto()
    STARTING = auto()
    TUNING = auto()
    OPENING = auto()
    RUNNING = auto()
    CLOSING = auto()  # we have said connection.close
    LEAVING = auto()  # the client has
    CLOSED = auto()


_ENDING: Final = (State.CLOSING, State.LEAVING)  # what still comes is dropped


class Acceptor(Protocol):
    """What a client needs of who has accepted it. `limit`: bytes of a body; `version`: choreo's."""

    loop: asyncio.AbstractEventLoop
    limit: int
    version: str

    def joined(self, client: Client) -> None:
        """Take note of a client."""

    def left(self, client: Client) -> None:
        """Forget a client that is gone."""

    def authenticate(self, answer: commands.Connection.StartOk) -> str:
        """Return the user. Raises AmqpError 403."""
        ...

    def vhost(self, name: str) -> Broker:
        """Return a virtual host. Raises AmqpError 530."""
        ...

    def advance(self) -> None:
        """Tell the core what time it is."""

    def flush_soon(self, client: Client) -> None:
        """Call `flush` of `client`, once, when the loop has turned and what is to be kept is kept."""


class Client(asyncio.Protocol):
    """A connection, made by `listener` for each that it accepts. It fulfils `choreo.broker.server.channel.Client`.

    There is no task and no queue per frame: what arrives is worked off at once, and what it leads to, here and at other
    clients, is written when the loop has turned.
    """

    def __init__(self, listener: Acceptor) -> None:
        self.frame_max = handshake.FIRST_FRAME
        self.limit = listener.limit
        self.cancels = False
        self._listener = listener
        self._state = State.GREETING
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # asyncio connects before anything else
        self._rest = b""
        self._out: list[bytes] = []
        self._due = False  # a flush is
        self._confirming: list[Served] = []
        self._channels: dict[int, Served] = {}
        self._channel_max = handshake.CHANNEL_MAX
        self._connection: Connection | None = None
        self._user = ""
        self._timer: asyncio.TimerHandle | None = None
        self._heartbeat = 0  # seconds
        self._silent = 0  # looks without a sign of life
        self._paused = False  # it does not take what is written
        self._deaf = False  # nothing is read from it
        self._fresh = 0  # bytes since the last flush
        self._written = 0  # bytes, as a whole
        self._seen = self._read = 0  # at the last look: what was written, and what of it the client had taken

    # -- asyncio --------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take note of a new client."""
        self._transport = transport = cast("asyncio.Transport", transport)  # uvloop's is none by name
        transport.set_write_buffer_limits(high=_ENOUGH)
        forks.keep_transport_private(transport)
        self._listener.joined(self)
        self._timer = self._listener.loop.call_later(_HANDSHAKE, self.end)

    def data_received(self, data: bytes) -> None:
        """Work off what is whole of it."""
        self._silent = 0
        self._listener.advance()
        data = self._rest + data if self._rest else data
        try:
            self._rest = data[self._take(data) :]
        except AmqpError as error:
            self._rest = b""
            self._refuse(error)
        except Exception:  # one client's frames must harm no other
            self._rest = b""
            _logger.exception("a frame was not understood by the embedded broker")
            self._refuse(AmqpError(541, "the embedded broker failed; its log says where"))

    def pause_writing(self) -> None:
        """Deliver nothing more to a client that does not read."""
        self._paused = True
        self._hold()

    def resume_writing(self) -> None:
        """Deliver, and read, again."""
        self._paused = False
        if self._deaf:
            self._deaf = False
            self._transport.resume_reading()
        self._go_on()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the name is asyncio's
        """Requeue what it held."""
        self._state = State.CLOSED
        self._listener.left(self)
        self._leave()
        if self._timer is not None:
            self._timer.cancel()

    # -- from the client ------------------------------------------------------------------------------------------

    def _take(self, data: bytes) -> int:
        """Work off the frames in `data`; return where the first one begins that is not whole."""
        at, size = 0, len(data)
        if self._state is State.GREETING:
            if size < 8 and frames.GREETING.startswith(data[:4]):
                return 0
            self._greet(data[:8])
            at = 8
        while size - at >= frames.FRAME.size and self._state is not State.CLOSED:
            kind, number, length = frames.FRAME.unpack_from(data, at)
            end = at + frames.FRAME.size + length
            if length > self.frame_max:  # RabbitMQ, too, lets a client forget the eight bytes around the payload
                room = self.frame_max - frames.OVERHEAD
                raise handshake.bad_frame(kind, b"", f"{{frame_too_large,{length},{room}}}")
            if end >= size:
                break
            payload = data[at + frames.FRAME.size : end]
            if data[end] != frames.END:
                raise handshake.bad_frame(kind, payload, f"{{invalid_frame_end_marker,{data[end]}}}")
            at = end + 1
            self._frame(kind, number, payload)
        return at

    def _frame(self, kind: int, number: int, payload: bytes) -> None:
        if number:
            channel = self._channels.get(number)
            if channel is None or channel.closing or (kind == frames.METHOD and payload[:4] in _OF_CHANNELS):
                self._about_channel(kind, number, payload, channel)
                return
            if kind > frames.BODY:
                raise handshake.unexpected(kind, payload)
            try:
                channel.frame(kind, payload)
            except AmqpError as error:
                if error.closes_connection:
                    raise
                channel.refuse(error)
        elif kind == frames.METHOD:
            self._method(decoded(payload))
        elif kind != frames.HEARTBEAT and self._state not in _ENDING:
            raise handshake.unexpected(kind, payload)

    def _about_channel(self, kind: int, number: int, payload: bytes, channel: Served | None) -> None:
        """Take a frame that opens or ends a channel, or comes when there is none."""
        start = payload[:4] if kind == frames.METHOD else b""
        if self._state in _ENDING:
            return
        if self._state is not State.RUNNING or kind not in (frames.METHOD, frames.HEADER, frames.BODY):
            raise handshake.unexpected(kind, payload)
        assert self._connection is not None
        if channel is None:
            if start != _CHANNEL_OPEN:
                raise AmqpError(504, "expected 'channel.open'", handshake.named(start))
            if len(self._channels) >= self._channel_max:
                words = f"number of channels opened ({len(self._channels)}) has reached the negotiated channel_max"
                raise AmqpError(530, f"{words} ({self._channel_max})")
            self._channels[number] = Served(number, self._connection, self)
        elif start == _CHANNEL_CLOSE:
            if not channel.closing:
                channel.close()
                del self._channels[number]
            self.write(wire.method(number, commands.Channel.CloseOk()))
        elif start == _CHANNEL_CLOSE_OK:
            del self._channels[number]

    def _method(self, asked: base.Frame) -> None:
        if self._state in _ENDING and not isinstance(asked, commands.Connection.Close | commands.Connection.CloseOk):
            return
        match self._state, asked:
            case _, commands.Connection.Close():
                self._leave()
                self.write(_CLOSE_OK)
                if self._state not in _ENDING:
                    # Closed now, with frames of the client on their way, the socket would be reset: it may not even
                    # see the answer, and fails where it still writes.
                    self._state = State.LEAVING
                    self._after(min(self._heartbeat or _LEAVING, _LEAVING), self.end)
            case ((State.CLOSING | State.LEAVING), commands.Connection.CloseOk()):
                self._bye()
            case State.STARTING, commands.Connection.StartOk():
                if (user := self._login(asked)) is None:
                    return
                self._user = user
                self.cancels = handshake.able(asked, "consumer_cancel_notify")
                self._state = State.TUNING
                tune = commands.Connection.Tune(handshake.CHANNEL_MAX, handshake.FRAME_MAX, handshake.HEARTBEAT)
                self.write(wire.method(0, tune))
            case State.TUNING, commands.Connection.TuneOk():
                self._channel_max, self.frame_max, self._heartbeat = handshake.negotiated(asked)
                self._state = State.OPENING
            case State.OPENING, commands.Connection.Open():
                broker = self._listener.vhost(asked.virtual_host or "")
                self._connection = broker.connect(user=self._user)
                self._state = State.RUNNING
                self._keep_alive()
                self.write(wire.method(0, commands.Connection.OpenOk()))
            case State.RUNNING, commands.Connection.UpdateSecret():
                self.write(wire.method(0, commands.Connection.UpdateSecretOk()))
            case _:
                words = f"unexpected method in connection state {self._state.name.lower()}"
                raise AmqpError(504, words, divmod(asked.index, 1 << 16))

    def _login(self, asked: commands.Connection.StartOk) -> str | None:
        """Return the user; None when the connection has ended, because the client knows no other refusal."""
        try:
            return self._listener.authenticate(asked)
        except AmqpError as error:
            if error.code == 403 and not handshake.able(asked, "authentication_failure_close"):
                self.end()
                return None
            raise

    def _greet(self, header: bytes) -> None:
        if header != frames.GREETING:
            # The version that is spoken here, and the end: AMQP 0-9-1 section 4.2.2.
            self._transport.write(frames.GREETING)
            self.end()
            return
        self._state = State.STARTING
        self.write(wire.method(0, handshake.start(self._listener.version)))

    # -- to the client --------------------------------------------------------------------------------------------

    def write(self, frames: bytes) -> None:
        """Send frames when the loop has turned, with all others until then."""
        if not self._due:
            self._due = True
            self._listener.flush_soon(self)
        self._out.append(frames)
        self._fresh += len(frames)
        if self._fresh > _ENOUGH:
            self._hold()

    def confirm_soon(self, channel: Served) -> None:
        """Have `channel` write its confirms before the flush."""
        if not self._due:
            self._due = True
            self._listener.flush_soon(self)
        self._confirming.append(channel)

    def flush(self) -> None:
        """Hand what is written to the socket."""
        for channel in self._confirming:
            channel.flush()
        self._confirming.clear()
        out, self._out = self._out, []
        self._due = False
        self._fresh = 0
        self._put(b"".join(out))
        if not self._paused:
            if self._connection is not None and self._connection.full:
                # Not before all clients are flushed: what is delivered now is not yet kept as delivered.
                self._listener.loop.call_soon(self._go_on)
        elif not self._deaf and self._transport.get_write_buffer_size() > _PILE:
            self._deaf = True  # what it asks for would pile up here
            self._transport.pause_reading()

    def _hold(self) -> None:
        if self._connection is not None:
            self._connection.hold()

    def _go_on(self) -> None:
        if self._connection is not None and not self._paused and not self._transport.is_closing():
            self._listener.advance()
            self._connection.go_on()

    def _put(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._written += len(data)
            self._transport.write(data)

    def shut(self, reason: str) -> None:
        """Say that the broker ends."""
        if self._state is State.RUNNING:
            words = f"broker forced connection closure with reason '{reason}'"
            self._refuse(AmqpError(320, words))
        elif self._state is not State.CLOSING:
            self.end()  # the handshake is not done, or the client has left

    def end(self) -> None:
        """Close the socket, whatever the client thinks of it; soon, even if it does not take what is written."""
        self._state = State.CLOSED
        self._transport.close()
        self._after(_FAREWELL, self._transport.abort)

    def abort(self) -> None:
        """Close the socket at once; what is written, but not sent, is lost."""
        self._state = State.CLOSED
        self._transport.abort()

    # -- its end --------------------------------------------------------------------------------------------------

    def _refuse(self, error: AmqpError) -> None:
        """Close the connection, and say why."""
        if self._state in (*_ENDING, State.CLOSED):
            return
        self._leave()
        if self._state is State.GREETING:
            self.end()
            return
        _logger.info("a connection was closed by the embedded broker", reason=error.text)
        self._state = State.CLOSING
        self.write(wire.close(0, error.code, error.text, error.method))
        self._after(_FAREWELL, self.end)

    def _bye(self) -> None:
        """Close the socket when everything is written."""
        self._state = State.CLOSED
        self._listener.loop.call_soon(self.end)  # behind the flush

    def _leave(self) -> None:
        """Requeue what it held, once."""
        for channel in self._channels.values():
            if not channel.closing:
                channel.flush()
        self._channels.clear()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _after(self, seconds: float, what: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._listener.loop.call_later(seconds, what)

    def _keep_alive(self) -> None:
        """Look twice per heartbeat: send one when nothing was written; end with a client that is silent for two."""
        assert self._timer is not None
        self._timer.cancel()  # the handshake's
        if self._heartbeat:
            self._after(self._heartbeat / 2, self._look)

    def _look(self) -> None:
        read = self._written - self._transport.get_write_buffer_size()
        # While nothing is read from it, that it reads is all that is known of it.
        self._silent = 0 if self._deaf and read > self._read else self._silent + 1
        if self._silent > 4:
            _logger.info("a client was silent for two heartbeats", interval=self._heartbeat)
            self.abort()  # it would not read what is still to be written
            return
        if self._written == self._seen:
            self._put(frames.BEAT)
        self._seen, self._read = self._written, read
        self._after(self._heartbeat / 2, self._look)
