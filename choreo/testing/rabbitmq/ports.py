"""Free TCP ports of 127.0.0.1 for a private node."""

from __future__ import annotations

import random
import socket
from dataclasses import dataclass

from choreo.errors import ConfigurationError

# Below the ports that Linux (32768 and up) and macOS (49152 and up) give to outgoing connections: a client
# that reconnects to such a port while the node is down would sooner or later connect to itself and keep it.
RANGE = range(20000, 32000)


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports of one node. `management` and `metrics` are listened on only when their plugin is enabled."""

    amqp: int
    distribution: int
    epmd: int
    management: int
    metrics: int

    @classmethod
    def choose(cls, amqp: int | None = None) -> Ports:
        """Ports that are free now, with `amqp` as given; another program may still be quicker."""
        if amqp is not None and not is_free(amqp):
            raise ConfigurationError(f"port {amqp} on 127.0.0.1 is in use", "choose another port")
        # SystemRandom: parallel test runs that seed `random` alike would choose alike.
        numbers = random.SystemRandom().sample(RANGE, len(RANGE))
        free = [amqp] if amqp is not None else []
        for number in numbers:
            if number != amqp and is_free(number):
                free.append(number)
            if len(free) == 5:
                return cls(*free)
        message = f"no five ports of 127.0.0.1 are free between {RANGE.start} and {RANGE.stop}"
        raise ConfigurationError(message, "end some of the programs that listen there")

    def any_taken(self) -> bool:
        """Whether something listens on one of the ports that every node needs."""
        return not all(is_free(port) for port in (self.amqp, self.distribution, self.epmd))


def is_free(port: int) -> bool:
    """Whether nothing listens on the port; connections that are still closing do not count."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
