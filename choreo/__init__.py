"""choreo: event choreography on RabbitMQ."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from choreo.agent import Agent as Agent
    from choreo.composition.sessions import connect as connect
    from choreo.config.settings import Settings as Settings
    from choreo.envelope import Envelope as Envelope
    from choreo.errors import AccessRefused as AccessRefused
    from choreo.errors import BrokerUnreachable as BrokerUnreachable
    from choreo.errors import ChoreoError as ChoreoError
    from choreo.errors import ConfigurationError as ConfigurationError
    from choreo.errors import DeclarationError as DeclarationError
    from choreo.errors import EventMutated as EventMutated
    from choreo.errors import PayloadError as PayloadError
    from choreo.errors import PublishFailed as PublishFailed
    from choreo.errors import PublishRefused as PublishRefused
    from choreo.errors import PublishUnknown as PublishUnknown
    from choreo.errors import ReactionTimeout as ReactionTimeout
    from choreo.errors import UnreadableEvent as UnreadableEvent
    from choreo.errors import UsageError as UsageError
    from choreo.event import Event as Event
    from choreo.event import upcast as upcast
    from choreo.reaction import Context as Context
    from choreo.retry import Retry as Retry
    from choreo.runtime.publisher import Publisher as Publisher
    from choreo.runtime.publisher import Receipt as Receipt

__all__ = [
    "AccessRefused",
    "Agent",
    "BrokerUnreachable",
    "ChoreoError",
    "ConfigurationError",
    "Context",
    "DeclarationError",
    "Envelope",
    "Event",
    "EventMutated",
    "PayloadError",
    "PublishFailed",
    "PublishRefused",
    "PublishUnknown",
    "Publisher",
    "ReactionTimeout",
    "Receipt",
    "Retry",
    "Settings",
    "UnreadableEvent",
    "UsageError",
    "connect",
    "upcast",
]
__version__ = "0.1.0"

# Where a name is from. A room is imported when a name of it is first asked for: `choreo --help` needs none of them.
_ROOMS = {
    "choreo.agent": ("Agent",),
    "choreo.composition.sessions": ("connect",),
    "choreo.config.settings": ("Settings",),
    "choreo.envelope": ("Envelope",),
    "choreo.event": ("Event", "upcast"),
    "choreo.reaction": ("Context",),
    "choreo.retry": ("Retry",),
    "choreo.runtime.publisher": ("Publisher", "Receipt"),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

if not TYPE_CHECKING:  # a type checker would take every misspelt name for one that is found here

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module 'choreo' has no attribute {name!r}")
        return getattr(import_module(_ROOM_OF.get(name, "choreo.errors")), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
