"""The health endpoint, asked over real sockets on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator

import pytest

from choreo.errors import ConfigurationError, DeadlinePassed
from choreo.observe import health
from choreo.observe.health import Health


class Worker:
    """What the endpoint asks: a worker whose state a test can set."""

    def __init__(self) -> None:
        self.alive = True
        self.state: tuple[bool, str] = (False, "starting")

    def live(self) -> tuple[bool, str]:
        return self.alive, "alive" if self.alive else "stuck"

    def ready(self) -> tuple[bool, str]:
        return self.state


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
async def endpoint(worker: Worker) -> AsyncIterator[Health]:
    endpoint = Health(worker.live, worker.ready, "127.0.0.1", 0)
    await endpoint.start()
    yield endpoint
    await endpoint.stop()


async def ask(endpoint: Health, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send `request`, read until the endpoint closes, and return status code, headers and body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", endpoint.port)
    try:
        writer.write(request)
        answer = await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()
        await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), dict(line.split(": ", 1) for line in lines), body


def get(path: str, method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


async def test_live_says_that_the_loop_turns(endpoint: Health, worker: Worker):
    """Answering at all needs a turning loop; the worker may know better."""
    code, headers, body = await ask(endpoint, get("/live"))

    assert (code, json.loads(body)) == (200, {"status": "alive"})
    assert headers["Connection"] == "close"
    assert headers["Content-Type"] == "application/json"
    assert int(headers["Content-Length"]) == len(body)

    worker.alive = False
    assert (await ask(endpoint, get("/live")))[0] == 503


async def test_ready_follows_the_worker(endpoint: Health, worker: Worker):
    """503 with the reason until the worker consumes, 200 while it does, 503 again when the broker is gone."""
    code, _, body = await ask(endpoint, get("/ready"))
    assert (code, json.loads(body)) == (503, {"status": "starting"})

    worker.state = (True, "consuming order")
    code, _, body = await ask(endpoint, get("/ready?probe=1"))
    assert (code, json.loads(body)) == (200, {"status": "consuming order"})

    worker.state = (False, "waiting for amqp://choreo:secret@rabbit")
    code, _, body = await ask(endpoint, get("/ready"))
    assert (code, json.loads(body)) == (503, {"status": "waiting for amqp://choreo:***@rabbit"})


async def test_head_has_no_body(endpoint: Health):
    """HEAD answers as GET does, without the body."""
    code, headers, body = await ask(endpoint, get("/live", "HEAD"))

    assert (code, body) == (200, b"")
    assert int(headers["Content-Length"]) > 0


async def test_http_1_0_and_a_split_request(endpoint: Health):
    """Old probes are served, and a request may come in pieces."""
    reader, writer = await asyncio.open_connection("127.0.0.1", endpoint.port)
    for piece in (b"GET /li", b"ve HTTP/1.0\r", b"\n\r\n"):
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0)
    assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    ("request_bytes", "code"),
    [
        (get("/"), 404),
        (get("/ready/"), 404),
        (get("/../ready"), 404),
        (get("/live", "POST"), 405),
        (get("/ready", "DELETE"), 405),
        (b"POST /live HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", 405),
        (get("/live", "get"), 405),
        (b"GET  /live HTTP/1.1\r\n\r\n", 400),
        (b"GET http://localhost/live HTTP/1.1\r\n\r\n", 400),
        (b"GET /live HTTP/2.0\r\n\r\n", 400),
        (b"GET /live\r\n\r\n", 400),
        (b"GET /live\x00 HTTP/1.1\r\n\r\n", 400),
        (b"\xff\xfe\r\n\r\n", 400),
        (b"GET /live HTTP/1.1\nHost: localhost\n\r\n\r\n", 400),
        (b"GET /live HTTP/1.1\r\nX: " + b"a" * 9_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * 60_000, 431),
    ],
)
async def test_what_is_refused(endpoint: Health, request_bytes: bytes, code: int):
    """Whatever is not a plain GET or HEAD of the two paths gets one clear refusal, and the next is served."""
    assert (await ask(endpoint, request_bytes))[0] == code
    assert (await ask(endpoint, get("/live")))[0] == 200


async def test_a_silent_client_is_cut_off(endpoint: Health, monkeypatch: pytest.MonkeyPatch):
    """A client that sends half a request is closed after the deadline, without an answer."""
    monkeypatch.setattr(health, "_DEADLINE", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", endpoint.port)
    writer.write(b"GET /live HTTP/1.1\r\n")
    with contextlib.suppress(ConnectionResetError):  # the kernel may tell it so
        assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_a_crowd_is_bounded(endpoint: Health, monkeypatch: pytest.MonkeyPatch):
    """Connections beyond the bound are dropped at once; the ones within it are served."""
    monkeypatch.setattr(health, "_CONNECTIONS", 1)
    first_reader, first = await asyncio.open_connection("127.0.0.1", endpoint.port)
    first.write(b"GET /live ")
    await first.drain()
    second_reader, second = await asyncio.open_connection("127.0.0.1", endpoint.port)
    with contextlib.suppress(ConnectionResetError):
        assert await asyncio.wait_for(second_reader.read(), 5) == b""
    first.write(b"HTTP/1.1\r\n\r\n")
    assert (await asyncio.wait_for(first_reader.read(), 5)).startswith(b"HTTP/1.1 200 ")
    for writer in (first, second):
        writer.close()


async def test_a_failing_check_is_an_answer(worker: Worker):
    """A check that raises is "not ready", never a connection that hangs."""

    def broken() -> tuple[bool, str]:
        raise RuntimeError("amqp://choreo:secret@rabbit")

    endpoint = Health(worker.live, broken, "127.0.0.1", 0)
    await endpoint.start()
    code, _, body = await ask(endpoint, get("/ready"))
    await endpoint.stop()

    assert code == 503
    assert b"secret" not in body


async def test_port_in_use_names_the_way_out(endpoint: Health, worker: Worker):
    """A port that somebody else has is no wrong setting, but a deadline that passed; with host, port and option."""
    second = Health(worker.live, worker.ready, "127.0.0.1", endpoint.port)

    with pytest.raises(DeadlinePassed) as caught:
        await second.start()

    assert f"127.0.0.1:{endpoint.port}: the port is in use" in caught.value.message
    assert "--health-port" in caught.value.way_out
    assert second.port == 0
    await second.stop()


@pytest.mark.parametrize(
    ("host", "port"), [("127.0.0.1", 70_000), ("192.0.2.1", 0), ("no\0host", 0), ("::ffff:192.0.2.1", 0)]
)
async def test_an_address_that_is_not_ours(worker: Worker, host: str, port: int):
    """Neither a port out of range nor a foreign or impossible host ends in a traceback."""
    with pytest.raises(ConfigurationError, match="the health endpoint cannot listen on"):
        await Health(worker.live, worker.ready, host, port).start()


async def test_stop_ends_what_is_open_and_frees_the_port(worker: Worker):
    """After `stop` nobody is connected, and the port can be taken again."""
    endpoint = Health(worker.live, worker.ready, "127.0.0.1", 0)
    await endpoint.start()
    port = endpoint.port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /live")
    await writer.drain()

    await asyncio.wait_for(endpoint.stop(), 5)

    with contextlib.suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
    assert endpoint.port == 0
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))
    await endpoint.stop()
