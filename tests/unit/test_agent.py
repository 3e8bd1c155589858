"""Agents: what can be declared, and the wrong declarations that fail at import with the mend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from choreo.agent import DEFAULT_MAX_HOPS, DEFAULT_TIMEOUT, Agent
from choreo.envelope import Envelope
from choreo.errors import DeclarationError
from choreo.event import Event
from choreo.retry import Retry


class Placed(Event, topic="test-agent.placed"):
    pass


class Paid(Event, topic="test-agent.paid"):
    pass


class Shipped(Event, topic="test-agent.shipped"):
    pass


class Failed(Event, topic="test-agent.failed"):
    pass


def charge(placed: Placed) -> Paid:
    raise NotImplementedError


def settle(placed: Placed) -> None:
    raise NotImplementedError


def ship(paid: Paid) -> Shipped | Failed:
    raise NotImplementedError


def refund(failed: Failed) -> None:
    raise NotImplementedError


def audit(envelope: Envelope) -> None:
    raise NotImplementedError


def give_up(placed: Placed, error: Exception) -> Failed:
    raise NotImplementedError


def refused(declare: Callable[[], Any]) -> DeclarationError:
    """Return the error of a wrong declaration; every one has a way out."""
    with pytest.raises(DeclarationError) as caught:
        declare()
    assert caught.value.way_out
    return caught.value


def test_a_declared_function_is_returned_unchanged() -> None:
    """A user's unit test calls the function itself, with or without options on its decorator."""
    agent = Agent("payment")
    assert agent.on(charge) is charge
    assert agent.on()(ship) is ship
    assert agent.on(timeout="5s")(refund) is refund
    assert agent.on("test-agent.audit.#")(audit) is audit


def test_a_reaction_is_what_its_signature_and_its_decorator_say() -> None:
    """Everything declared is on the frozen reaction, in the order of declaration."""
    policy = Retry(on=ConnectionError)
    agent = Agent("payment")
    agent.on(retry=policy, otherwise=give_up, timeout="5s", max_hops=3)(charge)
    agent.on(compensates=charge)(refund)
    first, second = agent.reactions
    assert (first.agent, first.name, first.function) == ("payment", "charge", charge)
    assert (first.consumes, first.patterns) == ({"test-agent.placed": Placed}, ("test-agent.placed",))
    assert (first.emits, first.otherwise, first.otherwise_emits) == ((Paid,), give_up, (Failed,))
    assert (first.retry, first.timeout, first.max_hops) == (policy, 5, 3)
    assert first.where.endswith(f"test_agent.py:{charge.__code__.co_firstlineno}")
    assert first.compensates is None
    assert second.compensates == "charge"
    assert (second.emits, second.retry, second.max_hops) == ((), None, None)


def test_a_reaction_can_be_a_key() -> None:
    """A frozen reaction can be put into a set or a dict, as anything that does not change."""
    agent = Agent("payment")
    agent.on(charge)
    assert len({*agent.reactions, *agent.reactions}) == 1


def test_what_the_reaction_leaves_open_the_agent_says() -> None:
    """Retry policy and timeout fall back to the agent's, and those have defaults."""
    policy = Retry(on=ConnectionError)
    agent = Agent("payment", retry=policy, timeout="7s")
    agent.on(charge)
    assert (agent.reactions[0].retry, agent.reactions[0].timeout) == (policy, 7)
    plain = Agent("plain")
    assert (plain.retry, plain.timeout, plain.max_hops) == (None, DEFAULT_TIMEOUT, DEFAULT_MAX_HOPS)


def test_an_agent_knows_where_it_is_and_what_it_is_for() -> None:
    """Its description is the first line of its module's docstring."""
    agent = Agent("payment")
    assert (
        agent.description
        == "Agents: what can be declared, and the wrong declarations that fail at import with the mend."
    )
    file, _, line = agent.where.rpartition(":")
    assert file.endswith("test_agent.py")
    assert line.isdecimal()


def test_events_find_their_reaction_by_topic() -> None:
    """An exact topic, a union's topics and a pattern's topics lead to their reaction, any other to none."""

    def both(event: Shipped | Failed) -> None:
        raise NotImplementedError

    agent = Agent("payment")
    agent.on(charge)
    agent.on(both)
    agent.on("test-agent-audit.#")(audit)
    named = {reaction.name: reaction for reaction in agent.reactions}
    assert agent.reaction_to("test-agent.placed") is named["charge"]
    assert agent.reaction_to("test-agent.shipped") is agent.reaction_to("test-agent.failed") is named["both"]
    assert agent.reaction_to("test-agent-audit.x.y") is named["audit"]
    assert agent.reaction_to("test-agent.paid") is None


def test_a_pattern_over_a_union_reaches_only_its_events() -> None:
    """The queue is bound to the topics of the union: what else the pattern matches never arrives."""

    def both(event: Shipped | Failed) -> None:
        raise NotImplementedError

    agent = Agent("payment")
    agent.on("test-agent.*")(both)
    assert agent.reactions[0].patterns == ("test-agent.shipped", "test-agent.failed")
    assert agent.reactions[0].consumes == {"test-agent.shipped": Shipped, "test-agent.failed": Failed}
    assert agent.reaction_to("test-agent.failed") is agent.reactions[0]
    assert agent.reaction_to("test-agent.paid") is None


def test_the_patterns_of_an_agent_are_sorted() -> None:
    """The bindings of its queue do not depend on the order of declaration."""
    agent = Agent("payment")
    agent.on("test-agent-audit.#")(audit)
    agent.on(charge)
    agent.on(ship)
    assert agent.patterns == ("test-agent-audit.#", "test-agent.paid", "test-agent.placed")


def test_two_reactions_of_one_agent_for_one_event_are_refused() -> None:
    """The error names the function, the event, and the function that has it already, with its place."""
    agent = Agent("payment")
    agent.on(charge)
    error = refused(lambda: agent.on(settle))
    assert "reaction 'settle' of agent payment" in error.message
    assert "test-agent.placed" in error.message
    assert f"'charge' ({agent.reactions[0].where})" in error.message
    assert "both into one function, or use two agents" in error.way_out
    assert [reaction.name for reaction in agent.reactions] == ["charge"]


@pytest.mark.parametrize("pattern", ["#", "test-agent.*", "*.placed", "test-agent.placed"])
def test_a_pattern_counts_as_its_events(pattern: str) -> None:
    """A pattern that also matches the topic of another reaction of the agent is refused."""
    agent = Agent("payment")
    agent.on(charge)
    error = refused(lambda: agent.on(pattern)(audit))
    assert "'audit'" in error.message
    assert pattern in error.message


def test_two_patterns_with_a_topic_in_common_are_refused() -> None:
    """The one topic that two patterns both match would have two reactions."""

    def other(envelope: Envelope) -> None:
        raise NotImplementedError

    agent = Agent("payment")
    agent.on("test-agent.*")(audit)
    assert "takes #.paid" in refused(lambda: agent.on("#.paid")(other)).message


def test_two_agents_may_react_to_one_event() -> None:
    """Each agent has its own queue, and gets its own copy."""
    one, other = Agent("one"), Agent("other")
    one.on(charge)
    other.on(charge)
    assert one.reaction_to("test-agent.placed") is not other.reaction_to("test-agent.placed")


def test_two_reactions_of_one_name_are_refused() -> None:
    """Ids of emitted events are derived from the reaction's name, so it is unique in its agent."""

    def named_alike() -> Callable[..., Any]:
        def charge(failed: Failed) -> None:
            raise NotImplementedError

        return charge

    agent = Agent("payment")
    agent.on(charge)
    error = refused(lambda: agent.on(named_alike()))
    assert "reaction 'charge' of agent payment" in error.message
    assert "another name" in error.way_out


@pytest.mark.parametrize("name", ["payment", "a", "a-b_c9", "x" * 63])
def test_good_names_are_taken(name: str) -> None:
    """Lower-case letters, digits, dashes and underscores, up to 63, beginning with a letter."""
    assert Agent(name).name == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Payment",
        "9lives",
        "-a",
        "_a",
        "pay ment",
        "pay.ment",
        "zahlung-ä",
        "x" * 64,
        "a\n",
        "../../etc/passwd",
        None,
        7,
    ],
)
def test_bad_names_are_refused(name: Any) -> None:
    """The error shows the name and the grammar."""
    error = refused(lambda: Agent(name))
    assert repr(name) in error.message
    assert "begins with a lower-case letter" in error.way_out
    assert "63" in error.way_out


@pytest.mark.parametrize("timeout", ["0s", "21m", "soon", -1, True, None])
def test_a_bad_timeout_is_refused(timeout: Any) -> None:
    """A deadline is above zero and below what a broker waits for; agent and reaction are named."""
    assert refused(lambda: Agent("payment", timeout=timeout)).message.startswith("agent payment has timeout=")
    if timeout is not None:
        error = refused(lambda: Agent("payment").on(timeout=timeout)(charge))
        assert error.message == f"reaction 'charge' of agent payment has timeout={timeout!r}"


def test_the_bounds_of_a_bound_are_allowed() -> None:
    """One hop is the least, a million the most."""
    assert [Agent("payment", max_hops=each).max_hops for each in (1, 10**6)] == [1, 10**6]


@pytest.mark.parametrize("max_hops", [0, -1, 1.5, "8", True, 10**6 + 1])
def test_a_bad_bound_is_refused(max_hops: Any) -> None:
    """A bound of hops is a whole number from 1, for the agent and for a reaction."""
    assert f"max_hops={max_hops!r}" in refused(lambda: Agent("payment", max_hops=max_hops)).message
    error = refused(lambda: Agent("payment").on(max_hops=max_hops)(charge))
    assert "reaction 'charge' of agent payment" in error.message
    assert "a whole number from 1" in error.way_out


def test_the_bounds_of_a_fan_out_are_allowed() -> None:
    """One event at a time is the least; without a word a hundred thousand may follow from one."""
    assert [Agent("payment", max_tree=each).max_tree for each in (1, 10**9)] == [1, 10**9]
    made = Agent("payment")
    made.on(max_tree=7)(charge)
    assert (made.max_tree, made.reactions[0].max_tree) == (100_000, 7)


@pytest.mark.parametrize("max_tree", [0, -1, 1.5, "8", True, 10**9 + 1])
def test_a_bad_bound_of_a_fan_out_is_refused(max_tree: Any) -> None:
    assert f"max_tree={max_tree!r}" in refused(lambda: Agent("payment", max_tree=max_tree)).message
    error = refused(lambda: Agent("payment").on(max_tree=max_tree)(charge))
    assert "reaction 'charge' of agent payment" in error.message
    assert "a whole number from 1" in error.way_out


def test_a_retry_that_is_none_is_refused() -> None:
    """A number of tries is not a policy; the error shows one."""
    anything: Any = 5
    assert "Retry(on=" in refused(lambda: Agent("payment", retry=anything)).way_out
    error = refused(lambda: Agent("payment").on(retry=anything)(charge))
    assert error.message == "reaction 'charge' of agent payment has retry=5"


def test_an_otherwise_that_nothing_calls_is_refused() -> None:
    """Without a policy a failure is final at once, and `otherwise` would wait for ever."""
    error = refused(lambda: Agent("payment").on(otherwise=give_up)(charge))
    assert "reaction 'charge' of agent payment" in error.message
    assert "retry=Retry(on=" in error.way_out


def test_an_otherwise_uses_the_agents_policy() -> None:
    """The agent's policy counts as much as the reaction's own."""
    agent = Agent("payment", retry=Retry(on=ConnectionError))
    agent.on(otherwise=give_up)(charge)
    assert agent.reactions[0].otherwise_emits == (Failed,)


@pytest.mark.parametrize("target", [refund, "refund", Paid, charge])
def test_only_a_reaction_above_can_be_compensated(target: Any) -> None:
    """The error names both functions and those that there are."""
    agent = Agent("payment")
    agent.on(ship)
    error = refused(lambda: agent.on(compensates=target)(charge))
    assert "reaction 'charge' of agent payment compensates" in error.message
    assert error.way_out == "one of: ship"


def test_a_reaction_may_be_compensated_by_name() -> None:
    """A name does as well as the function."""
    agent = Agent("payment")
    agent.on(charge)
    agent.on(compensates="charge")(refund)
    assert agent.reactions[1].compensates == "charge"


def test_an_envelope_needs_a_subscription() -> None:
    """A function that takes an Envelope does not say which topics it is for."""
    error = refused(lambda: Agent("audit").on(audit))
    assert "reaction 'audit' of agent audit" in error.message
    assert '@agent.on("order.#")' in error.way_out


@pytest.mark.parametrize("subscription", ["", "order.", "or*er", "a b", "order..placed"])
def test_a_bad_subscription_is_refused(subscription: str) -> None:
    """The error shows the pattern and the grammar."""
    error = refused(lambda: Agent("audit").on(subscription)(audit))
    assert repr(subscription) in error.message
    assert "dot-separated words" in error.way_out


def test_a_subscription_must_match_the_events_of_the_parameter() -> None:
    """An event that the pattern never lets in would wait in vain."""
    error = refused(lambda: Agent("payment").on("order.#")(charge))
    assert "takes test-agent.placed, which 'order.#' does not match" in error.message


def test_a_wrong_signature_names_the_function() -> None:
    """Missing and unknown annotations are told at the decorator, with function and agent."""

    def bare(placed):
        raise NotImplementedError

    def unknown(placed: OrderPlaecd) -> None:  # type: ignore[name-defined]  # noqa: F821
        raise NotImplementedError

    agent = Agent("payment")
    assert "reaction 'bare' of agent payment: its parameter 'placed'" in refused(lambda: agent.on(bare)).message
    error = refused(lambda: agent.on(unknown))
    assert "reaction 'unknown' of agent payment" in error.message
    assert "'OrderPlaecd'" in error.message
    assert "import it" in error.way_out


def test_events_declared_beside_the_reaction_are_known() -> None:
    """Annotations that are text are looked up among the local names too."""

    class Local(Event, topic="test-agent.local"):
        pass

    agent = Agent("payment")

    @agent.on
    async def answer(local: Local) -> None:
        raise NotImplementedError

    assert agent.reactions[0].consumes == {"test-agent.local": Local}


@pytest.mark.parametrize("thing", [Placed, 7])
def test_what_is_no_function_cannot_be_declared(thing: Any) -> None:
    """`@agent.on(OrderPlaced)` is a common slip: the parameter's annotation says the event."""
    error = refused(lambda: Agent("payment").on(thing))
    assert "is not a function" in error.message


def test_an_agent_shows_its_reactions() -> None:
    """Its repr is for a person at a prompt."""
    agent = Agent("payment")
    assert repr(agent) == "<Agent payment: no reactions>"
    agent.on(charge)
    assert repr(agent) == "<Agent payment: charge>"


@given(st.lists(st.sampled_from(["#", "*", "shop", "paid"]), min_size=1, max_size=8))
def test_a_pattern_that_rabbitmq_refuses_is_refused_at_import(words: list[str]) -> None:
    """From 4.3.5 on a binding may have two "#": with a third one the worker would not start there."""
    agent, written = Agent("test-agent-auditor"), ".".join(words)

    def note(envelope: Envelope) -> None: ...

    if words.count("#") <= 2:
        agent.on(written)(note)
        return
    with pytest.raises(DeclarationError, match="note") as caught:
        agent.on(written)(note)
    assert repr(written) in caught.value.message
    assert "at most 2" in caught.value.message
    assert caught.value.way_out


def test_a_pattern_over_named_events_is_not_bound() -> None:
    """The queue is bound to the events' own topics, so how many "#" there are does not matter."""
    agent = Agent("test-agent-wide")

    @agent.on("#.#.#.placed")
    def place(placed: Placed) -> None: ...

    assert agent.patterns == ("test-agent.placed",)
