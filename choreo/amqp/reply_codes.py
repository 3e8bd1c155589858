"""AMQP's reply codes, and what a broker means by them that refuses something: the same for whichever broker it is."""

from __future__ import annotations

import re
from typing import Final

from choreo.errors import AccessRefused, BrokerUnreachable, ChoreoError, ConfigurationError, TopologyMismatch

CONNECTION_FORCED: Final = 320
ACCESS_REFUSED: Final = 403
NOT_FOUND: Final = 404
RESOURCE_LOCKED: Final = 405
PRECONDITION_FAILED: Final = 406
RESOURCE_ERROR: Final = 506
INTERNAL_ERROR: Final = 541
# Source: AMQP 0-9-1 section 1.2.
NAMES: Final = {
    311: "CONTENT_TOO_LARGE",
    313: "NO_CONSUMERS",
    CONNECTION_FORCED: "CONNECTION_FORCED",
    402: "INVALID_PATH",
    ACCESS_REFUSED: "ACCESS_REFUSED",
    NOT_FOUND: "NOT_FOUND",
    RESOURCE_LOCKED: "RESOURCE_LOCKED",
    PRECONDITION_FAILED: "PRECONDITION_FAILED",
    501: "FRAME_ERROR",
    502: "SYNTAX_ERROR",
    503: "COMMAND_INVALID",
    504: "CHANNEL_ERROR",
    505: "UNEXPECTED_FRAME",
    RESOURCE_ERROR: "RESOURCE_ERROR",
    530: "NOT_ALLOWED",
    540: "NOT_IMPLEMENTED",
    INTERNAL_ERROR: "INTERNAL_ERROR",
}

_INEQUIVALENT: Final = re.compile(
    r"inequivalent arg '(?P<argument>[^']+)' for (?P<kind>queue|exchange) '(?P<name>[^']+)'.*?:"
    r" received (?P<received>.+?) but current is (?P<current>.+?)\"?$"
)

_GONE: Final = re.compile(r"NOT_FOUND - no (?P<kind>queue|exchange) '(?P<name>.+)' in vhost ")
_DELETED: Final = {"queue": "the queue was deleted, and what it held is gone", "exchange": "the exchange was deleted"}


def closes_connection(code: int) -> bool:
    """Say whether a broker closes the connection with `code`, and not a channel alone."""
    return code >= 500 or code == CONNECTION_FORCED


def refusal(code: int, text: str) -> ChoreoError:
    """Return what a broker means that closes a channel with AMQP's reply code `code`."""
    found = _INEQUIVALENT.search(text)
    if found is not None:
        kind, name = found["kind"], found["name"]
        # rabbitmqctl deletes queues, but no exchanges.
        delete = (
            f"empty it and rabbitmqctl delete_queue {name}" if kind == "queue" else "delete it in the management UI"
        )
        return TopologyMismatch(
            f"{kind} {name!r} exists on the broker with {found['argument']} = {found['current']},"
            f" choreo declares {found['received']}",
            f"{delete}, then start again; or keep it and use another namespace (CHOREO_NAMESPACE)",
        )
    if (gone := _GONE.search(text)) is not None:
        # It was declared before anybody asked for it, and is so again: no configuration is wrong.
        return BrokerUnreachable(
            f"the broker has no {gone['kind']} {gone['name']!r}: {_DELETED[gone['kind']]}",
            "a worker declares it anew; choreo inspect queues shows which there are",
        )
    if code == ACCESS_REFUSED:
        return AccessRefused(
            f"the broker refused: {text}",
            "give the user permission on the namespace:"
            ' rabbitmqctl set_permissions USER "^choreo\\." "^choreo\\." "^choreo\\."',
        )
    if code in (NOT_FOUND, RESOURCE_LOCKED, PRECONDITION_FAILED):
        return ConfigurationError(f"the broker refused: {text}", "look at the queue with choreo inspect queues")
    return BrokerUnreachable(f"the connection to the broker was lost: {text}")


def cancelled(queue: str, *, deleted: bool) -> ChoreoError:
    """Return why a consumer of `queue` was cancelled; not `deleted`: nothing has missed the queue so far."""
    moved = "" if deleted else ", or its leader moved"
    return BrokerUnreachable(f"the broker cancelled the consumer of {queue!r}: {_DELETED['queue']}{moved}")
