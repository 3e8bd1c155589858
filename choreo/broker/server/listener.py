"""The server: who listens where, the clock that drives the core, and the one flush per turn of the loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import secrets
import time
from collections.abc import Sequence
from typing import Final

from pamqp import commands

from choreo import forks
from choreo.broker.core import AmqpError, Broker
from choreo.broker.server import handshake
from choreo.broker.server.client import Client
from choreo.broker.server.store import Store
from choreo.errors import ChoreoError, ConfigurationError

PORT: Final = 5672
LOOPBACK: Final = ("127.0.0.1", "::1")
LIMIT: Final = 16 * 1024 * 1024  # bytes of a body, as with RabbitMQ
_USER: Final = "guest"
_BACKLOG: Final = 1024
_LAST_WORDS: Final = 1.0  # seconds for the clients to hear that the broker ends


class Listener:
    """An embedded broker that AMQP clients can reach.

    `vhosts` are its virtual hosts. `store` keeps what is durable in the first one of them; without it nothing outlasts
    the end. `version` is choreo's.
    """

    def __init__(self, version: str, *, vhosts: Sequence[str] = ("/",), store: Store | None = None) -> None:
        self.version = version
        self.limit = LIMIT
        self.loop = asyncio.get_running_loop()
        self.clients: set[Client] = set()
        self.brokers: dict[str, Broker] = {}
        self.failed: asyncio.Future[ChoreoError] = self.loop.create_future()  # the disk did
        self._store = store
        self._all_gone = asyncio.Event()
        self._servers: list[asyncio.Server] = []
        self._flushing: list[Client] = []
        self._timer: asyncio.TimerHandle | None = None
        self._due: float | None = None
        for name in vhosts:
            self.add_vhost(name, store if name == vhosts[0] else None)

    def add_vhost(self, name: str, store: Store | None = None) -> None:
        """Add a virtual host, with what `store` kept of it."""
        journal = store.note if store is not None else None
        broker = Broker(time.time(), _name, journal=journal, vhost=name, limit=self.limit)
        if store is not None:
            broker.restore(store.kept())
        self.brokers[name] = broker

    def drop_vhost(self, name: str) -> None:
        """Remove a virtual host; who is connected to it keeps what it has until it goes."""
        self.brokers.pop(name, None)

    def delete_queue(self, name: str) -> None:
        """Delete a queue of the first virtual host, whoever uses it. Raises AmqpError 404."""
        broker = next(iter(self.brokers.values()))
        broker.drop_queue(broker.queue(name))

    async def listen(self, port: int = PORT, hosts: Sequence[str] = LOOPBACK, *, anywhere: bool = False) -> int:
        """Listen on `port` of `hosts`, 0 for any free one; return the port.

        Raises ConfigurationError when the port is in use, and for a host beyond loopback unless `anywhere`.
        """
        for host in hosts:
            if not (anywhere or _is_loopback(host)):
                raise ConfigurationError(
                    f"the embedded broker does not listen on {host}: it knows one user, guest, with a known password",
                    "use 127.0.0.1; other machines need a RabbitMQ",
                )
        for host in hosts:
            try:
                server = await self.loop.create_server(lambda: Client(self), host, port, backlog=_BACKLOG)
            except OSError as error:
                if self._servers and error.errno == errno.EADDRNOTAVAIL:  # no IPv6 on this machine
                    continue
                await self.close()
                raise _not_listening(error, host, port) from None
            self._servers.append(server)
            for each in server.sockets:
                forks.keep_private(each.fileno())
            port = server.sockets[0].getsockname()[1]
        self._set_timer()
        return port

    async def close(self) -> None:
        """End all connections in order, then keep what is to be kept."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        self.shut("shutdown")
        if self.clients:
            self._all_gone.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_gone.wait(), _LAST_WORDS)
        for client in tuple(self.clients):
            client.abort()
        await asyncio.sleep(0)
        if self._timer is not None:
            self._timer.cancel()
        if self._store is not None:
            (self._store.abandon if self.failed.done() else self._store.close)()

    def shut(self, reason: str) -> None:
        """End all connections, and tell them why."""
        for client in tuple(self.clients):
            client.shut(reason)

    # -- for the clients ------------------------------------------------------------------------------------------

    def joined(self, client: Client) -> None:
        """Take note of a client."""
        self.clients.add(client)

    def left(self, client: Client) -> None:
        """Forget a client that is gone."""
        self.clients.discard(client)
        if not self.clients:
            self._all_gone.set()

    def authenticate(self, answer: commands.Connection.StartOk) -> str:
        """Return the user. Raises AmqpError 403."""
        user, password = handshake.login(answer)
        if (user, password) != (_USER, _USER):
            raise handshake.refused(answer.mechanism)
        return user

    def vhost(self, name: str) -> Broker:
        """Return a virtual host. Raises AmqpError 530."""
        if name not in self.brokers:
            raise AmqpError(530, f"vhost {name} not found", (10, 40))
        return self.brokers[name]

    def advance(self) -> None:
        """Tell the core what time it is."""
        now = time.time()
        for broker in self.brokers.values():
            broker.advance(now)

    def flush_soon(self, client: Client) -> None:
        """Call `flush` of `client`, once, when the loop has turned and what is to be kept is kept."""
        if not self._flushing:
            self.loop.call_soon(self._flush)
        self._flushing.append(client)

    def _flush(self) -> None:
        flushing, self._flushing = self._flushing, []
        # Before the first confirm: a crash after it must find every message that a client knows to be stored.
        if not self._commit():
            return
        for client in flushing:
            client.flush()
        self._set_timer()

    # -- time -----------------------------------------------------------------------------------------------------

    def _set_timer(self) -> None:
        due = min((at for broker in self.brokers.values() if (at := broker.next_due()) is not None), default=None)
        if due == self._due and self._timer is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._due = due
        self._timer = None if due is None else self.loop.call_later(max(0.0, due - time.time()), self._is_due)

    def _is_due(self) -> None:
        self._timer = None
        self.advance()
        if self._flushing or self._commit():
            self._set_timer()

    # -- the disk -------------------------------------------------------------------------------------------------

    def _commit(self) -> bool:
        """Make what was noted last. When the disk fails, nobody hears anything more: nothing is confirmed then."""
        if self._store is None:
            return True
        try:
            self._store.commit()
        except ConfigurationError as error:
            if not self.failed.done():
                self.failed.set_result(error)
            for client in tuple(self.clients):
                client.abort()
            return False
        return True


def _name() -> str:
    return secrets.token_urlsafe(16)


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _not_listening(error: OSError, host: str, port: int) -> ConfigurationError:
    if error.errno == errno.EADDRINUSE:
        return ConfigurationError(
            f"port {port} on {host} is in use",
            f"end what listens there; or --port 0 takes a free one; or use it as the broker: --url amqp://{host}:{port}",
        )
    if error.errno == errno.EACCES:
        return ConfigurationError(f"port {port} on {host} is not for everybody", "choose one above 1023")
    reason = os.strerror(error.errno) if error.errno else str(error)
    return ConfigurationError(f"nothing can listen on {host}, port {port}: {reason}", "choose another")
