"""One tour through AMQP, programmed with each plain client: all have to see the same, of either broker."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.foreign.clients import PROGRAMS, needs_node, needs_python, python

SEEN = """\
declared: 0 messages, 0 consumers
confirmed: 5
returned: 312 NO_ROUTE lost
got: a for the first time 4 left
headers: {"list": [1, "two", true, null]} 42 1099511627776
got: a again 4 left
delivered: b for the first time
delivered: c for the first time
held: 2
delivered: d for the first time
delivered: d again
delivered: e for the first time
left: 0
dead: c rejected 1
confirmed: 1
large: 500000
confirmed: 3
purged: 3
empty: True
refused: 404 NOT_FOUND - no queue 'work.nowhere' in vhost '/'
refused: 406 PRECONDITION_FAILED - inequivalent arg 'x-dead-letter-routing-key' for queue 'work' in vhost '/': \
received 'work' but current is 'dead'
deleted: 0
refused: 404 NOT_FOUND - no queue 'work' in vhost '/'
"""


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(python("tour_pika.py"), marks=needs_python, id="pika"),
        pytest.param(python("tour_aio_pika.py"), marks=needs_python, id="aio-pika"),
        pytest.param(("node", str(PROGRAMS / "tour_amqplib.js")), marks=needs_node, id="amqplib"),
    ],
)
def test_every_client_sees_the_same(command: tuple[str, ...], run: Callable[..., list[str]], namespace: str):
    seen = run(*command, FOREIGN_WORK=f"{namespace}.work", FOREIGN_DEAD=f"{namespace}.dead")
    assert "\n".join(seen).replace(f"{namespace}.", "") + "\n" == SEEN
