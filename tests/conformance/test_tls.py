"""The same session over TLS, against a node with a certificate of a private authority."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from socket import socket

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from choreo.config.broker_url import BrokerUrl
from choreo.errors import ConfigurationError
from choreo.message import Message
from choreo.rabbit import session as rabbit
from choreo.testing.rabbitmq import probe
from choreo.testing.rabbitmq.node import Node
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


async def test_messages_of_any_size_go_both_ways_over_tls(secure: BrokerUrl, namespace: str) -> None:
    session = await rabbit.connect([secure], name="tls")
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


@pytest.mark.parametrize(
    ("name", "age", "hint"),
    [("localhost", 1, "out of date"), ("elsewhere.example", 0, "another name"), ("127.0.0.2", 0, "another name")],
    ids=["expired", "other name", "other address"],
)
async def test_certificate_that_does_not_hold_is_told_with_its_way_out(
    name: str, age: int, hint: str, tmp_path: Path
) -> None:
    authority, now = trustme.CA(), datetime.now(UTC)
    # It is valid from its authority's year 2000 on.
    certificate = authority.issue_cert(name, not_after=now - timedelta(days=1) if age else None)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    host = "127.0.0.1" if name == "127.0.0.2" else "localhost"
    broker = BrokerUrl.parse(f"amqps://guest:guest@{host}:{port}/?cafile={tmp_path}/ca.pem")
    with pytest.raises(ConfigurationError) as caught:
        await rabbit.connect([broker], name="tls")
    assert hint in caught.value.way_out
    server.close()


@pytest.mark.parametrize("what", ["encrypted", "of another certificate"])
async def test_key_that_cannot_be_used_is_told_with_its_way_out(what: str, tmp_path: Path) -> None:
    """Nothing is asked on the terminal, where a service has nobody to answer."""
    one, other = (trustme.CA().issue_cert("localhost") for _ in range(2))
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    one.cert_chain_pems[0].write_to_path(str(certificate))
    other.private_key_pem.write_to_path(str(key))
    if what == "encrypted":
        loaded = serialization.load_pem_private_key(one.private_key_pem.bytes(), None)
        locked = serialization.BestAvailableEncryption(b"s3cret")
        pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        key.write_bytes(loaded.private_bytes(pem, pkcs8, locked))
    broker = BrokerUrl.parse(f"amqps://guest:guest@localhost:1/?certfile={certificate}&keyfile={key}")
    with pytest.raises(ConfigurationError, match=what.replace("of another", "does not belong to the")) as caught:
        await rabbit.connect([broker], name="tls")
    assert ("openssl pkey" if what == "encrypted" else "made together") in caught.value.way_out
