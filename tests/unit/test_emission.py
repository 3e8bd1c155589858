"""What is checked before anything is emitted, and what the broker's word means afterwards."""

from __future__ import annotations

from typing import Any

import pytest

from choreo.agent import Agent
from choreo.envelope import open_envelope
from choreo.errors import ChoreoError, NotEmitted, PublishRefused, PublishUnknown, UndeclaredEvent
from choreo.event import Event
from choreo.message import Message, Reason
from choreo.runtime.emission import require_stored, sealed
from choreo.transport import Confirmed, Publication, Refused, Unknown, nacked


class Paid(Event, topic="test-emission.paid"):
    pass


class Closed(Event, topic="test-emission.closed", terminal=True):
    pass


RETURNED, NACKED = Refused("returned", "nobody"), nacked("events", "paid")
REJECTED = Refused("rejected", "no such exchange")


@pytest.mark.parametrize(("event", "result"), [(Paid(), Confirmed()), (Closed(), Confirmed()), (Closed(), RETURNED)])
def test_stored(event: Event, result: Publication) -> None:
    """What nobody needs to listen to may be returned."""
    require_stored(event, result)


@pytest.mark.parametrize(
    ("event", "result", "error"),
    [
        (Paid(), RETURNED, PublishRefused),
        (Paid(), NACKED, PublishUnknown),
        (Closed(), NACKED, PublishUnknown),
        (Paid(), Unknown("no answer"), PublishUnknown),
        (Closed(), Unknown("no answer"), PublishUnknown),
        (Paid(), REJECTED, NotEmitted),
        (Closed(), REJECTED, NotEmitted),
    ],
)
def test_not_stored(event: Event, result: Publication, error: type[ChoreoError]) -> None:
    """A refusal and a missing answer are tried again; what the broker rejects for good is not, terminal or not."""
    with pytest.raises(error) as raised:
        require_stored(event, result)
    assert type(raised.value) is error
    if isinstance(raised.value, NotEmitted):
        assert raised.value.reason == Reason.REFUSED
        assert "no such exchange" in raised.value.message


@pytest.mark.parametrize(
    ("returned", "what", "way_out"),
    [
        ({"order": 1}, "dict", "a reaction returns events, such as Paid(...)"),
        ("paid", "str", "a reaction returns events, such as Paid(...)"),
        (None, "NoneType", "leave None out of what it returns"),
        (Paid, "the class Paid", "return one: Paid(...)"),
        (dict, "the class dict", "a reaction returns events, such as Paid(...)"),
        (Closed(), "Closed", "add it to the return annotation"),
    ],
)
def test_what_is_not_announced_is_said_with_a_way_out_that_works(returned: Any, what: str, way_out: str) -> None:
    """Only an event can be added to the annotation."""
    agent = Agent("till")

    @agent.on
    async def pay(closed: Closed) -> Paid:
        return Paid()

    cause = open_envelope(Message(b"{}"), "test-emission.closed")
    with pytest.raises(UndeclaredEvent) as raised:
        sealed(agent, agent.reactions[0], cause, [returned], last_word=False, max_body=1000)
    assert raised.value.message == f"'pay' of agent till returned {what}, but its signature announces Paid"
    assert raised.value.way_out == way_out
