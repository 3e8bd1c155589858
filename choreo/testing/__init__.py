"""Tests of a choreography, in virtual time: its agents run as they are, on a broker in the same process.

`Rehearsal` runs agents and shows what they did, `rehearse` runs one scenario on many schedules, and the fixtures
`rehearsal` and `rabbitmq` are there for pytest as soon as choreo is installed. docs/testing.md has examples.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from choreo.errors import FaultUnused as FaultUnused
    from choreo.errors import NothingLeft as NothingLeft
    from choreo.errors import NotSettled as NotSettled
    from choreo.errors import ScheduleFailed as ScheduleFailed
    from choreo.testing.explore import Exploration as Exploration
    from choreo.testing.explore import rehearse as rehearse
    from choreo.testing.faults import Faults as Faults
    from choreo.testing.faults import Point as Point
    from choreo.testing.loop import VirtualLoop as VirtualLoop
    from choreo.testing.record import Attempt as Attempt
    from choreo.testing.record import Emission as Emission
    from choreo.testing.record import Hop as Hop
    from choreo.testing.rehearsal import Rehearsal as Rehearsal

# Imported when first asked for: pytest loads the plugin in this folder for every run, also of what has no agents.
_ROOMS = {
    "Attempt": "testing.record",
    "Emission": "testing.record",
    "Exploration": "testing.explore",
    "FaultUnused": "errors",
    "Faults": "testing.faults",
    "Hop": "testing.record",
    "NotSettled": "errors",
    "NothingLeft": "errors",
    "Point": "testing.faults",
    "Rehearsal": "testing.rehearsal",
    "ScheduleFailed": "errors",
    "VirtualLoop": "testing.loop",
    "rehearse": "testing.explore",
}

__all__ = [
    "Attempt",
    "Emission",
    "Exploration",
    "FaultUnused",
    "Faults",
    "Hop",
    "NotSettled",
    "NothingLeft",
    "Point",
    "Rehearsal",
    "ScheduleFailed",
    "VirtualLoop",
    "rehearse",
]

if not TYPE_CHECKING:  # a type checker would take every misspelt name for one that is found here

    def __getattr__(name: str) -> object:
        if name not in _ROOMS:
            raise AttributeError(f"module 'choreo.testing' has no attribute {name!r}")
        return getattr(import_module(f"choreo.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
