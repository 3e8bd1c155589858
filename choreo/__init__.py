"""choreo: event choreography on RabbitMQ."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from choreo.agent import Agent as Agent
    from choreo.composition.sessions import connect as connect
    from choreo.envelope import Envelope as Envelope
    from choreo.errors import ChoreoError as ChoreoError
    from choreo.event import Event as Event
    from choreo.event import upcast as upcast
    from choreo.reaction import Context as Context
    from choreo.retry import Retry as Retry
    from choreo.runtime.publisher import Publisher as Publisher
    from choreo.runtime.publisher import Receipt as Receipt

# Rooms are imported when a name of theirs is first asked for: `choreo --help` needs none of them.
_ROOMS = {
    "Agent": "choreo.agent",
    "ChoreoError": "choreo.errors",
    "Context": "choreo.reaction",
    "Envelope": "choreo.envelope",
    "Event": "choreo.event",
    "Publisher": "choreo.runtime.publisher",
    "Receipt": "choreo.runtime.publisher",
    "Retry": "choreo.retry",
    "connect": "choreo.composition.sessions",
    "upcast": "choreo.event",
}

__all__ = sorted(_ROOMS)  # noqa: PLE0605
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name not in _ROOMS:
        raise AttributeError(f"module 'choreo' has no attribute {name!r}")
    return getattr(import_module(_ROOMS[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
