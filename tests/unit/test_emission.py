"""What is checked before anything is emitted, and what the broker's word means afterwards."""

from __future__ import annotations

import pytest

from choreo.errors import ChoreoError, NotEmitted, PublishRefused, PublishUnknown
from choreo.event import Event
from choreo.message import Reason
from choreo.runtime.emission import require_stored
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
