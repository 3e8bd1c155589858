"""Settings: arguments, CHOREO_* variables, `.env`, [tool.choreo] in pyproject.toml; the first one wins.

Where none of them names a broker, it is that of the `choreo dev` which runs in the project, if one does.
"""

from __future__ import annotations

import difflib
import os.path
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from dotenv.parser import parse_stream
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PrivateAttr,
    SecretStr,
    StringConstraints,
    ValidationError,
)
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from choreo import duration
from choreo.config import dev_file, ownership
from choreo.config.broker_url import BrokerUrl
from choreo.config.project import Project, find
from choreo.errors import ChoreoError, ConfigurationError, InvalidUrl, UsageError

PREFIX: Final = "CHOREO_"
_OPTION: Final = "--"  # begins what was said on the command line
_RETIRED: Final = {"lane": "messages are always read and written by choreo itself"}  # settings of older versions
_ALIKE: Final = 0.7  # of 1: a variable so much like a setting's is probably meant for choreo
MAX_PASSWORD: Final = 4096  # bytes of a password file


@dataclass(frozen=True, slots=True)
class _Allowed:
    """What a setting may be, in words. Pydantic passes it by; messages show it."""

    text: str


def _not_true(value: object) -> object:
    if isinstance(value, bool):  # pydantic would read true as 1
        raise ValueError("no number")  # noqa: TRY004  # a ValueError is what pydantic turns into a finding
    return value


def _not_empty(value: object) -> object:
    if value == "" or "\0" in str(value):  # an empty path would be the working folder
        raise ValueError("no path")
    return value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


_Number = Annotated[int, BeforeValidator(_not_true)]
_PathOf = Annotated[Path, BeforeValidator(_not_empty)]
_Seconds = Annotated[float, BeforeValidator(duration.seconds)]
_LENGTH: Final = f"a length of time: {duration.FORMS}"
_MANAGEMENT_URL: Final = r"^https?://[^\s/?#]+(/[^\s?#]*)?$"


def _management(value: SecretStr) -> SecretStr:
    # Its own error: pydantic's would be about the text, and the text may hold a password.
    if not re.fullmatch(_MANAGEMENT_URL, value.get_secret_value()):
        raise ValueError("no http URL")
    return value


class Settings(BaseSettings):
    """What choreo is told about its surroundings. Immutable; `load()` reads it from every place.

    Made directly, ``Settings(prefetch=10)``, it takes what it is given and reads neither variables nor files.

    `url`: the broker, or the nodes of one cluster with commas between. `password`, `password_file`: replace
    the one in `url`; a file's last line break is not part of it. `namespace`: first word of every queue and
    exchange. `agents`: the folder with the agent modules. `concurrency`: reactions at once in a process.
    `prefetch`: deliveries that a process holds per agent. `drain`: seconds for what runs when a worker stops.
    `wait`: seconds to try to reach the broker at the start. `publish_timeout`: seconds until a publish that
    nobody answers counts as unknown. `max_body`: bytes. `health_port`: None for no health endpoint, 0 for any
    free port. `management_url`: the broker's management API, which only adds detail.
    `code_version`: what dead letters name as the version of the code that failed, such as a commit.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True, hide_input_in_errors=True
    )

    url: Annotated[SecretStr, _Allowed("amqp://user:password@host:5672/vhost, or several with commas between")] = (
        SecretStr("amqp://localhost")
    )
    password: Annotated[SecretStr | None, _Allowed("a text")] = None
    password_file: Annotated[_PathOf | None, _Allowed("the path of a file")] = None
    namespace: Annotated[
        str,
        StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,31}$"),
        _Allowed('a lower-case letter, then up to 31 of a-z, 0-9, "_" and "-"'),
    ] = "choreo"
    agents: Annotated[_PathOf, _Allowed("the path of a folder")] = Path("agents")
    concurrency: Annotated[_Number, Field(ge=1, le=100_000), _Allowed("a whole number from 1 to 100000")] = 16
    prefetch: Annotated[_Number, Field(ge=1, le=65535), _Allowed("a whole number from 1 to 65535")] = 100
    drain: Annotated[_Seconds, _Allowed(_LENGTH)] = 30.0
    wait: Annotated[_Seconds, _Allowed(_LENGTH)] = 5.0
    publish_timeout: Annotated[_Seconds, Field(gt=0), _Allowed(f"above 0, {_LENGTH}")] = 10.0
    max_body: Annotated[_Number, Field(ge=1, le=2**29), _Allowed(f"bytes, a whole number from 1 to {2**29}")] = 2**20
    log_level: Annotated[
        Literal["debug", "info", "warning", "error", "critical"],
        BeforeValidator(_lower),
        _Allowed("debug, info, warning, error or critical"),
    ] = "info"
    log_format: Annotated[
        Literal["auto", "pretty", "json", "compact"],
        BeforeValidator(_lower),
        _Allowed("auto, pretty, json or compact"),
    ] = "auto"
    health_host: Annotated[str, StringConstraints(min_length=1), _Allowed("a host name or an address")] = "127.0.0.1"
    health_port: Annotated[
        _Number | None, Field(ge=0, le=65535), _Allowed("a port from 1 to 65535, or 0 for any free one")
    ] = None
    management_url: Annotated[
        Annotated[SecretStr, AfterValidator(_management)] | None,
        _Allowed("http://user:password@host:15672 or https://"),
    ] = None
    code_version: Annotated[
        str | None, StringConstraints(max_length=200), _Allowed("a text of at most 200 characters")
    ] = None

    _root: Path = PrivateAttr(default_factory=Path.cwd)
    _names: Mapping[str, str] = PrivateAttr(default_factory=dict)
    _found: dev_file.Found | None = PrivateAttr(default=None)
    _doubts: tuple[str, ...] = PrivateAttr(default=())

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003  # the names are pydantic-settings'
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take what is given; `load()` reads the other places and remembers which one said what."""
        return (init_settings,)

    @property
    def root(self) -> Path:
        """The project: the folder of the pyproject.toml that was found, or the working folder."""
        return self._root

    @property
    def agents_folder(self) -> Path:
        """The absolute path of the agents folder; a relative one is relative to `root`."""
        # Not resolved: its own name is the package that agents are imported from, also where it is a symlink.
        return Path(os.path.normpath(self._root / self.agents))

    @property
    def found(self) -> dev_file.Found | None:
        """The broker of `choreo dev` that `url` is, because none was named; None when one was, or none runs."""
        return self._found

    @property
    def doubts(self) -> tuple[str, ...]:
        """Sentences about CHOREO_* variables that look like a setting, and files that are not used, for a person."""
        return self._doubts

    def name_of(self, setting: str) -> str:
        """Return `setting` as it was written: CHOREO_AGENTS, or [tool.choreo] agents in /a/pyproject.toml."""
        return self._names.get(setting, PREFIX + setting.upper())

    def brokers(self) -> tuple[BrokerUrl, ...]:
        """Return the nodes in `url` in their order, with that of `password` or `password_file` if any.

        Raises ConfigurationError when the file cannot be read, InvalidUrl when a URL cannot be used.
        """
        return BrokerUrl.parse_all(self.url.get_secret_value(), password=self._password(), name=self.name_of("url"))

    def _password(self) -> str | None:
        if self.password_file is None:
            return self.password.get_secret_value() if self.password else None
        if self.password is not None:
            raise ConfigurationError(
                f"{self.name_of('password')} and {self.name_of('password_file')} are both given",
                "give one of the two",
            )
        path = self._root / self.password_file
        try:
            with path.open("rb") as file:
                content = file.read(MAX_PASSWORD + 1)
            password = content.decode()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        else:
            password = password.removesuffix("\n").removesuffix("\r")
            if password and len(content) <= MAX_PASSWORD:
                return password
            reason = f"it is longer than {MAX_PASSWORD} bytes" if password else "it is empty"
        # A relative path is not repeated: it may be the password itself.
        shown = f"={path}" if self.password_file.is_absolute() else ""
        raise ConfigurationError(
            f"{self.name_of('password_file')}{shown} cannot be read: {reason}",
            "it names a file that holds the password",
        )


def load(**given: Any) -> Settings:
    """Read `given` (None counts as not given), variables, `.env` files and [tool.choreo]; the first one wins.

    `.env` is looked for in the working folder, then in the project's. Empty variables count as not given. A
    variable one letter away from a setting is refused, one that is like a setting is among the `doubts`, other CHOREO_*
    are left to their owners. Raises
    ConfigurationError that names the setting as it was written, its value unless secret, and what is allowed.
    """
    return _read(_Source(_given(given)))


def from_command_line(**options: Any) -> Settings:
    """Read as `load` does; a wrong value of one of the `options` is a UsageError that names it, such as --drain."""
    settings = _read(_Source(_given(options), before=_OPTION, equals=" "))
    if options.get("url") is not None:
        try:
            BrokerUrl.parse_all(options["url"], name="--url")
        except InvalidUrl as error:
            raise UsageError(error.message, error.way_out) from None
    return settings


def _given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in arguments.items() if value is not None}


def _read(given: _Source) -> Settings:
    project = find()
    sources = [_known(given), _variables(), *_env_files(project), _table(project)]
    found = None
    if not any("url" in source.values for source in sources):
        found, doubt = dev_file.find(project.root), dev_file.doubt(project.root)
        if found is not None:
            sources.append(_Source({"url": found.url}, after=f" in {project.root / dev_file.FOLDER}"))
        elif doubt is not None:
            sources.append(_Source({}, doubts=(doubt,)))
    values: dict[str, Any] = {}
    said_by: dict[str, _Source] = {}
    for source in reversed(sources):
        values.update(source.values)
        said_by.update(dict.fromkeys(source.values, source))
    try:
        settings = Settings(**values)
    except ValidationError as error:
        wrong = str(error.errors(include_input=False, include_context=False)[0]["loc"][0])
    else:
        settings._root = project.root  # noqa: SLF001  # they are set here and nowhere else
        settings._found = found  # noqa: SLF001
        settings._names = {key: source.name(key) for key, source in said_by.items()}  # noqa: SLF001
        settings._doubts = tuple(doubt for source in sources for doubt in source.doubts)  # noqa: SLF001
        return settings
    # Outside of the block above: pydantic's error holds all values, and a chained error may be printed too.
    raise _not_allowed(said_by[wrong], wrong)


@dataclass(frozen=True, slots=True)
class _Source:
    """One place that settings come from: what it says, and how a user would point at it."""

    values: Mapping[str, Any]
    before: str = ""
    equals: str = "="
    after: str = ""
    doubts: tuple[str, ...] = ()

    def name(self, key: str, value: str = "") -> str:
        shown = key.upper() if self.before == PREFIX else key.replace("_", "-") if self.before == _OPTION else key
        return f"{self.before}{shown}{self.equals + value if value else ''}{self.after}"


def _not_allowed(source: _Source, key: str) -> ChoreoError:
    field = Settings.model_fields[key]
    # What was given as the path of a password file may be the password itself.
    secret = "SecretStr" in str(field.annotation) or key == "password_file"
    value = "***" if secret else repr(source.values[key])[:80]
    allowed = next(each.text for each in field.metadata if isinstance(each, _Allowed))
    kind = UsageError if source.before == _OPTION else ConfigurationError
    return kind(f"{source.name(key, value)} is not allowed", f"allowed: {allowed}")


def _table(project: Project) -> _Source:
    return _known(_Source(project.table, before="[tool.choreo] ", equals=" = ", after=f" in {project.file}"))


def _known(source: _Source) -> _Source:
    """Return `source` unless one of its keys is not a setting."""
    source = _current(source)
    for key in source.values:
        if key not in Settings.model_fields:
            near = difflib.get_close_matches(key, Settings.model_fields, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ConfigurationError(
                f"{source.name(key)} is not a setting", f"{hint}known: {', '.join(Settings.model_fields)}"
            )
    return source


def _current(source: _Source) -> _Source:
    """Return `source` without the settings that older versions had, which are among its doubts."""
    retired = [key for key in source.values if key in _RETIRED]
    doubts = [f"{source.name(key)} has no effect any more: {_RETIRED[key]}; remove it" for key in retired]
    values = {key: value for key, value in source.values.items() if key not in _RETIRED}
    return replace(source, values=values, doubts=(*source.doubts, *doubts))


def _variables() -> _Source:
    return _prefixed(EnvSettingsSource(Settings).env_vars, "")


def _env_files(project: Project) -> list[_Source]:
    paths = dict.fromkeys((project.cwd / ".env", project.root / ".env"))
    return [_env_file(path) for path in paths]


def _env_file(path: Path) -> _Source:
    ownership.require(path)
    try:
        _check_env_file(path)
        variables = DotEnvSettingsSource(Settings, env_file=path, env_file_encoding="utf-8").env_vars
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
    else:
        return _prefixed(variables, f" in {path}")
    raise ConfigurationError(f"{path} cannot be read: {reason}", "fix or remove it")


def _check_env_file(path: Path) -> None:
    """Refuse a file with a line that is not an assignment: dotenv would skip it, and another broker could be used."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        wrong = next((each.original.line for each in parse_stream(file) if each.error), None)
    if wrong is not None:
        raise ConfigurationError(f"{path}, line {wrong}, is not NAME=value", "fix it; a quote may not be closed")


def _prefixed(variables: Mapping[str, str | None], after: str) -> _Source:
    """Return the settings in `variables`, whose names are lower case; refuse a misspelt one."""
    prefix = PREFIX.lower()
    found = {
        name.removeprefix(prefix): value
        for name, value in variables.items()
        if name.startswith(prefix) and value is not None and name.upper() != ownership.VARIABLE
    }
    source = _current(_Source(found, PREFIX, after=after))
    doubts: list[str] = []
    for key in sorted(source.values.keys() - Settings.model_fields.keys()):
        near = next((field for field in Settings.model_fields if _one_slip(key, field)), None)
        if near:
            raise ConfigurationError(f"{source.name(key)} is not a setting", f"did you mean {PREFIX}{near.upper()}?")
        like = difflib.get_close_matches(key, Settings.model_fields, n=1, cutoff=_ALIKE)
        doubts += [f"{source.name(key)} is not a setting; did you mean {PREFIX}{each.upper()}?" for each in like]
    values = {key: value for key, value in source.values.items() if key in Settings.model_fields}
    return replace(source, values=values, doubts=(*source.doubts, *doubts))


def _one_slip(written: str, meant: str) -> bool:
    """Say whether one letter too many, missing, wrong or swapped with the next one is all that differs."""
    while written and meant and written[0] == meant[0]:
        written, meant = written[1:], meant[1:]
    while written and meant and written[-1] == meant[-1]:
        written, meant = written[:-1], meant[:-1]
    return max(len(written), len(meant)) <= 1 or (len(written) == 2 and written == meant[::-1])
