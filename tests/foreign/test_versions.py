"""The page that says what was tried names the versions that are pinned, which are the ones that are tried."""

from __future__ import annotations

import json
import re

from tests.foreign.clients import ROOT


def test_the_page_names_the_versions_that_are_tried():
    page = (ROOT / "docs/embedded.md").read_text()
    table = page[page.index("| client |") : page.index("## Differences from")]
    named = re.findall(r"([A-Za-z][\w-]+) (\d+(?:\.\d+)+)", table.partition("|---|")[2])
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "requirements/bench.txt").read_text(), re.MULTILINE))
    lock = json.loads((ROOT / "requirements/node/package-lock.json").read_text())
    pinned["amqplib"] = lock["packages"]["node_modules/amqplib"]["version"]
    pinned["amqp-tools"] = "0.11"  # of Debian 12; what is installed elsewhere is not ours to pin
    assert dict(named) == {name: pinned.get(name.lower()) for name, _ in named}
    assert len(named) >= 12
