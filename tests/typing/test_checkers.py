"""The public API as a user's type checker sees it: in the built wheel, with mypy --strict and with pyright."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
REVEALED = re.compile(r'Revealed type is "(.*)"$')
WHERE = re.compile(r"\b(?:[a-z_]+\.)+(?=[A-Z])")  # the module before the name of a class
NAMED = re.compile(r"\btuple\[.*, fallback=(\w+)\]")  # how mypy writes the class of a named tuple
# A Finding: file, line, and the checker's name for what is wrong there.
Finding = tuple[str, int, str]

pytestmark = pytest.mark.timeout(300)  # without its cache mypy reads pydantic and aio-pika first


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with programs that use choreo, and a Python beside them that has the wheel and what it depends on."""
    place = tmp_path_factory.mktemp("typing")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(place)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    venv.create(place / "venv")
    names = {"base": str(place / "venv"), "platbase": str(place / "venv")}
    packages = Path(sysconfig.get_path("purelib", scheme="venv", vars=names))
    with zipfile.ZipFile(next(place.glob("*.whl"))) as wheel:
        wheel.extractall(packages)
    # A folder that a .pth file names has its own .pth files ignored: choreo's checkout is not found through it.
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    for kind in ("accepted", "refused"):
        (place / kind).mkdir()
        for file in (HERE / kind).glob("*.py"):
            (place / kind / file.name).write_text(file.read_text())
    config = {"typeCheckingMode": "strict", "reportUnusedExpression": False, "reportUnusedCoroutine": False}
    (place / "mypy.ini").write_text("[mypy]\nstrict = true\n")
    (place / "pyrightconfig.json").write_text(json.dumps(config))
    return place


def mypy(place: Path, *folders: str) -> list[dict[str, object]]:
    """Return what mypy says, plain: without a plugin and without this repository's settings."""
    python = place / "venv" / "bin" / "python"
    options = ["--output", "json", "--config-file", "mypy.ini", "--python-executable", str(python)]
    options += ["--explicit-package-bases", "--cache-dir", str(ROOT / ".mypy_cache" / "typing")]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *folders], cwd=place, capture_output=True, text=True, check=False
    )
    assert not done.stderr, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def pyright(place: Path, *folders: str) -> list[dict[str, object]]:
    """Return what pyright says in its strict mode."""
    options = ["--outputjson", "--pythonpath", str(place / "venv" / "bin" / "python")]
    environment = os.environ | {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pyright", *options, *folders],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("{"), done.stdout + done.stderr
    found: list[dict[str, object]] = json.loads(done.stdout)["generalDiagnostics"]
    return found


@pytest.fixture(scope="module")
def found_by_mypy(place: Path) -> list[dict[str, object]]:
    return mypy(place, "accepted", "refused")


@pytest.fixture(scope="module")
def found_by_pyright(place: Path) -> list[dict[str, object]]:
    if find_spec("pyright") is None:
        missing = "pyright is not installed: `make setup` brings it"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return pyright(place, "accepted", "refused")


def expected(checker: int) -> set[Finding]:
    """Return what the programs say that a checker must find: the first of the two finds what mypy does."""
    return {
        (f"{file.parent.name}/{file.name}", number, code)
        for file in HERE.glob("*/*.py")
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if (told := re.search(r"# E: ([\w -]+), ([\w ]+)$", line))
        for code in told[checker].split()
    }


def test_mypy_refuses_what_is_wrong_and_nothing_else(found_by_mypy: list[dict[str, object]]) -> None:
    """Without a plugin, each error is found on its line, and a program without mistakes has none."""
    errors = {(each["file"], each["line"], each["code"]) for each in found_by_mypy if each["severity"] == "error"}
    assert sorted(errors) == sorted(expected(1))


def test_pyright_refuses_what_is_wrong_and_nothing_else(place: Path, found_by_pyright: list[dict[str, object]]) -> None:
    """In its strict mode, each error is found on its line, and a program without mistakes has none."""
    errors = {
        (Path(str(each["file"])).relative_to(place).as_posix(), each["range"]["start"]["line"] + 1, each["rule"])  # type: ignore[index]
        for each in found_by_pyright
        if each["severity"] == "error"
    }
    assert sorted(errors) == sorted(expected(2))


def test_mypy_reveals_what_the_program_says(found_by_mypy: list[dict[str, object]]) -> None:
    """The decorator returns a function of the same types, and events are typed by their fields."""
    file = HERE / "accepted" / "program.py"
    lines = file.read_text().splitlines()
    promised = {number: text.partition("# is: ")[2] for number, text in enumerate(lines, 1) if "reveal_type(" in text}
    found = {
        each["line"]: NAMED.sub(r"\1", WHERE.sub("", told[1]))
        for each in found_by_mypy
        if each["file"] == "accepted/program.py" and (told := REVEALED.match(str(each["message"])))
    }
    assert found == promised
    assert len(promised) > 5


def test_the_programs_are_checked_with_the_wheel(place: Path) -> None:
    """What is checked is what a user installs, not the checkout; the marker of typed packages is in it."""
    program = "import choreo; print(choreo.__file__)"
    done = subprocess.run(
        [place / "venv" / "bin" / "python", "-c", program], cwd=place, capture_output=True, text=True, check=True
    )
    file = Path(done.stdout.strip())
    assert file.is_relative_to(place)
    assert file.with_name("py.typed").exists()
