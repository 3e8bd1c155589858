"""Settings as keyword arguments of a call, for type checkers. A test holds them against the settings themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypedDict

from pydantic import SecretStr

from choreo.duration import Duration


class SettingsKeywords(TypedDict, total=False):
    """Every setting but `url`. None counts as not given."""

    password: str | SecretStr | None
    password_file: str | Path | None
    namespace: str | None
    agents: str | Path | None
    concurrency: int | None
    prefetch: int | None
    drain: Duration | None
    wait: Duration | None
    publish_timeout: Duration | None
    max_body: int | None
    log_level: Literal["debug", "info", "warning", "error", "critical"] | None
    log_format: Literal["auto", "pretty", "json", "compact"] | None
    health_host: str | None
    health_port: int | None
    management_url: str | SecretStr | None
    code_version: str | None
