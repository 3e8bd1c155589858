"""Broker URLs: what is read, what is refused, and that no password is ever shown."""

from __future__ import annotations

import pickle
import traceback
from urllib.parse import quote

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from choreo.config.broker_url import BrokerUrl
from choreo.errors import InvalidUrl

SECRET = "s3kr1t"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("amqp://localhost", BrokerUrl("amqp", "localhost", 5672, "guest", "guest")),
        ("amqps://localhost", BrokerUrl("amqps", "localhost", 5671, "guest", "guest")),
        ("AMQP://LocalHost:5673", BrokerUrl("amqp", "localhost", 5673, "guest", "guest")),
        ("amqp://127.0.0.1", BrokerUrl("amqp", "127.0.0.1", 5672, "guest", "guest")),
        ("amqp://[::1]:5673", BrokerUrl("amqp", "::1", 5673, "guest", "guest")),
        ("amqp://app:pw@rabbit_1.prod", BrokerUrl("amqp", "rabbit_1.prod", 5672, "app", "pw")),
        ("  amqp://app:pw@rabbit\n", BrokerUrl("amqp", "rabbit", 5672, "app", "pw")),
        ("amqp://a%40b:p%2Fw%25@rabbit", BrokerUrl("amqp", "rabbit", 5672, "a@b", "p/w%")),
        ("amqp://app:p:w@x@rabbit", BrokerUrl("amqp", "rabbit", 5672, "app", "p:w@x")),
        ("amqp://app:pw@rabbit/", BrokerUrl("amqp", "rabbit", 5672, "app", "pw", "/")),
        ("amqp://app:pw@rabbit//", BrokerUrl("amqp", "rabbit", 5672, "app", "pw", "/")),
        ("amqp://app:pw@rabbit/%2F", BrokerUrl("amqp", "rabbit", 5672, "app", "pw", "/")),
        ("amqp://app:pw@rabbit/%2f", BrokerUrl("amqp", "rabbit", 5672, "app", "pw", "/")),
        ("amqp://app:pw@rabbit/shop", BrokerUrl("amqp", "rabbit", 5672, "app", "pw", "shop")),
        ("amqp://app:pw@rabbit/%2Fshop%2Feu", BrokerUrl("amqp", "rabbit", 5672, "app", "pw", "/shop/eu")),
        ("amqp://localhost?", BrokerUrl("amqp", "localhost", 5672, "guest", "guest")),
        (
            "amqp://localhost/shop?heartbeat=30&connection_timeout=500ms",
            BrokerUrl("amqp", "localhost", 5672, "guest", "guest", "shop", 30, 0.5),
        ),
        (
            "amqps://app:pw@rabbit?cafile=/etc/ca+1.pem&certfile=c.pem&keyfile=k%20.pem",
            BrokerUrl(
                "amqps",
                "rabbit",
                5671,
                "app",
                "pw",
                cafile="/etc/ca+1.pem",
                certfile="c.pem",
                keyfile="k .pem",
            ),
        ),
    ],
)
def test_reads_what_the_uri_specification_says(text: str, expected: BrokerUrl):
    """Scheme, login, host, virtual host and known parameters are read; the rest has defaults."""
    assert BrokerUrl.parse(text) == expected


def test_defaults_find_a_dead_connection_soon():
    """Without parameters the heartbeat is 10 s and connecting may take 5 s."""
    url = BrokerUrl.parse("amqp://localhost")

    assert (url.heartbeat, url.connection_timeout) == (10, 5.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "does not begin with amqp"),
        ("localhost:5672", "does not begin with amqp"),
        ("//localhost", "does not begin with amqp"),
        ("http://localhost:15672", "begins with http://"),
        ("amqp://", "names no host"),
        ("amqp:///shop", "names no host"),
        ("amqp://app:pw@", "names no host"),
        ("amqp://:5672", "names no host"),
        ("amqp://app:pw@rab bit", "space or a control character"),
        ("amqp://app:pw@rab\x00bit", "space or a control character"),
        ("amqp://app:pw@rab\udcffbit", "space or a control character"),
        ("amqp://app:pw@rabbit,other", "character in its host"),
        ("amqp://app:pw@räbbit", "character in its host"),
        ("amqp://app:pw@rabbit:", "port"),
        ("amqp://app:pw@rabbit:0", "port"),
        ("amqp://app:pw@rabbit:65536", "port"),
        ("amqp://app:pw@rabbit:56x", "port"),
        ("amqp://app:pw@rabbit:٥٦٧٢", "port"),
        ("amqp://::1:5672", 'more than one ":" in its host'),
        ("amqp://[::1", "brackets that hold no IPv6"),
        ("amqp://[rabbit]", "brackets that hold no IPv6"),
        ("amqp://[::1]5672", "brackets that hold no IPv6"),
        ("amqp://rabbit", "names no user for the host 'rabbit'"),
        ("amqp://192.0.2.1", "names no user"),
        ("amqp://app@rabbit", "has no password for the user 'app'"),
        ("amqp://app:@rabbit", "has no password for the user 'app'"),
        ("amqp://:pw@rabbit", "has a password and no user"),
        ("amqp://app:p%00w@rabbit", "NUL"),
        ("amqp://app:p%FFw@rabbit", "not UTF-8"),
        ("amqp://app:p%zzw@rabbit", '"%" in its password'),
        ("amqp://app:pw@rabbit/100%", '"%" in its virtual host'),
        ("amqp://app:pw@rabbit/shop/eu", 'more than one "/"'),
        ("amqp://app:pw@rabbit/shop%0A", "virtual host that no broker has"),
        ("amqp://app:pw@rabbit/" + "x" * 256, "virtual host that no broker has"),
        ("amqp://app:pw@rabbit#shop", 'has a "#"'),
        ("amqp://app:p/w@rabbit", 'before an "@"'),
        ("amqp://localhost?heartbaet=3", "unknown parameter 'heartbaet'"),
        ("amqp://localhost?name=x", "unknown parameter 'name'"),
        ("amqps://localhost?no_verify_ssl=false", "no_verify_ssl: whoever sits between"),
        ("amqp://localhost?heartbeat=5&heartbeat=6", "heartbeat twice"),
        ("amqp://localhost?heartbeat=0", "heartbeat='0'"),
        ("amqp://localhost?heartbeat=601", "heartbeat='601'"),
        ("amqp://localhost?heartbeat=10s", "heartbeat='10s'"),
        ("amqp://localhost?heartbeat", "heartbeat=''"),
        ("amqp://localhost?connection_timeout=5000", "connection_timeout='5000'"),
        ("amqp://localhost?connection_timeout=0", "connection_timeout='0'"),
        ("amqp://localhost?connection_timeout=soon", "connection_timeout='soon'"),
        ("amqp://localhost?cafile=/ca.pem", "cafile, but amqp:// is not encrypted"),
        ("amqps://localhost?cafile=", "cafile without a path"),
        ("amqps://localhost?keyfile=/k.pem", "keyfile without certfile"),
    ],
)
def test_refuses_by_name(text: str, message: str):
    """Each URL that cannot be used is refused with what is wrong with it, called as the caller calls it."""
    with pytest.raises(InvalidUrl) as raised:
        BrokerUrl.parse(text, name="CHOREO_URL")

    assert message in raised.value.message
    assert raised.value.message.startswith("CHOREO_URL ")
    assert raised.value.way_out
    assert raised.value.exit_code == 78


def test_unknown_parameter_names_the_allowed_ones():
    """A misspelt parameter is answered with the ones there are."""
    with pytest.raises(InvalidUrl, match="allowed: heartbeat, connection_timeout, cafile, certfile, keyfile"):
        BrokerUrl.parse("amqp://localhost?heartbaet=3")


@pytest.mark.parametrize("text", ["amqp://app:old@rabbit", "amqp://app@rabbit", "amqp://app:@rabbit"])
def test_a_given_password_replaces_or_completes(text: str):
    """A password from elsewhere takes the place of the URL's, which need have none; nothing in it is decoded."""
    url = BrokerUrl.parse(text, password="n%41w@/")

    assert (url.user, url.password) == ("app", "n%41w@/")


def test_a_given_password_is_guests_without_a_user():
    """On this machine, where a missing user is guest, a password from elsewhere is guest's."""
    assert BrokerUrl.parse("amqp://localhost", password="other").password == "other"


def test_reads_a_list_in_its_order():
    """Commas separate the nodes of a cluster, and stay what they are inside of a password."""
    urls = BrokerUrl.parse_all("amqp://app:p,w@a, amqps://app:pw@b/x,amqp://app:pw@c:5673")

    assert [str(url) for url in urls] == [
        "amqp://app@a:5672",
        "amqps://app@b:5671/x",
        "amqp://app@c:5673",
    ]
    assert urls[0].password == "p,w"


def test_a_wrong_url_of_a_list_is_named_by_its_number():
    """Of several URLs the wrong one is pointed at."""
    with pytest.raises(InvalidUrl, match=r"^CHOREO_URL \(number 2 of 3\) names no host"):
        BrokerUrl.parse_all("amqp://localhost,amqp://,amqp://localhost", name="CHOREO_URL")


def test_shows_host_and_user_only():
    """str, repr and censored show where and who, and a pickled URL comes back whole."""
    url = BrokerUrl.parse(f"amqps://a%2Fb:{SECRET}@[2001:db8::1]/my%20shop?cafile=/ca.pem")

    assert str(url) == url.censored == f"{url}" == "amqps://a%2Fb@[2001:db8::1]:5671/my%20shop"
    assert SECRET not in repr(url)
    assert pickle.loads(pickle.dumps(url)) == url
    assert url.tls


_words = st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=20)


@given(
    user=_words,
    password=_words,
    host=st.sampled_from(["localhost", "rabbit", "10.0.0.1", "[::1]", "[2001:db8::1]"]),
    port=st.integers(1, 65535),
    vhost=st.just("/") | _words.filter(lambda text: text.isprintable() and text != "/"),
)
def test_escaped_parts_come_back(user: str, password: str, host: str, port: int, vhost: str):
    """Whatever is %-escaped into a URL is what comes out, and what is shown is a URL of the same place."""
    escaped = [quote(part, safe="") for part in (user, password, vhost)]
    url = BrokerUrl.parse(f"amqp://{escaped[0]}:{escaped[1]}@{host}:{port}/{escaped[2]}")

    assert (url.user, url.password, url.port, url.vhost) == (user, password, port, vhost)
    assert url.host == host.strip("[]")
    assert BrokerUrl.parse(str(url), password=password) == url


# A password with what people leave unescaped in it, and the URLs that go wrong around it. Where such a password is
# split, a piece of it must not show either, so every piece holds the marker.
_specials = [":", "@", "/", "#", "?", "%", "%zz", "%41", ",", "&", "=", " ", "[", "]", "://"]
_passwords = st.lists(st.sampled_from(_specials)).map(lambda found: SECRET + "".join(each + SECRET for each in found))
_befores = st.just("amqp://") | st.sampled_from(["", "x", "amqp", "amqp:", "amqp:/", "http://", "://", " amqp://"])
_hosts = ["", "rabbit", "rabbit:x", "rabbit:99999", "[::1", "rab bit", "rabbit/a/b", "rabbit/%", "rabbit#x"]
_queries = ["rabbit?x=1", "rabbit?heartbeat=x", "rabbit?no_verify_ssl=1", "rabbit?cafile=x", "rabbit,amqp://"]
_afters = st.just("") | st.sampled_from(_hosts + _queries).map("@{}".format)


@settings(max_examples=500)
@given(before=_befores, user=st.sampled_from(["", "app", "a%pp"]), password=_passwords, after=_afters)
@example(before="amqp://", user="app", password=f"{SECRET}/{SECRET}", after="")
@example(before="amqp://", user="app", password=f"{SECRET}?{SECRET}", after="@rabbit")
@example(before="amqp://", user="app", password=f"{SECRET}:{SECRET}", after="@rabbit:x")
@example(before="amqp://", user="app", password=f"{SECRET}@{SECRET},{SECRET}://{SECRET}", after="@")
def test_nothing_shows_a_piece_of_the_password(before: str, user: str, password: str, after: str):
    """However a URL is malformed, neither the error nor its chain nor its traceback repeats the password."""
    # Without a host, what follows an "@" in the password is the host by any reading.
    assume("@" not in password or after)
    error: InvalidUrl | None = None
    shown = ""
    try:
        shown = repr(BrokerUrl.parse_all(f"{before}{user}:{password}{after}"))
    except InvalidUrl as raised:
        error = raised

    if error is not None:
        shown = "".join([str(error), repr(error), *traceback.format_exception(error)])
        assert error.__cause__ is None
        assert error.__context__ is None
    assert SECRET not in shown


@pytest.mark.parametrize(
    "text",
    [
        "amqp://app:pw@rabbit,amqp://app:{}",
        "amqp://app:{}@rabbit,amqp://",
        "amqp:app:{}@rabbit",
        "app:{}@rabbit",
    ],
)
def test_no_error_shows_the_password_of_a_list(text: str):
    """A list of which one is malformed shows the password of none."""
    with pytest.raises(InvalidUrl) as raised:
        BrokerUrl.parse_all(text.format(SECRET))

    assert SECRET not in str(raised.value)


def test_ipv6_address_stands_in_one_pair_of_brackets() -> None:
    """Where it is shown with its port, and however a health host was written."""
    assert BrokerUrl.parse("amqp://a:b@[::1]:5999").address == "[::1]:5999"
    assert BrokerUrl.parse("amqp://a:b@[::1]:5999").censored == "amqp://a@[::1]:5999"
    assert BrokerUrl.parse("amqp://a:b@host").address == "host:5672"
