"""The project that the working folder belongs to, and its [tool.choreo] in pyproject.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from choreo.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Project:
    """Where choreo was started, and the project that this folder belongs to."""

    cwd: Path
    root: Path
    file: Path | None
    table: Mapping[str, Any]


def find() -> Project:
    """Return the nearest project upward with [tool.choreo], else the nearest one, else the working folder."""
    try:
        cwd = Path.cwd()
    except OSError:
        raise ConfigurationError("the working folder does not exist any more", "change to another one") from None
    nearest = None
    for folder in (cwd, *cwd.parents):
        file = folder / "pyproject.toml"
        tool = _tool(file)
        if tool is not None and "choreo" in tool:
            table = tool["choreo"]
            if not isinstance(table, dict):
                raise ConfigurationError(f"tool.choreo in {file} is no table", "write [tool.choreo] above its settings")
            return Project(cwd, folder, file, table)
        if tool is not None and nearest is None:
            nearest = folder
    return Project(cwd, nearest or cwd, None, {})


def _tool(file: Path) -> Mapping[str, Any] | None:
    """Return the [tool] table of a pyproject.toml, or None when there is no such file."""
    try:
        with file.open("rb") as opened:
            tool = tomllib.load(opened).get("tool", {})
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}", "mend its permissions") from None
    except ValueError as error:  # TOMLDecodeError names the line; bytes that are no UTF-8 end here as well
        raise ConfigurationError(f"{file} is no valid TOML: {error}", "mend that line") from None
    return tool if isinstance(tool, dict) else {}
