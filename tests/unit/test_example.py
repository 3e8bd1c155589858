"""An example of an event, for somebody who has never published one: it is always valid."""

from __future__ import annotations

import json
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Literal
from uuid import UUID

import pytest
from pydantic import BaseModel, Field

from agents import events
from choreo import Event
from choreo.operate import example


class Colour(Enum):
    RED = "red"


class Address(BaseModel):
    city: str
    number: Annotated[int, Field(gt=10)]


class Rich(Event, topic="test-example.rich"):
    address: Address
    colour: Colour
    mode: Literal["a", "b"]
    price: Annotated[Decimal, Field(gt=0)]
    code: Annotated[str, Field(pattern="^[A-Z]{3}$")]
    slug: Annotated[str, Field(pattern="^[a-z]+$")]
    day: date
    at: datetime
    lasts: timedelta
    id: UUID
    ratio: float
    wanted: bool
    tags: Annotated[list[str], Field(min_length=2)]
    either: int | str
    known: Annotated[str, Field(examples=["an example"])]
    optional: str | None = None


class Narrow(Event, topic="test-example.narrow"):
    code: Annotated[str, Field(pattern="^x-[0-9]{7}$")]


class Empty(Event, topic="test-example.empty"):
    pass


@pytest.mark.parametrize("kind", [Rich, Empty, events.OrderPlaced, events.PaymentTaken, events.Shipped])
def test_the_example_is_an_event(kind: type[Event]):
    text = example.of(kind)
    assert text is not None
    kind.model_validate_json(text)


def test_only_what_is_required_is_in_it():
    text = example.of(Rich)
    assert text is not None
    assert set(json.loads(text)) == set(Rich.model_fields) - {"optional"}
    assert json.loads(text)["known"] == "an example"


def test_what_cannot_be_guessed_has_no_example():
    assert example.of(Narrow) is None
