"""What the demo shows: a table that changes in place on a terminal, a line for each thing that happens elsewhere."""

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from demo.ledger import End, Ledger, Story

STYLES: dict[End | None, str] = {
    End.COMPLETED: "green",
    End.DECLINED: "yellow",
    End.REFUNDED: "yellow",
    End.DEAD: "bold red",
}

WIDE = 100  # columns that the longest way of an order needs
TITLE = max(map(len, End))


class Screen:
    """Shows the stories of a ledger. `items` is what was ordered, by order, in words."""

    def __init__(self, console: Console, ledger: Ledger, items: Mapping[str, str]) -> None:
        self._console = console
        self._ledger = ledger
        self._items = items
        self._began = 0.0
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.refresh()
        if self._live:
            self._live.stop()
            self._live = None  # from here on, a line for each thing that happens

    def happened(self, story: Story, what: str) -> None:
        """Show what was seen or heard of an order; the table shows it at the next `refresh`."""
        if self._live is None:
            line = f"{time.monotonic() - self._began:5.1f} s  {story.order:>4}  {what}"
            self._console.print(line, style=_style(story), markup=False, soft_wrap=True)

    def refresh(self) -> None:
        """Draw the table anew."""
        if self._live:
            self._live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2), expand=True)
        table.add_column(width=4)
        table.add_column(width=max(map(len, self._items.values())))
        table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        for story in self._ledger:
            table.add_row(story.order, self._items.get(story.order, ""), _trail(story, self._console))
        ended = sum(self._ledger.count().values())
        table.add_row("", "", f"{ended} ended, {len(self._ledger.open)} on their way", style="dim")
        return table


def summary(ledger: Ledger) -> Text:
    """Return how each order ended, and why where it did not end well."""
    text = Text()
    for end in (*End, None):
        stories = [story for story in ledger if story.end is end]
        if end or stories:
            text.append(f"\n{end or 'still open':<{TITLE}} {len(stories):>2}", STYLES.get(end, "bold red"))
            text.append(_orders(stories, end))
    return text


def _orders(stories: Sequence[Story], end: End | None) -> str:
    if end is End.COMPLETED:
        return f"   {' '.join(story.order for story in stories)}"
    return "".join(f"\n   {story.order}  {_why(story)}" for story in stories)


def _why(story: Story) -> str:
    return story.news or story.reason or " ".join(["placed, and seen last:", *story.path[-1:]])


def _trail(story: Story, console: Console) -> Text:
    """Return the way of an order in short words: its topics, without what they are about."""
    arrow = "→" if console.encoding.startswith("utf") else ">"
    separator = f" {arrow} " if console.width >= WIDE else arrow
    trail = Text(separator.join(topic.rpartition(".")[2] for topic in story.path), _style(story))
    if story.news:
        trail.append(f"  {story.news}", "red")
    return trail


def _style(story: Story) -> str:
    return "" if story.end is None else STYLES[story.end]
