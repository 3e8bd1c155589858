"""The health endpoint of a thread, which hands its clients over to an event loop that comes later."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from choreo.observe.health import Health
from choreo.observe.health_thread import HealthThread
from tests.waiting import until


def asked(port: int, path: str) -> tuple[int, str]:
    """Return status code and `status` of an answer; raises when there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, json.load(answer)["status"]
    finally:
        connection.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def test_it_answers_without_an_event_loop():
    """/live is 200, /ready is 503 and says what goes on."""
    port, said = free_port(), ["starting: importing a"]
    thread = HealthThread("127.0.0.1", port, lambda: said[0])
    until(lambda: answers(port))
    assert asked(port, "/live") == (200, "alive")
    assert asked(port, "/ready") == (503, "starting: importing a")
    said[0] = "starting: importing b"
    assert asked(port, "/ready") == (503, "starting: importing b")
    for each in thread.hand_over():
        each.close()
    until(lambda: not answers(port))


def answers(port: int) -> bool:
    try:
        return asked(port, "/live")[0] == 200
    except ConnectionError:
        return False


def test_no_client_is_turned_away_while_it_hands_over():
    """Each of many that ask all the time gets an answer, of the one or of the other, and the last ones of the other."""
    enough = threading.Event()

    def ask_on(port: int) -> list[int]:
        codes = []
        while not enough.is_set():
            codes.append(asked(port, "/ready")[0])
        return [*codes, asked(port, "/ready")[0]]

    async def take_over(thread: HealthThread, port: int) -> None:
        later = Health(lambda: (True, "alive"), lambda: (True, "consuming"), "127.0.0.1", port)
        await later.take(thread.hand_over())
        assert later.port == port
        loop = asyncio.get_running_loop()
        while (await loop.run_in_executor(None, asked, port, "/ready"))[0] != 200:
            pass
        enough.set()
        await asyncio.gather(*(asyncio.wrap_future(each) for each in asking))
        await later.stop()

    for _ in range(20):
        enough.clear()
        port = free_port()
        thread = HealthThread("127.0.0.1", port, lambda: "starting")
        until(partial(answers, port))
        with ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(ask_on, port) for _ in range(4)]
            asyncio.run(take_over(thread, port))
        for each in asking:
            codes = each.result()
            assert set(codes) <= {503, 200}
            assert codes[-1] == 200


def test_port_that_stays_in_use_is_left_to_who_takes_over():
    """There is nothing to hand over, and it does not wait for it."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert HealthThread("127.0.0.1", other.getsockname()[1], str).hand_over() == []


def test_host_that_is_none_is_left_to_who_takes_over():
    assert HealthThread("256.256.256.256", 0, str).hand_over() == []
