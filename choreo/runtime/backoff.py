"""How long to wait before the next attempt to connect to a broker."""

from __future__ import annotations

from typing import Final

import tenacity

from choreo.errors import BrokerUnreachable

# A broker that is away for a minute must not be missed for half a minute more; one that refuses has to be fixed first,
# and writes a line for each attempt.
_AWAY: Final = tenacity.wait_random_exponential(multiplier=0.4, exp_base=1.5, min=0.1, max=3)
_REFUSING: Final = tenacity.wait_random_exponential(multiplier=0.4, exp_base=1.5, min=0.1, max=30)


def pause(state: tenacity.RetryCallState) -> float:
    """Return how many seconds to wait before the next attempt to connect: any up to a bound that grows."""
    error = state.outcome.exception() if state.outcome else None
    return (_AWAY if isinstance(error, BrokerUnreachable) else _REFUSING)(state)
