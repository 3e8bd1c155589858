"""An embedded broker in a thread of its own: for `choreo dev`, the demo and tests.

Its loop turns whatever the program around it does: a reaction that blocks, or a debugger that waits, does not keep
other programs from the broker.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from choreo.broker.server.listener import LOOPBACK, PORT, Listener
from choreo.broker.server.store import Store
from choreo.errors import ChoreoError, InternalError

_T = TypeVar("_T")


class EmbeddedBroker:
    """A broker that listens from `start` to `stop`. `port` is where, 0 for any free one until then.

    `version` is what it says of itself. For `hosts`, `anywhere` and `vhosts` see `Listener`; `persist` is the file that
    keeps what is durable; without one, nothing outlasts the end.

    `failed`: done when it had to end by itself, with the ChoreoError that says why.
    """

    def __init__(
        self,
        version: str,
        *,
        port: int = PORT,
        hosts: Sequence[str] = LOOPBACK,
        vhosts: Sequence[str] = ("/",),
        persist: Path | None = None,
        anywhere: bool = False,
    ) -> None:
        self.port = port
        self.failed: Future[ChoreoError] = Future()
        self._version = version
        self._hosts = hosts
        self._vhosts = vhosts
        self._persist = persist
        self._anywhere = anywhere
        self._begun: Future[Listener] = Future()
        self._ending: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="embedded broker", daemon=True)

    @property
    def url(self) -> str:
        """The AMQP URL of it."""
        return f"amqp://127.0.0.1:{self.port}"

    def start(self) -> Self:
        """Return when it listens. Raises ConfigurationError when it cannot."""
        self._thread.start()
        self._begun.result()
        return self

    def stop(self) -> None:
        """End all connections in order, and return when everything is kept. May be called twice."""
        if self._thread.is_alive() and self._ending is not None:
            self._begun.result().loop.call_soon_threadsafe(self._ending.set)
        self._thread.join()

    def call(self, what: Callable[[Listener], _T]) -> _T:
        """Return what `what` returns, called in the broker's thread."""
        done: Future[_T] = Future()
        listener = self._begun.result()

        def run() -> None:
            try:
                done.set_result(what(listener))
            except BaseException as error:  # noqa: BLE001 - it is the caller's
                done.set_exception(error)

        listener.loop.call_soon_threadsafe(run)
        return done.result()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                runner.run(self._serve())
        except BaseException as error:
            if not self._begun.done():
                self._begun.set_exception(error)
                return
            if not self.failed.done():
                self.failed.set_result(InternalError(f"the embedded broker has failed: {error!r}"))
            raise

    async def _serve(self) -> None:
        self._ending = asyncio.Event()
        store = Store(self._persist) if self._persist is not None else None
        listener = Listener(self._version, vhosts=self._vhosts, store=store)
        self.port = await listener.listen(self.port, self._hosts, anywhere=self._anywhere)
        self._begun.set_result(listener)
        ending = asyncio.ensure_future(self._ending.wait())
        await asyncio.wait((ending, listener.failed), return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        await listener.close()
        if listener.failed.done():
            self.failed.set_result(listener.failed.result())


def _loop_factory() -> Callable[[], Any]:
    try:
        from uvloop import new_event_loop
    except ImportError:
        return asyncio.new_event_loop
    return new_event_loop
