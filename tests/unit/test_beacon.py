"""The file by which a project's commands find its `choreo dev`, and which settings come before it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from choreo import beacon
from choreo.errors import ConfigurationError
from choreo.settings import load

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
    with beacon.light(here) as fire:
        assert load().found is None
        fire.shine(URL, "embedded")
        os.chdir(here / "deep")
        settings = load()
        assert settings.found == beacon.Found(URL, "embedded", os.getpid())
        assert settings.url.get_secret_value() == URL
        assert str(here / ".choreo") in settings.name_of("url")
    assert load().found is None
    assert load().url.get_secret_value() == "amqp://localhost"
    assert not (here / ".choreo" / "dev.json").exists()


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
    with beacon.light(here) as fire:
        fire.shine(URL, "embedded")
        settings = load(**given)
        assert settings.found is None
        assert settings.url.get_secret_value() == "amqp://named"


@pytest.mark.parametrize("content", ['{"url": "amqp://127.0.0.1:1", "kind": "embedded", "pid": 1}', "{}", "", "{"])
def test_a_leftover_is_not_found(here: Path, content: str):
    """Nobody holds it: the program that wrote it is gone, whatever has its process id now."""
    (here / ".choreo").mkdir()
    (here / ".choreo" / "dev.json").write_text(content)
    assert beacon.find(here) is None
    with beacon.light(here) as fire:
        assert beacon.find(here) is None
        fire.shine(URL, "embedded")
        assert beacon.find(here) is not None


def test_one_at_a_time(here: Path):
    with beacon.light(here) as fire:
        fire.shine(URL, "embedded")
        with (
            pytest.raises(ConfigurationError, match=rf"runs already in .* \(process {os.getpid()}, {URL}\)"),
            beacon.light(here),
        ):
            pass
    with beacon.light(here):
        pass


def test_git_does_not_see_it(here: Path):
    with beacon.light(here):
        assert (here / ".choreo" / ".gitignore").read_text() == "*\n"


def test_a_folder_that_cannot_be_made_is_a_named_error(here: Path):
    (here / ".choreo").touch()
    with pytest.raises(ConfigurationError, match=r"dev\.json cannot be written"), beacon.light(here):
        pass
