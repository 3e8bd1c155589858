"""Order closes every order once, as completed or as cancelled."""

from agents.events import (
    OrderCancelled,
    OrderCompleted,
    PaymentDeclined,
    PaymentRefunded,
    Shipped,
)
from choreo import Agent

agent = Agent("order")


@agent.on
async def complete(shipped: Shipped) -> OrderCompleted:
    """The parcel is on its way: nothing is left to do."""
    return OrderCompleted(order=shipped.order, tracking=shipped.tracking)


@agent.on
async def cancel(failed: PaymentDeclined | PaymentRefunded) -> OrderCancelled:
    """The money was never taken, or it has been refunded. Before that an order stays open."""
    return OrderCancelled(order=failed.order, reason=failed.reason)
