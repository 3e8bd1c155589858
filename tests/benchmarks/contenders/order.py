"""The same work for all: 512 bytes of JSON, validated by the same model, and the report of a run."""

from __future__ import annotations

import json
import os
import sys
import time
from decimal import Decimal
from typing import Any

from pydantic import BaseModel

WINDOW = 500  # publishes outstanding
PREFETCH = 100


class Order(BaseModel):
    order: str
    customer: str
    total: Decimal
    currency: str
    items: dict[str, int]
    note: str


def fields(number: int) -> dict[str, Any]:
    """Return one order; its JSON has about 512 bytes."""
    return {
        "order": f"{number:08d}",
        "customer": "customer@example.org",
        "total": "129.90",
        "currency": "EUR",
        "items": {"book": 1, "lamp": 2, "globe": 1},
        "note": "x" * 370,
    }


def body(number: int) -> bytes:
    """Return one order as it stands on the wire."""
    return json.dumps(fields(number)).encode()


class Clock:
    """Measures from the first event to the last: seconds of wall time, and of CPU time in this process."""

    def __init__(self) -> None:
        self.wall = time.perf_counter()
        self.cpu = time.process_time()

    def report(self, events: int) -> None:
        """Print the result for the runner."""
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        print(json.dumps({"events": events, "seconds": wall, "cpu": cpu}), flush=True)
        sys.stdout.flush()
        os._exit(0)  # taking leave properly is not what is measured


def arguments() -> tuple[str, int, str, str]:
    """Return workload, number of events, broker URL and namespace."""
    workload, events, namespace = sys.argv[1:4]
    return workload, int(events), os.environ["CHOREO_URL"], namespace
