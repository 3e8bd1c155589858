"""What the pages say of installing and finding things is what there is."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from choreo import Agent, loader
from choreo.topology import Topology

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Whatever may tell a person what to install.
TEXTS = [*PAGES, *sorted((ROOT / "choreo").rglob("*.py")), *sorted((ROOT / "deploy").iterdir())]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_choreo_is_installed_from_where_it_is(path: Path):
    """There is no release: what is installed is a clone or a wheel, by its path, with extras that exist."""
    text = path.read_text()
    assert not re.findall(r"""pip install (?:-\S+ )*["']?choreo\b""", text)
    for extras in re.findall(r"(?:clone|\.whl|choreo)\[([a-z,]+)\]", text):
        assert set(extras.split(",")) <= set(EXTRAS)


def test_the_wheel_has_the_name_of_the_page():
    """`make build` makes the file that the page installs."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"dist/choreo-{version}-py3-none-any.whl" in (ROOT / "docs" / "deployment.md").read_text()


def test_the_group_of_entry_points_is_on_the_page():
    """As a user's pyproject.toml has it."""
    (block,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "guide.md").read_text(), re.DOTALL)
    assert list(tomllib.loads(block)["project"]["entry-points"]) == [loader.GROUP]


def test_the_level_that_shows_what_was_handled_is_said():
    """The outcome of an event that did not fail is a debug line."""
    page = (ROOT / "docs" / "deployment.md").read_text()
    before = page[: page.index("jq -R")].split("## Logs")[1]
    assert "with `CHOREO_LOG_LEVEL=debug` its whole history" in before


def test_what_a_namespace_costs_is_counted_right():
    """As many queues as the page says, with agents and without."""
    page = (ROOT / "docs" / "topology.md").read_text()
    (shared,) = re.findall(r"A namespace has (\d+) quorum queues of its own, and three more for each agent", page)
    agents = [Agent("one"), Agent("other")]
    assert len(Topology.of([]).queues) == int(shared)
    assert len(Topology.of(agents).queues) == int(shared) + 3 * len(agents)
