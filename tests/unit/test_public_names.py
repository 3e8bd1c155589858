"""What users import: the names of `choreo` and `choreo.testing`, told in full and found when they are asked for."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import pytest

import choreo
import choreo.testing
from choreo import errors

ROOT = Path(__file__).parents[2]

packages = pytest.mark.parametrize("package", ["choreo", "choreo.testing"])


@packages
def test_all_is_literal_sorted_and_what_type_checkers_see(package: str) -> None:
    """`__all__` can be read without running anything, and names exactly what type checkers see."""
    tree = ast.parse((ROOT / package.replace(".", "/") / "__init__.py").read_text())
    literal = next(
        ast.literal_eval(each.value)
        for each in tree.body
        if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == "__all__"
    )
    guarded = next(each for each in tree.body if isinstance(each, ast.If))
    seen = [alias.name for each in guarded.body if isinstance(each, ast.ImportFrom) for alias in each.names]
    assert literal == sorted(seen, key=lambda name: (name.islower(), name))


@packages
def test_each_public_name_is_found_and_is_the_one_that_type_checkers_see(package: str) -> None:
    """What is imported lazily is the same object as what the type checker is told."""
    tree = ast.parse((ROOT / package.replace(".", "/") / "__init__.py").read_text())
    guarded = next(each for each in tree.body if isinstance(each, ast.If))
    for each in guarded.body:
        assert isinstance(each, ast.ImportFrom)
        assert each.module is not None
        for alias in each.names:
            assert getattr(import_module(package), alias.name) is getattr(import_module(each.module), alias.name)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'Agnet'"):
        _ = import_module(package).Agnet


def test_what_a_publish_raises_can_be_caught_with_public_names() -> None:
    """Errors that the docstrings of public functions name are public themselves."""
    told = "\n".join(
        each.__doc__ or ""
        for each in (choreo.connect, choreo.Publisher, choreo.Publisher.publish, choreo.Agent, choreo.Event)
    )
    named = {name for name in vars(errors) if name[0].isupper() and name in told.replace(",", " ").split()}
    assert {"PublishRefused", "PublishUnknown"} <= named
    assert named <= set(choreo.__all__)
