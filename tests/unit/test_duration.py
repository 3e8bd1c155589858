"""Lengths of time as people write them."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from choreo.duration import Duration, seconds, text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("500ms", 0.5),
        ("30s", 30),
        ("1.5s", 1.5),
        ("5m", 300),
        ("2h", 7200),
        ("1d", 86400),
        ("1h30m", 5400),
        (" 5m ", 300),
        ("12", 12),
        ("0", 0),
        (0, 0),
        (1.25, 1.25),
        (timedelta(minutes=2), 120),
    ],
)
def test_a_length_of_time_is_read_in_seconds(value: Duration, expected: float) -> None:
    """Units, sums of units, bare numbers and timedeltas all give seconds."""
    assert seconds(value) == expected


@pytest.mark.parametrize(
    "value",
    ["", "soon", "5 minutes", "5x", "m", "1s later", "-5s", "-1", "nan", "inf", True, -1, timedelta(-1)],
)
def test_what_is_no_length_of_time_is_refused_by_value(value: Duration) -> None:
    """The error shows the value as it was given and the forms that are allowed."""
    with pytest.raises(ValueError, match="is not a length of time; write it as 500ms, 30s, 5m") as caught:
        seconds(value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0s"), (0.25, "250ms"), (1, "1s"), (1.5, "1.5s"), (59.9996, "1m"), (90, "1m30s"), (93784, "1d2h3m4s")],
)
def test_seconds_are_shown_as_a_person_would_write_them(value: float, expected: str) -> None:
    """The largest units come first and empty ones are left out."""
    assert text(value) == expected


@given(st.floats(min_value=0, max_value=10**7))
def test_what_is_shown_can_be_read_again(value: float) -> None:
    """Showing and reading a length gives it back, to the millisecond."""
    assert seconds(text(value)) == pytest.approx(value, abs=0.000_501)
