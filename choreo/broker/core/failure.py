"""What the broker says no with: AMQP's reply codes, and RabbitMQ's words for them."""

from __future__ import annotations

from choreo.amqp import reply_codes
from choreo.errors import ChoreoError


class AmqpError(ChoreoError):
    """The broker refuses a method and closes the channel, or the connection, that it came on.

    `code` and `text` are those of channel.close or connection.close; `text` opens with the name of the code, as
    RabbitMQ's does. `method` is class and method id of what was refused, (0, 0) where the core was not asked for one.
    """

    def __init__(self, code: int, detail: str, method: tuple[int, int] = (0, 0)) -> None:
        self.code = code
        self.text = f"{reply_codes.NAMES[code]} - {detail}"
        self.method = method
        super().__init__(self.text)

    @property
    def closes_connection(self) -> bool:
        """Whether the whole connection ends, and not only the channel."""
        return reply_codes.closes_connection(self.code)


def field_type(value: object) -> str:
    """Return what AMQP calls the type of a value, as clients write it that do not choose the smallest number."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "signedint" if -(2**31) <= value < 2**31 else "long"
    return {float: "double", dict: "table", list: "array", type(None): "void"}.get(type(value), "longstr")
