"""What the source of an agents folder says of its agents, without importing any of it."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from pathlib import Path


def declared(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield name and file of the agents in `folder`, by file name, as their source says.

    A file that cannot be read as Python may be one: it is listed under its own name; importing it tells why.
    """
    for file in files(folder):
        tree = parsed(file)
        if tree is not None:
            for name in _assigned(tree):
                yield name or file.stem, file
        elif re.fullmatch(r"[a-z][a-z0-9_]*", file.stem):
            yield file.stem, file


def parsed(file: Path) -> ast.Module | None:
    """Return the syntax tree of a file; None for what cannot be read as Python."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None


def files(folder: Path) -> list[Path]:
    """Return the Python files of a folder that are not hidden, sorted."""
    return [file for file in sorted(folder.glob("[!.]*.py")) if file.is_file()]


def _assigned(tree: ast.Module) -> Iterator[str | None]:
    """Yield the name in each top-level ``x = Agent("name")``, None where it is not written out."""
    ways = _ways_to_agent(tree)
    for statement in tree.body:
        if not isinstance(statement, ast.Assign | ast.AnnAssign) or not isinstance(statement.value, ast.Call):
            continue
        call = statement.value
        if ast.unparse(call.func) not in ways:
            continue
        given = [*call.args[:1], *(each.value for each in call.keywords if each.arg == "name")]
        name = given[0].value if given and isinstance(given[0], ast.Constant) else None
        yield name if isinstance(name, str) else None


def seems_an_agent(tree: ast.Module) -> bool:
    """Return whether a module has reactions, or makes an agent anywhere, so that it may be meant as an agent's."""
    ways = _ways_to_agent(tree)
    calls = (ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call))
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    decorators = (ast.unparse(each) for function in functions for each in function.decorator_list)
    return any(call in ways for call in calls) or any(re.match(r"\w+\.on\b", each) for each in decorators)


def _ways_to_agent(tree: ast.Module) -> set[str]:
    """Return how this module may call choreo's Agent; one of somebody else's is not ours."""
    ways = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            ways |= {f"{each.asname or 'choreo'}.Agent" for each in node.names if each.name == "choreo"}
        elif isinstance(node, ast.ImportFrom) and node.module in ("choreo", "choreo.agent"):
            ways |= {each.asname or "Agent" for each in node.names if each.name in ("Agent", "*")}
    return ways
