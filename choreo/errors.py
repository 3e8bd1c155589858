"""Every exception that choreo raises. A message names the wrong value and the allowed ones, `way_out` what to do.

ChoreoError                     1   exit code of a command that ends with it
├── DeclarationError           78   an event, an agent or a reaction is declared wrongly (raised at import)
│   └── EventMutated           78   a field of an event was assigned after it was made
├── UndeclaredEvent             1   a reaction returned what its signature does not announce
├── NotEmitted                  1   what a reaction returned cannot be sent; `reason` goes into the dead letter
├── UsageError                  2   a name or an option that means nothing here
│   ├── InvalidName             2   a name outside the allowed grammar; nothing was imported for it
│   ├── UnknownAgent            2   no agent of that name
│   └── UnknownTopic            2   no event declares that topic
├── PayloadError               65   data that is not the event it claims to be
│   ├── EnvelopeError          65   a message whose envelope cannot be opened; `reason` goes into the dead letter
│   │   └── ValidatorFailed     65   a validator raised what is not a ValueError; a policy may name what it raised
│   └── UnreadableEvent        65   an event of which its readers would read another one; it is not sent
├── ConfigurationError         78   settings, or a broker that is not set up for what is asked
│   ├── InvalidUrl             78   a broker URL that cannot be used as it stands
│   ├── AccessRefused          78   the broker answered and refused: credentials, virtual host, permission
│   └── TopologyMismatch       78   a queue or exchange exists with other arguments
├── BrokerUnreachable          69   no broker answered, or the connection was lost
├── PublishFailed               1   an event that is not known to be stored
│   ├── PublishRefused          1   nobody listens, or it is never taken: it is not stored
│   └── PublishUnknown         75   not confirmed, in time or by every queue: it may or may not be stored
├── DeadlinePassed             75   work that was not done in the time it was given
│   ├── ReactionTimeout        75   a reaction ran longer than its `timeout` (also a TimeoutError)
│   ├── NothingLeft            75   in virtual time: what is awaited cannot come any more
│   └── NotSettled             75   in a rehearsal: something still waits at its end (also an AssertionError)
├── LifespanFailed              1   the lifespan of an agent raised something, at its begin or its end
├── FaultUnused                 1   in a rehearsal: what was ordered to go wrong never did (also an AssertionError)
├── ScheduleFailed              1   a scenario fails on one of its schedules (also an AssertionError)
├── InternalError              70   a defect of choreo's own: part of it has stopped, so the whole ends
└── PartlyDone                  3   some of many were done; the message says which were not
"""

from __future__ import annotations

from typing import ClassVar


class ChoreoError(Exception):
    """What went wrong (`message`), what to do about it (`way_out`, may be empty), and the exit code of a command."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, way_out: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.way_out = way_out

    def __str__(self) -> str:
        return f"{self.message}; {self.way_out}" if self.way_out else self.message


class DeclarationError(ChoreoError):
    """An event, an agent or a reaction is declared wrongly."""

    exit_code = 78


class EventMutated(DeclarationError):
    """A field of an event was assigned after it was made; an event is a fact and does not change."""


class UndeclaredEvent(ChoreoError):
    """A reaction returned something that its return annotation does not announce."""


class NotEmitted(ChoreoError):
    """What a reaction returned cannot be sent, however often. `reason` is one of message.Reason."""

    def __init__(self, reason: str, message: str, way_out: str = "") -> None:
        super().__init__(message, way_out)
        self.reason = reason


class UsageError(ChoreoError):
    """A name or an option that means nothing here."""

    exit_code = 2


class InvalidName(UsageError):
    """A name outside the allowed grammar. Nothing was imported or opened for it."""


class UnknownAgent(UsageError):
    """No agent of that name can be found."""


class UnknownTopic(UsageError):
    """No known event declares that topic."""


class PayloadError(ChoreoError):
    """Data that is not the event it claims to be."""

    exit_code = 65


class EnvelopeError(PayloadError):
    """A message that cannot be opened. `reason` is one of message.Reason and goes into the dead letter."""

    def __init__(self, reason: str, message: str, way_out: str = "") -> None:
        super().__init__(message, way_out)
        self.reason = reason


class ValidatorFailed(EnvelopeError):
    """A validator raised what is not a ValueError, its `__cause__`: what it asked was away, or it has a defect."""


class UnreadableEvent(PayloadError):
    """An event of which its readers would read another one, or none. It is not sent."""


class ConfigurationError(ChoreoError):
    """Settings that cannot be used, or a broker that is not set up for what is asked of it."""

    exit_code = 78


class InvalidUrl(ConfigurationError):
    """A broker URL that cannot be used as it stands. The text never shows its password."""


class AccessRefused(ConfigurationError):
    """The broker answered and refused: wrong credentials, no such virtual host, or a missing permission."""


class TopologyMismatch(ConfigurationError):
    """A queue or an exchange exists on the broker with other arguments than the ones declared."""


class BrokerUnreachable(ChoreoError):
    """No broker answered, or the connection to it was lost."""

    exit_code = 69


class PublishFailed(ChoreoError):
    """An event that is not known to be stored by the broker."""


class PublishRefused(PublishFailed):
    """No queue has the event: nobody listens, or the broker never takes it as it is."""


class PublishUnknown(PublishFailed):
    """The event may or may not be stored: no answer came in time, the connection was lost, or a queue has not taken it.

    A broker says no more than that one of the queues is full: what other agents listen with may have it. Publish it
    again with the same `event_id`: who has it already gets a duplicate that can be known by it.
    """

    exit_code = 75


class DeadlinePassed(ChoreoError):
    """Work that was not done in the time it was given."""

    exit_code = 75


class ReactionTimeout(DeadlinePassed, TimeoutError):
    """A reaction ran longer than its `timeout`. A retry policy can name it, or TimeoutError."""


class NothingLeft(DeadlinePassed):
    """In virtual time: what is awaited cannot come any more, or has not come in a year."""


class NotSettled(DeadlinePassed, AssertionError):
    """In a rehearsal: something still waits after all the time that it was given."""


class LifespanFailed(ChoreoError):
    """The lifespan of an agent raised something, at its begin or its end."""


class FaultUnused(ChoreoError, AssertionError):
    """In a rehearsal: something that was ordered to go wrong never did, so the test has not shown what it says."""


class ScheduleFailed(ChoreoError, AssertionError):
    """A scenario fails on one of the schedules that were explored; `seed` is the one that it fails with."""

    def __init__(self, message: str, way_out: str, seed: int) -> None:
        super().__init__(message, way_out)
        self.seed = seed


class InternalError(ChoreoError):
    """A defect of choreo's own. Part of the work is not done any more, so all of it ends; the log says where."""

    exit_code = 70


class PartlyDone(ChoreoError):
    """Some of many were done; the message says how many, and which were not."""

    exit_code = 3
