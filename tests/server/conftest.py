"""A broker of each test's own, in a thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from choreo.broker.server.background import EmbeddedBroker
from tests.server.peer import Peer


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker("0", port=0) as started:
        yield started


@pytest.fixture
def connect(broker: EmbeddedBroker) -> Iterator[Callable[[], Peer]]:
    """Connects a peer, which has said nothing yet."""
    peers: list[Peer] = []

    def one() -> Peer:
        peers.append(Peer(broker.port))
        return peers[-1]

    yield one
    for peer in peers:
        peer.socket.close()


@pytest.fixture
def peer(connect: Callable[[], Peer]) -> Peer:
    """A peer with channel 1."""
    return connect().open().channel()
