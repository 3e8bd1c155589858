"""How many deliveries an agent may hold, and for how long, as its deadlines and the broker's patience allow."""

from __future__ import annotations

from typing import Final

from choreo.agent import Agent
from choreo.config.settings import Settings
from choreo.logger import get_logger
from choreo.reaction import Reaction

# Seconds. A broker closes the channel of a consumer that holds a delivery longer than its consumer_timeout, 30 minutes
# unless set otherwise, and looks once in a minute. Source: RabbitMQ, Consumers, "Delivery Acknowledgement Timeout".
LONGEST_HOLD: Final = 28 * 60.0
BROKERS_OWN: Final = 30 * 60.0  # seconds, what a broker waits by default
_SPARE: Final = 60.0  # seconds asked for besides what reactions take: what follows from them has to be stored

_RETRIES: Final = 8  # for so many deliveries of an agent's queue, one of its retries may be held

_logger = get_logger()


def longest_way(reaction: Reaction, publish_timeout: float) -> float:
    """Return the seconds that a delivery of `reaction` may take once it has begun.

    That is every attempt in this process, and the last word, each with the confirmation of what it emits. A thread may
    go on after its deadline, and the next attempt waits for it.
    """
    again = reaction.retry.immediate if reaction.retry is not None else 0
    waiting = again * reaction.timeout if reaction.in_thread else 0.0
    return (1 + again + (reaction.otherwise is not None)) * (reaction.timeout + publish_timeout) + waiting


def affordable(prefetch: int, concurrency: int, longest: float) -> int:
    """Return how many deliveries may be held, so that the last is settled in time even if all take `longest` seconds.

    One more than that is held when a window opens, since the delivery of the narrow one may still run. Never fewer than
    can run at once.
    """
    rounds = int(LONGEST_HOLD / longest) if longest else prefetch + 1
    return min(prefetch, max(concurrency, concurrency * rounds - 1))


def needed(longest: float) -> float:
    """Return how many seconds the broker is asked to wait for a delivery, where one takes up to `longest` to run.

    It may stand behind another one for as long, or for LONGEST_HOLD; see `affordable`.
    """
    return max(BROKERS_OWN, max(LONGEST_HOLD, longest) + longest + _SPARE)


def shares(prefetch: int, concurrency: int, longest: float) -> tuple[int, int]:
    """Return how many deliveries an agent may hold of its queue and of its queue for retries, together `affordable`.

    What comes back has a share of its own, so that it does not wait behind a long queue. Where no more is affordable
    than can run at once, the few retries come on top.
    """
    retries = max(1, prefetch // _RETRIES)
    total = affordable(prefetch + retries, concurrency, longest)
    retries = min(retries, max(1, total // _RETRIES))
    return min(prefetch, max(concurrency, total - retries)), retries


def limits(agent: Agent, settings: Settings) -> tuple[int, int, float]:
    """Return how many deliveries `agent` may hold, which is the setting or fewer, and retries; and for how long."""
    longest = max((longest_way(each, settings.publish_timeout) for each in agent.reactions), default=0.0)
    found, retries = shares(settings.prefetch, settings.concurrency, longest)
    if found < settings.prefetch:
        why = f"a delivery may take {longest:g} s, and the broker takes back what is held for half an hour"
        _logger.info("prefetch narrowed", agent=agent.name, prefetch=found, setting=settings.prefetch, why=why)
    return found, retries, needed(longest)
