"""The threads of an agent's `def` reactions, and what is said of those that outlive their process's work."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final

from choreo.logger import get_logger
from choreo.runtime.calling import unfinished

_SPARE: Final = 1_000  # for those that hang beyond their deadline; made only when they are needed

_logger = get_logger()


@contextmanager
def threads(agent: str, concurrency: int) -> Iterator[ThreadPoolExecutor]:
    """Give `agent` threads for as many reactions as run at once, and some to spare."""
    pool = ThreadPoolExecutor(concurrency + _SPARE, thread_name_prefix="reaction")
    try:
        yield pool
    finally:
        for reaction, seconds in unfinished(agent):
            _logger.warning(
                "thread cut off",
                agent=agent,
                reaction=reaction.name,
                seconds=round(seconds, 1),
                next="it ends with the process",
            )
        # Not waited for: a thread that hangs cannot be ended, and must not keep the process from ending.
        pool.shutdown(wait=False, cancel_futures=True)
