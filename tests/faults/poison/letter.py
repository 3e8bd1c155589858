"""One poisoned message, and how it has to end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from choreo.message import Reason

USUAL: Final = {"content_type": b"application/json", "delivery_mode": b"\x02"}


@dataclass(frozen=True, slots=True)
class Poison:
    """A message as bytes. `end` is the reason that its dead letter must have, None where it must be handled.

    `body` None: that of a good event. `key`: what follows the namespace in its routing key.
    """

    name: str
    end: Reason | None
    body: bytes | None = None
    properties: Mapping[str, bytes] = field(default_factory=lambda: USUAL)
    key: bytes = b"placed"
