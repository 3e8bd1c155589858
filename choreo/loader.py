"""From a name to an agent: a module of the agents folder, an entry point, or ``package.module:attribute``.

A name is checked before anything is imported or opened for it, and a module of the folder is a file in it.
Whatever the user's own code raises while it is imported goes on unchanged.
"""

from __future__ import annotations

import difflib
import os.path
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Final

from choreo import agent_files, importing
from choreo.errors import ChoreoError, ConfigurationError, DeclarationError, InvalidName, UnknownAgent, UsageError
from choreo.importing import NEW_PROJECT, OTHER_FOLDER

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
        return _from_entry_point(point)
    raise _unknown(name, folder)


def load_all(folder: Path) -> list[Agent]:
    """Import every agent file of `folder`, sorted by file name, then what is installed, and return the agents.

    An agent file is one with a line ``agent = Agent("name")`` at the top level; other modules are left alone. An entry
    point counts where no file of the folder has its name. Raises what `load` raises, and DeclarationError when two
    files declare one name.
    """
    agents, left_out = load_sound(folder)
    for error in left_out.values():
        raise error
    return agents


def load_sound(folder: Path) -> tuple[list[Agent], dict[str, Exception]]:
    """Import what `load_all` imports. Return the agents, and what is wrong with each entry point that is broken.

    Who installed a package need not be who works on this project, so it keeps nobody from their own agents. What is
    wrong in the folder is raised as `load_all` raises it.
    """
    folder = folder.absolute()
    _require_some(folder)
    files, refused = _agent_files(folder)
    for error in refused.values():
        raise error
    agents = [_from_file(file) for file in files]
    installed, broken = _sound(_installed_ways(folder))
    return [*agents, *installed], broken


def load_good(folder: Path, names: Sequence[str] = ()) -> tuple[list[Agent], dict[str, Exception]]:
    """Import what can be imported of `names`, by default of what `load_all` imports. Return the agents and the others.

    Of the others, each with what is wrong with it. Raises InvalidName and UnknownAgent for a name that nothing has, and
    ConfigurationError where there is no folder.
    """
    folder = folder.absolute()
    left_out: dict[str, Exception] = {}
    ways: dict[str, Callable[[], Agent]] = {name: partial(load, name, folder) for name in names}
    if not names:
        _require_some(folder)
        files, refused = _agent_files(folder)
        left_out.update(refused)
        ways = {file.stem: partial(_from_file, file) for file in files} | _installed_ways(folder)
    agents, broken = _sound(ways)
    for error in broken.values():
        if names and isinstance(error, UsageError):
            raise error
    return agents, left_out | broken


def _sound(ways: Mapping[str, Callable[[], Agent]]) -> tuple[list[Agent], dict[str, Exception]]:
    """Go each way to an agent. Return the agents, and what is wrong with those that cannot be had."""
    agents: dict[str, Agent] = {}
    left_out: dict[str, Exception] = {}
    for name, way in ways.items():
        try:
            agent = way()
        except Exception as error:
            if not isinstance(error, ChoreoError) and importing.imported_by(error) is None:
                raise
            left_out[name] = error
        else:
            agents[agent.name] = agent
    return list(agents.values()), left_out


def any_agents(folder: Path) -> bool:
    """Return whether there is somewhere to look for agents: the folder, or an installed package that offers some."""
    return folder.is_dir() or bool(entry_points(group=GROUP))


def _require_some(folder: Path) -> None:
    if not any_agents(folder):
        raise no_folder(folder)


def _installed_ways(folder: Path) -> dict[str, Callable[[], Agent]]:
    """Return how to get each installed agent that no file of `folder` comes before, by what it is called."""
    names = {point.name: point for point in sorted(entry_points(group=GROUP))}
    return {
        _offered(point): partial(load, name, folder)
        for name, point in names.items()
        if not (folder / f"{_stem(name)}.py").is_file()
    }


def known(folder: Path) -> list[str]:
    """Return the sorted names of the agents in `folder` and of the installed ones, without importing any."""
    return sorted({*declared(folder)} | {point.name for point in entry_points(group=GROUP)})


def declared(folder: Path) -> list[str]:
    """Return the sorted names of the agents in `folder`, without importing any."""
    return sorted({name for name, _ in agent_files.declared(folder)})


def require(name: str, folder: Path) -> None:
    """Raise InvalidName or UnknownAgent when there is nothing that could hold the agent `name`; imports nothing."""
    _check(name)
    if ":" not in name and not (folder / f"{_stem(name)}.py").is_file() and name not in known(folder):
        raise _unknown(name, folder.absolute())


def without_agent(folder: Path) -> list[str]:
    """Return the sorted names of the files in `folder` that `load_all` leaves alone: they declare no agent."""
    agents = {file.name for _, file in agent_files.declared(folder)}
    return [
        file.name for file in agent_files.files(folder) if file.name not in agents and not file.name.startswith("_")
    ]


def forgotten(folder: Path) -> list[str]:
    """Return those `without_agent` that seem to be an agent's all the same: one in a function, or its reactions."""
    return [
        name
        for name in without_agent(folder)
        if (tree := agent_files.parsed(folder / name)) and agent_files.seems_an_agent(tree)
    ]


def nobody(folder: Path) -> ConfigurationError:
    """Return the error that says that no agent is in `folder`, and which files of it declare none."""
    others = without_agent(folder)
    which = f": none is declared in {', '.join(others)}" if others else ""
    return ConfigurationError(
        f"there is no agent in {folder}{which}",
        f'write one: agent = Agent("name") at the top level of name.py there; or {OTHER_FOLDER}',
    )


def no_folder(folder: Path) -> ConfigurationError:
    """Return the error that says that the agents folder does not exist."""
    return ConfigurationError(f"there is no agents folder {folder}", f"{NEW_PROJECT}; or {OTHER_FOLDER}")


def _check(name: str) -> None:
    from choreo.agent import NAME

    if ":" not in name:
        if not NAME.fullmatch(name):
            raise InvalidName(f"{_shown(name)} is not an agent name", _GRAMMAR)
        return
    found = _REFERENCE.fullmatch(name)
    if found is None or len(name) > _MAX_REFERENCE:
        raise InvalidName(f"{_shown(name)} is not an agent name", _GRAMMAR)
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
    offered = _offered(point)
    try:
        module = _import(point.module, offered)
        if point.attr:
            return _named(point.name, _agent_at(module, point.attr), point.value)
        agents = _agents(module)
        if not agents:
            raise UnknownAgent(f"{point.value} holds no agent", "it is package.module:attribute")
        agent = next((agent for agent in agents if agent.name == point.name), agents[0])
        return _named(point.name, agent, point.value)
    except ChoreoError as error:
        error.message = f"{offered}: {error.message}"  # the same error: its type and traceback are the author's
        raise


def _offered(point: EntryPoint) -> str:
    return f'entry point "{point.name}"{f" of {point.dist.name} {point.dist.version}" if point.dist else ""}'


def _agent_at(module: ModuleType, path: str) -> Agent:
    from choreo.agent import Agent

    missing = object()
    value: object = module
    for attribute in path.split("."):
        value = getattr(value, attribute, missing)
    if isinstance(value, Agent):
        return value
    what = "does not exist" if value is missing else f"is of type {type(value).__name__}, not an Agent"
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


def _import(name: str, offered: str = "") -> ModuleType:
    """Import a module. Raises UnknownAgent if there is none; an import that fails inside it goes on."""
    try:
        return importing.module(name, offered)
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
    for other, file in agent_files.declared(folder):
        if other == name:
            return DeclarationError(*_misplaced(name, file))
    names = known(folder)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    if not folder.is_dir():
        return UnknownAgent(
            f'there is no agent "{name}": the agents folder {folder} does not exist',
            f"{hint}known: {', '.join(names)}" if names else f"{NEW_PROJECT}; or {OTHER_FOLDER}",
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
    for name, file in agent_files.declared(folder):
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


def _stem(name: str) -> str:
    return name.replace("-", "_")


def _short(file: Path) -> str:
    return f"{file.parent.name}/{file.name}"


def _shown(name: str) -> str:
    return ascii(name if len(name) <= 80 else f"{name[:80]}...")  # look-alike letters and control characters show
