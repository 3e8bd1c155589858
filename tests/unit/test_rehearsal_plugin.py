"""The pytest plugin, as a user's test run sees it: in a project of its own, beside other plugins and alone."""

from __future__ import annotations

import os
import re
import sys

import pytest

PLUGIN = ("-p", "choreo.testing.plugin")
SCOPE = ("-o", "asyncio_default_fixture_loop_scope=function")  # without which pytest-asyncio warns
ALONE = ("-p", "no:asyncio", "-p", "no:anyio")

GREETER = """
from choreo import Agent, Event

class Arrived(Event, topic="plugin.arrived", external=True):
    name: str

class Greeted(Event, topic="plugin.greeted", terminal=True):
    text: str

agent = Agent("greeter")

@agent.on
async def greet(arrived: Arrived) -> Greeted:
    return Greeted(text=f"Hello {arrived.name}!")
"""

TEST = """
import asyncio
import greeter

async def test_greets(rehearsal):
    await rehearsal.start(greeter)
    await rehearsal.publish(greeter.Arrived(name="Ada"), delay="2h")
    await asyncio.sleep(3600)
    assert not rehearsal.events()
    await rehearsal.settled()
    assert rehearsal.events() == [greeter.Greeted(text="Hello Ada!")]

class TestGreeter:
    async def test_in_a_class(self, rehearsal, tmp_path):
        assert tmp_path.exists()
        await rehearsal.start(greeter)

def test_plain(rehearsal):
    async def scenario(rehearsal):
        await rehearsal.start(greeter)
        return rehearsal.elapsed
    assert rehearsal.run(scenario) == 0
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(greeter=GREETER)
    return pytester


@pytest.mark.parametrize(
    "plugins",
    [ALONE, ("-p", "no:anyio", *SCOPE), ("-p", "no:anyio", "-o", "asyncio_mode=auto", *SCOPE), ("-p", "no:asyncio")],
    ids=["alone", "asyncio strict", "asyncio auto", "anyio"],
)
def test_coroutines_run_in_virtual_time(project: pytest.Pytester, plugins: tuple[str, ...]):
    """A coroutine that asks for a rehearsal runs on its loop, whichever plugin for coroutines is there, or none."""
    project.makepyfile(TEST)
    project.runpytest_subprocess(*PLUGIN, *plugins, "-W", "error").assert_outcomes(passed=3)


def test_a_plain_function_that_rehearses_nothing_fails(project: pytest.Pytester):
    """It calls coroutines and awaits none of them: green, it would prove nothing."""
    project.makepyfile(
        """
        import greeter
        import pytest

        def test_greets(rehearsal):
            rehearsal.start(greeter)
            assert rehearsal.settled()

        @pytest.fixture
        def stage(rehearsal):
            return rehearsal

        def test_of_something_else(stage):
            assert stage.seed == 1
        """
    )
    done = project.runpytest_subprocess(*PLUGIN, *ALONE)
    done.assert_outcomes(passed=1, failed=1)
    done.stdout.fnmatch_lines(["nothing was rehearsed: *`async def test_greets(rehearsal)`*"])


def test_coroutines_of_others_stay_theirs(project: pytest.Pytester):
    """One that asks for no rehearsal is left to the plugin that is for it."""
    project.makepyfile(
        """
        import asyncio
        from choreo.testing import VirtualLoop

        async def test_real():
            assert not isinstance(asyncio.get_running_loop(), VirtualLoop)

        async def test_virtual(rehearsal):
            assert isinstance(asyncio.get_running_loop(), VirtualLoop)
        """
    )
    project.runpytest_subprocess(*PLUGIN, "-o", "asyncio_mode=auto").assert_outcomes(passed=2)


def test_parameters_and_fixtures_reach_the_test(project: pytest.Pytester):
    """A rehearsal comes through a fixture of the user's too, and parameters as to any test."""
    project.makepyfile(
        """
        import greeter
        import pytest

        @pytest.fixture
        def stage(rehearsal):
            return rehearsal

        @pytest.mark.parametrize("name", ["Ada", "Grace"])
        async def test_greets(stage, name):
            await stage.start(greeter)
            await stage.publish(greeter.Arrived(name=name))
            await stage.settled()
            assert [each.text for each in stage.events()] == [f"Hello {name}!"]
        """
    )
    project.runpytest_subprocess(*PLUGIN, *ALONE).assert_outcomes(passed=2)


FAILING = """
import greeter
from choreo.testing import rehearse

async def test_fails(rehearsal):
    await rehearsal.start(greeter)
    rehearsal.repeat(greeter.Arrived)
    await rehearsal.publish(greeter.Arrived(name="Ada"))
    await rehearsal.settled()
    assert len(rehearsal.attempts()) == 1

async def scenario(rehearsal):
    await rehearsal.start(greeter)
    for name in ("Ada", "Grace", "Edsger"):
        await rehearsal.publish(greeter.Arrived(name=name))
    await rehearsal.settled()
    assert len(rehearsal.attempts()) == 3

def test_explores():
    rehearse(scenario, schedules=50)
"""


def test_failure_names_its_seed_and_what_went_wrong(project: pytest.Pytester):
    """Also that of an explored schedule, with how to run just that one; run so, it fails at once."""
    project.makepyfile(FAILING)
    result = project.runpytest_subprocess(*PLUGIN, "--choreo-seed", "2000")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "choreo: rehearsals begin with seed 2000",
            "*rehearsal with seed 2000, after *",
            "*0.000 s: greeter gets plugin.arrived again, its acknowledgement being lost",
            "*schedule * of 50 fails: AssertionError*",
            "*run just it: rehearse(scenario, seed=*, schedules=1), or pytest --choreo-seed=*",
        ]
    )
    assert "run_until_complete" not in result.stdout.str()  # the test is shown, and not how the loop came to run it
    seed = re.search(r"or pytest --choreo-seed=(\d+)", result.stdout.str())
    assert seed is not None

    again = project.runpytest_subprocess(*PLUGIN, f"--choreo-seed={seed[1]}", "-k", "explores")

    assert "schedule 1 of 50 fails" in again.stdout.str()


def test_seed_may_be_drawn(project: pytest.Pytester):
    project.makepyfile("def test_nothing(): pass")
    seeds = {
        line
        for _ in range(2)
        for line in project.runpytest_subprocess(*PLUGIN, "--choreo-seed=random").outlines
        if line.startswith("choreo: rehearsals begin with seed ")
    }
    assert len(seeds) == 2


def test_other_words_are_no_seed(project: pytest.Pytester):
    result = project.runpytest_subprocess(*PLUGIN, "--choreo-seed=luck")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--choreo-seed=luck: a seed is a whole number, or 'random'"])


def test_without_a_rabbitmq_its_tests_are_skipped_loudly(project: pytest.Pytester):
    """Nothing is found: the summary says how many tests did not run, and how to have them run is in the reason."""
    project.makepyfile("def test_real(rabbitmq): raise AssertionError")
    project.makeconftest("from choreo.testing.rabbitmq import release\nrelease.find_server = lambda root=None: None")
    result = project.runpytest_subprocess(*PLUGIN, "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*1 TESTS DID NOT RUN: no RabbitMQ*", "*no RabbitMQ: install it*"])


def test_plugin_imports_nothing_of_choreo_until_it_is_needed(project: pytest.Pytester):
    """It is loaded for every run of pytest in an environment, also of projects that have no agents."""
    project.makepyfile(
        """
        import sys

        def test_quick():
            assert {name for name in sys.modules if name.startswith("choreo.")} == {
                "choreo.testing", "choreo.testing.plugin"
            }
        """
    )
    project.runpytest_subprocess(*PLUGIN, *ALONE).assert_outcomes(passed=1)


def test_a_test_imports_the_projects_agents_and_no_installed_package_of_that_name(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
):
    """The folder needs no __init__.py for it. Where it holds no agent, it is none of choreo's business."""
    pytester.mkpydir("site").joinpath("agents").mkdir()
    (pytester.path / "site" / "agents" / "__init__.py").write_text("INSTALLED = True\n")
    pytester.mkdir("agents").joinpath("greeter.py").write_text(GREETER)
    pytester.makepyprojecttoml("[tool.choreo]\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(pytester.path / "site"), *sys.path]))
    test = pytester.makepyfile(
        """
        from agents import greeter

        async def test_greets(rehearsal):
            await rehearsal.start("greeter")
            await rehearsal.publish(greeter.Arrived(name="Ada"))
            await rehearsal.settled()
            assert rehearsal.events() == [greeter.Greeted(text="Hello Ada!")]
        """
    )
    pytester.runpytest_subprocess(*PLUGIN, *ALONE).assert_outcomes(passed=1)

    (pytester.path / "agents" / "greeter.py").write_text("# none of choreo's\n")
    test.write_text("import agents\n\ndef test_installed():\n    assert agents.INSTALLED\n")
    pytester.runpytest_subprocess(*PLUGIN, *ALONE).assert_outcomes(passed=1)


DYING = """
import till

async def test_forgets(rehearsal):
    await rehearsal.start(till)
    await rehearsal.publish(till.Placed(order="17"))
    await rehearsal.settled()

async def test_fails(rehearsal):
    await rehearsal.start(till)
    await rehearsal.publish(till.Placed(order="18"))
    await rehearsal.settled()
    assert rehearsal.events()

async def test_means_it(rehearsal):
    await rehearsal.start(till)
    await rehearsal.publish(till.Placed(order="19"))
    await rehearsal.settled()
    assert [each.reason for each in rehearsal.dead_letters] == ["failed"]
"""


def test_a_dead_letter_that_nobody_looked_at_fails_and_is_said_at_the_end(pytester: pytest.Pytester):
    """The summary names what died, where in the user's code and why, below all that was logged."""
    pytester.makepyfile(
        till="""
        from choreo import Agent, Event

        class Placed(Event, topic="till.placed", external=True):
            order: str

        agent = Agent("till")

        @agent.on
        async def charge(placed: Placed) -> None:
            raise ValueError("no such card")
        """,
        test_dying=DYING,
    )
    result = pytester.runpytest_subprocess(*PLUGIN, *ALONE)
    result.assert_outcomes(passed=1, failed=2)
    text = result.stdout.str()
    summary = text.partition("dead letters of failed rehearsals")[2]
    died = r"dead letter of till\.charge: till\.placed \w+ \(failed\) at till\.py:10: ValueError: no such card"
    assert re.search(rf"test_dying\.py::test_forgets\n  {died}", summary), text
    assert re.search(rf"test_dying\.py::test_fails\n  {died}", summary), text
    assert "test_means_it" not in summary
    assert "if that is meant, look at them" in text
