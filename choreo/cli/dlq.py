"""`choreo dlq`: why messages died, and what to do about it: replay them to the agent that failed, or drop them."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from choreo.cli import options
from choreo.cli import output as out
from choreo.cli.options import Output, OutputOption, Url, Yes
from choreo.message import ASIDE, EXPIRATION
from choreo.printable import visible

if TYPE_CHECKING:
    from choreo.config.settings import Settings
    from choreo.operate.dlq import DeadLetterQueue, Look
    from choreo.operate.repair import Repair

T = TypeVar("T")

COLUMNS = ("id", "topic", "reason", "error", "reaction", "attempts", "last_failure", "correlation_id")
# In this order above the traceback and the body of a letter that is shown in full.
FIELDS = (
    "id",
    "topic",
    "agent",
    "reaction",
    "reason",
    "error_type",
    "error",
    "attempts",
    "first_failure",
    "last_failure",
    "correlation_id",
    "code_version",
    "content_type",
)

_SHORT_ERROR = 80  # characters of an error in a table
_SHOWN_BODY = 64 * 1024  # characters of a body that are shown to a person; a program gets all of it

app = typer.Typer(
    help="Dead letters: list and show them, replay them to the agent that failed, or drop them.", no_args_is_help=True
)

AgentArgument = Annotated[str, typer.Argument(metavar="AGENT", help="Agent whose dead letters to use.")]
IdArgument = Annotated[
    list[str] | None, typer.Argument(metavar="ID", help="Only the dead letters with these ids.", show_default=False)
]
IdOption = Annotated[
    list[str] | None, typer.Option("--id", metavar="ID", help="The same, as an option. Can be repeated.")
]
LimitOption = Annotated[
    int | None,
    typer.Option(
        "--limit", metavar="NUMBER", parser=options.whole("--limit", 1), help="Maximum number, from the oldest."
    ),
]


@app.command("list")
def list_(
    agent: AgentArgument,
    *,
    limit: Annotated[
        int,
        typer.Option(
            "--limit", metavar="NUMBER", parser=options.whole("--limit", 1), help="Maximum number, from the oldest."
        ),
    ] = 50,
    output: OutputOption = Output.TEXT,
    url: Url = None,
) -> None:
    """List dead letters, oldest first. Does not change the queue or its order."""
    from choreo.operate.dlq import summary

    settings = _settings(agent, url)
    look = _with(settings, agent, lambda queue: queue.look(limit=limit, bodies=False))
    found = [summary(letter.facts) for letter in look.letters]
    if output is Output.TEXT:
        found = [_line(row) for row in found]
    out.rows(found, output, COLUMNS, empty=f"no dead letters of {agent}")
    more = look.ready - len(look.letters)
    if more and look.seen == limit:
        out.note(f"{more} more; --limit shows them")
    _note_others(look, expected=min(limit, look.ready))


@app.command("show")
def show(
    agent: AgentArgument,
    named: IdArgument = None,
    *,
    ids: IdOption = None,
    limit: Annotated[
        int,
        typer.Option(
            "--limit",
            metavar="NUMBER",
            parser=options.whole("--limit", 1, 1000),
            help="Maximum number, from the oldest.",
        ),
    ] = 1,
    output: OutputOption = Output.TEXT,
    url: Url = None,
) -> None:
    """Show everything about dead letters: why and where they died, the traceback, headers and body."""
    from choreo.errors import PartlyDone, UsageError
    from choreo.operate.dlq import everything

    ids = [*(named or ()), *(ids or ())]
    settings = _settings(agent, url)
    look = _with(settings, agent, lambda queue: queue.look(limit=limit, ids=ids))
    found = [everything(letter) for letter in look.letters]
    if output is not Output.TEXT:
        out.rows(found, output, ())
    elif found:
        out.write("\n\n".join(map(_portrait, found)))
    missing = [each for each in dict.fromkeys(ids) if each not in {row["id"] for row in found}]
    if missing:
        kind = PartlyDone if found else UsageError
        raise kind(
            f"no letter with the id {', '.join(missing)} among the {look.seen} that could be seen",
            f"choreo dlq list {agent} shows which there are",
        )
    if not (found or ids):
        out.note(f"no dead letters of {agent}")
    if not ids:
        more = look.ready - len(found)
        if more and look.seen == limit:
            out.note(f"{more} more; --limit or an ID shows them")
        _note_others(look, expected=min(limit, look.ready))


@app.command("replay")
def replay(
    agent: AgentArgument,
    named: IdArgument = None,
    *,
    ids: IdOption = None,
    limit: LimitOption = None,
    without_headers: Annotated[
        bool,
        typer.Option(
            "--without-headers",
            help="Include dead letters whose headers could not be read or kept; send the events without them.",
        ),
    ] = False,
    expiring: Annotated[
        bool,
        typer.Option(
            "--expiring",
            help="Keep the time to live with which they were published. It starts again, and can expire again.",
        ),
    ] = False,
    yes: Yes = False,
    output: OutputOption = Output.TEXT,
    url: Url = None,
) -> None:
    """Send dead letters to the agent that failed, and to no other. Without ids or --limit: all, after confirmation.

    Each is sent unchanged, and removed only when the broker has confirmed its copy. One that dies again comes back, and
    is not replayed twice in one run. What the broker would act upon once more stays in the header choreo-aside: a time
    to live, copies to other queues (CC), the sender's user id, a record of earlier deaths.
    """
    ids = [*(named or ()), *(ids or ())]
    settings = _settings(agent, url)
    if not (ids or limit or yes):
        limit = _ask(settings, agent, "Replay {all} of {agent}?")
    _repair(settings, agent, "replay", output, ids, limit, incomplete=without_headers, expiring=expiring)


@app.command("drop")
def drop(
    agent: AgentArgument,
    named: IdArgument = None,
    *,
    ids: IdOption = None,
    limit: LimitOption = None,
    yes: Yes = False,
    output: OutputOption = Output.TEXT,
    url: Url = None,
) -> None:
    """Destroy dead letters, after confirmation: those with these ids, the first --limit, or all."""
    ids = [*(named or ()), *(ids or ())]
    settings = _settings(agent, url)
    if ids and not yes:
        out.confirm(f"Drop the dead letter {', '.join(ids)} of {agent} for good?", yes=False)
    elif not yes:
        limit = _ask(settings, agent, "Drop {all} of {agent} for good?", limit)
    _repair(settings, agent, "drop", output, ids, limit)


def _settings(agent: str, url: str | None) -> Settings:
    from choreo.observe import logs
    from choreo.operate.dlq import check_name

    out.keep_data_apart()
    check_name(agent)
    settings = options.settings(url=url)
    logs.configure(settings.log_level, settings.log_format)
    out.note_broker(settings)
    return settings


def _with(settings: Settings, agent: str, work: Callable[[DeadLetterQueue], Awaitable[T]], *, looks: bool = True) -> T:
    """Let `work` have the agent's dead-letter queue, in a session of its own. What looks may destroy is said first."""
    from choreo import loader
    from choreo.composition import sessions
    from choreo.operate.dlq import DeadLetterQueue
    from choreo.topology import Names

    async def run() -> T:
        async with sessions.session(settings, "choreo dlq") as session:
            known = loader.known(settings.agents_folder)
            names = Names(settings.namespace)
            timeout = settings.publish_timeout
            queue = DeadLetterQueue(session, names, agent, publish_timeout=timeout, known=known)
            for danger in await queue.dangers(sessions.management(settings)) if looks else ():
                out.note(f"choreo: {danger}")
            return await work(queue)

    return out.wait_for(run())


def _ask(settings: Settings, agent: str, question: str, limit: int | None = None) -> int:
    """Ask about as many letters as there are, and return that number: what comes later was not asked about.

    The session is closed while the question stands: a person may take longer to answer than a broker waits for a sign.
    """
    stats = _with(settings, agent, lambda queue: queue.stats(), looks=False)
    count = stats.ready if limit is None else min(limit, stats.ready)
    if count:
        many = "the dead letter" if count == 1 else f"the first {count} of {stats.ready} dead letters"
        if 1 < count == stats.ready:
            many = f"all {count} dead letters"
        out.confirm(question.format(all=many, agent=agent), yes=False)
    return count


def _repair(
    settings: Settings,
    agent: str,
    action: str,
    output: Output,
    ids: list[str],
    limit: int | None,
    *,
    incomplete: bool = False,
    expiring: bool = False,
) -> None:
    """Replay or drop, and say what was done. Raises what kept some or all of it from being done."""
    done = {"replay": "replayed", "drop": "dropped"}[action]
    count = 0

    with out.progress(action, len(ids) or limit) as advance:

        def done_one() -> None:
            nonlocal count
            count += 1
            advance()

        def work(queue: DeadLetterQueue) -> Awaitable[Repair]:
            if action == "replay":
                return queue.replay(limit=limit, ids=ids, progress=done_one, incomplete=incomplete, expiring=expiring)
            return queue.drop(limit=limit, ids=ids, progress=done_one)

        try:
            result = _with(settings, agent, work)
        except KeyboardInterrupt:
            out.note(f"choreo: interrupted; {count} {done}, the rest is still there")
            raise
    out.document({"agent": agent, "action": action} | result.data(), output, f"{result.done} {done}")
    if result.aside:
        what = ", ".join(f"{name} of {count}" for name, count in result.aside.items())
        ask = "; --expiring lets them expire anew" if EXPIRATION in result.aside else ""
        out.note(f"choreo: not done once more, and kept in the header {ASIDE}: {what}{ask}")
    result.check(done)


def _note_others(look: Look, expected: int) -> None:
    if len(look.letters) < expected:
        out.note(f"only {len(look.letters)} of {expected} could be seen: somebody else holds the others")
    elif look.others:
        out.note("somebody else looks at this queue too; what is held there is not shown and not counted")


def _line(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row for a table: one line, the error not longer than needed."""
    error = ": ".join(filter(None, ((row["error_type"] or "").rpartition(".")[2], row["error"])))
    error = error if len(error) <= _SHORT_ERROR else error[: _SHORT_ERROR - 1] + "…"
    time = (row["last_failure"] or "")[:19] or None
    short = row | {"error": error or None, "last_failure": time}
    return {name: value.replace("\n", " ") if isinstance(value, str) else value for name, value in short.items()}


def _portrait(row: dict[str, Any]) -> str:
    """Return a letter in full, for people."""
    told = [(name, row[name]) for name in FIELDS if row[name] is not None]
    told += [(name, value) for name, value in row["headers"].items()]
    width = max(len(visible(name)) for name, _ in told)
    lines = [f"{visible(name):<{width}}  {_indented(str(value), width + 2)}" for name, value in told]
    if row["traceback"]:
        lines += ["", row["traceback"].rstrip()]
    body = json.dumps(row["body"], indent=2, ensure_ascii=False) if row["is_json"] else row["body"]
    kind = "" if row["is_json"] else ", not JSON"
    lines += ["", f"body, {row['size']} bytes{kind}", body[:_SHOWN_BODY]]
    if len(body) > _SHOWN_BODY:
        lines.append("… and more; --output json has all of it")
    return "\n".join(lines)


def _indented(text: str, by: int) -> str:
    return text.replace("\n", "\n" + " " * by)
