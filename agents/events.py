"""The events of the order process: everything that the agents know of each other.

An event carries what its readers need to go on, the items for example: there is nobody to ask for the rest.
"""

from decimal import Decimal
from typing import Annotated, Any

from pydantic import Field, PositiveInt

from choreo import Event, upcast

Money = Annotated[Decimal, Field(gt=0, max_digits=12, decimal_places=2)]
Currency = Annotated[str, Field(pattern=r"^[A-Z]{3}$")]  # ISO 4217
Items = dict[str, PositiveInt]  # what, and how many of it


class OrderPlaced(Event, topic="order.placed", version=2, external=True):
    """A customer has placed an order; the web shop says so."""

    order: str
    total: Money
    currency: Currency  # since version 2
    items: Items

    @upcast(from_version=1)
    @staticmethod
    def default_currency(body: dict[str, Any]) -> dict[str, Any]:
        """Before version 2 the shop sold in euros only."""
        return body | {"currency": "EUR"}


class PaymentTaken(Event, topic="payment.taken"):
    """The bank has moved the money to us."""

    order: str
    receipt: str
    items: Items


class PaymentDeclined(Event, topic="payment.declined"):
    """The money cannot be had: the bank said no, or could not be reached for too long."""

    order: str
    reason: str


class PaymentRefunded(Event, topic="payment.refunded"):
    """The customer has the money back; `reason` is why the order came to nothing."""

    order: str
    reason: str


class StockReserved(Event, topic="stock.reserved"):
    """All items lie aside for this order."""

    order: str
    items: Items


class OutOfStock(Event, topic="stock.out"):
    """At least one item is not there in the number that was ordered. Nothing was reserved."""

    order: str
    reason: str


class StockReleased(Event, topic="stock.released", terminal=True):
    """The items are back on the shelf."""

    order: str
    items: Items


class Shipped(Event, topic="order.shipped"):
    """The carrier has the parcel."""

    order: str
    tracking: str


class ShippingFailed(Event, topic="shipping.failed"):
    """The carrier does not take the parcel; `items` is what was in it."""

    order: str
    items: Items
    reason: str


class OrderCompleted(Event, topic="order.completed"):
    """The order is closed, and well."""

    order: str
    tracking: str


class OrderCancelled(Event, topic="order.cancelled"):
    """The order is closed, nothing was sent, and the customer has their money."""

    order: str
    reason: str
