"""From a name to an agent: a module of the agents folder, an entry point, or ``package.module:attribute``.

A name is checked before anything is imported or opened for it, and a module of the folder is a file in it.
Whatever the user's own code raises while it is imported goes on unchanged.
"""

from __future__ import annotations

import ast
import difflib
import os.path
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Final

from choreo import importing
from choreo.errors import ChoreoError, ConfigurationError, DeclarationError, InvalidName, UnknownAgent, UsageError
from choreo.importing import OTHER_FOLDER

if TYPE_CHECKING:
    from choreo.agent import Agent  # imported where it is needed: `known` shall be quick

GROUP: Final = "choreo.agents"  # of entry points

_IDENTIFIER: Final = r"[A-Za-z_][A-Za-z0-9_]*"
_REFERENCE: Final = re.compile(rf"({_IDENTIFIER}(?:\.{_IDENTIFIER})*):({_IDENTIFIER})")
_MAX_REFERENCE: Final = 255  # characters
_GRAMMAR: Final = (
    'a name is a lower-case letter, then up to 62 of a-z, 0-9, "_" and "-": payment; '
    "an agent elsewhere is package.module:attribute"
)


def load(name: str, folder: Path) -> Agent:
    """Import one agent and return it: `name`.py of `folder`, else an entry point; or what a reference names.

    Dashes of a name are underscores of its file. The folder is imported as a package of its own name, before
    any other of that name, and its parent is put on `sys.path`. Raises InvalidName, UnknownAgent, DeclarationError (an
    agent of another name), ConfigurationError (the folder cannot be imported from), and what the user's module raises.
    """
    _check(name)
    folder = folder.absolute()
    if ":" in name:
        return _from_reference(name, folder)
    file = folder / f"{name.replace('-', '_')}.py"
    if file.is_file():
        return _named(name, _from_file(file), _short(file))
    point = _entry_point(name)
    if point is not None:
        return _named(name, _from_entry_point(point), f"the entry point {point.value}")
    raise _unknown(name, folder)


def load_all(folder: Path) -> list[Agent]:
    """Import every agent file of `folder`, sorted by file name, and return the agents.

    An agent file is one with a line ``agent = Agent("name")`` at the top level; other modules are left alone.
    Raises what `load` raises, and DeclarationError when two files declare one name.
    """
    folder = folder.absolute()
    if not folder.is_dir():
        raise ConfigurationError(f"there is no agents folder {folder}", OTHER_FOLDER)
    files, refused = _agent_files(folder)
    for error in refused.values():
        raise error
    return [_from_file(file) for file in files]


def load_good(folder: Path, names: Sequence[str] = ()) -> tuple[list[Agent], dict[str, Exception]]:
    """Import what can be imported of `names`, by default of what `load_all` imports. Return the agents and the others.

    Of the others, each with what is wrong with it. Raises InvalidName and UnknownAgent for a name that nothing has, and
    ConfigurationError where there is no folder.
    """
    folder = folder.absolute()
    left_out: dict[str, Exception] = {}
    ways: dict[str, Callable[[], Agent]] = {name: partial(load, name, folder) for name in names}
    if not names:
        if not folder.is_dir():
            raise ConfigurationError(f"there is no agents folder {folder}", OTHER_FOLDER)
        files, refused = _agent_files(folder)
        left_out.update(refused)
        ways = {file.stem: partial(_from_file, file) for file in files}
    agents: dict[str, Agent] = {}
    for name, way in ways.items():
        try:
            agent = way()
        except Exception as error:
            expected = isinstance(error, ChoreoError) or importing.imported_by(error) is not None
            if not expected or (names and isinstance(error, UsageError)):
                raise
            left_out[name] = error
        else:
            agents[agent.name] = agent
    return list(agents.values()), left_out


def known(folder: Path) -> list[str]:
    """Return the sorted names of the agents in `folder` and of the installed ones, without importing any."""
    return sorted({*declared(folder)} | {point.name for point in entry_points(group=GROUP)})


def declared(folder: Path) -> list[str]:
    """Return the sorted names of the agents in `folder`, without importing any."""
    return sorted({name for name, _ in _declared(folder)})


def require(name: str, folder: Path) -> None:
    """Raise InvalidName or UnknownAgent when there is nothing that could hold the agent `name`; imports nothing."""
    _check(name)
    if ":" not in name and not (folder / f"{_stem(name)}.py").is_file() and name not in known(folder):
        raise _unknown(name, folder.absolute())


def without_agent(folder: Path) -> list[str]:
    """Return the sorted names of the files in `folder` that `load_all` leaves alone: they declare no agent."""
    agents = {file.name for _, file in _declared(folder)}
    return [file.name for file in _files(folder) if file.name not in agents and not file.name.startswith("_")]


def forgotten(folder: Path) -> list[str]:
    """Return those `without_agent` that seem to be an agent's all the same: one in a function, or its reactions."""
    return [name for name in without_agent(folder) if (tree := _parsed(folder / name)) and _seems_an_agent(tree)]


def nobody(folder: Path) -> ConfigurationError:
    """Return the error that says that no agent is in `folder`, and which files of it declare none."""
    others = without_agent(folder)
    which = f": none is declared in {', '.join(others)}" if others else ""
    return ConfigurationError(
        f"there is no agent in {folder}{which}",
        f'write one: agent = Agent("name") at the top level of name.py there; or {OTHER_FOLDER}',
    )


def _check(name: str) -> None:
    from choreo.agent import NAME

    if ":" not in name:
        if not NAME.fullmatch(name):
            raise InvalidName(f"{_shown(name)} is no name of an agent", _GRAMMAR)
        return
    found = _REFERENCE.fullmatch(name)
    if found is None or len(name) > _MAX_REFERENCE:
        raise InvalidName(f"{_shown(name)} is no name of an agent", _GRAMMAR)
    if re.search(r"(^|[.:])__", name):
        raise InvalidName(f"{_shown(name)} points at a private part of Python", _GRAMMAR)
    top = found[1].partition(".")[0]
    if top in sys.stdlib_module_names:
        raise InvalidName(f'{_shown(name)}: "{top}" is a module of Python itself and holds no agent', _GRAMMAR)


def _from_file(file: Path) -> Agent:
    """Import an agent file and return the agent that is named as the file is."""
    if not file.resolve().is_relative_to(file.parent.resolve()):
        raise ConfigurationError(
            f"{_short(file)} is a link that leads out of the agents folder",
            "put the file itself into the folder",
        )
    agents = _agents(importing.agent_file(file))
    named = [agent for agent in agents if _stem(agent.name) == file.stem]
    if len(named) == 1:
        return named[0]
    if not agents:
        raise UnknownAgent(f"{_short(file)} holds no agent", f'declare one in it: agent = Agent("{file.stem}")')
    if len(agents) == 1:
        raise DeclarationError(*_misplaced(agents[0].name, file))
    raise DeclarationError(
        f"{_short(file)} holds several agents ({', '.join(agent.name for agent in agents)})",
        f'exactly one of them is named as the file is: Agent("{file.stem}")',
    )


def _from_reference(name: str, folder: Path) -> Agent:
    module_name, _, attribute = name.partition(":")
    importing.claim(folder)
    return _agent_at(_import(module_name), attribute)


def _from_entry_point(point: EntryPoint) -> Agent:
    module = _import(point.module)
    if point.attr:
        return _agent_at(module, point.attr)
    agents = _agents(module)
    if not agents:
        raise UnknownAgent(f"the entry point {point.value} holds no agent", "it is package.module:attribute")
    return next((agent for agent in agents if agent.name == point.name), agents[0])


def _agent_at(module: ModuleType, path: str) -> Agent:
    from choreo.agent import Agent

    missing = object()
    value: object = module
    for attribute in path.split("."):
        value = getattr(value, attribute, missing)
    if isinstance(value, Agent):
        return value
    what = "does not exist" if value is missing else f"is of type {type(value).__name__} and no Agent"
    names = [name for name, each in vars(module).items() if isinstance(each, Agent)]
    raise UnknownAgent(
        f"{module.__name__}:{path} {what}",
        f"agents of this module: {', '.join(f'{module.__name__}:{name}' for name in names) or 'none'}",
    )


def _entry_point(name: str) -> EntryPoint | None:
    found = {point.value: point for point in entry_points(group=GROUP, name=name)}
    if len(found) > 1:
        owners = ", ".join(f"{point.dist.name if point.dist else '?'} ({value})" for value, point in found.items())
        raise ConfigurationError(
            f'agent "{name}" is offered by several installed packages: {owners}',
            "remove one of them, or name the agent as package.module:attribute",
        )
    return next(iter(found.values()), None)


def _import(name: str) -> ModuleType:
    """Import a module. Raises UnknownAgent if there is none; an import that fails inside it goes on."""
    try:
        return importing.module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        missing = error.name
    raise UnknownAgent(f'there is no module "{missing}"', "install it, or run choreo in the folder that holds it")


def _agents(module: ModuleType) -> list[Agent]:
    from choreo.agent import Agent

    return list(dict.fromkeys(value for value in vars(module).values() if isinstance(value, Agent)))


def _named(name: str, agent: Agent, where: str) -> Agent:
    if agent.name != name:
        # A dash for an underscore is a slip of who asks; an entry point that offers another agent is declared wrongly.
        kind = UnknownAgent if _stem(agent.name) == _stem(name) else DeclarationError
        raise kind(
            f'{where} holds the agent "{agent.name}", not "{name}"',
            f'ask for {agent.name}, or declare Agent("{name}")',
        )
    return agent


def _unknown(name: str, folder: Path) -> UnknownAgent | DeclarationError:
    """Return the error for a name that no file has: nobody's, or that of an agent in a file of another name."""
    for other, file in _declared(folder):
        if other == name:
            return DeclarationError(*_misplaced(name, file))
    names = known(folder)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    if not folder.is_dir():
        return UnknownAgent(
            f'there is no agent "{name}": the agents folder {folder} does not exist',
            f"{hint}known: {', '.join(names)}" if names else OTHER_FOLDER,
        )
    return UnknownAgent(f'there is no agent "{name}" in {folder}', f"{hint}known: {', '.join(names) or 'none'}")


def _misplaced(name: str, file: Path) -> tuple[str, str]:
    place = file.parent / f"{_stem(name)}.py"
    rename = f'name it as its file: Agent("{file.stem}")'
    return (
        f'{_short(file)} holds the agent "{name}", whose file would be {_short(place)}',
        # Not "move it" where a file would be overwritten, be it one that declares no agent.
        f"{_short(place)} is another file, so {rename}" if os.path.lexists(place) else f"move it there, or {rename}",
    )


def _agent_files(folder: Path) -> tuple[list[Path], dict[str, DeclarationError]]:
    """Return the agent files of `folder`, and what is wrong with agents that are declared twice or in another's file.

    Nothing is imported.
    """
    places: dict[str, list[Path]] = {}
    for name, file in _declared(folder):
        if file not in places.setdefault(name, []):
            places[name].append(file)
    files, twice, misplaced = dict[Path, None](), dict[str, DeclarationError](), dict[str, DeclarationError]()
    for name, there in places.items():
        mine = next((file for file in there if file.stem == _stem(name)), None)
        if mine is not None:
            files[mine] = None
        if len(there) > 1:
            error = DeclarationError(
                f'agent "{name}" is declared in {_short(there[0])} and in {_short(there[1])}',
                "give one of the two another name: an agent owns its queue alone",
            )
            twice.update((_short(file), error) for file in there if file != mine)
        elif mine is None:
            misplaced[name] = DeclarationError(*_misplaced(name, there[0]))
    return list(files), twice | misplaced


def _declared(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield name and file of the agents in `folder`, by file name, as their source says.

    A file that cannot be read as Python may be one: it is listed under its own name; importing it tells why.
    """
    for file in _files(folder):
        tree = _parsed(file)
        if tree is not None:
            for name in _assigned(tree):
                yield name or file.stem, file
        elif re.fullmatch(r"[a-z][a-z0-9_]*", file.stem):
            yield file.stem, file


def _parsed(file: Path) -> ast.Module | None:
    try:
        with warnings.catch_warnings(action="ignore"):
            return ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None


def _files(folder: Path) -> list[Path]:
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


def _seems_an_agent(tree: ast.Module) -> bool:
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


def _stem(name: str) -> str:
    return name.replace("-", "_")


def _short(file: Path) -> str:
    return f"{file.parent.name}/{file.name}"


def _shown(name: str) -> str:
    return ascii(name if len(name) <= 80 else f"{name[:80]}...")  # look-alike letters and control characters show
