"""What every method of AMQP has in common, whatever it asks for."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Protocol, TypeVar

from choreo.broker.core.failure import AmqpError

if TYPE_CHECKING:
    from choreo.broker.core.broker import Broker
    from choreo.broker.core.connection import Connection


class Asked(Protocol):
    """A channel, as far as every method needs it."""

    connection: Connection
    broker: Broker
    open: bool

    def close(self) -> None:
        """Close it."""


_C = TypeVar("_C", bound=Asked)
_P = ParamSpec("_P")
_R = TypeVar("_R")
_Method = Callable[Concatenate[_C, _P], _R]


def method(class_id: int, method_id: int) -> Callable[[_Method[_C, _P, _R]], _Method[_C, _P, _R]]:
    """Have an error name the method and close what it closes, and what died meanwhile dead-lettered at its end."""

    def wrapper(function: _Method[_C, _P, _R]) -> _Method[_C, _P, _R]:
        @wraps(function)
        def call(channel: _C, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
            try:
                if not channel.open:
                    raise AmqpError(504, "expected 'channel.open'")  # noqa: TRY301 - is treated as all others are
                return function(channel, *args, **kwargs)
            except AmqpError as error:
                error.method = (class_id, method_id)
                (channel.connection if error.closes_connection else channel).close()
                raise
            finally:
                if channel.broker.later:
                    channel.broker.catch_up()

        return call

    return wrapper
