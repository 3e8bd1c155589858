"""The embedded broker in the place of a RabbitMQ node; a test that asks for more than it has is skipped."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest

from choreo.broker.server.background import EmbeddedBroker
from choreo.testing.rabbitmq import probe
from choreo.testing.rabbitmq.ports import Ports
from tests.waiting import until

VERSION = "4.3.6"  # whose behaviour it has


class _Lacking:
    """What a node has, and this has not."""

    def __getattr__(self, name: str) -> Any:
        pytest.skip(f"the embedded broker has no `{name}` of a node")


@dataclass
class EmbeddedNode(_Lacking):
    """One for many tests, in this process, with a virtual host for each that wants one."""

    broker: EmbeddedBroker
    version = VERSION

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.broker.port}/"

    @property
    def port(self) -> int:
        return self.broker.port

    def ctl(self, command: str, *arguments: str) -> str:
        """Do what rabbitmqctl would."""
        match command:
            case "add_vhost":
                self.broker.call(lambda listener: listener.add_vhost(arguments[0]))
            case "delete_vhost":
                self.broker.call(lambda listener: listener.drop_vhost(arguments[0]))
            case "delete_queue":
                self.broker.call(lambda listener: listener.delete_queue(arguments[0]))
            case "close_all_connections":
                self.broker.call(lambda listener: listener.shut(arguments[-1]))
            case "set_permissions":
                pass
            case _:
                pytest.skip(f"the embedded broker has no rabbitmqctl {command}")
        return ""


class EmbeddedProcess(_Lacking):
    """One of a test's own, in a process that can be killed: `choreo dev --persist` in an empty folder."""

    version = VERSION

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self.port = port
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def start(cls, directory: Path, *, port: int | None = None, **options: Any) -> Self:
        """Start it, with its file in `directory`."""
        if options:
            pytest.skip(f"the embedded broker has no {', '.join(options)} of a node")
        directory.mkdir(exist_ok=True)
        node = cls(directory, port or Ports.choose().amqp)
        node.start_again()
        return node

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start_again(self) -> None:
        command = [sys.executable, "-m", "choreo", "dev", "--port", str(self.port), "--persist", "kept.db"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CHOREO_")}
        environment["PYTHONPATH"] = str(Path(__file__).parents[1])
        with (self.directory / "out").open("ab") as output:
            self._process = subprocess.Popen(command, cwd=self.directory, env=environment, stdout=output, stderr=output)
        until(lambda: probe.accepts(self.port), within=60)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        self.stop()
        self.start_again()

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        os.waitpid(self.pid, os.WUNTRACED)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def flush(self) -> None:
        """What is confirmed is kept already."""

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGCONT)
            self._process.wait(30)
        self._process = None
