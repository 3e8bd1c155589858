"""A TCP proxy between worker and broker that does to their connections what networks do.

It has an event loop in a thread of its own, so that a test uses it like a switch, and goes on when the test waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final, Self, TypeVar

T = TypeVar("T")

CHUNK: Final = 65_536  # bytes read at once
GREETING: Final = b"AMQP\x00\x00\x09\x01"  # what a client sends before its first frame
METHOD: Final = 1  # type of a frame that carries a method
# SO_LINGER with zero seconds: closing sends RST, and what is under way is forgotten.
RESET: Final = struct.pack("ii", 1, 0)


class Mode(Enum):
    """What the proxy does with connections."""

    PASS_ON = "pass on"
    BLACKHOLE = "blackhole"  # not a byte gets through, in either direction
    LOSE_REPLIES = "lose replies"  # what the client says is lost, what the broker says arrives


@dataclass(frozen=True, slots=True)
class Frame:
    """A whole AMQP frame as it stands on the wire, or the eight bytes with which a client greets (`kind` 0)."""

    kind: int
    channel: int
    raw: bytes

    @property
    def method(self) -> tuple[int, int] | None:
        """Class and method of a method frame, such as (60, 80) for basic.ack; None for every other frame."""
        if self.kind != METHOD:
            return None
        first, second = struct.unpack_from(">HH", self.raw, 7)
        return first, second


Hook = Callable[["Frame", "Link"], bytes]


class Link:
    """One connection of a client and the one to the broker behind it. Hooks may write to both."""

    def __init__(self, client: asyncio.StreamWriter, mode: Mode) -> None:
        self.mode = mode
        self._client = client
        self._broker: asyncio.StreamWriter | None = None

    def to_client(self, data: bytes) -> None:
        """Write as if the broker had sent it. Only from within a hook."""
        self._client.write(data)

    def to_broker(self, data: bytes) -> None:
        """Write as if the client had sent it. Only from within a hook."""
        if self._broker is not None:
            self._broker.write(data)

    def reset(self) -> None:
        """End both connections with RST."""
        self._close(self._client, reset=True)
        self.leave_broker(reset=True)

    def leave_broker(self, *, reset: bool = False) -> None:
        """Close the connection to the broker; the client is not told."""
        if self._broker is not None:
            self._close(self._broker, reset=reset)

    async def connect(self, port: int) -> asyncio.StreamReader:
        """Open the connection to the broker. Raises OSError."""
        reader, self._broker = await asyncio.open_connection("127.0.0.1", port)
        return reader

    async def pump(self, reader: asyncio.StreamReader, hook: Hook | None, proxy: Proxy, *, from_client: bool) -> None:
        """Carry one direction until it ends, and then end the other one, unless the link is a dead one."""
        frames = Frames()
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                if proxy.seconds:
                    await asyncio.sleep(proxy.seconds)
                if self._loses(from_client=from_client):
                    continue
                out = data if hook is None else b"".join(hook(frame, self) for frame in frames.feed(data))
                (self.to_broker if from_client else self.to_client)(out)
                await self._drain(from_client=from_client)
        if not self._loses(from_client=from_client):
            self._close(self._client)
            self.leave_broker()

    def _loses(self, *, from_client: bool) -> bool:
        return self.mode is Mode.BLACKHOLE or (self.mode is Mode.LOSE_REPLIES and from_client)

    async def _drain(self, *, from_client: bool) -> None:
        writer = self._broker if from_client else self._client
        if writer is not None:
            await writer.drain()

    @staticmethod
    def _close(writer: asyncio.StreamWriter, *, reset: bool = False) -> None:
        if reset and not writer.transport.is_closing():
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()
        writer.close()


class Frames:
    """Cuts a stream of bytes into AMQP frames."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take more bytes, and give the frames that are whole."""
        self._rest += data
        while len(self._rest) >= len(GREETING):
            if self._rest.startswith(b"AMQP"):
                yield Frame(0, 0, self._cut(len(GREETING)))
                continue
            kind, channel, size = struct.unpack_from(">BHI", self._rest)
            if len(self._rest) < size + 8:
                return
            yield Frame(kind, channel, self._cut(size + 8))

    def _cut(self, length: int) -> bytes:
        first, self._rest = self._rest[:length], self._rest[length:]
        return first


class Proxy:
    """Stands before the broker's `port` on 127.0.0.1, with a port of its own; a context manager.

    `to_broker` and `to_client` are hooks: each gets every whole frame of its direction, and returns the bytes to pass
    on in its place. What is said of "all" connections is said of those that are open; new ones follow the last word.
    """

    def __init__(self, port: int, *, to_broker: Hook | None = None, to_client: Hook | None = None) -> None:
        self.seconds = 0.0
        self.port = 0
        self.accepted = 0  # connections so far
        self._broker_port = port
        self._to_broker = to_broker
        self._to_client = to_client
        self._mode = Mode.PASS_ON
        self._links: set[Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures: list[BaseException] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    @property
    def url(self) -> str:
        """AMQP URL of the broker by way of the proxy, with the default user and virtual host."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    def pass_on(self) -> None:
        """Let new connections through, without a delay. Those that lost bytes stay as they are: they cannot heal."""
        self._do(lambda: self._change(Mode.PASS_ON, of_links=False))
        self.seconds = 0.0

    def reset(self) -> None:
        """End all connections with RST, on both sides."""

        def reset() -> None:
            for link in self._links:
                link.reset()

        self._do(reset)

    def blackhole(self) -> None:
        """From now on no byte gets through. All connections stay open, new ones are accepted and hang."""
        self._do(lambda: self._change(Mode.BLACKHOLE, of_links=True))

    def half_open(self) -> None:
        """Close the broker's side of all connections without a word to the client, whose side stays open."""

        def close() -> None:
            for link in self._links:
                link.mode = Mode.BLACKHOLE
                link.leave_broker()

        self._do(close)

    def lose_replies(self) -> None:
        """From now on nothing that clients say arrives, acknowledgements least of all; the broker is still heard."""
        self._do(lambda: self._change(Mode.LOSE_REPLIES, of_links=True))

    def delay(self, seconds: float) -> None:
        """Hold what is read so long before it is passed on; what comes meanwhile goes with the next."""
        self.seconds = seconds

    @property
    def links(self) -> int:
        """How many connections are open."""
        return len(self._links)

    def __enter__(self) -> Self:
        self._thread.start()
        self.port = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self.check()

    def check(self) -> None:
        """Raise what a hook has raised, once. The end of the proxy does so too."""
        if self._failures:
            raise self._failures.pop(0)

    def _do(self, what: Callable[[], T]) -> T:
        async def done() -> T:
            return what()

        return asyncio.run_coroutine_threadsafe(done(), self._loop).result(10)

    def _change(self, mode: Mode, *, of_links: bool) -> None:
        self._mode = mode
        for link in self._links if of_links else ():
            link.mode = mode

    async def _listen(self) -> int:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = self._loop.create_task(self._carry(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = Link(writer, self._mode)
        self._links.add(link)
        try:
            async with asyncio.TaskGroup() as directions:
                if self._mode is not Mode.BLACKHOLE:
                    broker = await link.connect(self._broker_port)
                    directions.create_task(link.pump(broker, self._to_client, self, from_client=False))
                directions.create_task(link.pump(reader, self._to_broker, self, from_client=True))
        except* OSError:
            pass  # the broker is not there
        except* Exception as group:  # noqa: BLE001 - of a hook; raised where the proxy ends
            self._failures += group.exceptions
        finally:
            self._links.discard(link)
            link.reset()

    async def _end(self) -> None:
        self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
