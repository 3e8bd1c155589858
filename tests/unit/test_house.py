"""The house stays as CONTRIBUTING.md draws it: floors, declared dependencies, room sizes, one printer."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Collection
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOUSE = ROOT / "choreo"
FILES = sorted(HOUSE.rglob("*.py"))
WORTH_A_LOOK = 400  # lines
LONGEST = 700  # lines, whatever the reason
# Longer modules, and why each is one: a class is not cut because it is long.
WHOLE = {
    "broker/core/channel.py": "one class: a method per method of AMQP",
    "broker/server/client.py": "one class: a connection from its first byte to its last",
    "broker/core/queues.py": "a queue and its consumers know each other: whose turn it is, who holds what",
}
PRINTING_CALLS = {"print", "pprint", "echo", "secho"}
PRINTING_LIBRARIES = {"click", "rich", "typer"}

every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(HOUSE)))


def test_imports_go_only_downward() -> None:
    """The contracts of import-linter hold: the floors, and AMQP only in `rabbit`."""
    program = "from importlinter.cli import lint_imports as lint; exit(lint(no_cache=True, no_logo=True))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_third_party_import_is_declared() -> None:
    """What choreo imports stands in pyproject.toml, instead of coming along with something else by luck."""
    imported = {name for path in FILES for name in imports(path)} - set(sys.stdlib_module_names) - {"choreo"}
    providers = packages_distributions()
    undeclared = {name for name in imported if not declared() & {normal(d) for d in providers.get(name, [name])}}
    assert not undeclared


def test_every_dependency_is_imported() -> None:
    """Nothing is installed on a user's machine that choreo does not use."""
    providers = packages_distributions()
    used = {normal(d) for path in FILES for name in imports(path) for d in providers.get(name, [])}
    assert declared() - used == set()


def test_the_map_of_the_house_shows_every_room() -> None:
    """CONTRIBUTING.md says of each room on which floor it is and what it is for."""
    rooms = {path.stem for path in HOUSE.glob("[!_]*.py")} | {
        f"{path.parent.name}/" for path in HOUSE.glob("*/__init__.py")
    }
    table = [line for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines() if re.match(r"\| \d+ \|", line)]
    assert rooms == {room for line in table for room in re.findall(r"`([a-z_]+/?)`", line.split("|")[2])}


@every_file
def test_a_module_fits_a_mind(path: Path) -> None:
    """A module has one reason to change; one of more than 400 lines has been looked at and says why it is whole."""
    lines = len(path.read_text().splitlines())
    assert lines <= LONGEST
    assert (lines > WORTH_A_LOOK) == (path.relative_to(HOUSE).as_posix() in WHOLE)


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Whatever a module needs stands below it: imports for types and those inside functions count as well."""
    modules = {module_name(path): path for path in FILES}
    uses = {name: modules_used(path, modules) - {name} for name, path in modules.items()}
    assert circles(uses) == []


def test_a_circle_of_types_is_found(tmp_path: Path) -> None:
    """The check above sees imports for type checkers, and a longer way round."""
    (tmp_path / "a.py").write_text("if TYPE_CHECKING:\n    from choreo.b import B\n")
    (tmp_path / "b.py").write_text("def f():\n    from choreo import c\n")
    (tmp_path / "c.py").write_text("import choreo.a\n")
    (tmp_path / "d.py").write_text("from choreo.a import A\n")
    modules = {f"choreo.{name}": tmp_path / f"{name}.py" for name in "abcd"}
    uses = {name: modules_used(path, modules) for name, path in modules.items()}
    assert circles(uses) == [["choreo.a", "choreo.b", "choreo.c"]]


@every_file
def test_only_the_cli_prints(path: Path) -> None:
    """Output belongs to commands; a library that prints garbles what its user prints."""
    if path.is_relative_to(HOUSE / "cli"):
        return
    tree = ast.parse(path.read_text())
    calls = {called(node) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    attributes = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not calls & PRINTING_CALLS
    assert not imports(path) & PRINTING_LIBRARIES
    assert "sys.stdout" not in attributes


@every_file
def test_a_room_says_what_is_inside(path: Path) -> None:
    """Every module opens with a docstring and has a name that says something."""
    assert ast.get_docstring(ast.parse(path.read_text()))
    assert path.stem not in {"base", "common", "helpers", "misc", "utils"}


def imports(path: Path) -> set[str]:
    """Return the top-level names that the module imports, lazily or not."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def module_name(path: Path) -> str:
    """Return the dotted name under which the module is imported."""
    return ".".join(("choreo", *path.relative_to(HOUSE).with_suffix("").parts)).removesuffix(".__init__")


def modules_used(path: Path, modules: Collection[str]) -> set[str]:
    """Return those of `modules` that the module imports, for whatever purpose."""
    used: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            used |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            used |= {name if name in modules else node.module for name in inner}
    return used & set(modules)


def circles(uses: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that reach each other."""
    reached = {name: set(below) for name, below in uses.items()}
    for middle in uses:
        for name in uses:
            if middle in reached[name]:
                reached[name] |= reached[middle]
    groups = {tuple(sorted(other for other in reached[name] if name in reached[other])) for name in uses}
    return [list(group) for group in sorted(groups) if len(group) > 1]


def called(call: ast.Call) -> str:
    """Return the last name of what is called: `echo` for `typer.echo(...)`."""
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def declared() -> set[str]:
    """Return the distributions that pyproject.toml declares, the extras included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [requirement for extra in project["optional-dependencies"].values() for requirement in extra]
    return {normal(re.split(r"[^A-Za-z0-9._-]", each, maxsplit=1)[0]) for each in project["dependencies"] + extras}


def normal(distribution: str) -> str:
    """Return the name as package indexes compare it: lower case, one dash for any run of `-_.`."""
    return re.sub(r"[-_.]+", "-", distribution).lower()
