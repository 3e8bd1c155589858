"""The luck of the example: what befalls an order depends on CHOREO_SEED and its number, and on nothing else.

So processes agree without asking each other, a redelivery ends as the first delivery would have, and a run
can be repeated.
"""

import os
from hashlib import blake2b

DEFAULT_SEED = "144"  # brings every kind of misfortune to the orders 1001 to 1020 of the demo


def draw(what: str, order: str) -> float:
    """Return a number from 0 to below 1, always the same one for one `what`, one `order` and one seed."""
    seed = os.environ.get("CHOREO_SEED", DEFAULT_SEED)
    digest = blake2b(f"{seed}\0{what}\0{order}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def strikes(what: str, order: str, *, odds: float) -> bool:
    """Say whether the misfortune `what` befalls `order`; it does with a chance of `odds`, 0 to 1."""
    return draw(what, order) < odds
