"""The protocol under aiormq: splits what arrives into frames, those of taken-over channels for their owners."""

from __future__ import annotations

import asyncio
import inspect
import ssl
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, Final, Protocol, cast

import aiormq
from aiormq.connection import TransportFactory
from aiormq.exceptions import AMQPConnectionError
from yarl import URL

from choreo import forks
from choreo.amqp.decode import short
from choreo.amqp.frames import (
    BEAT,
    BODY,
    CHANNEL_CLOSE,
    CHANNEL_CLOSE_OK,
    CONNECTION_BLOCKED,
    CONNECTION_CLOSE,
    CONNECTION_UNBLOCKED,
    CONTENT_FRAME,
    DELIVER,
    END,
    FRAME,
    HEADER,
    HEARTBEAT,
    METHOD,
    NUMBER,
    OVERHEAD,
    RETURN,
)
from choreo.errors import ConfigurationError

_BEAT_EVERY: Final = 1.0  # seconds
_LOOKS: Final = 4  # in a row without a byte, half a heartbeat apart: two heartbeats of the broker have not come


class Owner(Protocol):
    """Who has taken over a channel."""

    def method(self, number: int, payload: bytes) -> bool:
        """Take a method without content. False: it is aiormq's."""
        ...

    def content(self, payload: bytes, properties: bytes, body: bytes) -> None:
        """Take a delivery or a return, whole."""
        ...

    def closed(self, code: int, reason: str) -> None:
        """Learn that nothing more can be written: the broker, or we, have closed the channel or lost the connection."""
        ...

    def writable(self) -> None:
        """Learn that `FastPath.blocked` or `FastPath.full` has changed."""
        ...


class FastPath(TransportFactory):
    """One connection's fast path, given to aiormq as its transport factory; `take` gives it the channels.

    `heartbeat`: seconds; after two of them without a byte the connection is given up, which aiormq does after three and
    a bit. `blocked` is the broker's reason for not reading from us, if it has one; `full` says that the socket takes no
    more.
    """

    def __init__(self, heartbeat: float) -> None:
        check()
        self.heartbeat = heartbeat
        self.blocked: str | None = None
        self.full = False
        self.ended: tuple[int, str] | None = None  # code and reason of the broker's connection.close
        self.on_blocked: Callable[[str | None], None] = lambda _: None
        self.owners: dict[int, Owner] = {}  # by channel
        self._transport: asyncio.WriteTransport | None = None

    async def create(self, url: URL, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect, as aiormq's own factories do."""
        context: ssl.SSLContext | None = None
        provider = options.pop("ssl_context_provider", None)
        if url.scheme == "amqps":
            assert provider is not None
            context = await provider.get_context()
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        try:
            transport, protocol = await loop.create_connection(
                lambda: _Splitter(self, reader, loop), str(url.host), url.port or 0, ssl=context, **options
            )
        except OSError as error:
            raise AMQPConnectionError(*error.args) from error
        forks.keep_transport_private(transport)
        self._transport = transport
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    def take(self, channel: int, owner: Owner) -> None:
        """Take over a channel that aiormq has opened and that is silent as yet."""
        self.owners[channel] = owner

    def write(self, frames: bytes) -> None:
        """Write whole frames. Nothing happens on a connection that is gone."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frames)

    def block(self, reason: str | None) -> None:
        """Note that the broker does not read from us, or does again, and tell whoever wants to know."""
        self.blocked = reason
        self._changed()
        self.on_blocked(reason)

    def fill(self, *, full: bool) -> None:
        """Note that the socket takes no more, or does again."""
        self.full = full
        self._changed()

    def _changed(self) -> None:
        for owner in tuple(self.owners.values()):
            owner.writable()

    def close(self, code: int, reason: str) -> None:
        """Tell all owners that the connection is gone."""
        owners = tuple(self.owners.values())
        self.owners.clear()  # in place: the protocol looks into the same table
        for owner in owners:
            owner.closed(code, reason)


def check() -> None:
    """Raise ConfigurationError when aiormq has no place for the fast path."""
    if "transport_factory" not in inspect.signature(aiormq.Connection).parameters:
        raise ConfigurationError(
            f"aiormq {version('aiormq')} has no transport_factory, which choreo's frame fast path needs",
            "install aiormq 7.2 or a later 7 (pip install 'aiormq>=7.2,<8')",
        )


class _Splitter(asyncio.StreamReaderProtocol):
    """Frames of a taken-over channel go to its owner, all others to aiormq's reader, each whole and in order."""

    def __init__(self, fast_path: FastPath, reader: asyncio.StreamReader, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(reader, loop=loop)
        self._fast_path = fast_path
        self._reader = reader
        self._now = loop.time
        self._owners = fast_path.owners
        self._begun: dict[int, _Content] = {}  # by channel
        self._rest = b""
        self._plain = False  # what answers speaks no AMQP: aiormq will say so
        self._last_beat = 0.0
        self._silent = 0  # looks in a row
        self._silence: ConnectionError | None = None
        self._next_look: asyncio.TimerHandle | None = None
        self._later = loop.call_later
        self._line: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to listen."""
        super().connection_made(transport)
        self._line = cast("asyncio.WriteTransport", transport)  # which uvloop's is in all but its class
        if self._fast_path.heartbeat:
            self._next_look = self._later(self._fast_path.heartbeat / 2, self._look)

    def _look(self) -> None:
        # Counted in looks and not in seconds: a loop that was blocked meanwhile is not the broker's silence.
        self._silent += 1
        if self._silent > _LOOKS and self._line is not None:
            self._silence = ConnectionError(f"silent for {2 * self._fast_path.heartbeat:g} s, two heartbeats")
            self._line.abort()
        else:
            self._next_look = self._later(self._fast_path.heartbeat / 2, self._look)

    def data_received(self, data: bytes) -> None:
        """Take what the socket has, cut anywhere."""
        self._silent = 0
        if self._rest:
            data = self._rest + data
        if not self._plain:
            data = self._rest = data[self._split(data) :]
        if self._plain:
            self._rest = b""
            self._reader.feed_data(data)
        elif self._owners and self._now() - self._last_beat > _BEAT_EVERY:
            # A broker that has deliveries to send sends no heartbeats; aiormq sees neither and would give it up.
            self._last_beat = self._now()
            self._reader.feed_data(BEAT)

    def _split(self, data: bytes) -> int:
        """Handle the whole frames in `data`. Return where the first incomplete one begins."""
        owners = self._owners
        position, foreign, end = 0, 0, len(data)  # foreign: where that begins which is aiormq's, not yet passed on
        while end - position >= OVERHEAD:
            kind, channel, size = FRAME.unpack_from(data, position)
            behind = position + size + OVERHEAD
            if not (0 < kind <= BODY or kind == HEARTBEAT) or (behind <= end and data[behind - 1] != END):
                self._plain = True
                break
            if behind > end:
                break
            owner = owners.get(channel)
            if owner is None:
                if channel == 0 and kind == METHOD:
                    self._connection_method(data[position + 7 : behind - 1])
            elif (after := self._owned(owner, kind, channel, data, position, behind)) is not None:
                if foreign < position:
                    self._reader.feed_data(data[foreign:position])
                behind = foreign = after
            position = behind
        if foreign < position:
            self._reader.feed_data(data[foreign:position])
        return position

    def _owned(self, owner: Owner, kind: int, channel: int, data: bytes, position: int, behind: int) -> int | None:
        """Handle a frame of a taken-over channel. Return the position behind what was taken, None: it is aiormq's."""
        if kind == METHOD:
            (number,) = NUMBER.unpack_from(data, position + 7)
            payload = data[position + 11 : behind - 1]
            if number not in (DELIVER, RETURN):
                return behind if self._method(owner, number, channel, payload) else None
            # Method, header and body mostly arrive together, the body in one piece.
            if len(data) - behind > CONTENT_FRAME.size:
                kind, its, size, _, _, length = CONTENT_FRAME.unpack_from(data, behind)
                body = behind + size + OVERHEAD
                after: int = body + length + OVERHEAD
                if (
                    kind == HEADER
                    and its == channel
                    and length > 0
                    and after <= len(data)
                    and FRAME.unpack_from(data, body) == (BODY, channel, length)
                    and data[body - 1] == data[after - 1] == END
                ):
                    owner.content(payload, data[behind + CONTENT_FRAME.size : body - 1], data[body + 7 : after - 1])
                    return after
            self._begun[channel] = _Content(payload)
            return behind
        content = self._begun.get(channel)
        if content is None:
            return None  # of a basic.get, which is aiormq's
        if content.add(kind, data, position, behind):
            del self._begun[channel]
            owner.content(content.payload, content.properties, bytes(content.body))
        return behind

    def _method(self, owner: Owner, number: int, channel: int, payload: bytes) -> bool:
        """Handle a method without content; whether it ends here."""
        if number in (CHANNEL_CLOSE, CHANNEL_CLOSE_OK):
            # aiormq hears of it only later; until then nothing more may be written, and nothing comes.
            del self._owners[channel]
            self._begun.pop(channel, None)
            owner.closed(*_reason(payload) if number == CHANNEL_CLOSE else (0, "it was closed"))
            return False
        return owner.method(number, payload)

    def _connection_method(self, payload: bytes) -> None:
        (number,) = NUMBER.unpack_from(payload)
        if number == CONNECTION_CLOSE:
            self._fast_path.ended = _reason(payload[4:])
            self._fast_path.close(*self._fast_path.ended)
        elif number == CONNECTION_BLOCKED:
            self._fast_path.block(short(payload, 4)[0])
        elif number == CONNECTION_UNBLOCKED:
            self._fast_path.block(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the owners first: what they wait for will not come."""
        if self._next_look is not None:
            self._next_look.cancel()
        exc = exc or self._silence
        self._fast_path.close(0, str(exc) if exc else "")
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Hold publishes back: what is written now would pile up in memory."""
        super().pause_writing()
        self._fast_path.fill(full=True)

    def resume_writing(self) -> None:
        """Let publishes go on."""
        super().resume_writing()
        self._fast_path.fill(full=False)


class _Content:
    """A delivery or a return of which not all has come yet."""

    __slots__ = ("_length", "body", "payload", "properties")

    def __init__(self, payload: bytes) -> None:
        self.payload = payload
        self.properties = b""
        self.body = bytearray()
        self._length = 0

    def add(self, kind: int, data: bytes, position: int, behind: int) -> bool:
        """Add a frame; whether it was the last."""
        if kind == HEADER:
            self._length = CONTENT_FRAME.unpack_from(data, position)[5]
            self.properties = data[position + CONTENT_FRAME.size : behind - 1]
        else:
            self.body += data[position + 7 : behind - 1]
        return len(self.body) >= self._length


def _reason(payload: bytes) -> tuple[int, str]:
    """Return code and text of a channel.close or a connection.close."""
    return int.from_bytes(payload[:2]), short(payload, 2)[0]
