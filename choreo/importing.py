"""How a user's modules are imported: the project's own folder before any other package of its name.

Meanwhile nothing of theirs may end the program, or ask a question.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from choreo import frames
from choreo.config import ownership
from choreo.errors import ConfigurationError, DeclarationError

_IMPORTING: Final = "while choreo imported"  # begins the note on an exception of the user's own module
OTHER_FOLDER: Final = "name another folder in [tool.choreo] agents of pyproject.toml, or in CHOREO_AGENTS"
NEW_PROJECT: Final = "choreo new NAME makes a project that runs"

_CODE: Final = tuple(importlib.machinery.all_suffixes())
_INIT: Final = "__init__.py"
_INHERITED: Final = "_CHOREO_AGENTS"  # the variable that tells a child of multiprocessing which folder is claimed
_checked: Final[set[Path]] = set()  # folders that belong to whom we trust


class _Finder(MetaPathFinder):
    """Finds the agents folder under its own name, before any other package of that name.

    Python alone would take a folder without __init__.py only where no path has a package of its name. A folder counts
    while its parent is on sys.path.
    """

    def __init__(self) -> None:
        self.folders: dict[str, Path] = {}

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,  # noqa: ARG002 - Python's own signature
    ) -> ModuleSpec | None:
        folder = self.folders.get(fullname)
        if path is not None or folder is None or str(folder.parent) not in sys.path:
            return None
        places = [str(folder)]
        if (folder / _INIT).is_file():
            return importlib.util.spec_from_file_location(fullname, folder / _INIT, submodule_search_locations=places)
        spec = ModuleSpec(fullname, None, is_package=True)
        spec.submodule_search_locations = places
        return spec


_finder: Final = _Finder()


def claim(folder: Path) -> None:
    """Let `folder` be imported as a package of its own name, and the modules beside it under their own names.

    Raises ConfigurationError where another user could have put code of theirs there.
    """
    parent = folder.parent
    if folder not in _checked:
        ownership.require(parent, folder=parent)  # on sys.path, before Python's own modules
        ownership.require_tree(folder, _CODE, folder=parent)
        _checked.add(folder)
    if str(parent) not in sys.path:
        sys.path.insert(0, str(parent))
    if folder.is_dir() and folder.name not in sys.stdlib_module_names:
        _finder.folders[folder.name] = folder
        if _finder not in sys.meta_path:
            sys.meta_path.insert(0, _finder)
        os.environ[_INHERITED] = str(folder)
    importlib.invalidate_caches()  # a file may be younger than what the finders remember of its folder


def inherit() -> None:
    """In a process that multiprocessing has spawned: claim what its parent has, before anything is unpickled."""
    folder, spawning = os.environ.get(_INHERITED), sys.modules.get("multiprocessing.process")
    if folder and spawning is not None and getattr(spawning.current_process(), "_inheriting", False):
        claim(Path(folder))


def agent_file(file: Path) -> ModuleType:
    """Import a file of the agents folder, as a module of the package that has the folder's name."""
    folder = file.parent
    package = folder.name
    if not package.isidentifier() or package in sys.stdlib_module_names:
        taken = "is a module of Python itself" if package.isidentifier() else "cannot be imported as a package"
        raise ConfigurationError(f'the agents folder {folder}: "{package}" {taken}', f"rename it, or {OTHER_FOLDER}")
    claim(folder)
    # Both are asked for before they are imported: nothing of a foreign package of this name is run.
    spec = importlib.util.find_spec(package)
    if spec is None or not any(_same(place, folder) for place in spec.submodule_search_locations or ()):
        raise _taken(folder, package, spec.origin if spec else None)
    module(package)
    name = f"{package}.{file.stem}"
    spec = importlib.util.find_spec(name)
    if spec is None or not _same(spec.origin, file):
        raise _taken(folder, name, spec.origin if spec else None)
    return module(name)


def module(name: str, offered: str = "") -> ModuleType:
    """Import a module of the user's. What it raises is raised on as it is, with a note of what was being imported.

    `offered` says where that name comes from, when nobody wrote it on the command line.

    Raises DeclarationError where it would have ended the program: importing must not exit.
    """
    try:
        with _nobody_to_ask(name):
            return importlib.import_module(name)
    except Exception as error:
        error.add_note(f"{_IMPORTING} {name}{f', {offered},' if offered else ''}")
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        stack = reversed(traceback.extract_tb(error.__traceback__))
        line = next((frame for frame in stack if frames.is_the_users(frame.filename)), None)
        at = f", at {frames.near(line.filename)}, line {line.lineno}" if line is not None else ""
        what = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise DeclarationError(
            f"{name} ends the program when it is imported{at} ({what})",
            'a module is imported, not run: put what a program does under if __name__ == "__main__":',
        ) from error


def imported_by(error: Exception) -> str | None:
    """Return the module that was being imported when the user's own code raised `error`; None at any other time."""
    note = next((each for each in getattr(error, "__notes__", ()) if each.startswith(_IMPORTING)), None)
    return note.removeprefix(_IMPORTING).strip() if note is not None else None


class _Unanswered:
    """Standard input while a module is imported: whoever reads it waits for an answer that nobody gives."""

    def __init__(self, stream: Any, name: str) -> None:
        self._stream = stream
        self._name: str | None = name

    def let_go(self) -> None:
        """Be the stream itself from now on: a module may have kept it."""
        self._name = None

    def __getattr__(self, attribute: str) -> Any:
        # input() asks for fileno(), and without one reads as anybody else does.
        if self._name is not None and attribute in ("read", "readline", "readlines", "fileno", "buffer", "close"):
            raise EOFError(f"{self._name} reads standard input when it is imported; nobody is asked then")
        return getattr(self._stream, attribute)

    def __iter__(self) -> Iterator[str]:
        return iter(self.readline, "")


@contextmanager
def _nobody_to_ask(name: str) -> Iterator[None]:
    before = sys.stdin
    sys.stdin = nobody = _Unanswered(before, name)
    try:
        yield
    finally:
        nobody.let_go()
        sys.stdin = before


def _taken(folder: Path, name: str, origin: str | None) -> ConfigurationError:
    return ConfigurationError(
        f'"{name}" is imported from {origin or "somewhere else"} already, and not from the agents folder {folder}',
        f"rename the folder, or {OTHER_FOLDER}: another package has its name",
    )


def _same(place: str | None, path: Path) -> bool:
    try:
        return place is not None and path.samefile(place)
    except OSError:
        return False
