"""Reactions: a function's signature is read as its contract, or refused with the mend."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Annotated, Any, Optional, Union

import pytest
from structlog.testing import capture_logs

from choreo.envelope import Envelope
from choreo.errors import DeclarationError
from choreo.event import Event
from choreo.reaction import Context, place, read_contract, read_otherwise

WHAT = "reaction 'charge' of agent payment"


class Placed(Event, topic="test-reaction.placed"):
    pass


class Paid(Event, topic="test-reaction.paid"):
    pass


class Declined(Event, topic="test-reaction.declined"):
    pass


class Abstract(Event):
    pass


def function(**annotations: Any) -> Callable[..., Any]:
    """Return a function that has `annotations`; `returns` is that of its return, and an `X` leaves one out."""
    names = [name for name in annotations if name != "returns"]
    namespace: dict[str, Any] = {}
    exec(f"def charge({', '.join(names)}): raise NotImplementedError", namespace)
    made: Callable[..., Any] = namespace["charge"]
    named = {"return" if name == "returns" else name: kind for name, kind in annotations.items()}
    made.__annotations__ = {name: kind for name, kind in named.items() if kind != "X"}
    return made


def refused(made: Callable[..., Any], names: dict[str, Any] | None = None) -> DeclarationError:
    """Return the error with which the contract of `made` is refused; it always names the function and a mend."""
    with pytest.raises(DeclarationError) as caught:
        read_contract(made, WHAT, names or {})
    assert caught.value.message.startswith(WHAT)
    assert caught.value.way_out
    return caught.value


@pytest.mark.parametrize(
    ("annotation", "emits"),
    [
        (None, ()),
        (Paid, (Paid,)),
        (Paid | Declined, (Paid, Declined)),
        (Union[Paid, Declined], (Paid, Declined)),  # noqa: UP007  # the older spelling is read too
        (Paid | None, (Paid,)),
        (Optional[Paid], (Paid,)),  # noqa: UP045
        (list[Paid], (Paid,)),
        (list[Paid | Declined] | None, (Paid, Declined)),
        (tuple[Paid, ...], (Paid,)),
        (tuple[Paid, Declined], (Paid, Declined)),
        (Sequence[Paid], (Paid,)),
        (Iterator[Paid], (Paid,)),
        (AsyncIterator[Paid | Declined], (Paid, Declined)),
        (Annotated[Paid, "with a note"], (Paid,)),
        (Paid | list[Paid], (Paid,)),
    ],
)
def test_the_return_annotation_says_what_is_emitted(annotation: Any, emits: tuple[type[Event], ...]) -> None:
    """Unions, None, lists and iterators of events are read, each event once and in their order."""
    assert read_contract(function(placed=Placed, returns=annotation), WHAT, {}).emits == emits


@pytest.mark.parametrize(
    ("annotation", "consumes"),
    [
        (Placed, (Placed,)),
        (Placed | Paid, (Placed, Paid)),
        (Annotated[Placed, "with a note"], (Placed,)),
        (Envelope, ()),
    ],
)
def test_the_parameter_says_what_is_consumed(annotation: Any, consumes: tuple[type[Event], ...]) -> None:
    """One event, a union of events, or an Envelope, which stands for none in particular."""
    contract = read_contract(function(event=annotation, returns=None), WHAT, {})
    assert contract.consumes == consumes
    assert not contract.takes_context


def test_a_second_parameter_is_the_context() -> None:
    """`ctx: Context`, under any name, asks for the context."""
    assert read_contract(function(placed=Placed, anything=Context, returns=None), WHAT, {}).takes_context


def test_plain_functions_run_in_a_thread() -> None:
    """`def` is for a thread; `async def` and async generators are for the loop."""

    def plain(placed: Placed) -> Iterator[Paid]:
        yield Paid()

    async def coroutine(placed: Placed) -> Paid:
        return Paid()

    async def generator(placed: Placed) -> AsyncIterator[Paid]:
        yield Paid()

    contracts = [read_contract(each, WHAT, {}) for each in (plain, coroutine, generator)]
    assert [contract.in_thread for contract in contracts] == [True, False, False]
    assert [contract.emits for contract in contracts] == [(Paid,)] * 3


def test_annotations_may_be_text() -> None:
    """Under `from __future__ import annotations` names are looked up in the module, and where the function stands."""

    class Local(Event, topic="test-reaction.local"):
        pass

    def charge(placed: Placed) -> Local:
        raise NotImplementedError

    contract = read_contract(charge, WHAT, {"Local": Local})
    assert (contract.consumes, contract.emits) == ((Placed,), (Local,))


@pytest.mark.parametrize(
    "annotation", ["X", int, dict[str, Any], Event, None, Placed | None, Placed | Envelope, "Placed | int"]
)
def test_a_parameter_that_is_no_event_is_refused(annotation: Any) -> None:
    """The error names the parameter and says what it can be."""
    error = refused(function(placed=annotation, returns=None), {"Placed": Placed})
    assert "'placed'" in error.message
    assert "annotate it with the event it takes" in error.way_out


def test_a_missing_parameter_annotation_is_called_missing() -> None:
    """A parameter without an annotation is told apart from one with a wrong one."""
    assert "is not annotated" in refused(function(placed="X", returns=None)).message
    assert "is annotated int" in refused(function(placed=int, returns=None)).message


def test_a_missing_return_annotation_is_refused() -> None:
    """What a reaction emits must be said, if only None."""
    error = refused(function(placed=Placed, returns="X"))
    assert "has no return annotation" in error.message
    assert "AsyncIterator[A]" in error.way_out
    assert "None" in error.way_out


@pytest.mark.parametrize("annotation", [int, dict[str, Paid], list, list[int], Event, Paid | str, Any, bool | None])
def test_a_return_that_is_no_event_is_refused(annotation: Any) -> None:
    """Whatever else is returned is named, with the forms that there are."""
    error = refused(function(placed=Placed, returns=annotation))
    assert "returns" in error.message
    assert "A | B" in error.way_out


@pytest.mark.parametrize("where", ["placed", "returns"])
def test_an_unknown_name_is_refused(where: str) -> None:
    """An annotation that names nothing says which name, and that the import must be there at run time."""
    error = refused(function(**{"placed": Placed, "returns": None} | {where: "OrderPlaecd"}))
    assert "'OrderPlaecd'" in error.message
    assert "import it" in error.way_out
    assert "TYPE_CHECKING" in error.way_out


@pytest.mark.parametrize("annotation", ["Placed[", "Placed.nothing", "3 + None"])
def test_an_annotation_that_cannot_be_read_is_refused(annotation: str) -> None:
    """Text that is not an annotation is a wrong declaration, not a crash."""
    refused(function(placed=annotation, returns=None), {"Placed": Placed})


@pytest.mark.parametrize("source", ["()", "(a, b, c)", "(*events)", "(**events)", "(*, event)", "(event, *, ctx)"])
def test_parameters_other_than_event_and_context_are_refused(source: str) -> None:
    """The error shows the parameters and the two that there can be."""
    namespace: dict[str, Any] = {}
    exec(f"def charge{source}: raise NotImplementedError", namespace)
    namespace["charge"].__annotations__ = {"event": Placed, "ctx": Context, "return": None}
    error = refused(namespace["charge"])
    assert "parameters (" in error.message
    assert "(placed: OrderPlaced, ctx: Context)" in error.way_out


@pytest.mark.parametrize(
    ("annotation", "shown"), [("X", "not annotated"), (int, "annotated int"), (Paid, "annotated Paid")]
)
def test_a_second_parameter_that_is_no_context_is_refused(annotation: Any, shown: str) -> None:
    """The error names the parameter, what it is, and the mend."""
    error = refused(function(placed=Placed, more=annotation, returns=None))
    assert "'more'" in error.message
    assert shown in error.message
    assert error.way_out == "write more: Context, or leave it out"


class Gateway:
    def charge(self, placed: Placed) -> Paid:
        raise NotImplementedError

    def __call__(self, placed: Placed) -> Paid:
        raise NotImplementedError


@pytest.mark.parametrize(
    "thing",
    [Placed, functools.partial(print), print, "charge", Gateway().charge, Gateway(), functools.partial(Gateway())],
)
def test_only_a_function_can_be_a_reaction(thing: Any) -> None:
    """Not what has no signature of its own to read, nor what would share its state unseen; the error says how."""
    error = refused(thing)
    assert "not a function" in error.message
    assert error.way_out.endswith("a method, a partial or an object, one that calls it")


@pytest.mark.parametrize("place_of_it", ["placed", "returns"])
def test_an_event_without_a_topic_is_refused(place_of_it: str) -> None:
    """A base class of events is neither consumed nor emitted; the error shows the class line to write."""
    made = function(**{"placed": Placed, "returns": None} | {place_of_it: Abstract})
    with pytest.raises(DeclarationError, match=r"Abstract.* has no topic.*class Abstract\(Event, topic="):
        read_contract(made, WHAT, {})


def test_otherwise_takes_the_event_and_the_error() -> None:
    """What `otherwise` returns is what it may emit; it may take more events than its reaction does."""
    declined = function(placed=Placed | Paid, error=Exception, returns=Declined | None)
    assert read_otherwise(declined, (Placed,), WHAT, {}) == (Declined,)
    anything = function(envelope=Envelope, error=Exception, returns=Declined)
    assert read_otherwise(anything, (), WHAT, {}) == (Declined,)


@pytest.mark.parametrize(
    ("otherwise", "message", "mend"),
    [
        (Declined, "is not a function", "def f(event, error: Exception)"),
        (function(placed=Placed, returns=Declined), "one parameter", "(event, error: Exception)"),
        (function(placed=Placed, error=Exception, more=int, returns=Declined), "has the parameters", "takes one event"),
        (function(paid=Paid, error=Exception, returns=Declined), "does not take Placed", "widen"),
        (function(placed=Placed, error=Exception, returns="X"), "no return annotation", "what it emits"),
        (function(placed="X", error=Exception, returns=Declined), "'placed' is not annotated", "annotate it"),
    ],
)
def test_a_wrong_otherwise_is_refused(otherwise: Any, message: str, mend: str) -> None:
    """The error names the reaction, its `otherwise`, and the mend."""
    with pytest.raises(DeclarationError) as caught:
        read_otherwise(otherwise, (Placed,), WHAT, {})
    assert caught.value.message.startswith(f"{WHAT}: otherwise=")
    assert message in caught.value.message
    assert mend in caught.value.way_out


def test_a_place_is_a_file_and_a_line(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below the working folder it is relative, elsewhere it is whole; a wrapper's place is the wrapped one's."""

    def here() -> None:
        pass

    @functools.wraps(here)
    def wrapper() -> None:
        here()

    file, _, line = place(here).rpartition(":")
    assert file.endswith("test_reaction.py")
    assert line == str(here.__code__.co_firstlineno)
    assert place(wrapper) == place(here)
    monkeypatch.chdir(tmp_path)
    assert place(here).startswith("/")


def context() -> Context:
    return Context("e", "order.placed", "c", None, 1, 0, "payment", "charge")


def test_a_key_is_the_same_on_every_try() -> None:
    """The idempotency key is made of the event, the agent and the reaction."""
    assert context().key == "e:payment.charge"


def test_a_log_line_says_whose_it_is() -> None:
    """The context's logger carries agent, reaction, topic, event id and correlation id."""
    with capture_logs() as lines:
        context().log.info("charged", amount=3)
    assert lines == [
        {
            "event": "charged",
            "log_level": "info",
            "amount": 3,
            "agent": "payment",
            "reaction": "charge",
            "topic": "order.placed",
            "event_id": "e",
            "correlation_id": "c",
        }
    ]


def test_a_context_may_name_its_resources() -> None:
    """`Context[...]` says for type checkers what the lifespan yields; it is a Context all the same, by any name."""
    ours = Context[dict[str, int]]

    async def one(placed: Placed, ctx: Context[int]) -> None: ...
    async def two(placed: Placed, ctx: ours) -> None: ...
    async def three(placed: Placed, ctx: Annotated[Context[int], "typed"]) -> None: ...

    for each in (one, two, three):
        assert read_contract(each, "it", locals()).takes_context
