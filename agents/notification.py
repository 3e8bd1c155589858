"""Notification tells the customer how the order ended."""

from agents.events import OrderCancelled, OrderCompleted
from choreo import Agent, Context

agent = Agent("notification")


@agent.on
def tell(ended: OrderCompleted | OrderCancelled, ctx: Context) -> None:
    """Write to the customer. A plain `def`, since mail libraries block: it runs in a thread of its own.

    The key stays the same when the event is delivered again: a mail service that is given it sends one mail.
    """
    if isinstance(ended, OrderCompleted):
        text = f"Your order {ended.order} is on its way: {ended.tracking}."
    else:
        text = f"Your order {ended.order} was cancelled: {ended.reason}. You have not been charged."
    ctx.log.info("customer told", text=text, key=ctx.key)
