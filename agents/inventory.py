"""Inventory sets the items of an order aside and puts them back when the parcel does not leave."""

from agents.events import OutOfStock, PaymentTaken, ShippingFailed, StockReleased, StockReserved
from choreo import Agent

agent = Agent("inventory")

# How many of each item one order may have. A shelf that counts down belongs in a database: a number kept here
# would be another one in each process, and gone with it.
SHELF = {"book": 20, "chair": 6, "desk": 2, "globe": 3, "lamp": 8}


@agent.on
async def reserve(taken: PaymentTaken) -> StockReserved | OutOfStock:
    """Set all the items aside, or none of them."""
    missing = [item for item, count in taken.items.items() if count > SHELF.get(item, 0)]
    if missing:
        return OutOfStock(order=taken.order, reason=f"out of stock: {', '.join(missing)}")
    return StockReserved(order=taken.order, items=taken.items)


@agent.on(compensates=reserve)
async def release(failed: ShippingFailed) -> StockReleased:
    """Put the items back on the shelf."""
    return StockReleased(order=failed.order, items=failed.items)
