"""Placeholder until the room is there."""


def inspect() -> None:
    """Not there yet."""
