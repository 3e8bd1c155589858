"""Payment takes the money for an order and refunds it when the order fails."""

from agents import _bank as bank
from agents.events import (
    OrderPlaced,
    OutOfStock,
    PaymentDeclined,
    PaymentRefunded,
    PaymentTaken,
    ShippingFailed,
)
from choreo import Agent, Context, Retry

agent = Agent(
    "payment",
    retry=Retry(on=bank.Unreachable, attempts=4, first="1s", ceiling="2s"),
    lifespan=bank.connect,
)


def declined(placed: OrderPlaced, error: Exception) -> PaymentDeclined:
    """All attempts have failed, so the order is given up, with the reason."""
    return PaymentDeclined(order=placed.order, reason=str(error))


@agent.on(otherwise=declined)
async def charge(placed: OrderPlaced, ctx: Context) -> PaymentTaken | PaymentDeclined:
    """Take the money. A declined card is an answer; only an unreachable bank is worth another attempt."""
    client: bank.Client = ctx.resources
    answer = await client.charge(placed.order, placed.total, placed.currency, key=ctx.key, attempt=ctx.attempt)
    if answer.refusal:
        return PaymentDeclined(order=placed.order, reason=answer.refusal)
    return PaymentTaken(order=placed.order, receipt=answer.receipt, items=placed.items)


@agent.on(compensates=charge)
async def refund(failed: OutOfStock | ShippingFailed, ctx: Context) -> PaymentRefunded:
    """Refund the money. A refund that never succeeds has no `otherwise`: it waits for a person."""
    client: bank.Client = ctx.resources
    await client.refund(failed.order, key=ctx.key, attempt=ctx.attempt)
    return PaymentRefunded(order=failed.order, reason=failed.reason)
