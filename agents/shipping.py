"""Shipping hands the parcel to the carrier.

It has the bug of this example: somebody put globes on sale and nobody entered their weight here. Such an
order is dead-lettered with its KeyError; once WEIGHT knows globes, `choreo dlq replay shipping` sends it on.
"""

from agents._luck import strikes
from agents.events import Shipped, ShippingFailed, StockReserved
from choreo import Agent

agent = Agent("shipping")

WEIGHT = {"book": 0.4, "chair": 6.5, "desk": 19.0, "lamp": 2.1}  # kg each
HEAVIEST = 31.5  # kg, the most that the carrier takes


@agent.on
async def ship(reserved: StockReserved) -> Shipped | ShippingFailed:
    """Hand the parcel over. The carrier may say no, which is an answer and not an error."""
    weight = sum(WEIGHT[item] * count for item, count in reserved.items.items())
    if weight > HEAVIEST:
        reason = f"the parcel weighs {weight:.1f} kg, the carrier takes {HEAVIEST}"
    elif strikes("address", reserved.order, odds=0.08):
        reason = "the carrier cannot find the address"
    else:
        return Shipped(order=reserved.order, tracking=f"CH-{reserved.order}")
    return ShippingFailed(order=reserved.order, items=reserved.items, reason=reason)
