"""The watcher: an agent as any other, with one reaction to every event there is. It fills the ledger."""

from choreo import Agent, Envelope
from demo.ledger import Ledger
from demo.screen import Screen


def watcher(ledger: Ledger, screen: Screen) -> Agent:
    """Return an agent that notes in `ledger`, and shows on `screen`, each event that it sees."""
    agent = Agent("watcher")

    @agent.on("#")
    async def watch(envelope: Envelope) -> None:
        screen.happened(ledger.saw(envelope), envelope.topic)

    return agent
