"""What is written is read back, equal: over a corpus of classes, or the class or the value is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar
from uuid import UUID

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import (
    AfterValidator,
    AliasChoices,
    AliasPath,
    AnyUrl,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Json,
    PlainSerializer,
    RootModel,
    Secret,
    SecretBytes,
    SecretStr,
    ValidationError,
    computed_field,
    create_model,
    field_validator,
    model_serializer,
)
from pydantic_core import core_schema
from typing_extensions import TypedDict

from choreo import Event
from choreo.body.codec import difference, masked
from choreo.envelope import open_envelope, seal
from choreo.errors import DeclarationError, EnvelopeError, PayloadError, UnreadableEvent
from choreo.event import codec
from choreo.operate import example
from choreo.operate.payload import Form

T = TypeVar("T")


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Odd(Enum):
    PAIR = (1, 2)
    FLOAT = 1.5


class Text(StrEnum):
    A = "a"


class Address(BaseModel):
    city: str
    number: int = 0


class Point(BaseModel):
    x: float
    y: float = 0.0


class Animal(BaseModel):
    name: str


class Dog(Animal):
    tricks: int = 0


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int


class Fish(BaseModel):
    kind: Literal["fish"] = "fish"
    depth: int


class Aliased(BaseModel):
    number: int = Field(validation_alias="No")
    place: str = Field("", validation_alias=AliasChoices("Place", AliasPath("at", "place")))  # type: ignore[pydantic-alias]


class Tags(RootModel[list[str]]):
    pass


class Box(BaseModel, Generic[T]):
    what: T


class Tree(BaseModel):
    name: str
    twigs: list[Tree] = Field(default_factory=list)


class Secretive(BaseModel):
    token: SecretStr
    others: list[SecretStr] = Field(default_factory=list)


class Forbidding(BaseModel):
    model_config = ConfigDict(extra="forbid")
    x: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def double(self) -> int:
        return self.x * 2


class Computing(BaseModel):
    x: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def double(self) -> int:
        return self.x * 2


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    x: int = 0


class Wrapped(BaseModel):
    x: int
    s: SecretStr = SecretStr("")

    @model_serializer(mode="wrap")
    def pack(self, handler: Callable[[Any], Any]) -> Any:
        return handler(self)


@dataclass
class Plain:
    x: int
    y: str = "y"


class Pair(NamedTuple):
    x: int
    y: str


class Typed(TypedDict, total=False):
    x: int
    y: Annotated[str, Field(alias="Y")]


class Money:
    """A type without ==."""

    def __init__(self, cents: int) -> None:
        self.cents = cents


MoneyField = Annotated[
    Any,
    BeforeValidator(lambda value: value if isinstance(value, Money) else Money(int(value))),
    PlainSerializer(lambda money: money.cents, return_type=int),
]
Growing = Annotated[int, AfterValidator(lambda value: value + 1)]
Lower = Annotated[str, AfterValidator(str.lower)]
Hidden = Annotated[str, PlainSerializer(lambda value: "*", return_type=str)]

FIELD = re.compile(r"\b(first|id|other|alias|readAs|same|items|order|flat|writtenAs)\b", re.IGNORECASE)

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
whole = st.integers(-(2**70), 2**70)
zones = st.sampled_from([UTC, timezone(timedelta(hours=-3, minutes=30))])
moments = st.datetimes(timezones=st.none() | zones)
anything = st.recursive(
    st.none() | st.booleans() | whole | st.floats() | text | st.decimals() | st.dates() | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(text | whole, inner, max_size=2) | st.tuples(inner),
    max_leaves=4,
)

# An annotation, and values for it.
LEAVES: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (str, text),
    (int, whole),
    (bool, st.booleans()),
    (float, st.floats(allow_nan=False, allow_infinity=False)),
    (Decimal, st.decimals(allow_nan=False, allow_infinity=False)),
    (bytes, st.binary(max_size=4)),
    (date, st.dates()),
    (time, st.times(timezones=st.none() | zones)),
    (datetime, moments),
    (timedelta, st.timedeltas()),
    (UUID, st.uuids()),
    (Colour, st.sampled_from(Colour)),
    (Level, st.sampled_from(Level)),
    (Odd, st.sampled_from(Odd)),
    (Text, st.sampled_from(Text)),
    (Literal["a", 1, True], st.sampled_from(["a", 1, True])),
    (Literal[Colour.RED], st.just(Colour.RED)),
    (Any, anything),
    (Json[list[int]], st.lists(st.integers(), max_size=2).map(json.dumps)),
    (SecretStr, text),
    (SecretBytes, st.binary(max_size=3)),
    (Secret[date], st.dates()),
    (IPv4Address, st.ip_addresses(v=4)),
    (Path, st.sampled_from(["a/b", "/c"])),
    (AnyUrl, st.sampled_from(["https://example.com", "http://ä.example/x?y=1"])),
    (Address, st.builds(Address, city=text, number=st.integers())),
    (Point, st.builds(Point, x=st.floats(), y=st.floats())),
    (Animal, st.builds(Animal, name=text) | st.builds(Dog, name=text, tricks=st.integers())),
    (Cat | Fish, st.builds(Cat, lives=st.integers()) | st.builds(Fish, depth=st.integers())),
    (
        Annotated[Cat | Fish, Discriminator("kind")],
        st.builds(Cat, lives=st.integers()) | st.builds(Fish, depth=st.integers()),
    ),
    (Aliased, st.builds(lambda n, p: Aliased.model_validate({"No": n, "Place": p}), st.integers(), text)),
    (Tags, st.lists(text, max_size=2).map(Tags)),
    (Box[int], st.integers().map(lambda n: Box[int](what=n))),
    (Box[Any], anything.map(lambda each: Box[Any](what=each))),
    (Tree, st.builds(Tree, name=text, twigs=st.lists(st.builds(Tree, name=text), max_size=2))),
    (Secretive, st.builds(Secretive, token=text.map(SecretStr), others=st.lists(text.map(SecretStr), max_size=2))),
    (Forbidding, st.builds(Forbidding, x=st.integers())),
    (Computing, st.builds(Computing, x=st.integers())),
    (Open, st.builds(Open, x=st.integers(), more=anything)),
    (Wrapped, st.builds(Wrapped, x=st.integers(), s=text.map(SecretStr))),
    (Plain, st.builds(Plain, x=st.integers(), y=text)),
    (Pair, st.builds(Pair, x=st.integers(), y=text)),
    (Typed, st.fixed_dictionaries({}, optional={"x": st.integers(), "Y": text})),
    (MoneyField, st.integers()),
    (Growing, st.integers()),
    (Lower, text),
    (Hidden, text),
    (int | str, st.integers() | text),
    (str | Decimal, st.decimals(allow_nan=False, allow_infinity=False) | text),
    (int | float | bool, st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans()),
    (Iterable[int], st.lists(st.integers(), max_size=2)),
    (Callable[[], int], st.just(len)),
    (type[int], st.just(int)),
]
KEYS: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (str, text),
    (int, whole),
    (float, st.floats(allow_nan=False)),
    (Decimal, st.decimals(allow_nan=False, allow_infinity=False)),
    (date, st.dates()),
    (datetime, moments),
    (UUID, st.uuids()),
    (Colour, st.sampled_from(Colour)),
    (bool, st.booleans()),
    (bytes, st.binary(max_size=3)),
    (tuple[int, str], st.tuples(st.integers(), text)),
    (int | None, st.integers() | st.none()),
]
CONFIGURATIONS: list[ConfigDict] = [
    ConfigDict(),
    ConfigDict(extra="forbid"),
    ConfigDict(extra="allow"),
    ConfigDict(strict=True),
    ConfigDict(populate_by_name=True),
    ConfigDict(use_enum_values=True),
    ConfigDict(ser_json_bytes="base64"),
    ConfigDict(ser_json_bytes="base64", val_json_bytes="base64"),
    ConfigDict(ser_json_timedelta="float"),
    ConfigDict(allow_inf_nan=True),
    ConfigDict(str_strip_whitespace=True, str_to_lower=True),
    ConfigDict(alias_generator=str.upper),
    ConfigDict(alias_generator=str.upper, serialize_by_alias=False, populate_by_name=True),
    ConfigDict(revalidate_instances="always"),
]
NAMES: list[dict[str, Any]] = [
    {},
    {"alias": "Alias"},
    {"validation_alias": "readAs"},
    {"serialization_alias": "writtenAs"},
    {"validation_alias": "same", "serialization_alias": "same"},
    {"validation_alias": AliasChoices("first", "second")},
    {"validation_alias": AliasPath("order", "id")},
    {"validation_alias": AliasPath("items", 0)},
    {"validation_alias": AliasChoices(AliasPath("order", "id"), "flat")},
    {"validation_alias": "other"},  # the name of another field
    {"exclude": True},
    {"repr": False},
]


@st.composite
def annotated(draw: st.DrawFn) -> tuple[Any, st.SearchStrategy[Any]]:
    """Return an annotation of the corpus and its values, often inside another one."""
    kind: Any
    kind, values = draw(st.sampled_from(LEAVES))
    for _ in range(draw(st.integers(0, 2))):
        key: Any
        key, keys = draw(st.sampled_from(KEYS))
        kind, values = draw(
            st.sampled_from(
                [
                    (kind | None, values | st.none()) if kind is not Any else (kind, values),
                    (list[kind], st.lists(values, max_size=2)),
                    (Sequence[kind], st.lists(values, max_size=2) | st.lists(values, max_size=2).map(tuple)),
                    (tuple[kind, ...], st.lists(values, max_size=2).map(tuple)),
                    (tuple[kind, int], st.tuples(values, st.integers())),
                    (dict[key, kind], st.dictionaries(keys, values, max_size=2)),
                ]
            )
        )
    return kind, values


@st.composite
def classes(
    draw: st.DrawFn, *, terminal: bool = False
) -> tuple[type[Event] | DeclarationError, dict[str, st.SearchStrategy[Any]]]:
    """Return a class of the corpus, or how it was refused, and values for its fields."""
    fields: dict[str, Any] = {"other": (int, 7)}
    values: dict[str, st.SearchStrategy[Any]] = {}
    for name in ("first", "id")[: draw(st.integers(1, 2))]:
        kind, given_values = draw(annotated())
        options = draw(st.sampled_from(NAMES)) if name == "first" else {}
        fields[name], values[name] = (kind, Field(**options)), given_values

    class Base(Event):
        model_config = draw(st.sampled_from(CONFIGURATIONS))

    try:
        keywords: Any = {"topic": "test-codec.made", "terminal": terminal}
        made: type[Event] = create_model("Made", __base__=Base, __cls_kwargs__=keywords, **fields)
    except DeclarationError as error:
        return error, values
    return made, values


@settings(max_examples=200)
@given(st.data())
def test_what_is_written_is_read_back(data: st.DataObject) -> None:
    """A class of the corpus or a value is refused, with the field; or agent and command send what is read back."""
    kind, values = data.draw(classes())
    if isinstance(kind, DeclarationError):
        assert "first" in kind.message or "id" in kind.message, kind
        assert kind.way_out
        return
    fields = {name: data.draw(each) for name, each in values.items()}
    try:
        event = kind.model_validate(fields, by_name=True, by_alias=False)
    except ValidationError:
        return
    try:
        message = seal(event, source="test")
    except UnreadableEvent as error:
        names_the_field = FIELD.search(error.message)
        if names_the_field is None:
            raise
        return
    back = open_envelope(message, "test-codec.made").event(kind)
    assert equal(event, back), (message.body, event, back)
    assert seal(back, source="test").body == message.body
    form = Form("test-codec.made", kind)
    try:
        sent = form.body(message.body)
    except PayloadError as error:
        if "is not a field of" not in error.message:  # as a computed field, which a person need not type
            raise
    else:
        assert equal(event, open_envelope(form.message(sent), "test-codec.made").event(kind))


@pytest.mark.parametrize("annotation", [SecretBytes, Secret[bytes], list[SecretBytes]])
def test_secret_bytes_have_the_form_that_the_class_has_for_bytes(annotation: Any) -> None:
    """They are written as Base64 where they are read so."""
    kind = declared(annotation, model_config=ConfigDict(ser_json_bytes="base64", val_json_bytes="base64"))
    event = kind.model_validate_json('{"first": ["AP8="]}' if annotation == list[SecretBytes] else '{"first": "AP8="}')
    body = codec(kind).write(event)
    assert b"AP8=" in body
    assert codec(kind).read(body) == event
    with pytest.raises(DeclarationError, match="written as base64 and read as utf8"):
        declared(annotation, model_config=ConfigDict(ser_json_bytes="base64"))


@settings(max_examples=80)
@given(st.data())
def test_what_dev_proposes_to_type_works(data: st.DataObject) -> None:
    """An example of a class, where one is given, is sent by the command and read back."""
    kind, _ = data.draw(classes())
    assume(not isinstance(kind, DeclarationError))
    assert isinstance(kind, type)
    proposed = example.of(kind)
    if proposed is not None:
        sent = Form("test-codec.made", kind).body(proposed.encode())
        codec(kind).read(sent)


def equal(one: Any, other: Any) -> bool:
    """Say whether two events are equal, where Money has no == of its own."""
    return not difference(one, other, sequences=True, opaque=[])


def declared(annotation: Any, *, model_config: ConfigDict | None = None, **options: Any) -> type[Event]:
    """Return an event class with the one field `first`."""

    class Base(Event):
        pass

    if model_config is not None:
        Base.model_config = Base.model_config | model_config
    fields: dict[str, Any] = {"first": (annotation, Field(**options))}
    return create_model("Made", __base__=Base, __cls_kwargs__={"topic": "test-codec.made"}, **fields)


@pytest.mark.parametrize(
    ("annotation", "options", "why", "way_out"),
    [
        (str, {"exclude": True}, "Made.first has exclude=True", "private attribute"),
        (str, {"serialization_alias": "out"}, "written as 'out' and read as 'first'", "alias='out'"),
        (str, {"validation_alias": "in", "serialization_alias": "out"}, "written as 'out' and read as 'in'", "AliasC"),
        (str, {"validation_alias": AliasPath("items", 0)}, "read from a place in a list", "AliasChoices"),
        (Iterable[int], {}, "Made.first is an iterator", "list"),
        (Callable[[], int], {}, "Made.first is a function", "JSON"),
        (Literal[Colour.RED], {}, "none of them is read from JSON", "StrEnum"),
    ],
)
def test_a_class_that_no_reader_reads_back_is_refused(
    annotation: Any, options: dict[str, Any], why: str, way_out: str
) -> None:
    """The class is refused when it is made, with the field, the reason and the way out, and the line where it is."""
    with pytest.raises(DeclarationError) as caught:
        declared(annotation, **options)
    assert why in caught.value.message
    assert way_out in caught.value.way_out


def test_two_fields_do_not_read_each_other() -> None:
    """A field that would read what another one is written as is refused."""
    fields: Any = {"first": (int, Field(validation_alias=AliasChoices("second", "first"))), "second": (int, 0)}
    with pytest.raises(DeclarationError, match=r"Made\.first reads 'second', under which 'second' is written"):
        create_model("Made", __base__=Event, __cls_kwargs__={"topic": "test-codec.made"}, **fields)


@pytest.mark.parametrize(
    ("annotation", "options", "value", "body"),
    [
        (str, {"validation_alias": "orderNo"}, "5", {"orderNo": "5"}),
        (str, {"validation_alias": AliasChoices("orderNo", "order_no")}, "5", {"orderNo": "5"}),
        (str, {"validation_alias": AliasPath("order", "id")}, "5", {"order": {"id": "5"}}),
        (str, {"alias": "Order"}, "5", {"Order": "5"}),
        (SecretStr, {}, "hush", {"first": "hush"}),
        (SecretBytes | None, {}, b"hush", {"first": "hush"}),
        (dict[str, list[SecretStr]], {}, {"a": ["hush"]}, {"first": {"a": ["hush"]}}),
        (Secret[date], {}, date(2030, 1, 31), {"first": "2030-01-31"}),
        (Secretive, {}, {"token": "hush"}, {"first": {"token": "hush", "others": []}}),
        (Json[list[int]], {}, "[1]", {"first": "[1]"}),
        (Aliased, {}, {"No": 1}, {"first": {"No": 1, "Place": ""}}),
        (Forbidding, {}, {"x": 1}, {"first": {"x": 1}}),
        (Computing, {}, {"x": 1}, {"first": {"x": 1, "double": 2}}),
        (Typed, {}, {"Y": "y"}, {"first": {"Y": "y"}}),
    ],
)
def test_each_field_is_written_as_it_is_read(annotation: Any, options: dict[str, Any], value: Any, body: Any) -> None:
    """A field goes under a key that its class reads, a secret with its value, and nothing that the class forbids."""
    kind = declared(annotation, **options)
    name = next(iter(body)) if "order" not in body else "order"
    event = kind.model_validate({name: {"id": value} if name == "order" else value})
    message = seal(event, source="test")
    assert json.loads(message.body) == body
    assert open_envelope(message, "test-codec.made").event(kind) == event
    assert "hush" not in repr(event)


@pytest.mark.parametrize(
    ("annotation", "value", "why"),
    [
        (Point, Point(x=float("nan")), "first.x: the body has NaN"),
        (dict[str, Any], {"a": float("inf")}, "first.a is of type float, and of type NoneType comes back"),
        (Any, (1, 2), "first is of type tuple, and of type list comes back"),
        (dict[str, Any], {"total": Decimal("1.50")}, "first.total is of type Decimal, and of type str comes back"),
        (Animal, Dog(name="Rex", tricks=3), "first is of type Dog, and of type Animal comes back"),
        (bytes, b"\xff", "first cannot be written as JSON"),
        (Growing, 1, "first comes back as another value"),
        (Hidden, "text", "first comes back as another value"),
    ],
)
def test_a_value_that_comes_back_as_another_is_refused(annotation: Any, value: Any, why: str) -> None:
    """Where only a value decides, it is refused when it is published, with the field and what would come of it."""
    event = declared(annotation).model_validate({"first": value})
    with pytest.raises(UnreadableEvent) as caught:
        seal(event, source="test")
    assert why in caught.value.message


def test_what_was_not_validated_is_refused() -> None:
    """A copy with a value of another type, or an object that was put together by hand, is not sent."""
    event = declared(Annotated[int, Field(gt=0)])(first=1)  # type: ignore[call-arg]
    kind = type(event)
    for odd in (
        event.model_copy(update={"first": "text"}),
        event.model_copy(update={"first": 0}),
        kind.model_construct(),
    ):
        with pytest.raises(UnreadableEvent, match="first"):
            seal(odd, source="test")
    good = event.model_copy(update={"first": 2})
    assert seal(good, source="test").body == seal(kind(first=2), source="test").body  # type: ignore[call-arg]
    assert good == kind(first=2)  # type: ignore[call-arg]
    grown = declared(list[int])(first=[1])  # type: ignore[call-arg]
    grown.first.append("text")  # type: ignore[attr-defined]
    with pytest.raises(UnreadableEvent, match="first"):
        seal(grown, source="test")


def test_a_default_that_its_own_class_refuses_is_not_sent() -> None:
    """Pydantic does not look at defaults; a reader does."""
    kind = declared(int, default=0, gt=0)
    with pytest.raises(UnreadableEvent, match="first: Input should be greater than 0"):
        seal(kind(), source="test")
    assert seal(kind(first=1), source="test").body == b'{"first":1}'  # type: ignore[call-arg]


def test_most_classes_are_not_looked_at_when_they_are_written() -> None:
    """Reading back costs as much as writing: it is for classes of which only a value can tell."""
    for annotation in (
        str,
        Decimal,
        datetime,
        Colour,
        list[Address],
        Address | None,
        dict[str, int],
        int | str,
        SecretStr,
    ):
        assert not codec(declared(annotation))._checked


def test_the_keys_of_secrets_are_known() -> None:
    """Whoever shows a body knows which keys it must not show."""
    assert codec(declared(SecretStr, alias="Token")).secrets == {"Token"}
    assert codec(declared(list[Secretive])).secrets == {"token", "others"}
    assert codec(declared(RootModel[SecretStr])).secrets == {"first"}
    assert not codec(declared(str)).secrets


class Opaque:
    """A type that says how it is read, and not what it is in JSON."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return core_schema.no_info_plain_validator_function(lambda value: cls())


@pytest.mark.parametrize(
    ("annotation", "why"),
    [
        (Opaque, "Made.first has no JSON schema"),
        (Money, "Unable to generate pydantic-core schema for <class"),
    ],
)
def test_a_type_that_is_nothing_in_json_is_refused(annotation: Any, why: str) -> None:
    """It is one sentence with the way out, when the class is made."""
    with pytest.raises(DeclarationError, match=re.escape(why)) as caught:
        declared(annotation)
    assert "JSON" in caught.value.way_out


def test_the_line_of_the_class_is_in_the_message() -> None:
    """Whoever made the mistake is led to it."""
    with pytest.raises(DeclarationError, match=r"event \S*Here in \S*test_codec \(tests/unit/test_codec\.py:\d+\)"):

        class Here(Event, topic="test-codec.here"):
            note: str = Field(exclude=True)


def test_an_annotation_of_a_later_class_is_looked_at_when_it_is_there() -> None:
    """A class that names what is defined below it is judged when an agent or a publisher first uses it."""
    kind = declared("Later")
    with pytest.raises(DeclarationError, match="its annotations name 'Later', which is not known there"):
        codec(kind)


class Picky(Event, topic="test-codec.picky"):
    item: str

    @field_validator("item")
    @classmethod
    def known(cls, value: str) -> str:
        return {"tea": value}[value]


def test_a_validator_may_raise_anything() -> None:
    """It is a body that is not valid, for a reader and for a command, with the exception and its line."""
    good = seal(Picky(item="tea"), source="test")
    bad = replace(good, body=b'{"item":"milk"}')
    with pytest.raises(EnvelopeError, match=r"a validator raised KeyError\('milk'\) at \S*test_codec.py:\d+") as caught:
        open_envelope(bad, "test-codec.picky").event(Picky)
    assert caught.value.reason == "invalid"
    with pytest.raises(PayloadError, match=r"not a valid Picky .*a validator raised KeyError"):
        Form("test-codec.picky", Picky).body(b'{"item":"milk"}')


def test_no_view_shows_a_secret() -> None:
    """A message says which of its keys hold secrets; what is shown of it, and of its dead letter, has none of them."""
    kind = declared(list[Secretive])
    made = seal(kind.model_validate({"first": [{"token": "hush", "others": ["hush"]}]}), source="test")
    form = Form("test-codec.made", kind)
    typed = form.message(form.body(b'{"first": [{"token": "hush"}]}'))
    for message in (made, typed):
        assert b"hush" in message.body
        assert message.headers["choreo-secret"] == "others,token"
        assert "hush" not in json.dumps(masked(json.loads(message.body), message.headers))
    assert masked({"first": 1}, {}) == {"first": 1}
    assert masked({"first": 1}, {"choreo-secret": "*"}) == "**********"
    assert "choreo-secret" not in seal(declared(str)(first="a"), source="test").headers  # type: ignore[call-arg]
