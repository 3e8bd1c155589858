"""The health endpoint while there is no event loop yet: agents are imported before one runs, and that may take long."""

from __future__ import annotations

import asyncio
import math
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress

from choreo.errors import ChoreoError
from choreo.observe.health import Health


class HealthThread:
    """Answers `/live` with 200 and `/ready` with 503 and `status()`, in a thread, until somebody takes over.

    A port in use is tried again until then; one that cannot be used at all is left for whoever takes over to say.
    """

    def __init__(self, host: str, port: int, status: Callable[[], str]) -> None:
        self._health = Health(lambda: (True, "alive"), lambda: (False, status()), host, port)
        self._sockets: Future[list[socket.socket]] = Future()
        self._loop = asyncio.SelectorEventLoop()
        self._over = asyncio.Event()
        threading.Thread(target=self._run, name="health", daemon=True).start()

    def hand_over(self) -> list[socket.socket]:
        """Return what it listens on, none if the port was never free; whoever asks from now on is the caller's."""
        self._loop.call_soon_threadsafe(self._over.set)
        return self._sockets.result()

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        listening = asyncio.ensure_future(self._health.start(math.inf))
        over = asyncio.ensure_future(self._over.wait())
        await asyncio.wait((listening, over), return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()
        with suppress(asyncio.CancelledError, ChoreoError):
            await listening
        self._sockets.set_result(self._health.duplicates())
        await over
        # Not closed yet: a client that has been accepted and not handed on is a task, which a closed server fails.
        for descriptor in self._health.descriptors():
            self._loop.remove_reader(descriptor)
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)
        await self._health.stop()
