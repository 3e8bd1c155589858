"""What a reaction emits: checked as a whole before anything of it is sent, and afterwards for what the broker said.

What stands in its way is an exception, which `outcome` takes for a decision: a NotEmitted is final, a PublishFailed is
tried again.
"""

from __future__ import annotations

from collections.abc import Sequence

from choreo.agent import Agent
from choreo.envelope import Envelope, derived_id, seal
from choreo.errors import NotEmitted, PublishRefused, PublishUnknown, UndeclaredEvent
from choreo.event import Event, declaration
from choreo.message import Message, Reason
from choreo.reaction import Reaction
from choreo.transport import Confirmed, Publication, Refused


def sealed(
    agent: Agent, reaction: Reaction, cause: Envelope, events: Sequence[Event], *, last_word: bool, max_body: int
) -> list[Message]:
    """Return the messages of `events`, which `reaction` or its `otherwise` gave for `cause`.

    Raises UndeclaredEvent and NotEmitted.
    """
    function = f"{reaction.name}.otherwise" if last_word else reaction.name
    allowed = reaction.otherwise_emits if last_word else reaction.emits
    for event in events:
        if type(event) not in allowed:
            names = ", ".join(each.__name__ for each in allowed) or "nothing"
            raise UndeclaredEvent(
                f"{function!r} of agent {agent.name} returned {_called(event)}, but its signature announces {names}",
                _way_out(event, allowed),
            )
    bound = reaction.max_tree or agent.max_tree
    if cause.tree * len(events) > bound:
        raise NotEmitted(
            Reason.LOOP,
            f"{function!r} of agent {agent.name} emits {len(events)} events for {cause.topic} {cause.id}, one of"
            f" {cause.tree} of its generation: that would be {cause.tree * len(events)}, and max_tree is {bound}",
        )
    messages = []
    for index, event in enumerate(events):
        event_id = derived_id(cause.id, agent.name, function, index)
        message = seal(event, source=agent.name, event_id=event_id, cause=cause, siblings=len(events))
        if len(message.body) > max_body:
            raise NotEmitted(Reason.TOO_LARGE, too_large(message, max_body))
        messages.append(message)
    return messages


def _called(returned: object) -> str:
    return f"the class {returned.__name__}" if isinstance(returned, type) else type(returned).__name__


def _way_out(returned: object, allowed: Sequence[type[Event]]) -> str:
    """Return what to do about something that was returned and not announced; annotations announce events alone."""
    kind = returned if isinstance(returned, type) else type(returned)
    if not issubclass(kind, Event):
        such = f", such as {allowed[0].__name__}(...)" if allowed else ""
        return f"a reaction returns events{such}" if returned is not None else "leave None out of what it returns"
    if isinstance(returned, type):
        return f"return one: {kind.__name__}(...)"
    return "add it to the return annotation"


def too_large(message: Message, max_body: int) -> str:
    """Say that nobody would read `message`."""
    return f"{message.type} has a body of {len(message.body)} bytes, and max_body is {max_body}: nobody would read it"


def require_stored(event: Event, result: Publication) -> None:
    """Raise unless `event` is stored, or was returned because nobody listens to what nobody needs to listen to."""
    declared = declaration(event)
    match result:
        case Confirmed():
            return
        case Refused("returned") if declared.terminal:
            return
        case Refused("rejected", detail):
            raise NotEmitted(Reason.REFUSED, f"{declared.topic} will never be taken by the broker: {detail}")
        case Refused(_, detail):
            raise PublishRefused(f"{declared.topic} was not taken by the broker: {detail}")
    raise PublishUnknown(f"{declared.topic} may not have been stored: {result.detail}")
