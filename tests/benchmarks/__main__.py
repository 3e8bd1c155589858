"""`make bench`: one private node, contenders in turn, medians, and ratios to choreo within this run."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import aio_pika

from choreo.rabbit.node import Node
from tests.benchmarks.contenders.order import body

CONTENDERS = ("choreo", "aio_pika", "faststream")
WORKLOADS = {"consume": 10_000, "hop": 4_000, "publish": 10_000}
ROUNDS = 3
NAMESPACE = "bench"


def main() -> None:
    """Run everything, and print a table per workload."""
    with tempfile.TemporaryDirectory(prefix="choreo-bench-") as folder, Node.start(Path(folder)) as node:
        environment = {
            **os.environ,
            "CHOREO_URL": node.url,
            "CHOREO_NAMESPACE": NAMESPACE,
            "PYTHONPATH": str(Path.cwd()),
        }
        _run("choreo", "declare", 0, environment)
        for workload, events in WORKLOADS.items():
            results: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
            for round_ in range(ROUNDS):
                for name in CONTENDERS[round_:] + CONTENDERS[:round_]:  # nobody is always first
                    asyncio.run(_prepare(node.url, 0 if workload == "publish" else events))
                    results[name].append(_run(name, workload, events, environment))
            _show(workload, results)


def _run(name: str, workload: str, events: int, environment: dict[str, str]) -> dict[str, float]:
    command = [sys.executable, "-m", f"tests.benchmarks.contenders.with_{name}", workload, str(events), NAMESPACE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        sys.exit(f"{name} {workload} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout) if done.stdout else {}


async def _prepare(url: str, events: int) -> None:
    """Empty both queues, and fill the work queue."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        for queue in ("bench", "sink"):
            await (await channel.get_queue(f"{NAMESPACE}.{queue}")).purge()
        exchange = await channel.get_exchange(f"{NAMESPACE}.events")
        for begin in range(0, events, 1000):
            numbers = range(begin, min(begin + 1000, events))
            message = {n: aio_pika.Message(body(n), delivery_mode=2, content_type="application/json") for n in numbers}
            await asyncio.gather(*(exchange.publish(message[n], "order.placed") for n in numbers))


def _show(workload: str, results: dict[str, list[dict[str, float]]]) -> None:
    print(f"\n{workload}: events per second (spread), client CPU per event, ratio of choreo's rate to it")
    rates = {name: [run["events"] / run["seconds"] for run in runs] for name, runs in results.items()}
    ours = statistics.median(rates["choreo"])
    for name, runs in results.items():
        rate = statistics.median(rates[name])
        cpu = statistics.median(run["cpu"] / run["events"] for run in runs) * 1e6
        spread = f"{min(rates[name]):,.0f} to {max(rates[name]):,.0f}"
        print(f"  {name:<12} {rate:>8,.0f}/s  ({spread:<18})  {cpu:>6.0f} µs  {ours / rate:.2f}x", flush=True)


if __name__ == "__main__":
    main()
