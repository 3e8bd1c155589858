"""The page that leads newcomers through the code names what is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"
LINKS = re.findall(r"\[`([\w.]+)`\]\((\.\./choreo/[\w/]+\.py)\)", PAGE.read_text())


def test_the_page_has_links():
    """The pattern above finds all that lead into the code."""
    assert len(LINKS) == PAGE.read_text().count("](../choreo/") > 20


@pytest.mark.parametrize(("name", "path"), LINKS, ids=lambda each: each.removeprefix("../choreo/"))
def test_what_the_page_links_is_there(name: str, path: str):
    """Each link's file exists and defines the name; after a move or a new name, change docs/architecture.md."""
    body = ast.parse((PAGE.parent / path).read_text()).body
    for part in name.split("."):
        found = [each for each in body if getattr(each, "name", None) == part]
        assert found, f"{path} does not define {name}"
        body = getattr(found[-1], "body", [])
