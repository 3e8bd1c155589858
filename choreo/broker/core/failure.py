"""What the broker says no with: AMQP's reply codes, and RabbitMQ's words for them."""

from __future__ import annotations

from typing import Final

from choreo.errors import ChoreoError

# Source: AMQP 0-9-1 section 1.2; those from 500 on, and 320, close the connection.
NAMES: Final = {
    311: "CONTENT_TOO_LARGE",
    313: "NO_CONSUMERS",
    320: "CONNECTION_FORCED",
    402: "INVALID_PATH",
    403: "ACCESS_REFUSED",
    404: "NOT_FOUND",
    405: "RESOURCE_LOCKED",
    406: "PRECONDITION_FAILED",
    501: "FRAME_ERROR",
    502: "SYNTAX_ERROR",
    503: "COMMAND_INVALID",
    504: "CHANNEL_ERROR",
    505: "UNEXPECTED_FRAME",
    506: "RESOURCE_ERROR",
    530: "NOT_ALLOWED",
    540: "NOT_IMPLEMENTED",
    541: "INTERNAL_ERROR",
}


class AmqpError(ChoreoError):
    """The broker refuses a method and closes the channel, or the connection, that it came on.

    `code` and `text` are those of channel.close or connection.close; `text` opens with the name of the code, as
    RabbitMQ's does. `method` is class and method id of what was refused, (0, 0) where the core was not asked for one.
    """

    def __init__(self, code: int, detail: str, method: tuple[int, int] = (0, 0)) -> None:
        self.code = code
        self.text = f"{NAMES[code]} - {detail}"
        self.method = method
        super().__init__(self.text)

    @property
    def closes_connection(self) -> bool:
        """Whether the whole connection ends, and not only the channel."""
        return self.code >= 500 or self.code == 320


def field_type(value: object) -> str:
    """Return what AMQP calls the type of a value, as clients write it that do not choose the smallest number."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "signedint" if -(2**31) <= value < 2**31 else "long"
    return {float: "double", dict: "table", list: "array", type(None): "void"}.get(type(value), "longstr")
