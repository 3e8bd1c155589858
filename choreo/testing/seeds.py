"""The seed of rehearsals that name none: 1, or the one that the test run was told."""

from __future__ import annotations

_seed = 1


def chosen() -> int:
    """Return the seed of the next rehearsal that names none."""
    return _seed


def choose(seed: int) -> None:
    """Set it, for this process."""
    global _seed  # noqa: PLW0603 - one for the whole test run, as pytest's option is
    _seed = seed
