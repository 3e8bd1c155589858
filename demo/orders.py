"""The twenty orders of the demo. Luck is with most of them; three are certain to end otherwise."""

import os
from decimal import Decimal
from random import Random

from agents._luck import DEFAULT_SEED
from agents.events import OrderPlaced

PRICES = {
    "book": Decimal("14.00"),
    "chair": Decimal("89.00"),
    "desk": Decimal("249.00"),
    "globe": Decimal("64.50"),
    "lamp": Decimal("39.90"),
}
USUAL = (
    {"book": 1},
    {"book": 3},
    {"lamp": 2},
    {"chair": 4},
    {"desk": 1},
    {"book": 2, "lamp": 1},
    {"chair": 1, "desk": 1},
)
UNUSUAL = {
    "1005": {"book": 40},  # more than the shelf holds
    "1010": {"globe": 1},  # shipping does not know what it weighs: a bug, and so a dead letter
    "1018": {"desk": 2},  # heavier than the carrier takes
}


def draw() -> list[OrderPlaced]:
    """Return the orders 1001 to 1020. What is in them depends on CHOREO_SEED only."""
    random = Random(os.environ.get("CHOREO_SEED", DEFAULT_SEED))
    return [_order(str(number), random.choice(USUAL)) for number in range(1001, 1021)]


def text(placed: OrderPlaced) -> str:
    """Return what was ordered, in words."""
    return ", ".join(f"{count} {item}" for item, count in placed.items.items())


def _order(number: str, usual: dict[str, int]) -> OrderPlaced:
    items = UNUSUAL.get(number, usual)
    total = sum((PRICES[item] * count for item, count in items.items()), Decimal())
    return OrderPlaced(order=number, total=total, currency="EUR", items=items)
