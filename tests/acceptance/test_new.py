"""`choreo new`: what it makes runs, is tested, checked and typed as it stands; what is there already stays."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Running, environment

Run = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).parents[2]


def tool(folder: Path, *arguments: str) -> None:
    env = environment({"MYPYPATH": str(ROOT), "PYTHONPATH": str(ROOT)})
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_new_project_runs_at_once(choreo: Run, start_choreo: Callable[..., Running], tmp_path: Path):
    """Make one, run its tests, check it, start it, publish: it is handled."""
    made = choreo("new", "shop", cwd=tmp_path)
    assert (made.returncode, made.stdout) == (0, "shop\n"), made.stderr
    shop = tmp_path / "shop"
    tool(shop, "pytest", "-q", "-p", "choreo.testing.plugin", "-p", "no:cacheprovider")
    checked = choreo("check", cwd=shop)
    assert (checked.returncode, checked.stdout) == (0, "no findings: 1 agent, 2 events\n"), checked.stderr
    running = start_choreo("dev", "--port", "0", cwd=shop)
    running.wait_for("ready ")
    published = choreo("publish", "visitor.arrived", "--set", "name=Ada", cwd=shop)
    assert published.returncode == 0, published.stderr
    assert re.search("greeter.greet .*visitor.arrived -> visitor.greeted", running.wait_for("handled "))
    running.send(signal.SIGINT)
    assert running.wait() == 0


def test_a_new_project_is_typed_and_laid_out(choreo: Run, tmp_path: Path):
    """mypy --strict and ruff, with the project's own settings, have nothing to say."""
    assert choreo("new", "my-shop_2", cwd=tmp_path).returncode == 0
    shop = tmp_path / "my-shop_2"
    tool(shop, "mypy", "--strict", "--no-incremental")
    tool(shop, "ruff", "check", "--no-cache")
    tool(shop, "ruff", "format", "--check", "--no-cache")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/tmp/x", "Shop", "1shop", "shop-", "s p", "shöp", "x" * 64])
def test_a_name_that_cannot_be_used(choreo: Run, tmp_path: Path, name: str):
    """It is said with what a name is, and nothing is made."""
    done = choreo("new", name, cwd=tmp_path)
    assert done.returncode == 2
    assert "is not a valid name of a project" in done.stderr
    assert "a name is a lower-case letter" in done.stderr
    assert not [path for path in tmp_path.iterdir() if path.name != "project"]


@pytest.mark.parametrize("name", ["choreo", "queue"])
def test_a_name_that_is_taken_by_python(choreo: Run, tmp_path: Path, name: str):
    done = choreo("new", name, cwd=tmp_path)
    assert done.returncode == 2
    assert "choose another" in done.stderr


def test_nothing_is_overwritten(choreo: Run, tmp_path: Path):
    """A folder that is not empty, a file or a dangling link of that name stay as they are; an empty folder is used."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "README.md").write_text("mine")
    (tmp_path / "note").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, message in {"shop": "is not empty", "note": "exists already", "link": "exists already"}.items():
        done = choreo("new", name, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
        assert "choose another name" in done.stderr
    assert [path.name for path in (tmp_path / "shop").iterdir()] == ["README.md"]
    assert ((tmp_path / "shop" / "README.md").read_text(), (tmp_path / "note").read_text()) == ("mine", "mine")
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "empty").mkdir()
    assert choreo("new", "empty", cwd=tmp_path).returncode == 0
    again = choreo("new", "empty", cwd=tmp_path)
    assert again.returncode == 2


def test_what_cannot_be_written_is_taken_away_again(tmp_path: Path):
    """A disk that is full in the middle (here: a limit on the size of files) leaves nothing behind, and is said."""
    program = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300));"
        "import sys; sys.dont_write_bytecode = True; sys.argv = ['choreo', 'new', 'shop'];"
        "from choreo.cli import main; main()"
    )
    env = environment({"PYTHONPATH": os.pathsep.join([str(ROOT)])})
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 78, done.stderr
    assert "shop cannot be written: File too large" in done.stderr
    assert not (tmp_path / "shop").exists()


def test_who_has_no_agents_folder_is_told_of_it(choreo: Run, tmp_path: Path):
    """The errors that miss a folder name the command that makes one."""
    for command in (["check"], ["run", "--all"], ["run", "payment"], ["publish", "a.b", "{}"]):
        done = choreo(*command, cwd=tmp_path, env={"CHOREO_URL": "amqp://127.0.0.1:1"})
        assert done.returncode in (2, 78)
        assert "choreo new NAME" in done.stderr
