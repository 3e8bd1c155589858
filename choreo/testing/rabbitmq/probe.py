"""What answers on a port of 127.0.0.1, and whether it is the node that should."""

from __future__ import annotations

import base64
import http.client
import socket
from typing import Any

from pamqp import commands, exceptions, frame

GUEST = {"Authorization": "Basic " + base64.b64encode(b"guest:guest").decode()}


def accepts(port: int) -> bool:
    """Whether something accepts connections on the port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def greeting(port: int) -> dict[str, Any]:
    """The server properties with which an AMQP server greets on the port; empty when none does yet."""
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=2) as stream,
            stream.makefile("rb") as reader,
        ):
            stream.sendall(b"AMQP\x00\x00\x09\x01")
            head = reader.read(7)
            body = reader.read(int.from_bytes(head[3:], "big") + 1)
        start = frame.unmarshal(head + body)[2]
    except (OSError, exceptions.UnmarshalingException):
        return {}
    return dict(start.server_properties) if isinstance(start, commands.Connection.Start) else {}


def manages(port: int) -> bool:
    """Whether the management API on the port answers the default user without an error."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/api/overview", headers=GUEST)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
