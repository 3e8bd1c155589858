"""Where the foreign clients are: what `scripts/bench.sh` brings, and the AMQP tools of the system."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
PROGRAMS: Final = Path(__file__).with_name("programs")
BIN: Final = ROOT / ".venv-bench/bin"
NODE_MODULES: Final = ROOT / ".bench/node/node_modules"
_BUILD: Final = "`make foreign` brings them"

needs_python = pytest.mark.skipif(
    not (BIN / "celery").exists(), reason=f"FOREIGN PYTHON CLIENTS ARE NOT HERE, none was tried: {_BUILD}"
)
needs_node = pytest.mark.skipif(
    not (NODE_MODULES / "amqplib").is_dir() or shutil.which("node") is None,
    reason=f"NODE WITH AMQPLIB IS NOT HERE, it was not tried: {_BUILD}",
)
needs_tools = pytest.mark.skipif(
    not all(shutil.which(f"amqp-{each}") for each in ("publish", "consume", "get", "declare-queue", "delete-queue")),
    reason=f"AMQP TOOLS ARE NOT HERE, none was tried: {_BUILD}",
)


def python(program: str, *arguments: str) -> tuple[str, ...]:
    """Return the command that runs one of the programs here."""
    return (str(BIN / "python"), str(PROGRAMS / program), *arguments)


def command(program: str, *arguments: str) -> tuple[str, ...]:
    """Return the command that runs what a Python client brings for itself, such as `celery`."""
    return (str(BIN / program), *arguments)
