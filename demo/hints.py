"""What to try next, in commands that work as they stand."""

import shutil
import sys
from pathlib import Path

from demo.broker import Broker

ORDER = '{"order": "2001", "total": "14.00", "currency": "EUR", "items": {"book": 1}}'


def over() -> str:
    """Return what can be done when the demo is over and its broker is gone."""
    return "\nTry next:\n" + _commands(
        ("make demo BROKER=rabbitmq", "the same on a RabbitMQ of its own"),
        (f"{choreo()} dev", "broker and agents for yourself; other terminals find them"),
        ("make demo KEEP=1", "the same, and it stays until Ctrl-C: inspect, publish, dead letters"),
        (f"{choreo()} graph", "who emits and who takes what, read from the signatures"),
        (f"{choreo()} check", "what would be wrong with it"),
    )


def staying(broker: Broker, *, reloading: bool) -> str:
    """Return what can be done in a second terminal while broker and agents stay; `reloading`, when they mind edits."""
    exports = " ".join(f"{name}={value}" for name, value in broker.variables.items())
    mend = [
        ("edit agents/shipping.py", 'fix the bug: add "globe" to WEIGHT; the agent restarts'),
        (f"{choreo()} dlq replay shipping --yes", "and order 1010 goes on"),
    ]
    commands = _commands(
        (f"cd {Path.cwd()}", ""),
        (f"export {exports}", ""),
        (f"{choreo()} inspect", "who is there, and what waits where"),
        (f"{choreo()} dlq show shipping", "why order 1010 died"),
        (f"{choreo()} publish order.placed '{ORDER}'", ""),
        *(mend if reloading else []),
    )
    return f"\nBroker and agents stay until Ctrl-C. In a second terminal:\n{commands}\n\nWhat happens:"


def choreo() -> str:
    """Return how to call choreo from this folder."""
    beside = Path(sys.executable).with_name("choreo")
    if beside.exists():
        return str(beside.relative_to(Path.cwd()) if beside.is_relative_to(Path.cwd()) else beside)
    return "choreo" if shutil.which("choreo") else f"{sys.executable} -m choreo"


def _commands(*pairs: tuple[str, str]) -> str:
    width = max(len(command) for command, meaning in pairs if meaning)
    return "\n".join(f"  {command:<{width}}   {meaning}".rstrip() for command, meaning in pairs)
