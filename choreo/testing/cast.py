"""Who plays in a rehearsal: agents, the modules that hold one, or names as `choreo run` takes them."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from choreo import loader
from choreo.agent import Agent
from choreo.config.settings import load as load_settings
from choreo.errors import UsageError

Cast = Agent | ModuleType | str


def agents_of(cast: Sequence[Cast]) -> list[Agent]:
    """Return the agents, loading those that are named; without any, all of the project."""
    if not cast:
        return loader.load_all(load_settings().agents_folder)
    return [
        loader.load(each, load_settings().agents_folder) if isinstance(each, str) else _agent(each) for each in cast
    ]


def name_of(agent: Cast | None) -> str | None:
    """Return the name of an agent, which need not be there."""
    return agent if agent is None or isinstance(agent, str) else _agent(agent).name


def _agent(given: Agent | ModuleType) -> Agent:
    if isinstance(given, Agent):
        return given
    agent = getattr(given, "agent", None)
    if isinstance(agent, Agent):
        return agent
    found = [each for each in vars(given).values() if isinstance(each, Agent)]
    if len(found) != 1:
        names = ", ".join(each.name for each in found) or "no agent"
        raise UsageError(f"the module {given.__name__} holds {names}", "name one of them: module.its_agent")
    return found[0]
