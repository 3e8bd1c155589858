"""Settings: which place wins, what is allowed, and what a wrong one is told."""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest
from pydantic import SecretStr, ValidationError

from choreo.config.keywords import SettingsKeywords
from choreo.config.settings import MAX_PASSWORD, Settings, from_command_line, load
from choreo.duration import Duration
from choreo.errors import ConfigurationError, InvalidUrl, UsageError

SECRET = "s3kr1t"

Pyproject = Callable[..., Path]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, and no CHOREO_* from outside."""
    for name in os.environ:
        if name.upper().startswith("CHOREO_"):
            monkeypatch.delenv(name)
    folder = tmp_path / "shop"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def pyproject(project: Path) -> Pyproject:
    """Write a pyproject.toml: its [tool.choreo] lines, or the whole of it."""

    def write(*lines: str, whole: str | None = None, folder: Path = project) -> Path:
        file = folder / "pyproject.toml"
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(whole if whole is not None else "\n".join(["[tool.choreo]", *lines]))
        return file

    return write


def refused(**given: Any) -> ConfigurationError:
    """Return the error of `load`, sure that neither it nor its traceback shows the secret."""
    with pytest.raises(ConfigurationError) as raised:
        load(**given)
    assert SECRET not in "".join([str(raised.value), *traceback.format_exception(raised.value)])
    assert raised.value.__context__ is None or raised.value.__suppress_context__
    return raised.value


def test_defaults(project: Path):
    """With nothing said, a worker finds a broker on this machine and agents in ./agents."""
    settings = load()

    assert [str(url) for url in settings.brokers()] == ["amqp://guest@localhost:5672"]
    assert settings.agents_folder == project / "agents"
    assert settings.root == project
    assert settings.model_dump(exclude={"url", "agents"}) == {
        "password": None,
        "password_file": None,
        "namespace": "choreo",
        "concurrency": 16,
        "prefetch": 100,
        "drain": 30.0,
        "wait": 5.0,
        "publish_timeout": 10.0,
        "max_body": 1024 * 1024,
        "log_level": "info",
        "log_format": "auto",
        "health_host": "127.0.0.1",
        "health_port": None,
        "management_url": None,
        "code_version": None,
    }


def test_the_first_place_wins(project: Path, pyproject: Pyproject, monkeypatch: pytest.MonkeyPatch):
    """Arguments win over variables, variables over .env, .env over pyproject.toml, that over the default."""
    pyproject("prefetch = 1", "concurrency = 1", 'namespace = "one"', "drain = 1")
    (project / ".env").write_text("CHOREO_PREFETCH=2\nCHOREO_CONCURRENCY=2\nCHOREO_NAMESPACE=two\nPREFETCH=9\n")
    monkeypatch.setenv("CHOREO_PREFETCH", "3")
    monkeypatch.setenv("CHOREO_CONCURRENCY", "3")

    settings = load(prefetch=4)

    found = (settings.prefetch, settings.concurrency, settings.namespace, settings.drain, settings.wait)
    assert found == (4, 3, "two", 1.0, 5.0)


def test_none_is_not_given(monkeypatch: pytest.MonkeyPatch):
    """An option that the user left out hides nothing."""
    monkeypatch.setenv("CHOREO_PREFETCH", "3")

    assert load(prefetch=None, url=None).prefetch == 3


def test_an_empty_variable_is_not_given(monkeypatch: pytest.MonkeyPatch, pyproject: Pyproject):
    """What a compose file passes on from nowhere counts as unset."""
    pyproject("prefetch = 1")
    monkeypatch.setenv("CHOREO_PREFETCH", "")
    monkeypatch.setenv("CHOREO_AGENT", "")

    assert load().prefetch == 1


def test_env_file_of_the_working_folder_wins(project: Path, pyproject: Pyproject, monkeypatch: pytest.MonkeyPatch):
    """Below the project's folder both .env files are read, the nearer one first."""
    pyproject()
    (project / ".env").write_text("CHOREO_PREFETCH=1\nCHOREO_CONCURRENCY=1\n")
    below = project / "deploy"
    below.mkdir()
    (below / ".env").write_text("CHOREO_PREFETCH=2\n")
    monkeypatch.chdir(below)

    settings = load()

    assert (settings.prefetch, settings.concurrency) == (2, 1)


def test_the_nearest_project_is_the_only_one(project: Path, pyproject: Pyproject, monkeypatch: pytest.MonkeyPatch):
    """A package inside of a repository is a project of its own: [tool.choreo] of a folder above it is not read."""
    pyproject("prefetch = 1", 'agents = "src/agents"')
    inner = project / "packages" / "payment"
    pyproject(whole='[project]\nname = "payment"\n', folder=inner)
    (inner / "src").mkdir()
    monkeypatch.chdir(inner / "src")

    settings = load()

    assert settings.prefetch == 100
    assert settings.agents_folder == inner / "agents"


def test_a_project_that_is_named(project: Path, pyproject: Pyproject, monkeypatch: pytest.MonkeyPatch):
    """CHOREO_PROJECT names the project, wherever choreo runs, and is refused when it is not a folder."""
    pyproject("prefetch = 1")
    inner = project / "packages" / "payment"
    pyproject("prefetch = 2", folder=inner)
    monkeypatch.chdir(inner)
    assert load().prefetch == 2

    monkeypatch.setenv("CHOREO_PROJECT", "../..")
    assert load().prefetch == 1
    assert load().root == project
    assert load().doubts == ()

    monkeypatch.setenv("CHOREO_PROJECT", "/nowhere/at/all")
    assert refused().message == "CHOREO_PROJECT='/nowhere/at/all' is not a folder"


def test_the_nearest_project_without_choreo(project: Path, pyproject: Pyproject, monkeypatch: pytest.MonkeyPatch):
    """Where no pyproject.toml names choreo, the nearest one still says where the project is."""
    pyproject(whole="")
    below = project / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)

    assert load().agents_folder == project / "agents"


def test_a_relative_folder_is_the_projects(project: Path, pyproject: Pyproject, monkeypatch: pytest.MonkeyPatch):
    """A variable's relative folder is relative to the project as well; an absolute one stays, a link keeps its name."""
    pyproject()
    below = project / "below"
    below.mkdir()
    (project / "linked").symlink_to(below)
    monkeypatch.chdir(below)

    monkeypatch.setenv("CHOREO_AGENTS", "./x/../linked")
    assert load().agents_folder == project / "linked"
    monkeypatch.setenv("CHOREO_AGENTS", "/srv/agents")
    assert load().agents_folder == Path("/srv/agents")


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30.0), ("5m", 300.0), ("500ms", 0.5), ("7", 7.0), ("0", 0.0)])
def test_lengths_of_time(text: str, seconds: float, monkeypatch: pytest.MonkeyPatch):
    """A length of time may be written with its unit."""
    monkeypatch.setenv("CHOREO_DRAIN", text)

    assert load().drain == seconds


def test_lengths_of_time_in_toml(pyproject: Pyproject):
    """In pyproject.toml a length is a number of seconds or a text."""
    pyproject("drain = 90", 'wait = "1m30s"', "publish_timeout = 0.5")

    settings = load()

    assert (settings.drain, settings.wait, settings.publish_timeout) == (90.0, 90.0, 0.5)


def test_words_in_any_case(monkeypatch: pytest.MonkeyPatch):
    """Names of variables and of log levels are read in any case."""
    monkeypatch.setenv("choreo_log_level", "DEBUG")

    assert load().log_level == "debug"


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("prefetch", "0", "a whole number from 1 to 65535"),
        ("prefetch", "65536", "a whole number from 1 to 65535"),
        ("prefetch", "many", "a whole number from 1 to 65535"),
        ("prefetch", "1.5", "a whole number from 1 to 65535"),
        ("concurrency", "0", "a whole number from 1"),
        ("max_body", "0", "bytes, a whole number from 1"),
        ("max_body", "1MiB", "bytes, a whole number from 1"),
        ("drain", "soon", "a length of time: 500ms, 30s"),
        ("drain", "-1", "a length of time"),
        ("wait", "inf", "a length of time"),
        ("wait", "nan", "a length of time"),
        ("publish_timeout", "0", "above 0, a length of time"),
        ("namespace", "Shop", "a lower-case letter"),
        ("namespace", "shop.eu", "a lower-case letter"),
        ("namespace", "shop\n", "a lower-case letter"),
        ("namespace", "s" * 33, "a lower-case letter"),
        ("log_level", "loud", "debug, info, warning, error or critical"),
        ("log_format", "xml", "auto, pretty, json or compact"),
        ("health_port", "65536", "a port from 1 to 65535"),
    ],
)
def test_a_wrong_variable_is_named(key: str, value: str, allowed: str, monkeypatch: pytest.MonkeyPatch):
    """The error names the variable, its value and what is allowed."""
    monkeypatch.setenv(f"CHOREO_{key.upper()}", value)

    error = refused()

    assert error.message == f"CHOREO_{key.upper()}={value!r} is not allowed"
    assert error.way_out.startswith(f"allowed: {allowed}")
    assert error.exit_code == 78


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("prefetch = 0", "prefetch = 0"),
        ("prefetch = true", "prefetch = True"),
        ("drain = true", "drain = True"),
        ("drain = [1]", "drain = [1]"),
        ("wait = 1979-05-27", "wait = datetime.date(1979, 5, 27)"),
        ('log_level = "loud"', "log_level = 'loud'"),
        ("log_level = 3", "log_level = 3"),
        ('health_host = ""', "health_host = ''"),
        ('agents = ""', "agents = ''"),
        ("agents = 3", "agents = 3"),
        ('agents = "a\\u0000b"', "agents = 'a\\x00b'"),
        ("namespace = {a = 1}", "namespace = {'a': 1}"),
        ("[tool.choreo.prefetch]", "prefetch = {}"),
    ],
)
def test_a_wrong_key_is_named_with_its_file(line: str, shown: str, pyproject: Pyproject):
    """The error names table, key, value and file."""
    file = pyproject(line)

    error = refused()

    assert error.message == f"[tool.choreo] {shown} in {file} is not allowed"
    assert error.way_out.startswith("allowed: ")


def test_a_wrong_argument_is_named():
    """The error names the argument, and a long value is cut."""
    assert refused(prefetch=0).message == "prefetch=0 is not allowed"
    assert len(refused(prefetch="9" * 5000).message) < 200


def test_a_wrong_line_of_an_env_file_is_named(project: Path, monkeypatch: pytest.MonkeyPatch):
    """The error says which .env; a variable that wins over it makes it harmless."""
    (project / ".env").write_text("CHOREO_PREFETCH=x\n")

    assert refused().message == f"CHOREO_PREFETCH='x' in {project / '.env'} is not allowed"
    monkeypatch.setenv("CHOREO_PREFETCH", "3")
    assert load().prefetch == 3


def test_an_unknown_key_names_the_nearest(pyproject: Pyproject):
    """A key that is not a setting is an error with the nearest name and all others."""
    file = pyproject('log-level = "info"')

    error = refused()

    assert error.message == f"[tool.choreo] log-level in {file} is not a setting"
    assert error.way_out.startswith("did you mean log_level? known: url, ")


def test_an_unknown_argument_names_the_nearest():
    """A misspelt keyword of load is an error as well."""
    assert refused(prefech=1).way_out.startswith("did you mean prefetch? ")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("CHOREO_PREFECH", "CHOREO_PREFETCH"),
        ("CHOREO_AGENT", "CHOREO_AGENTS"),
        ("CHOREO_URLS", "CHOREO_URL"),
        ("CHOREO_DRIAN", "CHOREO_DRAIN"),
        ("CHOREO_PASSWARD", "CHOREO_PASSWORD"),
    ],
)
def test_a_misspelt_variable_is_refused(written: str, meant: str, project: Path, monkeypatch: pytest.MonkeyPatch):
    """A variable one letter away from a setting is refused by name, in .env too, and its value is not shown."""
    (project / ".env").write_text(f"{written}={SECRET}\n")
    error = refused()
    assert error.message == f"{written} in {project / '.env'} is not a setting"
    assert error.way_out == f"did you mean {meant}?"

    (project / ".env").unlink()
    monkeypatch.setenv(written, SECRET)
    assert refused().message == f"{written} is not a setting"


def test_a_setting_of_older_versions_is_passed_over(pyproject: Pyproject, monkeypatch: pytest.MonkeyPatch):
    """Wherever it stands: what was upgraded starts, and a person is told to remove it."""
    file = pyproject("lane = false")
    monkeypatch.setenv("CHOREO_LANE", "true")

    settings = load(lane=False)

    assert not hasattr(settings, "lane")
    why = "has no effect any more: messages are always read and written by choreo itself; remove it"
    assert sorted(settings.doubts) == [f"CHOREO_LANE {why}", f"[tool.choreo] lane in {file} {why}", f"lane {why}"]


def test_other_variables_are_left_alone(project: Path, monkeypatch: pytest.MonkeyPatch):
    """Names that only share the prefix belong to somebody else, as does all else in .env."""
    for name in ("CHOREO_TEST_RABBITMQ_ROOT", "CHOREO_SEED", "CHOREO_ROOT", "CHOREO_", "CHOREO_DEMO_ORDERS"):
        monkeypatch.setenv(name, "x")
    (project / ".env").write_text("DATABASE_URL=x\nPREFETCH=x\nURL=x\nCHOREO_PREFETCH\n")

    assert load().prefetch == 100


def test_malformed_toml_is_named_with_its_line(pyproject: Pyproject):
    """A pyproject.toml that cannot be parsed is an error that says where."""
    file = pyproject("prefetch = 1", "agents = agents")

    error = refused()

    assert error.message.startswith(f"{file} is not valid TOML: ")
    assert "line 3" in error.message


def test_a_pyproject_that_is_no_text(project: Path):
    """Bytes that are no UTF-8 are an error that names the file."""
    (project / "pyproject.toml").write_bytes(b"[tool.choreo]\nnamespace = '\xff'\n")

    assert refused().message.startswith(f"{project / 'pyproject.toml'} is not valid TOML: ")


@pytest.mark.parametrize("whole", ["[tool]\nchoreo = 3\n", "[[tool.choreo]]\n"])
def test_tool_choreo_that_is_no_table(whole: str, pyproject: Pyproject):
    """Anything else than a table under that name is refused."""
    file = pyproject(whole=whole)

    assert refused().message == f"tool.choreo in {file} is not a table"


def test_folders_in_place_of_files(project: Path):
    """A folder called pyproject.toml or .env is not the file of that name."""
    (project / "pyproject.toml").mkdir()
    (project / ".env").mkdir()

    assert load().root == project


def test_an_env_file_that_is_no_text(project: Path):
    """Bytes that are no UTF-8 are an error that names the file."""
    (project / ".env").write_bytes(b"CHOREO_NAMESPACE=\xff\n")

    assert refused().message == f"{project / '.env'} cannot be read: it is not UTF-8"


@pytest.mark.parametrize("line", [f"='{SECRET}", f'CHOREO_URL="amqp://me:{SECRET}@rabbit'])
def test_a_malformed_env_line_is_refused_and_not_shown(project: Path, line: str):
    """A quote that is not closed must not make choreo take another broker: an error names file and line, no value."""
    (project / ".env").write_text(f"CHOREO_PREFETCH=3\n{line}\n")

    error = refused()
    assert f"{project / '.env'}, line 2," in error.message
    assert SECRET not in str(error)


def test_a_working_folder_that_is_gone(project: Path):
    """A folder that was removed under the shell is one clear error."""
    project.rmdir()

    assert "working folder" in refused().message


def test_the_environment_is_read_by_load_only(monkeypatch: pytest.MonkeyPatch, pyproject: Pyproject):
    """Settings made directly take what they are given, which is what tests want."""
    pyproject("prefetch = 1")
    monkeypatch.setenv("CHOREO_CONCURRENCY", "3")

    settings = Settings(namespace="test")

    assert (settings.namespace, settings.prefetch, settings.concurrency) == ("test", 100, 16)


def test_settings_do_not_change():
    """What a worker started with stays; copies may differ."""
    settings = load(prefetch=3)

    with pytest.raises(ValidationError):
        settings.prefetch = 4  # type: ignore[misc]
    assert settings.model_copy(update={"prefetch": 4}).prefetch == 4


def test_settings_reach_another_process(pyproject: Pyproject, monkeypatch: pytest.MonkeyPatch):
    """Pickled settings are the same, with their project and the names for messages."""
    file = pyproject('url = "amqp://"')
    settings = load()
    monkeypatch.chdir("/")

    copy = pickle.loads(pickle.dumps(settings))

    assert copy == settings
    assert copy.root == settings.root
    assert copy.name_of("url") == f"[tool.choreo] url in {file}"


def test_names_as_the_user_wrote_them(project: Path, monkeypatch: pytest.MonkeyPatch):
    """Other rooms point at a setting by the place that it came from, or by the variable that would set it."""
    monkeypatch.setenv("CHOREO_AGENTS", "x")
    (project / ".env").write_text("CHOREO_WAIT=3\n")

    settings = load(drain=1)

    assert settings.name_of("agents") == "CHOREO_AGENTS"
    assert settings.name_of("wait") == f"CHOREO_WAIT in {project / '.env'}"
    assert settings.name_of("drain") == "drain"
    assert settings.name_of("prefetch") == "CHOREO_PREFETCH"


def test_a_wrong_url_is_named_when_it_is_needed(monkeypatch: pytest.MonkeyPatch):
    """Commands that need no broker run beside a wrong URL; the one that does names where it came from."""
    monkeypatch.setenv("CHOREO_URL", f"amqp://app:{SECRET}@rabbit:x")
    settings = load()

    with pytest.raises(InvalidUrl) as raised:
        settings.brokers()

    assert raised.value.message.startswith("CHOREO_URL has a port")
    assert SECRET not in str(raised.value)


def test_a_cluster_is_a_list(monkeypatch: pytest.MonkeyPatch):
    """Several URLs are several nodes, and one password serves all."""
    monkeypatch.setenv("CHOREO_URL", "amqp://app@a,amqp://app:old@b")
    monkeypatch.setenv("CHOREO_PASSWORD", "new")

    assert [(url.host, url.password) for url in load().brokers()] == [("a", "new"), ("b", "new")]


@pytest.mark.parametrize(
    ("content", "password"),
    [
        (b"pw", "pw"),
        (b"pw\n", "pw"),
        (b"pw\r\n", "pw"),
        (b" p w \n\n", " p w \n"),
        ("pässwörd".encode(), "pässwörd"),
        (b"x" * MAX_PASSWORD, "x" * MAX_PASSWORD),
    ],
)
def test_a_password_file(content: bytes, password: str, project: Path, monkeypatch: pytest.MonkeyPatch):
    """The file's content without its last line break is the password, in place of the URL's."""
    (project / "password").write_bytes(content)
    monkeypatch.setenv("CHOREO_URL", "amqp://app:old@rabbit")
    monkeypatch.setenv("CHOREO_PASSWORD_FILE", "password")

    assert load().brokers()[0].password == password


def test_a_relative_password_file_is_the_projects(project: Path, pyproject: Pyproject, monkeypatch: pytest.MonkeyPatch):
    """The path of a password file is relative to the project, as that of the agents is."""
    pyproject('password_file = "secrets/password"', 'url = "amqp://app@rabbit"')
    (project / "secrets").mkdir()
    (project / "secrets" / "password").write_text("pw")
    monkeypatch.chdir(project / "secrets")

    assert load().brokers()[0].password == "pw"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        (b"", "it is empty"),
        (b"\n", "it is empty"),
        (b"\xff", "it is not UTF-8"),
        (b"x" * (MAX_PASSWORD + 1), "it is longer than 4096 bytes"),
    ],
)
def test_a_password_file_that_cannot_be_used(content: bytes | None, reason: str, project: Path):
    """The error names setting, path and reason."""
    file = project / "password"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(ConfigurationError) as raised:
        load(password_file=file).brokers()

    assert raised.value.message == f"password_file={file} cannot be read: {reason}"


def test_a_password_given_as_the_path_of_its_file(monkeypatch: pytest.MonkeyPatch):
    """The password itself in CHOREO_PASSWORD_FILE is not repeated."""
    monkeypatch.setenv("CHOREO_PASSWORD_FILE", SECRET)

    with pytest.raises(ConfigurationError) as raised:
        load().brokers()

    assert raised.value.message == "CHOREO_PASSWORD_FILE cannot be read: No such file or directory"


def test_a_password_file_that_is_a_folder(project: Path):
    """A folder is not a password."""
    with pytest.raises(ConfigurationError, match="cannot be read: Is a directory"):
        load(password_file=project).brokers()


def test_two_passwords(project: Path, monkeypatch: pytest.MonkeyPatch):
    """A password and a password file at once are refused by their names."""
    monkeypatch.setenv("CHOREO_PASSWORD", SECRET)
    (project / ".env").write_text("CHOREO_PASSWORD_FILE=x\n")

    with pytest.raises(ConfigurationError) as raised:
        load().brokers()

    message = f"CHOREO_PASSWORD and CHOREO_PASSWORD_FILE in {project / '.env'} are both given"
    assert raised.value.message == message


@pytest.mark.parametrize(
    "line",
    [
        f"management_url = '{SECRET}'",
        f"management_url = 'http://app:{SECRET} @rabbit'",
        f"management_url = 'amqp://app:{SECRET}@rabbit'",
        f"management_url = ['{SECRET}']",
        f"url = ['{SECRET}']",
        f"password = ['{SECRET}']",
        f"password_file = ['{SECRET}']",
        f'password_file = "{SECRET}\\u0000"',
        f"passwort = '{SECRET}'",
        f"url = 'amqp://app:{SECRET}@rabbit'\nprefetch = 0",
        f"url = 'amqp://app:{SECRET}@rabbit'\npassword = '{SECRET}'\nnamespace = 3",
        f"url = 'amqp://app:{SECRET}@rabbit'\nx = 3",
        f"url = amqp://app:{SECRET}@rabbit",
        f"url = 'amqp://app:{SECRET}@rabbit",
        f"url = 'amqp://app:{SECRET}@rabbit'\nurl = '{SECRET}'",
        f"password = '{SECRET}' '{SECRET}'",
    ],
)
def test_no_error_shows_a_secret(line: str, pyproject: Pyproject):
    """Whatever is wrong, in a secret or beside it, the error shows none."""
    pyproject(line)

    refused()


def test_settings_do_not_show_their_secrets():
    """Neither repr nor str nor JSON of settings shows a password."""
    settings = load(
        url=f"amqp://app:{SECRET}@rabbit", password=SECRET, management_url=SecretStr(f"http://app:{SECRET}@rabbit")
    )

    assert SECRET not in f"{settings!r}{settings!s}{settings.model_dump()}{settings.model_dump_json()}"
    assert settings.brokers()[0].password == SECRET


@pytest.mark.parametrize("url", ["http://rabbit:15672", "https://app:pw@rabbit/api", "http://[::1]:15672/"])
def test_management_urls(url: str):
    """The management API is reached by http or https."""
    settings = load(management_url=url)

    assert settings.management_url is not None
    assert settings.management_url.get_secret_value() == url


def test_an_option_is_named_as_it_was_written():
    """A wrong value on the command line is a usage error; the same one from a variable is configuration."""
    with pytest.raises(UsageError) as caught:
        from_command_line(health_port="70000")
    assert caught.value.message == "--health-port '70000' is not allowed"
    assert caught.value.way_out == "allowed: a port from 1 to 65535, or 0 for any free one"
    assert from_command_line(drain="5s").name_of("drain") == "--drain"


def test_a_url_that_cannot_be_used_is_a_usage_error_on_the_command_line():
    with pytest.raises(UsageError, match="--url begins with http://"):
        from_command_line(url="http://localhost")


@pytest.mark.parametrize(
    ("written", "meant"), [("CONCURENCI", "CONCURRENCY"), ("AGENT_DIR", None), ("TEST_BROKER", None)]
)
def test_a_variable_that_is_like_a_settings_is_doubted(
    written: str, meant: str | None, monkeypatch: pytest.MonkeyPatch
):
    """It may be somebody else's, so it is not an error."""
    monkeypatch.setenv(f"CHOREO_{written}", "1")
    expected = (f"CHOREO_{written} is not a setting; did you mean CHOREO_{meant}?",) if meant else ()
    assert load().doubts == expected


def test_the_keywords_of_connect_are_the_settings() -> None:
    """Type checkers know every setting but the URL as a keyword, with each type that its value may be written in."""
    written: dict[object, set[Any]] = {SecretStr: {str, SecretStr}, Path: {str, Path}, float: set(get_args(Duration))}
    known = get_type_hints(SettingsKeywords)
    fields = get_type_hints(Settings)
    assert known.keys() == Settings.model_fields.keys() - {"url"}
    for name, keyword in known.items():
        expected = {each for kind in _members(fields[name]) for each in written.get(kind, {kind})}
        assert _members(keyword) == expected, name


def _members(annotation: Any) -> set[Any]:
    several = get_origin(annotation) in (Union, UnionType)
    return set(get_args(annotation) if several else (annotation,)) - {type(None)}
