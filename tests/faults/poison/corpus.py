"""All poison. What is harmless comes twice: it is handled, and with a body that is not an event it dies unchanged."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from choreo.message import Reason
from tests.faults.poison.bodies import BODIES
from tests.faults.poison.headers import HEADERS
from tests.faults.poison.properties import PROPERTIES

_SINGLE: Final = (*BODIES, *PROPERTIES, *HEADERS)

CORPUS: Final = (
    *_SINGLE,
    *(
        replace(poison, name=f"{poison.name}, no event", end=Reason.INVALID, body=f'["{number}"]'.encode())
        for number, poison in enumerate(_SINGLE)
        if poison.end is None
    ),
)
