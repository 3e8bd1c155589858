"""One scenario on many schedules: what must hold, must hold in all of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

from structlog.testing import capture_logs

from choreo.config.settings import Settings
from choreo.errors import ScheduleFailed, UsageError
from choreo.testing import seeds
from choreo.testing.faults import Faults
from choreo.testing.record import Hop
from choreo.testing.rehearsal import Rehearsal
from choreo.testing.scenario import NoScenarioError


@dataclass(slots=True)
class Exploration:
    """What was explored: how many schedules, how many faults they had, which hops happened on any of them."""

    schedules: int = 0
    faults: int = 0
    walked: set[Hop] = field(default_factory=set)


def rehearse(
    scenario: Callable[[Rehearsal], Awaitable[object]],
    *,
    schedules: int = 100,
    seed: int | None = None,
    faults: Faults | None = None,
    settings: Settings | None = None,
) -> Exploration:
    """Run `scenario` on as many schedules, each a rehearsal of its own in which other things go wrong.

    It starts its agents, publishes, waits until all is `settled()` and asserts what must hold. The seeds count up from
    `seed`, so that a run can be repeated; what outlives a scenario, such as a module's globals, is its own to reset.
    Raises ScheduleFailed with the seed of the first schedule that fails, what went wrong on it, and how to run just it.
    """
    if schedules < 1:
        raise UsageError(f"schedules={schedules} explores nothing", "at least 1")
    first = seeds.chosen() if seed is None else seed
    explored = Exploration()
    for each in range(first, first + schedules):
        rehearsal = Rehearsal(seed=each, faults=faults or Faults(), settings=settings)
        # The logs of a hundred schedules tell nobody anything; those of a single one do.
        logs = nullcontext() if schedules == 1 else capture_logs()
        try:
            with logs:
                rehearsal.run(scenario)
        except NoScenarioError:
            raise
        except Exception as error:
            error.__notes__.pop()  # the story, which this tells
            name, number = getattr(scenario, "__name__", "scenario"), each - first + 1
            raise ScheduleFailed(
                f"schedule {number} of {schedules} fails: {type(error).__name__}: {error}\n{rehearsal.story()}\n",
                f"run just it: rehearse({name}, seed={each}, schedules=1), or pytest --choreo-seed={each}",
                each,
            ) from error
        explored.schedules += 1
        explored.faults += len(rehearsal.faults)
        explored.walked |= rehearsal.walked
    return explored
