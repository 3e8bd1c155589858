"""The loader: names, files, entry points and references, and what must never be imported."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from choreo.errors import ChoreoError, ConfigurationError, DeclarationError, InvalidName, UnknownAgent
from choreo.graph.choreography import Choreography
from choreo.importing import imported_by
from choreo.loader import (
    any_agents,
    forgotten,
    known,
    load,
    load_all,
    load_good,
    load_sound,
    nobody,
    require,
    without_agent,
)

Write = Callable[..., Path]

AGENT = """\
    from choreo import Agent

    agent = Agent("{name}")
"""


@pytest.fixture(autouse=True)
def imports() -> Iterator[None]:
    """Forget what a test imported, and where from: each has an agents folder of the same name."""
    modules, path = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - modules:
        if not name.startswith("choreo"):
            del sys.modules[name]
    sys.path[:] = path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An agents folder without anything in it."""
    folder = tmp_path / "crew"
    folder.mkdir()
    return folder


@pytest.fixture
def write(folder: Path) -> Write:
    """Write a file of the project: `write("payment")` an agent, `write("x", source)` any module of the folder."""

    def write(name: str, source: str | None = None, *, below: Path = folder) -> Path:
        file = below / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        text = AGENT.format(name=name) if source is None else source
        file.write_text(textwrap.dedent(text))
        return file

    return write


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Install a distribution with one entry point of the group, and return its site folder."""

    def install(line: str, distribution: str = "shop") -> Path:
        site = tmp_path / f"site-{distribution}"
        info = site / f"{distribution}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[choreo.agents]\n{line}\n")
        monkeypatch.syspath_prepend(site)
        return site

    return install


def refused(kind: type[ChoreoError], name: str, folder: Path) -> ChoreoError:
    with pytest.raises(kind) as raised:
        load(name, folder)
    assert raised.value.way_out
    return raised.value


def run(program: str, *arguments: object, stdin: str = "") -> None:
    """Run a program in a Python of its own, which must not fail."""
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        check=True,
        input=stdin,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


def imported(folder: Path) -> set[str]:
    return {name for name in sys.modules if name == folder.name or name.startswith(f"{folder.name}.")}


def test_a_name_is_a_file_of_the_folder(folder: Path, write: Write):
    """`payment` is payment.py of the folder, imported from its package."""
    write("payment")

    agent = load("payment", folder)

    assert agent.name == "payment"
    assert sys.modules[f"{folder.name}.payment"].agent is agent
    assert load("payment", folder) is agent


def test_dashes_are_underscores_of_the_file(folder: Path, write: Write):
    """`order-audit` is order_audit.py, because Python cannot import a dash."""
    write("order_audit", AGENT.format(name="order-audit"))

    assert load("order-audit", folder).name == "order-audit"
    assert known(folder) == ["order-audit"]


def test_agents_import_their_neighbours(folder: Path, write: Write):
    """A module of the folder imports another one as from any package; others stay unimported."""
    write("events", "import choreo\nPRICE = 3\n")
    write("payment", f"from choreo import Agent\nfrom {folder.name}.events import PRICE\nagent = Agent('payment')\n")
    write("order", "raise SystemError('imported')\n")

    load("payment", folder)

    assert imported(folder) == {folder.name, f"{folder.name}.events", f"{folder.name}.payment"}


def test_a_relative_folder_is_the_working_folders(folder: Path, write: Write, monkeypatch: pytest.MonkeyPatch):
    """A folder given as a relative path is found, and found again from elsewhere."""
    write("payment")
    monkeypatch.chdir(folder.parent)

    load("payment", Path(folder.name))

    assert str(folder.parent) in sys.path


HOSTILE = [
    "",
    ".",
    "..",
    "../../etc/passwd",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "payment.py",
    "crew.payment",
    "Payment",
    "PAYMENT",
    "1payment",
    "_payment",
    "__init__",
    "-rf",
    "--help",
    " payment",
    "payment ",
    "payment\n",
    "pay ment",
    "pay\0ment",
    "payment\0",
    "payment;rm",
    "$(rm)",
    "p\u0430yment",
    "\uff50ayment",
    "payment\u200b",
    "pay\u0301ment",
    "\udcff",
    "x" * 64,
    "x" * 100_000,
    "os:system",
    "os.path:join",
    "subprocess:run",
    "builtins:eval",
    "sys:exit",
    "_thread:exit",
    "crew.payment:__class__",
    "crew.__main__:agent",
    "__main__:agent",
    "payment:agent; rm",
    "payment:agent()",
    "payment:agent.name",
    "payment:agent:agent",
    ":agent",
    "payment:",
    ":",
    ".payment:agent",
    "crew..payment:agent",
    "../crew:agent",
    "cr\u0435w.payment:agent",
    "crew.payment:\uff41gent",
    "crew.payment:agent\n",
    "x" * 300 + ":agent",
]


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name[:30]))
def test_a_hostile_name_is_refused(name: str, folder: Path, write: Write):
    """A name outside of the grammar is refused in one short printable line, and nothing is imported for it."""
    write("payment", "raise SystemError('imported')\n")
    write("b", "raise SystemError('imported')\n", below=folder / "a")
    write("-rf", "raise SystemError('imported')\n")
    before = set(sys.modules), list(sys.path)

    error = refused(InvalidName, name, folder)

    assert (set(sys.modules), sys.path) == before
    assert error.exit_code == 2
    assert len(error.message) < 200
    assert error.message.isascii()
    assert error.message.isprintable()


def test_nothing_is_opened_for_a_hostile_name(folder: Path, write: Write):
    """Python's own audit of files, folders and imports hears nothing of a hostile name, and something of a good one."""
    write("payment")
    program = """
        import json, sys
        from pathlib import Path
        from choreo import Agent
        from choreo.errors import InvalidName
        from choreo.loader import load

        heard, listening = [], False

        def listen(event, arguments):
            if listening and event.partition(".")[0] in ("open", "import", "exec", "compile", "os", "subprocess"):
                heard.append((event, repr(arguments[:1])))

        sys.addaudithook(listen)
        folder, names = Path(sys.argv[1]), json.load(sys.stdin)
        for name in names:
            listening = True
            try:
                load(name, folder)
            except InvalidName:
                listening = False
            assert not heard, (name, heard)
        listening = True
        load("payment", folder)
        listening = False
        assert heard
    """

    run(program, folder, stdin=json.dumps(HOSTILE))


def test_an_unknown_name_lists_the_known_and_the_nearest(folder: Path, write: Write):
    """No such agent: the message has the names there are and the nearest, and nothing was imported."""
    for name in ("order", "payment", "shipping"):
        write(name)

    error = refused(UnknownAgent, "paymnt", folder)

    assert error.message == f'there is no agent "paymnt" in {folder}'
    assert error.way_out == "did you mean payment? known: order, payment, shipping"
    assert imported(folder) == set()


def test_an_unknown_name_in_an_empty_folder(folder: Path):
    """Where there are no agents, the message says so."""
    assert refused(UnknownAgent, "payment", folder).way_out == "known: none"


def test_an_unknown_name_without_a_folder(tmp_path: Path):
    """Where there is no folder, the message says how another one is named."""
    error = refused(UnknownAgent, "payment", tmp_path / "agents")

    assert error.message == f'there is no agent "payment": the agents folder {tmp_path / "agents"} does not exist'
    assert "CHOREO_AGENTS" in error.way_out


def test_an_agent_in_a_file_of_another_name(folder: Path, write: Write):
    """An agent is found by its file; where another file declares it, the message says which and what to do."""
    write("pay", AGENT.format(name="payment"))

    error = refused(DeclarationError, "payment", folder)
    assert error.message == 'crew/pay.py holds the agent "payment", whose file would be crew/payment.py'
    with pytest.raises(DeclarationError, match="whose file would be"):
        load_all(folder)
    error = refused(DeclarationError, "pay", folder)
    assert error.message == 'crew/pay.py holds the agent "payment", whose file would be crew/payment.py'
    assert error.way_out == 'move it there, or name it as its file: Agent("pay")'


def test_nothing_is_told_to_be_overwritten(folder: Path, write: Write):
    """Where the file of an agent's name is there already, the agent is renamed and not moved."""
    write("pay", AGENT.format(name="payment"))
    write("payment", "PRICE = 3\n")

    error = refused(DeclarationError, "pay", folder)

    assert error.way_out == 'crew/payment.py is another file, so name it as its file: Agent("pay")'


def test_an_underscore_where_the_agent_has_a_dash(folder: Path, write: Write):
    """Both names lead to one file, and only the agent's own is its name."""
    write("order_audit", AGENT.format(name="order-audit"))

    error = refused(UnknownAgent, "order_audit", folder)

    assert error.message == 'crew/order_audit.py holds the agent "order-audit", not "order_audit"'
    assert error.way_out == 'ask for order-audit, or declare Agent("order_audit")'


def test_a_module_without_an_agent(folder: Path, write: Write):
    """A module that declares none, such as the events, is not an agent."""
    write("events", "from choreo import Agent\n")

    error = refused(UnknownAgent, "events", folder)

    assert error.message == "crew/events.py holds no agent"
    assert error.way_out == 'declare one in it: agent = Agent("events")'


def test_two_agents_in_one_file(folder: Path, write: Write):
    """Of several agents in a file the one with its name is meant; without such a one there is no saying which."""
    two = "from choreo import Agent\none = Agent('{}')\ntwo = Agent('{}')\nagain = two\n"
    write("payment", two.format("refund", "payment"))
    write("order", two.format("invoice", "basket"))
    write("stock", two.format("stock", "stock"))

    assert load("payment", folder).name == "payment"
    assert refused(DeclarationError, "order", folder).message == "crew/order.py holds several agents (invoice, basket)"
    assert refused(DeclarationError, "stock", folder).message == "crew/stock.py holds several agents (stock, stock)"


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("import nowhere_at_all\n", ModuleNotFoundError),
        ("from crew.nothing import x\n", ModuleNotFoundError),
        ("from crew import nothing\n", ImportError),
        ("import crew.payment.more\n", ModuleNotFoundError),
        ("import crew.pay\n", ModuleNotFoundError),
        ("raise ImportError('mine')\n", ImportError),
        ("1 / 0\n", ZeroDivisionError),
        ("from choreo import Agent\nAgent('Bad Name')\n", DeclarationError),
        ("from choreo import Agent\nAgent('payment').name.nothing\n", AttributeError),
    ],
)
@pytest.mark.parametrize("name", ["payment", "crew.payment:agent"])
def test_the_users_own_exception_surfaces(
    name: str, source: str, kind: type[BaseException], folder: Path, write: Write
):
    """What the module raises comes out as it is, with a traceback that ends at the user's line."""
    file = write("payment", source)

    with pytest.raises(kind) as raised:
        load(name, folder)

    assert type(raised.value) is kind
    assert raised.value.__cause__ is None
    frames = traceback.extract_tb(raised.value.__traceback__)
    line = [frame.lineno for frame in frames if frame.filename == str(file)][-1]
    assert line == len(source.splitlines())


def test_the_very_exception_surfaces(folder: Path, write: Write):
    """It is the same object, not a copy or a wrapper."""
    write("payment", "import crew.shared as shared\nraise shared.error\n")
    write("shared", "error = ImportError('mine', name='crew.payment.x')\n")

    with pytest.raises(ImportError) as raised:
        load("payment", folder)

    assert raised.value is sys.modules["crew.shared"].error


@pytest.mark.parametrize("name", ["payment", "crew.payment:agent"])
def test_the_users_syntax_error_surfaces(name: str, folder: Path, write: Write):
    """A syntax error names the user's file and line."""
    file = write("payment", "x = 1\nif:\n")

    with pytest.raises(SyntaxError) as raised:
        load(name, folder)

    assert (raised.value.filename, raised.value.lineno) == (str(file), 2)


def test_an_exception_in_the_package_itself_surfaces(folder: Path, write: Write):
    """The folder's own __init__.py is the user's code as well."""
    write("__init__", "import nowhere_at_all\n")
    write("payment")

    with pytest.raises(ModuleNotFoundError, match="nowhere_at_all"):
        load("payment", folder)


def test_a_mended_module_can_be_loaded(folder: Path, write: Write):
    """A failed import leaves nothing behind that the next one would find."""
    write("payment", "1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        load("payment", folder)
    write("payment", "from choreo import Agent\n\nagent = Agent('payment')  # longer than it was\n")

    assert load("payment", folder).name == "payment"


def test_a_file_that_was_just_written_is_found(folder: Path, write: Write):
    """What Python remembers of a folder does not hide a younger file, even if the folder's clock stood still."""
    write("order")
    load("order", folder)
    before = folder.stat()
    write("payment")
    os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert load("payment", folder).name == "payment"


def test_a_link_out_of_the_folder_is_refused(folder: Path, write: Write, tmp_path: Path):
    """A file that leads out of the folder is not imported, by name or with all."""
    write("outside", AGENT.format(name="payment") + "\n    raise SystemError('imported')\n", below=tmp_path)
    (folder / "payment.py").symlink_to(tmp_path / "outside.py")

    error = refused(ConfigurationError, "payment", folder)
    assert error.message == "crew/payment.py is a link that leads out of the agents folder"
    with pytest.raises(ConfigurationError, match="leads out of the agents folder"):
        load_all(folder)


def test_a_link_inside_of_the_folder_is_fine(folder: Path, write: Write):
    """Mounted volumes link their files to a folder beside them."""
    write("payment", below=folder / "..data")
    (folder / "payment.py").symlink_to(Path("..data", "payment.py"))

    assert load("payment", folder).name == "payment"
    assert known(folder) == ["payment"]


def test_a_folder_that_is_a_link(folder: Path, write: Write, tmp_path: Path):
    """The folder itself may be a link; its own name is the package's."""
    write("payment")
    (tmp_path / "linked").symlink_to(folder)

    assert load("payment", tmp_path / "linked").where.endswith("linked/payment.py:3")


@pytest.mark.parametrize("make", ["folder", "pipe", "dangling"])
def test_what_is_no_file_is_no_agent(make: str, folder: Path):
    """A folder, a pipe and a link to nowhere with the right name are passed by."""
    place = folder / "payment.py"
    if make == "folder":
        place.mkdir()
    elif make == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to("nowhere.py")

    refused(UnknownAgent, "payment", folder)
    assert load_all(folder) == []


ENDINGS = [
    ("import sys\nsys.exit(0)\n", "SystemExit: 0"),
    ("import sys\nsys.exit()\n", "SystemExit"),
    ("\nexit()\n", "SystemExit: None"),
    ("import sys\nraise SystemExit('over')\n", "SystemExit: over"),
    ("import argparse\nargparse.ArgumentParser(prog='x').parse_args(['--help'])\n", "SystemExit: 0"),
    ("import argparse\nargparse.ArgumentParser(prog='x').parse_args(['--nope'])\n", "SystemExit: 2"),
    ("\nraise GeneratorExit\n", "GeneratorExit"),
    ("import asyncio\nraise asyncio.CancelledError\n", "CancelledError"),
    ("\nraise BaseExceptionGroup('both', [SystemExit()])\n", "BaseExceptionGroup: both (1 sub-exception)"),
    ("class Over(BaseException): ...\nraise Over('mine')\n", "Over: mine"),
]


@pytest.mark.parametrize("where", ["agent", "neighbour", "package", "reference"])
@pytest.mark.parametrize(("source", "what"), ENDINGS)
def test_a_module_that_would_end_the_program(
    source: str, what: str, where: str, folder: Path, write: Write, monkeypatch: pytest.MonkeyPatch
):
    """Whatever is raised to end it: a declaration error with the user's file and line, and never an exit with 0."""
    monkeypatch.chdir(folder.parent)
    name, file, imported = "payment", f"{folder.name}/payment.py", "crew.payment"
    match where:
        case "agent" | "reference":
            write("payment", source)
            name = "crew.payment:agent" if where == "reference" else name
        case "neighbour":
            write("payment", f"import {folder.name}.events\n")
            write("events", source)
            file = f"{folder.name}/events.py"
        case _:
            write("payment")
            write("__init__", source)
            file, imported = f"{folder.name}/__init__.py", "crew"

    error = refused(DeclarationError, name, folder)

    assert error.message == f"{imported} ends the program when it is imported, at {file}, line 2 ({what})"
    assert "__main__" in error.way_out
    assert error.exit_code == 78


def test_ctrl_c_while_a_module_is_imported_is_no_mistake_of_the_modules(folder: Path, write: Write):
    write("payment", "import signal\nsignal.raise_signal(signal.SIGINT)\n")
    with pytest.raises(KeyboardInterrupt):
        load("payment", folder)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "question",
    ["input('Password: ')", "sys.stdin.readline()", "sys.stdin.read()", "list(sys.stdin)", "sys.stdin.buffer"],
)
def test_a_module_that_asks_a_question(question: str, folder: Path, write: Write, monkeypatch: pytest.MonkeyPatch):
    """Nobody is asked: it would wait for ever, or take what `choreo publish -` is to read."""
    write("payment", f"import sys\n{question}\n")
    reader, writer = os.pipe()
    with os.fdopen(reader) as nobody, os.fdopen(writer, "w"):
        monkeypatch.setattr(sys, "stdin", nobody)
        with pytest.raises(EOFError, match=r"crew\.payment reads standard input when it is imported"):
            load("payment", folder)
        assert sys.stdin is nobody


def test_a_module_may_keep_standard_input_for_later(folder: Path, write: Write, monkeypatch: pytest.MonkeyPatch):
    write("payment", "import sys\nfrom choreo import Agent\nkept = sys.stdin\nagent = Agent('payment')\n")
    reader, writer = os.pipe()
    with os.fdopen(reader) as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        load("payment", folder)
        os.write(writer, b"later\n")
        os.close(writer)
        assert list(sys.modules["crew.payment"].kept) == ["later\n"]


@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize("package", [True, False])
def test_the_projects_folder_comes_before_every_other_package(
    place: int, package: bool, folder: Path, write: Write, tmp_path: Path
):
    """With or without an __init__.py, whatever is installed under its name and wherever that stands on the path."""
    write("payment", "from crew.events import PRICE\n" + textwrap.dedent(AGENT.format(name="payment")))
    write("events", "PRICE = 3\n")
    if package:
        write("__init__", "")
    site = tmp_path / "site"
    for name in ("__init__", "payment", "events"):
        write(name, "raise SystemError('imported')\n", below=site / "crew")
    sys.path[:] = [str(site), *sys.path] if place == 0 else [str(folder.parent), *sys.path, str(site)]

    assert load("payment", folder).name == "payment"
    assert [agent.name for agent in load_all(folder)] == ["payment"]
    assert load("crew.payment:agent", folder).name == "payment"
    assert sys.modules["crew.events"].PRICE == 3


def test_a_package_of_its_name_that_is_imported_already(folder: Path, write: Write, tmp_path: Path):
    """It cannot be replaced under whoever uses it: the message says which it is, and what to do."""
    write("payment")
    site = tmp_path / "site"
    write("__init__", "", below=site / "crew")
    sys.path.insert(0, str(site))
    importlib.import_module("crew")

    error = refused(ConfigurationError, "payment", folder)

    assert error.message.startswith(f'"crew" is imported from {site / "crew" / "__init__.py"} already, and not from')
    assert error.way_out.startswith("rename the folder, or name another folder")


EVENTS = "from choreo import Event\nclass Come(Event, topic='crew.{topic}', external=True): ...\n"


@pytest.mark.parametrize("way", ["from .events import Come", "from crew.events import Come"])
def test_a_file_that_is_imported_twice_is_said_to_be_one(way: str, tmp_path: Path, write: Write):
    """In a src layout the agents folder has two names: the error says so, and which one to import it by."""
    inner = tmp_path / "src" / "shop" / "crew"
    for place in (inner, inner.parent):
        write("__init__", "", below=place)
    events = write("events", EVENTS.format(topic=f"come{len(way)}"), below=inner)
    write("one", "from choreo import Agent\nfrom shop.crew.events import Come\nagent = Agent('one')\n", below=inner)
    write("two", f"from choreo import Agent\n{way}\nagent = Agent('two')\n", below=inner)
    sys.path.insert(0, str(tmp_path / "src"))

    with pytest.raises(DeclarationError) as raised:
        load_all(inner)

    assert raised.value.message.startswith(f"{events} is imported twice, as shop.crew.events and as crew.events")
    assert raised.value.way_out.endswith("the one that choreo uses: from crew.events import Come")


def test_an_agents_file_that_is_imported_twice_is_said_to_be_one(tmp_path: Path, write: Write):
    inner = tmp_path / "src" / "shop" / "crew"
    for place in (inner, inner.parent):
        write("__init__", "", below=place)
    write("payment", below=inner)
    sys.path.insert(0, str(tmp_path / "src"))
    other = importlib.import_module("shop.crew.payment").agent

    with pytest.raises(DeclarationError, match=r"is imported twice, as crew\.payment and as shop\.crew\.payment"):
        Choreography.of([other, load("payment", inner)])


def test_a_process_that_an_agent_spawns_finds_the_folder_too(folder: Path, write: Write, tmp_path: Path):
    """multiprocessing starts Python anew there: what is unpickled is imported from the project's folder."""
    write("__init__", "raise SystemError('imported')\n", below=tmp_path / "site" / "crew")
    write(
        "payment",
        """\
        import multiprocessing
        from choreo import Agent
        agent = Agent("payment")

        def answer():
            return 42

        def ask():
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                return pool.apply(answer)
    """,
    )
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from choreo.cli import main\n"
        "if __name__ == '__main__':\n"
        "    from choreo.loader import load\n"
        "    load('payment', Path(sys.argv[1]))\n"
        "    assert sys.modules['crew.payment'].ask() == 42\n"
    )
    path = os.pathsep.join([str(tmp_path / "site"), *sys.path])
    subprocess.run([sys.executable, script, folder], check=True, env=os.environ | {"PYTHONPATH": path}, timeout=60)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my-agents", "cannot be imported as a package"),
        ("queue", "is a module of Python itself"),
        ("choreo", "is imported from"),
    ],
)
def test_a_folder_that_cannot_be_a_package(name: str, message: str, tmp_path: Path, write: Write):
    """A folder with a name that Python cannot import, or has given away, is refused with what helps."""
    write("payment", below=tmp_path / name)

    error = refused(ConfigurationError, "payment", tmp_path / name)

    assert message in error.message
    assert "rename" in error.way_out


def test_a_reference(folder: Path, write: Write):
    """`package.module:attribute` is any agent that Python can import, also beside the agents folder."""
    write("agents", "from choreo import Agent\n_mine = Agent('payment')\n", below=folder.parent / "shop")

    assert load("shop.agents:_mine", folder).name == "payment"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shop.agnts:agent", 'there is no module "shop.agnts"'),
        ("shp.agents:agent", 'there is no module "shp"'),
        ("shop.agents.more:agent", 'there is no module "shop.agents.more"'),
        ("shop.agents:agnt", "shop.agents:agnt does not exist"),
        ("shop.agents:none", "shop.agents:none is of type NoneType, not an Agent"),
        ("shop.agents:Agent", "shop.agents:Agent is of type type, not an Agent"),
        ("shop.agents:make", "shop.agents:make is of type function, not an Agent"),
    ],
)
def test_a_reference_to_no_agent(name: str, message: str, folder: Path, write: Write):
    """A reference that leads nowhere, or to something else, says where it ended; what it names is not called."""
    source = "from choreo import Agent\nagent = Agent('payment')\nnone = None\ndef make():\n    raise SystemError\n"
    write("agents", source, below=folder.parent / "shop")

    error = refused(UnknownAgent, name, folder)

    assert error.message == message
    if "module" not in message:
        assert error.way_out == "agents of this module: shop.agents:agent"


def test_an_entry_point(folder: Path, write: Write, install: Callable[[str], Path]):
    """An installed package offers an agent under its name; a file of the folder comes before it."""
    site = install("payment = shop.agents:agent")
    write("agents", AGENT.format(name="payment"), below=site / "shop")

    assert known(folder) == ["payment"]
    assert "shop" not in sys.modules
    assert load("payment", folder) is sys.modules["shop.agents"].agent
    write("payment")
    assert load("payment", folder) is sys.modules["crew.payment"].agent


@pytest.mark.parametrize("target", ["shop.agents", "shop.agents:team.payment"])
def test_entry_points_of_other_forms(target: str, folder: Path, write: Write, install: Callable[[str], Path]):
    """An entry point names a module with one agent of its name, or an attribute of an attribute."""
    site = install(f"payment = {target}")
    source = "from choreo import Agent\nclass team:\n    payment = Agent('payment')\nother = Agent('other')\n"
    write("agents", source + "agent = team.payment\n", below=site / "shop")

    assert load("payment", folder).name == "payment"


def test_an_entry_point_to_another_agent(folder: Path, write: Write, install: Callable[[str], Path]):
    """What an entry point leads to must have its name, because queues are called after it."""
    site = install("payment = shop.agents:agent")
    write("agents", AGENT.format(name="billing"), below=site / "shop")

    error = refused(DeclarationError, "payment", folder)

    assert (
        error.message == 'entry point "payment" of shop 1.0: shop.agents:agent holds the agent "billing", not "payment"'
    )


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("shop.agnts:agent", 'there is no module "shop.agnts"'),
        ("shop.agents:agnt", "shop.agents:agnt does not exist"),
        ("shop.events", "shop.events holds no agent"),
    ],
)
def test_an_entry_point_to_nothing(
    target: str, message: str, folder: Path, write: Write, install: Callable[[str], Path]
):
    """An entry point that leads nowhere is one clear error."""
    site = install(f"payment = {target}")
    write("agents", AGENT.format(name="payment"), below=site / "shop")
    write("events", "", below=site / "shop")

    assert refused(UnknownAgent, "payment", folder).message == f'entry point "payment" of shop 1.0: {message}'


def test_an_entry_points_own_exception_surfaces(folder: Path, write: Write, install: Callable[[str], Path]):
    """An installed module that fails is the author's to mend: its exception comes out as it is."""
    site = install("payment = shop.agents:agent")
    write("agents", "import nowhere_at_all\n", below=site / "shop")

    with pytest.raises(ModuleNotFoundError, match="nowhere_at_all"):
        load("payment", folder)


def test_two_packages_with_one_entry_point(folder: Path, install: Callable[[str, str], Path]):
    """Two installed packages that offer the same name are both named."""
    install("payment = shop.agents:agent", "shop")
    install("payment = bank.agents:agent", "bank")

    error = refused(ConfigurationError, "payment", folder)

    assert "shop (shop.agents:agent)" in error.message
    assert "bank (bank.agents:agent)" in error.message


def test_all_agents_of_the_folder(folder: Path, write: Write, install: Callable[..., Path]):
    """Every agent file is imported in sorted order, then what is installed; other modules are not."""
    for name in ("shipping", "order", "payment"):
        write(
            name, f"from choreo import Agent\nimport crew.events as e\ne.seen.append('{name}')\na = Agent('{name}')\n"
        )
    write("events", "seen = []\n")
    write("script", "raise SystemError('imported')\n")
    write("agents", AGENT.format(name="billing"), below=install("billing = shop.agents:agent") / "shop")
    install("payment = nowhere:agent", "other")

    agents = load_all(folder)

    assert [agent.name for agent in agents] == ["order", "payment", "shipping", "billing"]
    assert sys.modules["crew.events"].seen == ["order", "payment", "shipping"]


def test_all_of_a_folder_without_agents(folder: Path, tmp_path: Path):
    """An empty folder has no agents, a missing one is an error."""
    assert load_all(folder) == []
    with pytest.raises(ConfigurationError, match="there is no agents folder") as raised:
        load_all(tmp_path / "agents")
    assert "CHOREO_AGENTS" in raised.value.way_out


def test_what_is_good_of_a_folder(folder: Path, write: Write):
    """Every agent that can be imported, and what is wrong with each other one: nothing is passed over in silence."""
    write("events", "class Broken:\n    1 / 0\n")
    write("bill", AGENT.format(name="bill"))
    write("cook", "from choreo import Agent\nimport crew.events\nagent = Agent('cook')\n")
    write("guest", "from choreo import Agent\nagent = Agent('guest')\nraise SystemExit\n")
    write("pay", AGENT.format(name="payment"))
    write("payment", AGENT.format(name="payment"))
    write("torn", "def (")
    write("wrong", AGENT.format(name="right"))

    agents, left_out = load_good(folder)

    assert [agent.name for agent in agents] == ["bill", "payment"]
    assert {name: type(error) for name, error in left_out.items()} == {
        "crew/pay.py": DeclarationError,
        "right": DeclarationError,
        "cook": ZeroDivisionError,
        "guest": DeclarationError,
        "torn": SyntaxError,
    }


def test_what_is_good_of_names(folder: Path, write: Write):
    """A name that nothing has is an error still: it is a slip, and no module that will be fixed."""
    write("bill", AGENT.format(name="bill"))
    write("torn", "def (")

    agents, left_out = load_good(folder, ["torn", "bill"])

    assert [agent.name for agent in agents] == ["bill"]
    assert list(left_out) == ["torn"]
    with pytest.raises(UnknownAgent):
        load_good(folder, ["bill", "bell"])
    with pytest.raises(InvalidName):
        load_good(folder, ["bill", "../bill"])


def test_an_installed_agent_that_is_broken(folder: Path, write: Write, install: Callable[[str, str], Path]):
    """It is said by its name and its distribution, and keeps nobody from their own agents, except who wants all."""
    write("order")
    write("bank", "import nowhere_at_all\n", below=install("billing = bank:agent", "bank"))
    install("postage = post:agent", "post")
    write("fax", AGENT.format(name="fax"), below=install("fax = fax:agent", "fax"))

    for agents, left_out in (load_sound(folder), load_good(folder)):
        assert [agent.name for agent in agents] == ["order", "fax"]
        assert list(left_out) == ['entry point "billing" of bank 1.0', 'entry point "postage" of post 1.0']
        billing, postage = left_out.values()
        assert isinstance(billing, ModuleNotFoundError)
        assert imported_by(billing) == 'bank, entry point "billing" of bank 1.0,'
        assert str(postage).startswith('entry point "postage" of post 1.0: there is no module "post"')
    with pytest.raises(ModuleNotFoundError, match="nowhere_at_all"):
        load_all(folder)


def test_installed_agents_need_no_folder(tmp_path: Path, write: Write, install: Callable[[str], Path]):
    """A machine that only runs what is installed has no agents folder."""
    write("fax", AGENT.format(name="fax"), below=install("fax = fax:agent"))

    assert any_agents(tmp_path / "agents")
    assert [agent.name for agent in load_all(tmp_path / "agents")] == ["fax"]


def test_what_is_good_of_no_folder(tmp_path: Path):
    """There is nothing to choose from."""
    with pytest.raises(ConfigurationError, match="there is no agents folder"):
        load_good(tmp_path / "agents")


def test_a_file_that_is_no_python_and_no_agents_is_not_forgotten(folder: Path, write: Write):
    """Looking for forgotten agents does not stumble over it."""
    (folder / "Scratch.py").write_text("def (")
    assert forgotten(folder) == []


def test_one_name_in_two_files(folder: Path, write: Write):
    """Two files that declare one agent are both named, and nothing is imported."""
    write("payment")
    write("refund", AGENT.format(name="payment"))

    with pytest.raises(DeclarationError) as raised:
        load_all(folder)

    assert raised.value.message == 'agent "payment" is declared in crew/payment.py and in crew/refund.py'
    assert imported(folder) == set()


def test_an_agent_that_all_would_miss(folder: Path, write: Write):
    """A second agent in a file, which could not be run by its name, is an error rather than left out."""
    write("payment", "from choreo import Agent\nagent = Agent('payment')\nother = Agent('refund')\n")

    with pytest.raises(DeclarationError, match=r'crew/payment.py holds the agent "refund", .* crew/refund.py'):
        load_all(folder)


def test_all_surfaces_what_cannot_be_parsed(folder: Path, write: Write):
    """A file that is not Python may be an agent: it is listed, and loading all shows its error."""
    write("order")
    write("payment", "from choreo import Agent\nagent = Agent('payment'\n")

    assert known(folder) == ["order", "payment"]
    with pytest.raises(SyntaxError):
        load_all(folder)


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("from choreo import Agent\nagent = Agent('payment')\n", ["payment"]),
        ("from choreo import Agent\nagent: Agent = Agent('payment')\n", ["payment"]),
        ("from choreo import Agent\nagent = Agent(name='payment', timeout=3)\n", ["payment"]),
        ("from choreo import Agent as A\nagent = A('payment')\n", ["payment"]),
        ("from choreo.agent import Agent\nagent = Agent('payment')\n", ["payment"]),
        ("from choreo import *\nagent = Agent('payment')\n", ["payment"]),
        ("import choreo\nagent = choreo.Agent('payment')\n", ["payment"]),
        ("import choreo as c\nagent = c.Agent('payment')\n", ["payment"]),
        ("from choreo import Agent\nNAME = 'x'\nagent = Agent(NAME)\n", ["module"]),
        ("from agency import Agent\nagent = Agent('payment')\n", []),
        ("import agency\nagent = agency.Agent('payment')\n", []),
        ("from choreo import Agent\ndef make():\n    agent = Agent('payment')\n", []),
        ("from choreo import Agent\nAgent('payment')\n", []),
        ("from choreo import Agent\nagent: Agent\n", []),
        ("pattern = '\\d'\n", []),
        ("\0", ["module"]),
        ("# coding: nothing\n", ["module"]),
        ("# coding: latin-1\nfrom choreo import Agent\nagent = Agent('payment')\n", ["payment"]),
    ],
)
def test_known_reads_the_source(source: str, names: list[str], folder: Path, write: Write):
    """Names are read from top-level assignments of choreo's Agent, without importing the module."""
    write("module", source)

    assert known(folder) == names
    assert imported(folder) == set()


def test_known_passes_by_what_editors_leave(folder: Path, write: Write):
    """Hidden files and files that could not be imported are no agents."""
    write(".#payment", AGENT.format(name="payment"))
    write("Broken File", "if:\n")
    (folder / ".#order.py").symlink_to("nobody@nowhere")

    assert known(folder) == []


def test_known_without_a_folder(tmp_path: Path):
    """A missing folder has no agents."""
    assert known(tmp_path / "agents") == []


def test_known_imports_neither_agents_nor_choreo(folder: Path, write: Write):
    """Completing a name on the command line takes nothing heavier than the parser."""
    write("payment")
    program = """
        import sys
        from pathlib import Path
        from choreo.loader import known

        assert known(Path(sys.argv[1])) == ["payment"]
        heavy = {"pydantic", "structlog", "tenacity", "choreo.agent", "crew"} & set(sys.modules)
        assert not heavy, heavy
    """

    run(program, folder)


def test_no_entry_points_of_this_group_are_installed():
    """The tests above count on an environment that offers no agents of its own."""
    assert not importlib.metadata.entry_points(group="choreo.agents")


@pytest.fixture
def half_empty(write: Write) -> Write:
    """A folder with an agent and files that declare none."""
    write("payment")
    write("events", "from choreo import Event")
    write("__init__", "")
    write("made", "from choreo import Agent\ndef make(): return Agent('made')")
    write("more", "from crew.payment import agent\n@agent.on()\nasync def more(placed): ...")
    return write


def test_files_without_an_agent(half_empty: Write, folder: Path):
    """Those that `load_all` leaves alone; and those of them that look like a mistake."""
    assert without_agent(folder) == ["events.py", "made.py", "more.py"]
    assert forgotten(folder) == ["made.py", "more.py"]
    assert forgotten(folder / "nowhere") == []


def test_nobody_names_the_files_that_declare_none(folder: Path, write: Write):
    write("greeter", "async def greet(): ...")
    error = nobody(folder)
    assert error.message == f"there is no agent in {folder}: none is declared in greeter.py"
    assert 'agent = Agent("name")' in error.way_out


def test_require_imports_nothing(folder: Path, write: Write):
    """It knows names, also of files that are broken."""
    write("payment", AGENT.format(name="payment") + "    raise RuntimeError")
    write("new", "")
    write("broken", "def (")
    for name in ("payment", "new", "broken", "some.where:agent"):
        require(name, folder)
    with pytest.raises(UnknownAgent, match="did you mean payment"):
        require("paymnt", folder)
    with pytest.raises(InvalidName):
        require("Payment", folder)
