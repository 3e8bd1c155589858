"""Two answers over HTTP for whoever supervises the process: `/live` (the loop turns), `/ready` (consuming).

GET and HEAD of two paths, no bodies, no connection kept: so there is nothing that a request could smuggle,
and no HTTP library in the worker. Everything a client sends is bounded in size and time.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import re
import socket
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus

from choreo import forks
from choreo.censor import censored
from choreo.errors import ConfigurationError, DeadlinePassed
from choreo.logger import get_logger

_HEAD_LIMIT = 8_192  # bytes of a request's line and headers
_DEADLINE = 5.0  # seconds from connecting until the answer is sent
_CONNECTIONS = 64  # a client that opens more must not take the file descriptors that the broker needs

_PAUSE = 0.5  # seconds before a port that was in use is tried again
_WAY_OUT = "choose a free one with --health-port and --health-host (port 0 takes any free one)"

# RFC 9112, section 3. An absolute-form target is for proxies, which this is not.
_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}) (/[!-~]*) HTTP/1\.[01]\r\n")

State = Callable[[], tuple[bool, str]]

_log = get_logger("choreo.observe.health")


class Health:
    """A small HTTP server. `live` and `ready` are asked at each request; both say why in words.

    `/live` answers 200 when the first of `live()` is true, `/ready` when that of `ready()` is; 503 otherwise. The
    body is JSON, {"status": "waiting for the broker"}, with the second of them. Any other path is a 404, any other
    method a 405.
    """

    def __init__(self, live: State, ready: State, host: str, port: int) -> None:
        self._live = live
        self._ready = ready
        self._host = host.removeprefix("[").removesuffix("]")  # as an IPv6 address has them in a URL
        self._asked_port = port
        self._servers: list[asyncio.Server] = []
        self._requests: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """The port that it listens on, also when 0 was asked for; 0 while it does not listen."""
        return next((int(each.getsockname()[1]) for server in self._servers for each in server.sockets), 0)

    async def start(self, patience: float = 0.0, given_up: Callable[[], bool] = lambda: False) -> None:
        """Listen. A port in use is tried again for `patience` seconds, unless `given_up`.

        Raises DeadlinePassed when it still is then, and ConfigurationError when nothing can listen there.
        """
        until = time.monotonic() + patience
        while not await self._listens():
            if time.monotonic() >= until:
                why = f"the port is in use, and was for {patience:g} s"
                raise DeadlinePassed(f"the health endpoint cannot listen on {self._place}: {why}", _WAY_OUT)
            if given_up():
                return
            _log.warning("health endpoint waits", host=self._host, port=self._asked_port, why="the port is in use")
            await asyncio.sleep(_PAUSE)
        self._keep_private()
        _log.info("health endpoint", host=self._host, port=self.port)

    async def take(self, sockets: Sequence[socket.socket]) -> None:
        """Listen on `sockets`, on which another one has listened until now: no client meets a closed port."""
        for each in sockets:
            self._servers.append(await asyncio.start_server(self._accept, sock=each, limit=_HEAD_LIMIT))
        self._keep_private()

    def duplicates(self) -> list[socket.socket]:
        """Return what it listens on, for another one to `take`; none where it does not listen."""
        return [each.dup() for server in self._servers for each in server.sockets]

    def descriptors(self) -> list[int]:
        """Return what the event loop watches for new clients."""
        return [each.fileno() for server in self._servers for each in server.sockets]

    def _keep_private(self) -> None:
        for each in self.descriptors():
            forks.keep_private(each)

    async def _listens(self) -> bool:
        """Try to listen; say whether the port was free."""
        if not 0 <= self._asked_port <= 65_535:  # uvloop would listen on the remainder
            raise self._cannot_listen("a port is a number from 0 to 65535")
        try:
            server = await asyncio.start_server(self._accept, self._host, self._asked_port, limit=_HEAD_LIMIT)
        except (OSError, ValueError) as error:  # ValueError: a host with a character that no name has
            if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                return False
            raise self._cannot_listen(_reason(error)) from error
        self._servers.append(server)
        return True

    async def stop(self) -> None:
        """Stop listening and end what is still being answered."""
        for server in self._servers:
            server.close()
        for request in self._requests:
            request.cancel()
        await asyncio.gather(*self._requests, return_exceptions=True)
        for server in self._servers:
            await server.wait_closed()
        self._servers = []

    def _cannot_listen(self, reason: str) -> ConfigurationError:
        return ConfigurationError(f"the health endpoint cannot listen on {self._place}: {reason}", _WAY_OUT)

    @property
    def _place(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{host}:{self._asked_port}"

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._requests) >= _CONNECTIONS:
            writer.transport.abort()
            return
        request = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._requests.add(request)
        request.add_done_callback(self._requests.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(_DEADLINE):
                    writer.write(await self._answer(reader))
                    writer.close()
                    await writer.wait_closed()
        except Exception:  # noqa: BLE001 - one request without an answer; the next one is served
            _log.exception("health request failed")
        finally:
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return b""
        except asyncio.LimitOverrunError:
            return _response(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"more than {_HEAD_LIMIT} bytes")
        line = _REQUEST_LINE.match(head)
        if not line:
            return _response(HTTPStatus.BAD_REQUEST, "not an HTTP/1.1 request")
        method, path = line[1].decode(), line[2].partition(b"?")[0].decode()
        if path not in ("/live", "/ready"):
            return _response(HTTPStatus.NOT_FOUND, "there are /live and /ready", method)
        if method not in ("GET", "HEAD"):
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, "there are GET and HEAD", method)
        good, status = self._state(path)
        return _response(HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE, status, method)

    def _state(self, path: str) -> tuple[bool, str]:
        try:
            return self._ready() if path == "/ready" else self._live()
        except Exception:  # noqa: BLE001 - the probe gets an answer whatever the check does
            _log.exception("health check failed", path=path)
            return False, "the check itself failed; the log says why"


def _reason(error: OSError | ValueError) -> str:
    """Return what the system says, without asyncio's sentence around it; resolver errors are negative."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno) if error.errno > 0 else str(error.strerror)
    return str(error)


def _response(code: HTTPStatus, status: str, method: str = "GET") -> bytes:
    body = json.dumps({"status": censored(status)}).encode() + b"\n"
    head = (
        f"HTTP/1.1 {code.value} {code.phrase}\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Cache-Control: no-store\r\n"
        "Allow: GET, HEAD\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + (b"" if method == "HEAD" else body)
