"""Unit, image, compose file and docs/deployment.md keep what they promise, and fit the code as it is."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
from pydantic import SecretStr

from agents import _bank as bank
from agents.events import OrderPlaced
from agents.inventory import SHELF
from agents.shipping import WEIGHT
from choreo import cli, errors, loader
from choreo.config.settings import Settings
from choreo.observe.health import Health
from choreo.runtime import processes

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "deploy" / "choreo@.service"
SAMPLE = ROOT / "deploy" / "choreo.env.sample"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = (ROOT / "compose.yaml").read_text()
PAGE = (ROOT / "docs" / "deployment.md").read_text()
AGENTS = loader.known(ROOT / "agents")

# How long a worker may take to end by itself: the drain time, and what its supervisor adds to it.
LONGEST_STOP = Settings().drain + processes._GRACE


def settings_in(text: str) -> set[str]:
    """Return the settings whose variables `text` sets."""
    return {name.lower() for name in re.findall(r"^[ #]*CHOREO_([A-Z_]+)(?:=|: )", text, re.MULTILINE)}


class TestUnit:
    @pytest.fixture
    def unit(self) -> dict[str, list[str]]:
        directives: dict[str, list[str]] = {}
        for line in UNIT.read_text().splitlines():
            if line and line[0] not in "#[":
                name, _, value = line.partition("=")
                directives.setdefault(name, []).append(value)
        return directives

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("Type", "notify"),
            ("NotifyAccess", "main"),
            ("WatchdogSec", "30"),
            ("ExecStart", "/opt/choreo/venv/bin/choreo run %i"),
            ("WorkingDirectory", "/opt/choreo/app"),
            ("EnvironmentFile", "/etc/choreo/choreo.env"),
            ("KillSignal", "SIGTERM"),
            ("KillMode", "mixed"),
            ("Restart", "on-failure"),
            ("StartLimitIntervalSec", "0"),
            ("DynamicUser", "yes"),
            ("NoNewPrivileges", "yes"),
            ("CapabilityBoundingSet", ""),
            ("ProtectSystem", "strict"),
            ("PrivateTmp", "yes"),
            ("MemoryDenyWriteExecute", "yes"),
            ("RestrictAddressFamilies", "AF_INET AF_INET6 AF_UNIX"),
            ("SystemCallFilter", "@system-service"),
        ],
    )
    def test_promises(self, unit: dict[str, list[str]], name: str, value: str):
        assert value in unit[name]

    def test_is_more_patient_than_the_drain(self, unit: dict[str, list[str]]):
        assert float(unit["TimeoutStopSec"][0]) > LONGEST_STOP

    def test_does_not_restart_what_would_fail_again(self, unit: dict[str, list[str]]):
        """Wrong usage and wrong configuration stay down; an absent broker and a crash do not."""
        stays_down = {int(code) for code in unit["RestartPreventExitStatus"][0].split()}

        assert stays_down == {errors.UsageError.exit_code, errors.ConfigurationError.exit_code}

    def test_systemd_understands_it(self, tmp_path: Path):
        """systemd-analyze has nothing to say about it, but that its program is not installed here."""
        text = UNIT.read_text().replace("/opt/choreo/venv/bin/choreo", sys.executable)
        (tmp_path / UNIT.name).write_text(text.replace("=/opt/choreo/app", "=/"))

        done = run(["systemd-analyze", "verify", "--man=no", str(tmp_path / "choreo@payment.service")])

        assert (done.returncode, done.stdout + done.stderr) == (0, "")

    def test_is_hardened(self):
        """The exposure that the page names, as far as this systemd counts the same way."""
        done = run(["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNIT)])

        exposure = re.search(r"Overall exposure level for .*: ([0-9.]+) ", done.stdout)
        if exposure is None:
            pytest.skip(f"this systemd-analyze cannot tell: {done.stderr.strip()}")
        assert float(exposure[1]) < 2
        if run(["systemd-analyze", "--version"]).stdout.startswith("systemd 252 "):
            assert f"an exposure of {exposure[1]}," in PAGE

    def test_sample_has_settings_that_exist(self):
        """Every line of the sample, also those behind a #, is a setting with a value that it takes."""
        lines = re.findall(r"^#?CHOREO_([A-Z_]+)=(.*)$", SAMPLE.read_text(), re.MULTILINE)
        values = {name.lower(): value for name, value in lines if name != "PASSWORD_FILE"}

        settings = Settings(**values)

        assert settings.brokers()[0].password == "change-me"
        assert settings_in(SAMPLE.read_text()) == values.keys() | {"password_file"}


class TestImage:
    @pytest.fixture
    def instructions(self) -> list[tuple[str, str]]:
        text = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ")
        return [(line.split()[0], " ".join(line.split()[1:])) for line in text.splitlines() if line]

    @pytest.fixture
    def last_stage(self, instructions: list[tuple[str, str]]) -> dict[str, str]:
        last = max(at for at, (name, _) in enumerate(instructions) if name == "FROM")
        return dict(instructions[last:])

    def test_is_built_in_stages(self, instructions: list[tuple[str, str]], last_stage: dict[str, str]):
        """The image that runs has neither pip's leftovers nor the sources of choreo."""
        assert [value for name, value in instructions if name == "FROM"] == [
            "python:${PYTHON}-slim AS builder",
            "python:${PYTHON}-slim",
        ]
        assert ("ARG", "PYTHON=3.13") in instructions
        assert ("COPY", "--from=builder /opt/choreo/venv /opt/choreo/venv") in instructions
        assert last_stage["COPY"] == "agents/ agents/"

    def test_runs_as_nobody_in_particular(self, last_stage: dict[str, str]):
        """A number, since Kubernetes cannot tell whether a name is root."""
        user, _, group = last_stage["USER"].partition(":")
        assert int(user) >= 10_000
        assert int(group) >= 10_000

    def test_stops_by_the_signal_that_drains(self, last_stage: dict[str, str]):
        assert last_stage["STOPSIGNAL"] == "SIGTERM"

    def test_starts_choreo_itself(self, last_stage: dict[str, str]):
        """Without a shell in between, which would keep the signal to itself."""
        assert json.loads(last_stage["ENTRYPOINT"]) == ["choreo"]
        assert json.loads(last_stage["CMD"]) == ["run", "--all"]

    def test_has_no_secret(self, instructions: list[tuple[str, str]]):
        """What is set in the image is for everybody to read."""
        given = " ".join(value for name, value in instructions if name in ("ENV", "ARG", "LABEL"))
        assert set(re.findall(r"CHOREO_[A-Z_]+", given)) == {"CHOREO_HEALTH_PORT", "CHOREO_PROJECT"}

    def test_copies_what_is_there(self, instructions: list[tuple[str, str]]):
        """No source of a COPY is missing, or left out by .dockerignore."""
        sources = [
            source
            for name, value in instructions
            if name == "COPY" and "--from" not in value
            for source in value.split()[:-1]
        ]
        ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] != "#"]

        assert {"choreo/", "agents/", "pyproject.toml"} <= set(sources)
        for source in sources:
            assert (ROOT / source).exists(), source
            assert not {source.rstrip("/"), source.split("/")[0]} & set(ignored), source

    async def test_healthcheck_tells_ready_from_not(self, last_stage: dict[str, str]):
        """The check of the image, run against a real endpoint at the port of its environment, and not misled by a
        proxy."""
        command = check_command(last_stage["HEALTHCHECK"].partition("CMD ")[2])
        state = [False]
        endpoint = Health(lambda: (True, "alive"), lambda: (state[0], "as told"), "127.0.0.1", 0)
        await endpoint.start()
        endpoint_port = endpoint.port
        assert "CHOREO_HEALTH_PORT=8080" in last_stage["ENV"]

        async def check() -> int:
            environment = {**os.environ, "http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
            environment["CHOREO_HEALTH_PORT"] = str(endpoint_port)
            child = await asyncio.create_subprocess_exec(
                sys.executable, *command[1:], env=environment, stderr=asyncio.subprocess.DEVNULL
            )
            return await child.wait()

        assert await check() == 1
        state[0] = True
        assert await check() == 0
        await endpoint.stop()
        assert await check() == 1

    @pytest.mark.parametrize("folder", ["", "agents/", "choreo/", "agents/a/b/"])
    @pytest.mark.parametrize("name", [".env", ".env.local", "choreo.env"])
    def test_no_file_of_settings_gets_into_it(self, folder: str, name: str):
        """An image is passed on, and what stands in such a file is not meant for all who get it."""
        lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] not in ("#", "")]

        assert any(docker_pattern(line).fullmatch(folder + name) for line in lines)


class TestCompose:
    @pytest.fixture
    def services(self) -> dict[str, str]:
        text = COMPOSE.partition("\nservices:\n")[2].partition("\nvolumes:\n")[0]
        parts = re.split(r"^  ([a-z]+):$", text, flags=re.MULTILINE)
        return dict(zip(parts[1::2], parts[2::2], strict=True))

    def test_has_a_service_per_agent(self, services: dict[str, str]):
        assert services.keys() == {"rabbitmq", "customer", *AGENTS}
        for agent in AGENTS:
            assert f"    <<: *agent\n    command: [run, {agent}]\n" in services[agent]

    def test_the_customer_waits_for_every_agent(self, services: dict[str, str]):
        waits_for = services["customer"].partition("depends_on:")[2].partition("restart:")[0]
        assert set(re.findall(r"^      ([a-z]+): [&*]ready$", waits_for, re.MULTILINE)) == set(AGENTS)
        assert "condition: service_healthy" in waits_for

    def test_the_orders_are_what_the_page_says(self, services: dict[str, str]):
        """Five valid orders: one of each fate, and one that simply succeeds."""
        orders = [OrderPlaced.model_validate_json(line) for line in re.findall(r"^ +(\{.*\})$", COMPOSE, re.MULTILINE)]
        simple, given_up, too_many, patient, unknown = orders

        assert "choreo publish order.placed - --lines <<'ORDERS'" in services["customer"]
        assert len({placed.order for placed in orders}) == 5
        assert [bank.failing_tries(placed.order) for placed in orders] == [0, float("inf"), 0, 2, 0]
        assert too_many.items["book"] > SHELF["book"]
        assert not unknown.items.keys() & WEIGHT.keys()
        for placed in (simple, given_up, patient):
            assert all(count <= SHELF[item] and item in WEIGHT for item, count in placed.items.items())

    def test_settings_exist_and_make_a_url(self):
        """The password needs no percent signs, since it is not part of the URL."""
        assert settings_in(COMPOSE) <= Settings.model_fields.keys()
        (url,) = re.findall(r"CHOREO_URL: (.*)", COMPOSE)

        (broker,) = Settings(url=SecretStr(url), password=SecretStr("p@ss/w:rd")).brokers()

        assert (broker.host, broker.user, broker.password) == ("rabbitmq", "choreo", "p@ss/w:rd")
        assert re.findall(r"RABBITMQ_DEFAULT_USER: (.*)", COMPOSE) == [broker.user]
        assert len(set(re.findall(r"(?:CHOREO_PASSWORD|RABBITMQ_DEFAULT_PASS): (.*)", COMPOSE))) == 1

    def test_publishes_on_loopback_only(self):
        ports = re.findall(r'^      - "([0-9.]+):\d+:\d+"$', COMPOSE, re.MULTILINE)
        assert ports == ["127.0.0.1", "127.0.0.1"]
        assert COMPOSE.count("ports:") == 1

    def test_has_the_health_check_of_the_image(self):
        """Some engines ignore HEALTHCHECK, and the customer would wait for ever."""
        image = check_command(DOCKERFILE.partition("HEALTHCHECK")[2].partition("CMD ")[2].splitlines()[0])
        (ours,) = re.findall(r"^    test: (\[.*\])$", COMPOSE, re.MULTILINE)

        assert json.loads(ours) == ["CMD", *image]
        assert "rabbitmq-diagnostics" in COMPOSE

    def test_is_more_patient_than_the_drain(self):
        agent = COMPOSE.partition("x-agent:")[2].partition("services:")[0]
        (patience,) = re.findall(r"stop_grace_period: (\d+)s", agent)
        assert float(patience) > LONGEST_STOP

    def test_docker_understands_it(self):
        """`docker compose config` is the judge, where it is installed."""
        if run(["docker", "compose", "version"]).returncode:
            pytest.skip("docker has no compose plugin here: compose.yaml was checked by its text only")
        done = run(["docker", "compose", "--file", str(ROOT / "compose.yaml"), "config", "--quiet"])
        assert (done.returncode, done.stderr) == (0, "")


class TestPage:
    def test_lists_every_exit_code(self):
        """The table has the codes of all errors and those that `choreo --help` lists, and no other."""
        table = {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)}

        assert {error.exit_code for error in every_error(errors.ChoreoError)} <= table
        assert cli.app.info.epilog
        assert table == {int(code) for code in re.findall(r"\b(\d+) [a-z]", cli.app.info.epilog)}

    def test_options_exist(self):
        """Every option of `choreo run` that the page, the unit or the image speaks of."""
        command = typer.main.get_command(cli.app).get_command(None, "run")  # type: ignore[attr-defined]
        known = {option for parameter in command.params for option in parameter.opts}
        lines = re.findall(r"choreo run [^`\n]*|`--[^`]*", PAGE + UNIT.read_text())
        spoken_of = {option for line in lines for option in re.findall(r"--[a-z-]+", line)}

        assert {"--wait", "--drain", "--processes", "--health-port", "--health-host"} <= spoken_of <= known

    def test_settings_exist(self):
        names = {name.lower() for name in re.findall(r"CHOREO_([A-Z_]+)", PAGE)}
        assert names <= Settings.model_fields.keys()

    def test_links_lead_somewhere(self):
        links = re.findall(r"\]\(([^)#:]+)\)", PAGE)
        assert links
        assert [link for link in links if not (ROOT / "docs" / link).exists()] == []

    def test_kubernetes_is_more_patient_than_the_drain(self):
        (patience,) = re.findall(r"terminationGracePeriodSeconds: (\d+)", PAGE)
        assert float(patience) > LONGEST_STOP
        assert "livenessProbe:\n            httpGet: {path: /live, port: 8080}" in PAGE
        assert "readinessProbe:\n            httpGet: {path: /ready, port: 8080}" in PAGE


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run `command` to its end; skip the test, saying so, where there is no such program."""
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not installed")
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def docker_pattern(line: str) -> re.Pattern[str]:
    """Return what a line of .dockerignore means: ** for any folders, also none, * for part of a name."""
    parts = [re.escape(part).replace(r"\*", "[^/]*") for part in line.split("**/")]
    return re.compile("(?:.*/)?".join(parts) + "(?:/.*)?")


def check_command(text: str) -> list[str]:
    """Return a health check's command: python, -c, and a line of code."""
    command: list[str] = json.loads(text)
    assert command[:2] == ["python", "-c"]
    return command


def every_error(kind: type[errors.ChoreoError]) -> Iterator[type[errors.ChoreoError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from every_error(child)
