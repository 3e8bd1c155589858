"""The agents of the demo, each in a process of its own with a log file of its own, and their end."""

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from choreo import ChoreoError
from choreo.testing.rabbitmq.process_group import ProcessGroup

NAMES = ("order", "payment", "inventory", "shipping", "notification")
PATIENCE = 10.0  # seconds for the agents to end when they are asked to


class Process:
    """One agent: `choreo run NAME`, which tells us that it is ready the way it would tell systemd."""

    def __init__(
        self, name: str, folder: Path, group: ProcessGroup, environment: Mapping[str, str], *options: str
    ) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        address = folder / f"{name}.ready"
        self._ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ready.bind(str(address))
        self._ready.settimeout(0)
        command = [sys.executable, "-m", "choreo", "run", name, *options]
        with self.log.open("wb") as output:
            self.child = group.start(command, {**environment, "NOTIFY_SOCKET": str(address)}, output)
        self._lines = self.log.open(encoding="utf-8", errors="replace")

    async def ready(self) -> None:
        """Wait until it consumes. Raises ChoreoError when it ends before that."""
        loop = asyncio.get_running_loop()
        while True:
            with contextlib.suppress(TimeoutError):
                message = await asyncio.wait_for(loop.sock_recv(self._ready, 4096), 0.2)
                if message == b"READY=1":
                    return
            self.check()

    def check(self) -> None:
        """Raise ChoreoError when the process has ended, with what it said last."""
        code = self.child.poll()
        if code is not None:
            last = "\n".join(self.log.read_text(errors="replace").splitlines()[-5:])
            raise ChoreoError(f"the agent {self.name} ended with exit code {code}; its last words:\n{last}")

    def news(self) -> Iterator[dict[str, Any]]:
        """Return the lines that were added to its log since the last time."""
        while True:
            before = self._lines.tell()
            line = self._lines.readline()
            if not line.endswith("\n"):  # the rest of it is still being written
                self._lines.seek(before)
                return
            with contextlib.suppress(ValueError):
                parsed = json.loads(line)
                if isinstance(parsed, dict):
                    yield parsed

    def close(self) -> None:
        """Close our ends of its log and its socket."""
        self._lines.close()
        self._ready.close()


class Processes:
    """All agents. As a context manager it ends them in order; should this process be killed, they are too."""

    def __init__(self, folder: Path, environment: Mapping[str, str], *options: str) -> None:
        self._group = ProcessGroup(folder / "agents.lock")
        self.all = [Process(name, folder, self._group, environment, *options) for name in NAMES]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Ask each by its process id to end, wait, and end by force what is left."""
        deadline = time.monotonic() + PATIENCE
        for process in self.all:
            process.child.terminate()
        for process in self.all:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.child.wait(max(0.0, deadline - time.monotonic()))
            process.close()
        self._group.kill()

    async def ready(self, timeout: float = 20.0) -> None:
        """Wait until all consume. Raises ChoreoError when one ends, or takes longer than `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await asyncio.gather(*(process.ready() for process in self.all))
        except TimeoutError:
            raise ChoreoError(f"not all agents were ready within {timeout:g} s") from None

    def check(self) -> None:
        """Raise ChoreoError when one of them has ended."""
        for process in self.all:
            process.check()

    def news(self) -> Iterator[dict[str, Any]]:
        """Return what was added to all logs since the last time."""
        for process in self.all:
            yield from process.news()
