"""The project that the working folder belongs to, and its [tool.choreo] in pyproject.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from choreo.config import ownership
from choreo.errors import ConfigurationError

_FILE: Final = "pyproject.toml"


@dataclass(frozen=True, slots=True)
class Project:
    """Where choreo was started, and the project that this folder belongs to."""

    cwd: Path
    root: Path
    file: Path | None
    table: Mapping[str, Any]


def find() -> Project:
    """Return the project that CHOREO_PROJECT names, else that of the nearest pyproject.toml, else the working folder.

    Raises ConfigurationError when that file is another user's, or others may write it.
    """
    try:
        cwd = Path.cwd()
    except OSError:
        raise ConfigurationError("the working folder does not exist any more", "change to another one") from None
    named = ownership.named()
    for folder in (cwd, *cwd.parents) if named is None else (named,):
        file = folder / _FILE
        if not _is_there(file):
            continue
        ownership.require(folder, folder=folder)
        ownership.require(file, folder=folder)
        table = _tool(file).get("choreo")
        if table is None:
            return Project(cwd, folder, None, {})
        if not isinstance(table, dict):
            raise ConfigurationError(f"tool.choreo in {file} is not a table", "write [tool.choreo] above its settings")
        return Project(cwd, folder, file, table)
    return Project(cwd, named or cwd, None, {})


def _is_there(file: Path) -> bool:
    try:
        return file.is_file()
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}", "fix its permissions") from None


def _tool(file: Path) -> Mapping[str, Any]:
    """Return the [tool] table of a pyproject.toml."""
    try:
        with file.open("rb") as opened:
            tool = tomllib.load(opened).get("tool", {})
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}", "fix its permissions") from None
    except ValueError as error:  # TOMLDecodeError names the line; bytes that are no UTF-8 end here as well
        raise ConfigurationError(f"{file} is not valid TOML: {error}", "fix that line") from None
    return tool if isinstance(tool, dict) else {}
