"""The file by which a project's commands find its `choreo dev`, and which settings come before it."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from choreo.composition.sessions import management
from choreo.config import dev_file
from choreo.config.settings import load
from choreo.errors import ConfigurationError

URL = "amqp://127.0.0.1:5999"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, which is a project, with no broker named anywhere."""
    for name in [name for name in os.environ if name.startswith("CHOREO_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text("[tool.choreo]\n")
    return tmp_path


def test_it_is_found_while_it_shines(here: Path):
    """From any folder of the project; before and afterwards the default is what it always was."""
    (here / "deep").mkdir()
    with dev_file.light(here) as fire:
        assert load().found is None
        fire.shine(URL, "embedded")
        os.chdir(here / "deep")
        settings = load()
        assert settings.found == dev_file.Found(URL, "embedded", os.getpid())
        assert settings.url.get_secret_value() == URL
        assert str(here / ".choreo") in settings.name_of("url")
    assert load().found is None
    assert load().url.get_secret_value() == "amqp://localhost"
    assert not (here / ".choreo" / "dev.json").exists()


def test_it_has_no_management_api(here: Path):
    """One that is named belongs to the broker that is named, and is asked about no other."""
    given = {"management_url": "http://localhost:15672"}
    assert management(load(**given)) is not None
    with dev_file.light(here) as fire:
        fire.shine(URL, "embedded")
        assert management(load(**given)) is None
        assert management(load(**given, url=URL)) is None
        assert management(load(**given, url="amqp://app:word@named")) is not None


@pytest.mark.parametrize("place", ["argument", "variable", ".env", "pyproject.toml"])
def test_a_broker_that_is_named_comes_first(here: Path, monkeypatch: pytest.MonkeyPatch, place: str):
    given = {}
    match place:
        case "argument":
            given = {"url": "amqp://named"}
        case "variable":
            monkeypatch.setenv("CHOREO_URL", "amqp://named")
        case ".env":
            (here / ".env").write_text("CHOREO_URL=amqp://named\n")
        case _:
            (here / "pyproject.toml").write_text('[tool.choreo]\nurl = "amqp://named"\n')
    with dev_file.light(here) as fire:
        fire.shine(URL, "embedded")
        settings = load(**given)
        assert settings.found is None
        assert settings.url.get_secret_value() == "amqp://named"


@pytest.mark.parametrize("content", ['{"url": "amqp://127.0.0.1:1", "kind": "embedded", "pid": 1}', "{}", "", "{"])
def test_a_leftover_is_not_found(here: Path, content: str):
    """Nobody holds it: the program that wrote it is gone, whatever has its process id now."""
    (here / ".choreo").mkdir()
    (here / ".choreo" / "dev.json").write_text(content)
    (here / ".choreo" / "dev.json").chmod(0o600)
    assert dev_file.find(here) is None
    assert load().doubts == ()
    with dev_file.light(here) as fire:
        assert dev_file.find(here) is None
        fire.shine(URL, "embedded")
        assert dev_file.find(here) is not None


def test_one_at_a_time(here: Path):
    with dev_file.light(here) as fire:
        fire.shine(URL, "embedded")
        with (
            pytest.raises(ConfigurationError, match=rf"runs already in .* \(process {os.getpid()}, {URL}\)"),
            dev_file.light(here),
        ):
            pass
    with dev_file.light(here):
        pass


def test_git_does_not_see_it(here: Path):
    with dev_file.light(here):
        assert (here / ".choreo" / ".gitignore").read_text() == "*\n"


def test_a_folder_that_cannot_be_made_is_a_named_error(here: Path):
    (here / ".choreo").touch()
    with pytest.raises(ConfigurationError, match=r"dev\.json cannot be written"), dev_file.light(here):
        pass


@contextmanager
def held(here: Path, content: object, mode: int = 0o600) -> Iterator[Path]:
    """A file in the place of a living `choreo dev`'s, written and held by somebody."""
    (here / ".choreo").mkdir(exist_ok=True)
    path = here / ".choreo" / "dev.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    path.chmod(mode)
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield path


RIGHT = {"url": URL, "kind": "embedded", "pid": 1}


def test_what_is_written_right_and_held_is_found(here: Path):
    """The counterpart of the cases below."""
    with held(here, RIGHT):
        assert dev_file.find(here) == dev_file.Found(URL, "embedded", 1)


@pytest.mark.parametrize(
    "content",
    [
        RIGHT | {"url": "amqp://127.0.0.1@evil.example:5672"},
        RIGHT | {"url": "amqp://evil.example:5672"},
        RIGHT | {"url": "amqp://guest:secret@127.0.0.1:5672"},
        RIGHT | {"url": URL + "\n"},
        RIGHT | {"url": URL + "\x1b]0;owned\x07"},
        RIGHT | {"url": ["amqp://127.0.0.1:1"]},
        RIGHT | {"kind": "\x1b[2Jembedded"},
        RIGHT | {"kind": "e" + "m" * 5000},
        RIGHT | {"pid": "1"},
        RIGHT | {"pid": True},
        RIGHT | {"pid": -1},
        [],
        "[" * 4000,
        "{",
    ],
)
def test_what_choreo_dev_does_not_write_is_not_used(here: Path, content: object):
    """Though somebody holds it: no command goes to another machine, or shows its text; that it is there is said."""
    with held(here, content) as path:
        settings = load()
        assert settings.found is None
        assert settings.url.get_secret_value() == "amqp://localhost"
        assert settings.doubts == (f"{path} is not used: `choreo dev` did not write it",)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o666, 0o622])
def test_a_file_that_others_can_open_is_not_used(here: Path, mode: int):
    """Whoever can open a leftover can hold it, and listen at its port."""
    with held(here, RIGHT, mode):
        assert dev_file.find(here) is None
        (doubt,) = load().doubts
        assert "is open to other users" in doubt


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
@pytest.mark.parametrize("part", [".choreo", ".choreo/dev.json"])
def test_another_users_file_is_not_used(here: Path, part: str):
    with held(here, RIGHT):
        os.chown(here / part, 64123, -1)
        assert dev_file.find(here) is None
        assert load().doubts
    if part == ".choreo":
        with pytest.raises(ConfigurationError, match="belongs to uid 64123"), dev_file.light(here):
            pass


@pytest.mark.parametrize("name", ["dev.json", "dev.json.new", ".gitignore"])
def test_a_link_is_replaced_and_never_written_through(here: Path, name: str):
    """What it leads to stays as it is, and the file of `choreo dev` is found all the same."""
    target = here / "precious"
    target.write_text("precious")
    (here / ".choreo").mkdir()
    (here / ".choreo" / name).symlink_to(target)
    with dev_file.light(here) as fire:
        fire.shine(URL, "embedded")
        assert dev_file.find(here) is not None
    assert target.read_text() == "precious"


@pytest.mark.parametrize("way", ["link", "hard link", "folder", "pipe"])
def test_what_cannot_be_the_lock_is_refused(here: Path, way: str):
    """Its target is not touched, and nothing is waited for."""
    target = here / "precious"
    target.write_text("precious")
    (here / ".choreo").mkdir()
    lock = here / ".choreo" / "dev.lock"
    match way:
        case "link":
            lock.symlink_to(target)
        case "hard link":
            lock.hardlink_to(target)
        case "folder":
            lock.mkdir()
        case _:
            os.mkfifo(lock)
    with pytest.raises(ConfigurationError, match=r"dev\.json cannot be written") as raised, dev_file.light(here):
        pass
    assert raised.value.way_out.startswith(f"remove {here / '.choreo'}")
    assert target.read_text() == "precious"


def test_a_folder_that_is_a_link_is_refused(here: Path):
    elsewhere = here / "elsewhere"
    elsewhere.mkdir()
    (here / ".choreo").symlink_to(elsewhere)
    with pytest.raises(ConfigurationError, match="a link"), dev_file.light(here):
        pass
    assert list(elsewhere.iterdir()) == []
    assert dev_file.find(here) is None


@pytest.mark.timeout(20)
def test_a_pipe_in_its_place_is_not_waited_for(here: Path):
    (here / ".choreo").mkdir()
    os.mkfifo(here / ".choreo" / "dev.json")
    assert dev_file.find(here) is None
    with dev_file.light(here) as fire:
        fire.shine(URL, "embedded")
        assert dev_file.find(here) is not None


def test_a_child_does_not_keep_it_alight(here: Path):
    """A process that a reaction forked outlives the killed `choreo dev`; what that one left is a leftover."""
    program = f"""
import os, sys
from pathlib import Path
from choreo.config import dev_file
with dev_file.light(Path({str(here)!r})) as fire:
    fire.shine({URL!r}, "embedded")
    if os.fork():
        sys.stdin.read()
        os.kill(os.getpid(), 9)
    print("forked", flush=True)
    sys.stdin.read()
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"forked\n"
        assert dev_file.find(here) is not None
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert (here / ".choreo" / "dev.json").exists()
        assert dev_file.find(here) is None
        with dev_file.light(here):
            pass
        process.stdin.close()
