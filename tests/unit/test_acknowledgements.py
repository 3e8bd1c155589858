"""Acknowledgements are written for exactly what is done with, in as few frames as the gaps allow."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from choreo.rabbit.acknowledgements import Acknowledgements


def test_a_run_is_one_frame() -> None:
    """Tags without a gap go out as one frame with multiple, also when they were done in another order."""
    acks = Acknowledgements()
    for tag in (2, 1, 3):
        acks.add(tag)
    assert list(acks.frames()) == [(3, True)]
    assert list(acks.frames()) == []


def test_a_straggler_does_not_hold_up_the_others() -> None:
    """What is done behind a gap goes out singly; when the gap closes, nothing is written twice."""
    acks = Acknowledgements()
    acks.add(2)
    acks.add(3)
    assert list(acks.frames()) == [(2, False), (3, False)]
    acks.add(1)
    acks.add(5)
    assert list(acks.frames()) == [(1, True), (5, False)]


def test_what_was_given_back_is_no_gap() -> None:
    """A delivery that was given back is settled; the frame's own tag is one that the broker still holds for us."""
    acks = Acknowledgements()
    acks.settled(2)
    acks.add(1)
    assert list(acks.frames()) == [(1, True)]
    acks.add(3)
    assert list(acks.frames()) == [(3, True)]


@given(st.permutations(range(1, 16)), st.sets(st.integers(1, 15)), st.data())
def test_the_broker_would_agree(order: list[int], given_back: set[int], data: st.DataObject) -> None:
    """Played against a broker that knows what is unsettled: each tag is acknowledged once, none that was given back."""
    acks, unsettled = Acknowledgements(), set(range(1, 16))

    def write() -> None:
        for tag, multiple in acks.frames():
            assert tag in unsettled
            unsettled.difference_update(range(1, tag + 1) if multiple else (tag,))
            assert pending.isdisjoint(range(1, tag + 1) if multiple else (tag,))

    pending = set(order)
    for tag in order:
        pending.discard(tag)
        if tag in given_back:
            unsettled.discard(tag)
            acks.settled(tag)
        else:
            acks.add(tag)
        if data.draw(st.booleans()):
            write()
    write()
    assert unsettled == set()
