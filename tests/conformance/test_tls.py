"""The same session over TLS, against a node with a certificate of a private authority."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from socket import socket

import pytest
import trustme

from choreo.broker_url import BrokerUrl
from choreo.errors import ConfigurationError
from choreo.message import Message
from choreo.rabbit import probe
from choreo.rabbit import session as rabbit
from choreo.rabbit.node import Node
from choreo.topology import Binding, Exchange, Queue, Topology
from choreo.transport import Confirmed, Delivery
from tests.conftest import ROOT
from tests.waiting import eventually, until


@pytest.fixture(scope="module")
def secure(new_node: Callable[..., Node], tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerUrl]:
    """The address of a node that speaks TLS, and trust in its authority."""
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    certificate.private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    inside = Path("/mnt") if ROOT else folder  # where the node sees its folder
    config = [
        f"listeners.ssl.default = 127.0.0.1:{port}",
        f"ssl_options.cacertfile = {inside}/ca.pem",
        f"ssl_options.certfile = {inside}/server.pem",
        f"ssl_options.keyfile = {inside}/server.pem",
    ]
    node = new_node(folder, config=config)
    until(lambda: probe.accepts(port))  # it opens after the plain one
    yield BrokerUrl.parse(f"amqps://guest:guest@localhost:{port}/?cafile={folder}/ca.pem")
    node.kill()


@pytest.mark.parametrize("fast", [True, False], ids=["lane", "plain"])
async def test_messages_of_any_size_go_both_ways_over_tls(secure: BrokerUrl, namespace: str, fast: bool) -> None:
    session = await rabbit.connect([secure], name="tls", fast=fast)
    got: list[Delivery] = []
    exchange, queue = f"{namespace}.events", f"{namespace}.box"
    await session.declare(
        Topology(
            (Exchange(exchange, "topic"),),
            (Queue(queue, "work", "box", {"x-queue-type": "quorum"}),),
            (Binding(exchange, queue, "here"),),
        )
    )
    consumer = await session.consume(queue, prefetch=10, on_delivery=got.append)
    bodies = [b"", b"x", b"y" * 1_000_000]
    for body in bodies:
        answer = await session.publish(Message(body), exchange=exchange, routing_key="here", timeout=10)
        assert answer == Confirmed()
    await eventually(lambda: len(got) == len(bodies))
    assert [each.message.body for each in got] == bodies
    for each in got:
        consumer.acknowledge(each)
    await session.close()


async def test_authority_that_is_not_trusted_is_named(secure: BrokerUrl) -> None:
    untrusted = BrokerUrl.parse(f"amqps://guest:guest@localhost:{secure.port}/")
    with pytest.raises(ConfigurationError, match="certificate"):
        await rabbit.connect([untrusted], name="tls")
