"""The notifier against real datagram sockets, as systemd would hold them."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from choreo.observe.systemd import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A socket that listens as systemd does, and the NOTIFY_SOCKET that names it."""
    if request.param == "path":
        name = address = str(tmp_path / "notify")
    else:
        name = f"@choreo-test-{os.getpid()}"
        address = "\0" + name[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address)
        listener.settimeout(5)
        yield listener, name


def test_sends_each_state(manager: tuple[socket.socket, str]):
    """Every notification is one datagram with one assignment."""
    listener, name = manager
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": name})

    notifier.ready()
    notifier.status("consuming order, payment")
    notifier.watchdog()
    notifier.stopping()

    received = [listener.recv(4096) for _ in range(4)]
    assert received == [b"READY=1", b"STATUS=consuming order, payment", b"WATCHDOG=1", b"STOPPING=1"]


def test_status_is_one_bounded_line_without_a_password(manager: tuple[socket.socket, str]):
    """A broker's text cannot smuggle a second assignment, a password or a datagram of any size."""
    listener, name = manager

    Notifier.from_environment({"NOTIFY_SOCKET": name}).status(
        "lost amqp://choreo:secret@rabbit\nMAINPID=1 " + "x" * 10_000
    )

    received = listener.recv(65_536)
    assert received.startswith(b"STATUS=lost amqp://choreo:***@rabbit MAINPID=1 xxx")
    assert b"\n" not in received
    assert len(received) <= 510


def test_a_socket_that_is_gone_does_no_harm(tmp_path: Path):
    """A manager that went away is no reason for the work to stop."""
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(address))
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": "2000000"})

    notifier.ready()
    address.unlink()
    notifier.watchdog()


def test_a_manager_that_does_not_read_holds_nobody_up(tmp_path: Path):
    """A full queue of datagrams delays the caller briefly and loses the notification."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as crowd:
            crowd.setblocking(False)
            crowd.connect(str(tmp_path / "notify"))
            with contextlib.suppress(BlockingIOError):
                while crowd.send(b"STATUS=full"):
                    pass
            Notifier.from_environment({"NOTIFY_SOCKET": str(tmp_path / "notify")}).watchdog()


@pytest.mark.parametrize(
    "environment",
    [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1234"}, {"NOTIFY_SOCKET": "relative/path"}],
)
def test_without_a_usable_socket_it_does_nothing(environment: dict[str, str]):
    """Outside systemd there is nobody to notify, and no watchdog to serve."""
    notifier = Notifier.from_environment(environment | {"WATCHDOG_USEC": "30000000"})

    notifier.ready()
    notifier.stopping()
    notifier.status("any")
    notifier.watchdog()

    assert notifier.watchdog_interval is None


@pytest.mark.parametrize(
    ("environment", "interval"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getppid())}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_watchdog_interval(environment: dict[str, str], interval: float | None):
    """Half of what systemd allows, and only for the process that it watches."""
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": "/run/notify"} | environment)

    assert notifier.watchdog_interval == interval


def test_reads_this_process_environment(manager: tuple[socket.socket, str], monkeypatch: pytest.MonkeyPatch):
    """Without an argument the environment of the process counts."""
    listener, name = manager
    monkeypatch.setenv("NOTIFY_SOCKET", name)

    Notifier.from_environment().ready()

    assert listener.recv(4096) == b"READY=1"
