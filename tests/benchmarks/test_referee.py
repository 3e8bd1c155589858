"""The parts of the benchmark that need no broker: copies of a message, what is measured of a run, and the page."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest

from tests.benchmarks import goals, page, parts
from tests.benchmarks.contenders.order import body
from tests.benchmarks.peers import CONTENDERS
from tests.benchmarks.referee import WORKLOADS, Run, Spread
from tests.benchmarks.results import Comparison, Figures
from tests.benchmarks.wire import Copies


def test_a_copy_differs_in_the_number_of_its_order_and_in_its_ids() -> None:
    head = b"id 0123456789abcdef0123456789abcdef and 01234567-89ab-cdef-0123-456789abcdef end"
    copies = Copies.of("events", "order.placed", head, body(0))
    first, other = copies.copy(0), copies.copy(42)
    assert len(first) == len(other)
    assert b"o-00000042" in other
    assert b"0123456789abcdef0123000000000042 and 01234567-89ab-cdef-0123-000000000042 end" in other
    assert other.startswith(first[: first.index(b"id ")])


def test_a_copy_for_another_exchange_is_the_same_message() -> None:
    copies = Copies.of("events", "order.placed", b"head", body(0))
    assert copies.to("events") == copies
    assert b"elsewhere" in copies.to("elsewhere").copy(1)


def test_an_order_has_512_bytes() -> None:
    assert {len(body(number)) for number in (0, 99_999_999)} == {512}


def test_a_run_is_measured_while_its_window_is_full() -> None:
    """As many are under way when it begins as when it ends, so none is counted without its work or the other way."""
    spread = Spread.over(1000, 100)
    assert spread == Spread(total=1200, begin=100, end=1100)
    assert Spread.over(10_000, 100).begin == 1000


def runs(rate: float) -> list[Run]:
    return [Run(1000, 1000 / (rate * factor), 0.02, 0.01, (0.001,) * 99 + (0.003,)) for factor in (1.0, 0.5, 2.0)]


def test_figures_are_medians_with_their_spread() -> None:
    figures = Figures.of(runs(500))
    assert (round(figures.lowest), round(figures.rate), round(figures.highest)) == (250, 500, 1000)
    assert (figures.client, figures.p50, figures.p99) == (20.0, 1.0, 3.0)


def kept(ours: float) -> dict[str, Any]:
    """What a run of three contenders would have left."""
    comparison = Comparison()
    rates = {"choreo": ours, "rabbitmq_c": 1000.0, "faststream": 50.0}
    contenders = [each for each in CONTENDERS if each.name in rates]
    for workload in WORKLOADS:
        for contender in contenders:
            for run in runs(rates[contender.name]):
                comparison.add(workload, contender, run)
    workloads = comparison.data([], 3)["workloads"]
    versions = {each.name: "1.0" for each in contenders}
    return {"comparison": {"surroundings": "today", "rounds": 3, "versions": versions, "workloads": workloads}}


async def test_the_parts_of_a_delivery_are_measured_while_it_is_handled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_TIMES", 1)
    found = await parts._measure()
    assert len(found) == 7
    assert sum(cost for _, cost in found) > 0


def test_a_goal_is_met_or_not_or_was_not_measured() -> None:
    found = {goal.what: goal for goal in goals.of_comparison(kept(850)["comparison"]["workloads"])}
    assert found["consume-100: rate beside the C client"].verdict == "met"
    assert found["hop: rate beside the C client"].verdict == "**not met**"
    assert found["consume-100: rate beside FastStream"].measured == "17.00×"
    assert found["latency: p50 no worse than raw aio-pika's"].verdict == "not measured"
    assert {goal.verdict for goal in goals.of_growth({})} == {"not measured"}


def test_memory_that_grows_with_the_events_is_no_goal_met() -> None:
    backlog = [{"done": step, "rss": 50.0 + 2 * step} for step in range(10)]
    [grown] = [goal for goal in goals.of_growth({"backlog": backlog}) if goal.what.startswith("memory growth")]
    assert not grown.met


def test_the_page_names_who_was_left_out_and_shows_who_was_not() -> None:
    text = page.text(kept(850))
    assert "| choreo | 850 (425 to 1,700) | 1.00× | 20.0 µs | 10.0 µs |" in text
    assert "Left out, because the machine did not have them: choreo, plain JSON, amqplib (Node), pika" in text
    assert "How it grows" not in text


def test_the_picture_is_svg_with_the_best_first() -> None:
    root = ET.fromstring(page.picture(kept(850)["comparison"]["workloads"]))
    labels = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text") if each.get("text-anchor") == "end"]
    assert labels[:3] == ["C, rabbitmq-c", "choreo", "FastStream"]
