"""Dead letters of a rehearsal: which lie there, and what is said of them where a test has failed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from choreo import dead_letter
from choreo.broker import in_process
from choreo.dead_letter import DeadLetter
from choreo.frames import is_the_users, near
from choreo.topology import Names

_FRAME: Final = re.compile(r'^  File "(.+)", line (\d+)', re.MULTILINE)
_LONGEST: Final = 300  # characters of an error


def lying(host: in_process.Host, names: Names, agents: Iterable[str]) -> list[DeadLetter]:
    """Return what lies in the dead-letter queues of `agents`, the oldest first."""
    there = {each.queue for each in host.broker.queues()}  # an agent that could not start may have none
    return [
        dead_letter.read(each, agent=agent)
        for agent in agents
        if names.dlq(agent) in there
        for each in in_process.look(host, names.dlq(agent))
    ]


def account(letter: DeadLetter) -> str:
    """Return in one line what died, why, and where in the user's code."""
    who = f"{letter.agent}.{letter.reaction}" if letter.reaction else letter.agent
    error = " ".join(": ".join(filter(None, (letter.error_type, letter.error))).split())
    frames = [(file, line) for file, line in _FRAME.findall(letter.traceback or "") if is_the_users(file)]
    where = f" at {near(frames[-1][0])}:{frames[-1][1]}" if frames else ""
    return f"dead letter of {who}: {letter.topic} {letter.id} ({letter.reason}){where}: {error:.{_LONGEST}}"
