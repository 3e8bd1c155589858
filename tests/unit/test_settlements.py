"""What is written for settled deliveries: exactly what was said of each, in as few frames as the gaps allow."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from choreo.rabbit.settlements import Frame, Settlements


def test_a_run_is_one_frame() -> None:
    """Tags without a gap go out as one frame with multiple, also when they were done in another order."""
    settlements = Settlements()
    for tag in (2, 1, 3):
        settlements.acknowledge(tag)
    assert settlements.frames() == [Frame(3, multiple=True)]
    assert settlements.frames() == []


def test_the_rest_is_given_back_behind_all_that_was_acknowledged() -> None:
    """The frame that speaks for everything unsettled is the last one, and is written once."""
    settlements = Settlements()
    settlements.give_back_rest()
    for tag in (1, 2, 4):
        settlements.acknowledge(tag)
    assert settlements.frames() == [Frame(2, multiple=True), Frame(4), Frame(0, multiple=True, back=True)]
    assert settlements.frames() == []


def test_a_straggler_does_not_hold_up_the_others() -> None:
    """What is done behind a gap goes out singly; when the gap closes, nothing is written twice."""
    settlements = Settlements()
    settlements.acknowledge(2)
    settlements.acknowledge(3)
    assert settlements.frames() == [Frame(2), Frame(3)]
    settlements.acknowledge(1)
    settlements.acknowledge(5)
    assert settlements.frames() == [Frame(1, multiple=True), Frame(5)]


def test_what_is_given_back_is_written_first() -> None:
    """A frame with multiple speaks for every tag below it, so it must not overtake one that is given back."""
    settlements = Settlements()
    settlements.acknowledge(1)
    settlements.acknowledge(3)
    settlements.give_back(2)
    assert settlements.frames() == [Frame(2, back=True), Frame(3, multiple=True)]


@given(st.permutations(range(1, 16)), st.sets(st.integers(1, 15)), st.data())
def test_the_broker_would_agree(order: list[int], back: set[int], data: st.DataObject) -> None:
    """Played against a broker that knows what is unsettled: each tag ends as was said of it, and only once."""
    settlements, unsettled = Settlements(), set(range(1, 16))
    acknowledged: set[int] = set()
    returned: set[int] = set()

    def write() -> None:
        for tag, multiple, to_queue in settlements.frames():
            assert tag in unsettled
            covered = unsettled & (set(range(1, tag + 1)) if multiple else {tag})
            (returned if to_queue else acknowledged).update(covered)
            unsettled.difference_update(covered)

    for tag in order:
        (settlements.give_back if tag in back else settlements.acknowledge)(tag)
        if data.draw(st.booleans()):
            write()
    write()
    assert (acknowledged, returned, unsettled) == (set(order) - back, back, set())


@pytest.mark.parametrize("held", [1, 3, 100])
def test_what_is_kept_is_bounded_by_what_is_held_however_long(held: int) -> None:
    """A million are settled beside some that are not, in chunks and in any order: a stretch is kept for each gap."""
    settlements, random = Settlements(), Random(held)
    kept = {random.randrange(1, 200_000) for _ in range(held)}
    most = 0
    for first in range(1, 1_000_000, 1_000):
        tags = [tag for tag in range(first, first + 1_000) if tag not in kept]
        random.shuffle(tags)
        for tag in tags:
            (settlements.give_back if tag % 97 == 0 else settlements.acknowledge)(tag)
        settlements.frames()
        most = max(most, len(settlements))
    assert most <= held + 1
    for tag in kept:
        settlements.acknowledge(tag)
    (last,) = (frame for frame in settlements.frames() if frame.multiple)
    assert last.tag == max(kept), "the highest that the broker knows as unsettled"
    assert len(settlements) == 0
    assert settlements.frames() == []


@given(st.lists(st.integers(0, 9), max_size=300), st.integers(0, 2**32))
def test_no_more_is_kept_than_is_unsettled(actions: list[int], seed: int) -> None:
    """Deliveries arrive, are settled in any order and written at any time."""
    settlements, random = Settlements(), Random(seed)
    unsettled, newest = list[int](), 0
    for action in actions:
        if action < 4 or not unsettled:
            newest += 1
            unsettled.append(newest)
        elif action == 4:
            settlements.frames()
            assert len(settlements) <= len(unsettled)
        else:
            tag = unsettled.pop(random.randrange(len(unsettled)))
            (settlements.give_back if action == 5 else settlements.acknowledge)(tag)
    settlements.frames()
    assert len(settlements) <= len(unsettled)
