"""The client of the management API against a small HTTP server that answers as RabbitMQ does, or as it should not."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from choreo.errors import InvalidUrl
from choreo.rabbit import management
from choreo.rabbit.management import ManagementApi
from choreo.topology import Binding
from choreo.transport import QueueDetail, Unavailable

Answer = tuple[int, Any]
Answers = Callable[[BaseHTTPRequestHandler], Answer | None]


@pytest.fixture
def serve() -> Iterator[Callable[[Answers], str]]:
    """Starts a server whose answers a function gives, status and JSON or bytes, and returns its URL."""
    servers: list[ThreadingHTTPServer] = []

    def start(answers: Answers) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer = answers(self)
                if answer is None:
                    return
                status, content = answer
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", content)
                    content = b""
                self.end_headers()
                self.wfile.write(content if isinstance(content, bytes) else json.dumps(content).encode())

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def queue(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "vhost": "/", **more}


async def test_queues_come_page_by_page(serve):
    """All pages are asked for, with the namespace as the filter, and the virtual host is escaped."""
    asked = []

    def answers(request: BaseHTTPRequestHandler) -> Answer:
        parts = urlsplit(request.path)
        query = parse_qs(parts.query)
        page = int(query["page"][0])
        asked.append((parts.path, query["name"][0], page))
        return 200, {"items": [queue(f"shop.q{page}")], "page": page, "page_count": 3}

    found = await ManagementApi(f"http://{serve(answers)}", "/").queues("shop")
    assert isinstance(found, tuple)
    assert [each.name for each in found] == ["shop.q1", "shop.q2", "shop.q3"]
    assert asked == [("/api/queues/%2F", "^shop\\.", page) for page in (1, 2, 3)]


async def test_figures_are_read_where_they_are_given(serve):
    """Statistics may be off: what is missing, or of another kind, is None."""
    full = queue(
        "shop.a",
        state="running",
        messages_ready=4,
        messages_unacknowledged=2,
        consumers=1,
        memory=1000,
        message_stats={
            "publish_details": {"rate": 1.5},
            "deliver_get_details": {"rate": 2},
            "ack_details": {"rate": 0.0},
        },
    )
    odd = queue("shop.b", state=7, messages_ready="many", memory=None, message_stats=[], consumers=True)
    url = serve(lambda _: (200, {"items": [full, odd], "page_count": 1}))
    assert await ManagementApi(f"http://{url}", "/").queues("shop") == (
        QueueDetail("shop.a", "running", 4, 2, 1, 1000, 1.5, 2.0, 0.0),
        QueueDetail("shop.b", None, None, None, None, None, None, None, None),
    )


async def test_bindings_are_those_of_the_namespace(serve):
    rows = [
        {"source": "shop.events", "destination": "shop.a", "destination_type": "queue", "routing_key": "x.#"},
        {"source": "shop.delay", "destination": "shop.delay.19", "destination_type": "exchange", "routing_key": "#"},
        {"source": "", "destination": "shop.a", "destination_type": "queue", "routing_key": "shop.a"},
        {"source": "shopping.events", "destination": "b", "destination_type": "queue", "routing_key": "x"},
    ]
    found = await ManagementApi(f"http://{serve(lambda _: (200, rows))}", "/").bindings("shop")
    assert found == (
        Binding("shop.events", "shop.a", "x.#"),
        Binding("shop.delay", "shop.delay.19", "#", to="exchange"),
    )


async def test_user_and_password_go_along_and_are_unescaped(serve):
    seen: list[str | None] = []

    def answers(request: BaseHTTPRequestHandler) -> Answer:
        seen.append(request.headers["Authorization"])
        return 200, queue("shop.a")

    url = serve(answers)
    await ManagementApi(f"http://us%3Aer:p%40ss@{url}/", "v").queue("shop.a")
    await ManagementApi(f"http://{url}", "v").queue("shop.a")
    assert seen == ["Basic dXM6ZXI6cEBzcw==", None]


async def test_proxies_of_the_environment_are_passed_by(serve, monkeypatch):
    """The password goes to the host that was named and to no other."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    found = await ManagementApi(f"http://{serve(lambda _: (200, queue('shop.a')))}", "/").queue("shop.a")
    assert isinstance(found, QueueDetail)


async def test_redirect_is_not_followed(serve):
    elsewhere: list[str] = []

    def answers(request: BaseHTTPRequestHandler) -> Answer:
        elsewhere.append(request.path)
        return 200, queue("shop.a")

    other = serve(answers)
    url = serve(lambda _: (302, f"http://{other}/api"))
    found = await ManagementApi(f"http://u:s3cret@{url}", "/").queue("shop.a")
    assert found == Unavailable(f"{url}: it answered with HTTP status 302")
    assert not elsewhere


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((401, b""), "it refused the user or the password"),
        ((403, b""), "the user may not look at this virtual host"),
        ((404, b""), "it knows no such virtual host or queue"),
        ((500, b""), "it answered with HTTP status 500"),
        ((200, b"<html>"), "what answers there is not a management API"),
        ((200, b"[" * 100_000), "what answers there is not a management API"),
        ((200, []), "what answers there is not a management API"),
        ((200, {"items": 7, "page_count": 1}), "what answers there is not a management API"),
        (None, "what answers there is not a management API"),
    ],
)
async def test_no_good_answer_is_a_reason_and_no_error(serve, answer: Answer | None, reason: str):
    """Whatever answers there, the caller learns why there are no details, and never the password."""
    url = serve(lambda _: answer)
    assert await ManagementApi(f"http://u:s3cret@{url}", "/").queues("shop") == Unavailable(f"{url}: {reason}")


async def test_nobody_there_is_a_reason_too():
    assert await ManagementApi("http://u:s3cret@127.0.0.1:1", "/").queues("shop") == Unavailable(
        "127.0.0.1:1: Connection refused"
    )


async def test_endless_answer_is_cut_off(serve, monkeypatch):
    monkeypatch.setattr(management, "MAX_ANSWER", 1000)
    url = serve(lambda _: (200, b" " * 100_000))
    found = await ManagementApi(f"http://{url}", "/").queue("shop.a")
    assert isinstance(found, Unavailable)
    assert "longer than" in found.reason


async def test_answer_that_drips_in_is_not_waited_for(serve):
    """A byte now and then keeps a socket's own timeout from ever passing."""
    over = threading.Event()

    def answers(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        while not over.wait(0.05):
            request.wfile.write(b" ")
            request.wfile.flush()

    url = serve(answers)
    try:
        found = await ManagementApi(f"http://{url}", "/", timeout=0.2).queue("shop.a")
        assert found == Unavailable(f"{url}: no answer in time")
    finally:
        over.set()


async def test_silence_is_not_waited_for(serve):
    over = threading.Event()
    url = serve(lambda _: over.wait(10) and None)
    try:
        found = await ManagementApi(f"http://{url}", "/", timeout=0.2).queue("shop.a")
        assert found == Unavailable(f"{url}: no answer in time")
    finally:
        over.set()


def test_url_that_cannot_be_read_is_refused_without_its_password():
    with pytest.raises(InvalidUrl) as caught:
        ManagementApi("http://u:s3cret@[::1", "/")
    assert "s3cret" not in str(caught.value)


def test_an_answer_that_nobody_waits_for_holds_up_no_end(serve: Callable[[Answers], str]) -> None:
    """A process that ends, or a command that is interrupted, does not wait for an API that is silent."""
    asked, over = threading.Event(), threading.Event()

    def silent(_: BaseHTTPRequestHandler) -> None:
        asked.set()
        over.wait(60)

    async def ask() -> None:
        asking = asyncio.create_task(ManagementApi(f"http://{serve(silent)}", "/", timeout=60).queues("choreo"))
        await asyncio.to_thread(asked.wait, 60)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    began = time.monotonic()
    asyncio.run(ask())
    assert time.monotonic() - began < 30, "it waited for the answer"
    over.set()
