"""`choreo publish`: what arrives in the broker, what is printed, and that bad input sends nothing."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from choreo.config.broker_url import BrokerUrl
from choreo.message import Message
from choreo.rabbit.session import connect
from choreo.testing.rabbitmq.node import Node
from choreo.testing.rabbitmq.ports import Ports
from choreo.topology import Binding, Exchange, Names, Queue, Topology, schedule_key
from choreo.transport import Confirmed, Delivery
from tests.conftest import Running, environment

Run = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., Running]

EVENTS = """
from decimal import Decimal
from pydantic import BaseModel
from choreo import Event

class Address(BaseModel):
    city: str
    street: str = ""

class OrderPlaced(Event, topic="order.placed", version=2, external=True):
    order: str
    total: Decimal
    address: Address | None = None
    note: str = ""

class OrderClosed(Event, topic="order.closed", terminal=True):
    order: str
"""
DESK = '''
"""The desk closes orders."""
from choreo import Agent
from agents.events import OrderClosed, OrderPlaced

agent = Agent("desk")

@agent.on
async def close(placed: OrderPlaced) -> OrderClosed:
    return OrderClosed(order=placed.order)
'''
ORDER = '{"order": "1001", "total": "42.00"}'
END = "the.end"


class Listener:
    """A queue that hears every event of a namespace, at once and after a delay."""

    def __init__(self, url: str, namespace: str, arguments: Mapping[str, Any] | None = None) -> None:
        self._url = url
        self.names = names = Names(namespace)
        self._queue = names.queue("listener")
        queue = Queue(self._queue, "work", "listener", {"x-queue-type": "classic", **(arguments or {})})
        binding = Binding(names.events, self._queue, "#")
        self.declare(Topology((Exchange(names.events, "topic"),), (queue,), (binding,)))

    def declare(self, topology: Topology) -> None:
        asyncio.run(_declare(self._url, topology))

    def heard(self, *, count: int | None = None, timeout: float = 20.0) -> list[Delivery]:
        """What has arrived so far, by an event of our own behind all others; with `count`, the first so many."""
        return asyncio.run(self._heard(count, timeout))

    def bodies(self, **options: Any) -> list[Any]:
        return [json.loads(each.message.body) for each in self.heard(**options)]

    async def _heard(self, count: int | None, timeout: float) -> list[Delivery]:
        session = await connect(BrokerUrl.parse_all(self._url), name="listener")
        try:
            if count is None:
                sent = await session.publish(
                    Message(b"{}", message_id=END), exchange=self.names.events, routing_key=END, timeout=10
                )
                assert sent == Confirmed()
            arrived: asyncio.Queue[Delivery] = asyncio.Queue()
            consumer = await session.consume(self._queue, prefetch=1000, on_delivery=arrived.put_nowait)
            heard: list[Delivery] = []
            async with asyncio.timeout(timeout):
                while len(heard) != count:
                    delivery = await arrived.get()
                    consumer.acknowledge(delivery)
                    if delivery.routing_key == END:
                        break
                    heard.append(delivery)
            return heard
        finally:
            await session.close()


@pytest.fixture
def listener(broker_url: str, namespace: str) -> Listener:
    return Listener(broker_url, namespace)


@pytest.fixture
def shop(project: Path) -> Path:
    """A project with one agent, `desk`, and its events."""
    (project / "agents" / "events.py").write_text(EVENTS)
    (project / "agents" / "desk.py").write_text(DESK)
    return project


@pytest.fixture
def env(broker_url: str, namespace: str) -> dict[str, str]:
    return {"CHOREO_URL": broker_url, "CHOREO_NAMESPACE": namespace}


@pytest.fixture
def publish(choreo: Run, shop: Path, env: dict[str, str]) -> Run:
    """Runs `choreo publish` in the shop."""

    def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return choreo("publish", *arguments, env=env | options.pop("env", {}), **options)

    return run


@pytest.fixture
def offline(choreo: Run, shop: Path) -> Run:
    """Runs `choreo publish` in the shop, with nobody at its URL: what does not end with 69 has asked nobody."""
    env = {"CHOREO_URL": f"amqp://alice:sesame@127.0.0.1:{Ports.choose().amqp}/", "CHOREO_MAX_BODY": "5000"}

    def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return choreo("publish", *arguments, env=env | options.pop("env", {}), **options)

    return run


def failed(result: subprocess.CompletedProcess[str], code: int, *texts: str) -> None:
    """One clear message on stderr with these texts, the exit code, no traceback, no data."""
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr.count("choreo: ") == 1
    assert len(result.stderr.splitlines()) <= 2
    for text in texts:
        assert text in result.stderr


def test_event_arrives_with_its_envelope(publish: Run, listener: Listener):
    """The body is the event and nothing else; who it is and what it belongs to stands in headers."""
    result = publish("order.placed", '{"order": "1001", "total": 42}', "--correlation-id", "c-7")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    topic, event_id = result.stdout.split()
    (delivery,) = listener.heard()
    message = delivery.message
    assert (delivery.exchange, delivery.routing_key, topic) == (listener.names.events, "order.placed", "order.placed")
    assert json.loads(message.body) == {"order": "1001", "total": "42", "address": None, "note": ""}
    assert (message.message_id, message.correlation_id, message.content_type) == (event_id, "c-7", "application/json")
    headers = dict(message.headers)
    assert headers.pop("ce-time")
    assert headers == {
        "ce-specversion": "1.0",
        "ce-id": event_id,
        "ce-source": "choreo-publish",
        "ce-type": "order.placed",
        "ce-dataschema": "urn:choreo:order.placed:2",
        "choreo-version": 2,
        "choreo-correlation": "c-7",
    }


def test_name_of_the_class_stands_for_the_topic(publish: Run, listener: Listener):
    assert publish("OrderPlaced", ORDER).stdout.startswith("order.placed ")
    assert [each.routing_key for each in listener.heard()] == ["order.placed"]


def test_json_output(publish: Run, listener: Listener):
    """An array of receipts, and a line for each; what they name is what arrived."""
    array = json.loads(publish("order.placed", ORDER, "--count", "2", "--output", "json").stdout)
    lines = publish("order.placed", ORDER, "--id", "e-1", "--output", "jsonl").stdout.splitlines()
    assert [json.loads(line) for line in lines] == [{"id": "e-1", "correlation_id": "e-1", "topic": "order.placed"}]
    assert [each.message.message_id for each in listener.heard()] == [*(each["id"] for each in array), "e-1"]


PRINTING = """
import os, subprocess, sys
from pydantic import field_validator
print("print")
sys.stdout.write("write\\n")
os.write(1, b"descriptor\\n")
subprocess.run(["echo", "child"])
"""


def test_what_a_module_prints_stays_off_the_data(choreo: Run, shop: Path, env: dict[str, str], listener: Listener):
    """While it is imported, and later from a validator: all of it is on stderr, and stdout is what was asked for."""
    check = "    @field_validator('note')\n    def said(cls, note): print('validator'); return note\n"
    events = EVENTS.replace('    note: str = ""\n', f'    note: str = ""\n{check}')
    (shop / "agents" / "events.py").write_text(PRINTING + events)
    done = choreo("publish", "order.placed", '{"order": "1", "total": 1, "note": "x"}', "-o", "json", env=env)
    assert done.returncode == 0, done.stderr
    assert [each["topic"] for each in json.loads(done.stdout)] == ["order.placed"]
    for word in ("print", "write", "descriptor", "child", "validator"):
        assert f"{word}\n" in done.stderr
    for command in ("check", "graph"):
        done = choreo(command, *(("-o", "json") if command == "check" else ("-f", "json")), env=env)
        assert json.loads(done.stdout)
        assert "child\n" in done.stderr


@pytest.mark.parametrize("way", ["closed pipe", "full disk"])
def test_receipts_that_cannot_be_written_end_it_with_an_account(
    way: str, shop: Path, env: dict[str, str], listener: Listener
):
    """3, how many are confirmed and which were not sent: what was sent must not be sent again."""
    reader, writer = os.pipe()
    os.close(reader)
    if way == "full disk":
        os.close(writer)
        writer = os.open("/dev/full", os.O_WRONLY)
    (shop / "orders").write_text(f"{ORDER}\n" * 5000)
    done = subprocess.run(
        [sys.executable, "-m", "choreo", "publish", "order.placed", "@orders", "--lines"],
        cwd=shop,
        env=environment(env),
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(writer)
    assert done.returncode == 3, done.stderr
    found = re.search(
        r"choreo: (\d+) of 5000 events confirmed, (\d+) not sent; the first failure: line 1: (.*); the first (\d+) are",
        done.stderr,
    )
    assert found, done.stderr
    assert len(done.stderr.splitlines()) == 2
    sent = int(found[1])
    assert (sent + int(found[2]), found[4]) == (5000, found[1])
    assert ("No space left" if way == "full disk" else "the reader of stdout has closed it") in found[3]
    assert len(listener.heard()) == sent


def test_fields_are_set(publish: Run, listener: Listener):
    """Dots lead inwards, JSON is read as JSON, and a number where the event wants a text is one."""
    result = publish(
        *("order.placed", '{"order": "9", "total": 1}', "--set", "order=0042", "--set", "total=42.5"),
        *("--set", "address.city=Berlin", "--set", "note=007", "--set", 'address={"city": "Bonn", "street": "A"}'),
        *("--set", "address.city=Köln"),
    )
    assert result.returncode == 0, result.stderr
    assert publish("order.placed", "--set", "order=1001", "--set", "total=42.00", "--set", "note=null").returncode == 65
    assert listener.bodies() == [
        {"order": "0042", "total": "42.5", "address": {"city": "Köln", "street": "A"}, "note": "007"}
    ]
    assert publish("order.placed", "--set", "order=1001", "--set", "total=42.00").returncode == 0
    assert listener.bodies() == [{"order": "1001", "total": "42", "address": None, "note": ""}]


def test_stdin_and_file(publish: Run, listener: Listener, shop: Path):
    (shop / "order.json").write_text(f"\n{ORDER}\n")
    assert publish("order.placed", "-", stdin=ORDER).returncode == 0
    assert publish("order.placed", "@order.json").returncode == 0
    assert [body["order"] for body in listener.bodies()] == ["1001", "1001"]


def test_lines(publish: Run, listener: Listener, shop: Path):
    """One event per line, in their order; blank lines mean nothing. Without DATA they come from stdin."""
    lines = "".join(f'{{"order": "{number}", "total": 1}}\r\n\n' for number in range(1200))
    (shop / "orders.jsonl").write_text(lines)
    result = publish("order.placed", "@orders.jsonl", "--lines", "--set", "note=file")
    assert result.returncode == 0, result.stderr
    assert result.stderr == "1200 of 1200 events confirmed\n"
    heard = listener.heard()
    assert [json.loads(each.message.body)["order"] for each in heard] == [str(number) for number in range(1200)]
    assert [line.split()[1] for line in result.stdout.splitlines()] == [each.message.message_id for each in heard]
    assert publish("order.placed", "--lines", stdin=lines[:100]).returncode == 65
    assert publish("order.placed", "--lines", stdin=ORDER).returncode == 0
    assert [body["order"] for body in listener.bodies()] == ["1001"]


def test_copies_have_ids_of_their_own(publish: Run, listener: Listener):
    assert publish("order.placed", ORDER, "--count", "3", "--correlation-id", "c").returncode == 0
    heard = listener.heard()
    assert len({each.message.message_id for each in heard}) == 3
    assert {each.message.headers["choreo-correlation"] for each in heard} == {"c"}


def test_rate(publish: Run, listener: Listener):
    """Event n leaves n intervals after the first."""
    result = publish("order.placed", ORDER, "--count", "6", "--rate", "10", "--output", "jsonl")
    assert result.returncode == 0, result.stderr
    times = [datetime.fromisoformat(each.message.headers["ce-time"]) for each in listener.heard()]
    assert len(times) == 6
    assert (times[-1] - times[0]).total_seconds() >= 0.45


def test_delay(publish: Run, listener: Listener):
    """A delayed event waits in the delays, and is there what it would have been without."""
    names = listener.names
    listener.declare(Topology.of([], names.namespace))
    listener.declare(Topology((), (), (Binding(names.retry, names.queue("listener"), "#"),)))
    assert publish("order.placed", ORDER, "--delay", "500ms", "--id", "later").returncode == 0
    (delivery,) = listener.heard(count=1)
    sent = datetime.fromisoformat(delivery.message.headers["ce-time"])
    assert (datetime.now(UTC) - sent).total_seconds() >= 1
    assert delivery.routing_key == schedule_key("order.placed", 1)
    assert (delivery.message.message_id, delivery.message.type) == ("later", "order.placed")


def test_dry_run(offline: Run):
    """Shows what would be sent, and needs no broker for it."""
    result = offline("order.placed", ORDER, "--dry-run", "--delay", "5m", "--output", "json")
    assert result.returncode == 0, result.stderr
    (plan,) = json.loads(result.stdout)
    assert plan["body"] == {"order": "1001", "total": "42.00", "address": None, "note": ""}
    assert (plan["topic"], plan["delay"], plan["headers"]["ce-id"]) == ("order.placed", 300, plan["id"])
    text = offline("order.placed", ORDER, "--dry-run")
    assert "ce-type: order.placed" in text.stdout
    assert '"total":"42.00"' in text.stdout
    failed(offline("order.placed", "{}", "--dry-run"), 65, "order: Field required")


def test_raw(choreo: Run, env: dict[str, str], listener: Listener, tmp_path: Path):
    """Any JSON to any topic, without agents; bytes go out as they came."""
    result = choreo("publish", "some.thing", '[1.50, {"a": "ä"}]', "--raw", cwd=tmp_path, env=env)
    assert result.returncode == 0, result.stderr
    (delivery,) = listener.heard()
    assert delivery.message.body.decode() == '[1.50, {"a": "ä"}]'
    assert delivery.message.headers["ce-type"] == "some.thing"
    assert "ce-dataschema" not in delivery.message.headers
    failed(choreo("publish", "some.thing", "[", "--raw", cwd=tmp_path, env=env), 65, "not JSON")
    failed(choreo("publish", "some thing", "[]", "--raw", cwd=tmp_path, env=env), 2, "'some thing' is not a topic")
    assert listener.heard() == []


BAD = {
    "no JSON": (('{"order": 1',), 65, ["the body is not JSON", "nothing was sent"]),
    "NaN": (('{"order": "1", "total": NaN}',), 65, ["NaN"]),
    "key twice": (('{"order": "1", "order": "2", "total": 1}',), 65, ["'order' twice"]),
    "too deep": (("[" * 2000 + "]" * 2000,), 65, ["body"]),
    "not UTF-8": (('{"order": "\udcff", "total": 1}',), 65, ["not UTF-8"]),
    "no object": (("[]",), 65, ["not a valid OrderPlaced (order.placed)", "object"]),
    "wrong type": (('{"order": "1", "total": "much"}',), 65, ["total: Input should be a valid decimal"]),
    "field missing": (('{"order": "1"}',), 65, ["total: Field required", "fields of OrderPlaced: order, total"]),
    "field misspelt": (('{"order": "1", "totl": 1}',), 65, ["'totl' is not a field", "did you mean total?"]),
    "field unknown": (('{"order": "1", "total": 1, "nots": ""}',), 65, ["'nots' is not a field", "did you mean note?"]),
    "inner field": (
        ('{"order": "1", "total": 1, "address": {"city": "B", "stret": ""}}',),
        65,
        ["'address.stret' is not a field of Address", "did you mean address.street?"],
    ),
    "empty argument": (("",), 65, ["the event is empty"]),
    "empty stdin": (("-",), 65, ["stdin is empty"]),
    "no lines": (("-", "--lines"), 65, ["stdin is empty"]),
    "too large": ((json.dumps({"order": "1", "total": 1, "note": "x" * 6000}),), 65, ["more than 5000 bytes"]),
    "no such file": (("@none.json",), 2, ["'none.json' cannot be read: No such file or directory"]),
    "an unreadable file": (("@/proc/self/mem",), 2, ["'/proc/self/mem' cannot be read: "]),  # even for root
    "a folder": (("@agents",), 2, ["'agents' cannot be read: Is a directory"]),
    "no file named": (("@",), 2, ["names no file"]),
    "field through a text": ((ORDER, "--set", "order.x=1"), 65, ["--set order.x: order is not a JSON object"]),
    "set without =": (("--set", "total"), 2, ["--set 'total' is not field=value"]),
    "set without field": (("--set", "=1"), 2, ["is not field=value"]),
    "infinity": ((ORDER, "--set", "total=1e999"), 65, ["number"]),
    "rate 0": ((ORDER, "--rate", "0"), 2, ["--rate '0' is not allowed"]),
    "rate nan": ((ORDER, "--rate", "nan"), 2, ["--rate 'nan' is not allowed"]),
    "no delay": ((ORDER, "--delay", "soon"), 2, ["--delay", "'soon' is not allowed"]),
    "delay of a month": ((ORDER, "--delay", "30d"), 2, ["--delay '30d' is not allowed", "12d"]),
    "a file without @": (("nofile", "--lines"), 2, ["'nofile' is neither JSON nor a file", "@nofile"]),
    "a file without @ or --lines": (("order.json",), 2, ["'order.json' is neither JSON nor a file", "@order.json"]),
    "a field without --set": (("order=1001",), 2, ["'order=1001' is not JSON", "--set order=1001"]),
    "empty id": ((ORDER, "--id", ""), 2, ["--id '' is not an id"]),
    "long id": ((ORDER, "--correlation-id", "ä" * 128), 2, ["--correlation-id", "255 bytes"]),
    "one id for many": ((ORDER, "--id", "a", "--count", "2"), 2, ["--id is for one event"]),
}


@pytest.mark.parametrize(("arguments", "code", "texts"), BAD.values(), ids=BAD)
def test_bad_input(offline: Run, arguments: tuple[str, ...], code: int, texts: list[str]):
    """One clear message, the right exit code, and nothing sent: the broker, which is not there, was not even asked."""
    failed(offline("order.placed", *arguments), code, *texts)


@pytest.mark.parametrize("option", [("--count", "0"), ("--count", "x"), ("--rate", "fast"), ("--output", "xml")])
def test_option_of_the_wrong_kind(offline: Run, option: tuple[str, str]):
    result = offline("order.placed", ORDER, *option)
    assert result.returncode == 2
    assert option[0] in result.stderr
    assert "Traceback" not in result.stderr


def test_one_bad_line_sends_nothing(publish: Run, listener: Listener, shop: Path):
    """The line is named; those before it were checked only."""
    good = [f'{{"order": "{number}", "total": 1}}\n' for number in range(1000)]
    bad = '{"order": "1000", "total": "much"}\n'
    (shop / "orders.jsonl").write_text("".join([*good, bad]))
    failed(
        publish("order.placed", "@orders.jsonl", "--lines"), 65, "line 1001 of orders.jsonl", "total: Input should be"
    )
    failed(publish("order.placed", "-", "--lines", stdin="\n".join([*good, bad])), 65, "line 2001 of stdin", "total")
    long = f'{{"order": "{"x" * 2000}", "total": 1}}\n'
    result = publish("order.placed", "--lines", stdin=good[0] + long, env={"CHOREO_MAX_BODY": "2000"})
    failed(result, 65, "line 2 of stdin has more than 2000 bytes")
    assert listener.heard() == []


def test_unknown_topic(offline: Run):
    failed(offline("order.plcaed", ORDER), 2, "'order.plcaed'", "did you mean order.placed?", "order.closed", "--raw")


def test_without_agents_folder(offline: Run, tmp_path: Path):
    failed(offline("order.placed", ORDER, cwd=tmp_path), 78, "there is no agents folder")


def test_module_with_a_wrong_declaration(offline: Run, shop: Path):
    """A wrong declaration is one clear message; a bug of the user's own shows its traceback."""
    (shop / "agents" / "more.py").write_text(
        "from choreo import Event\nclass Twice(Event, topic='order.placed'): ...\n"
    )
    desk = shop / "agents" / "desk.py"
    desk.write_text(f"import agents.more\n{DESK}")
    failed(offline("order.placed", ORDER), 78, "'order.placed'", "another topic")
    desk.write_text(f"{DESK}\n1 / 0\n")
    result = offline("order.placed", ORDER)
    assert result.returncode == 78
    assert "agents/desk.py" in result.stderr
    assert "ZeroDivisionError" in result.stderr


def test_nobody_listens(publish: Run, broker_url: str, namespace: str):
    """An event that no queue takes is refused, and is not stored."""
    exchange = Exchange(Names(namespace).events, "topic")
    asyncio.run(_declare(broker_url, Topology((exchange,), (), ())))
    failed(publish("order.placed", ORDER), 1, "no agent listens to 'order.placed'", "choreo run")
    failed(
        publish("order.closed", '{"order": "1"}'), 1, "no agent listens to 'order.closed'", "it is declared terminal"
    )
    failed(
        publish("order.placed", ORDER, "--count", "3"),
        1,
        "0 of 3 events confirmed, 1 refused, 2 not sent",
        "choreo run",
    )


@pytest.mark.parametrize("options", [(), ("--delay", "1s")], ids=["now", "later"])
def test_no_agent_has_ever_run(publish: Run, options: tuple[str, ...]):
    """Where not even the exchange exists, nobody listens either: refused, and not unknown."""
    failed(publish("order.placed", ORDER, *options), 1, "no agent listens", "choreo run")


def test_queue_that_is_full(publish: Run, broker_url: str, namespace: str):
    """Some are stored and some are not: exit code 3, and the counts. What is printed is what is stored."""
    listener = Listener(broker_url, namespace, {"x-max-length": 5, "x-overflow": "reject-publish"})
    result = publish("order.placed", ORDER, "--count", "50")
    assert result.returncode == 3, result.stderr
    assert re.search(r"5 of 50 events confirmed, 4\d unknown", result.stderr)
    assert "may or may not be stored" in result.stderr
    printed = [line.split()[1] for line in result.stdout.splitlines()]
    assert [each.message.message_id for each in listener.heard(count=5)] == printed


def test_broker_down(offline: Run):
    begun = time.monotonic()
    result = offline("order.placed", ORDER)
    failed(result, 69, "no broker can be reached at 127.0.0.1:", "CHOREO_URL")
    assert "sesame" not in result.stderr
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("option", [False, True], ids=["CHOREO_URL", "--url"])
def test_wrong_password(publish: Run, node: Node, option: bool):
    url = f"amqp://guest:sesame@127.0.0.1:{node.port}"
    result = publish("order.placed", ORDER, *(("--url", url) if option else ()), env={"CHOREO_URL": url})
    assert result.returncode == 78
    assert "refused the user 'guest' or its password" in result.stderr
    assert "Traceback" not in result.stderr
    assert "sesame" not in result.stderr


def test_wrong_vhost(publish: Run, broker_url: str):
    failed(publish("order.placed", ORDER, env={"CHOREO_URL": f"{broker_url}nowhere"}), 78, "virtual host 'nowhere'")


def test_url_that_cannot_be_used(offline: Run):
    result = offline("order.placed", ORDER, env={"CHOREO_URL": "http://alice:sesame@host"})
    failed(result, 78, "CHOREO_URL")
    assert "sesame" not in result.stderr


def test_interrupted(start_choreo: Start, shop: Path, env: dict[str, str], listener: Listener):
    """Ctrl-C sends nothing more, waits for answers, and says how far it came."""
    running = start_choreo("publish", "order.placed", ORDER, "--count", "100000", "--rate", "100", env=env)
    running.wait_for("order.placed", times=5)
    running.send(signal.SIGINT)
    assert running.wait() == 130, running.output
    printed = [line.split()[1] for line in running.stdout]
    assert any(f"interrupted; {len(printed)} of 100000 events confirmed" in line for line in running.stderr)
    assert "Traceback" not in running.output
    assert [each.message.message_id for each in listener.heard()] == printed


def test_broker_killed(start_choreo: Start, shop: Path, fresh_node: Node, namespace: str):
    """The broker dies under it: it ends, with the counts and without a traceback."""
    env = {"CHOREO_URL": fresh_node.url, "CHOREO_NAMESPACE": namespace}
    Listener(fresh_node.url, namespace)
    running = start_choreo("publish", "order.placed", ORDER, "--count", "100000", "--rate", "200", env=env)
    running.wait_for("order.placed", times=5)
    fresh_node.kill()
    assert running.wait(60) == 3, running.output
    assert any(f"{len(running.stdout)} of 100000 events confirmed" in line for line in running.stderr)
    assert "Traceback" not in running.output


def test_progress_on_a_terminal(shop: Path, env: dict[str, str], listener: Listener):
    """Long work shows on the terminal how far it is, and keeps off the data."""
    main, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "choreo", "publish", "order.placed", ORDER, "--count", "500", "--rate", "1000"],
        cwd=shop,
        env=environment(env | {"TERM": "xterm"}),
        stdout=subprocess.PIPE,
        stderr=terminal,
    )
    os.close(terminal)
    shown = bytearray()
    with suppress(OSError):  # how a terminal says that the other side is gone
        while chunk := os.read(main, 4096):
            shown += chunk
    os.close(main)
    data = process.communicate(timeout=20)[0]
    assert process.returncode == 0, shown
    assert b"/500" in shown
    assert b"500 of 500 events confirmed" in shown
    assert [line.split()[1] for line in data.decode().splitlines()] == [
        each.message.message_id for each in listener.heard()
    ]


def test_reader_that_has_read_enough(shop: Path, env: dict[str, str], listener: Listener):
    """`choreo publish ... | head -1` ends quietly."""
    command = f"{sys.executable} -m choreo publish order.placed '{ORDER}' --count 5000 | head -1"
    result = subprocess.run(
        command, shell=True, cwd=shop, env=environment(env), capture_output=True, text=True, timeout=60, check=False
    )
    assert result.stdout.startswith("order.placed ")
    assert "Traceback" not in result.stderr


async def _declare(url: str, topology: Topology) -> None:
    session = await connect(BrokerUrl.parse_all(url), name="test")
    await session.declare(topology)
    await session.close()
