"""Bar charts as SVG, on a card of their own that follows the reader's light or dark scheme."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

_COLUMN: Final = 470  # pixels, as everything here
_LABEL: Final = 112
_BAR: Final = 205
_ROW: Final = 21
_TITLE: Final = 42
_GAP: Final = 20
_MARGIN: Final = 24

_STYLE: Final = """
  .card { fill: #ffffff; stroke: #d0d7de } text { fill: #24292f; font: 13px system-ui, "DejaVu Sans", sans-serif }
  .title { font-weight: 600; font-size: 14px } .note { fill: #57606a; font-size: 11.5px } .ours { font-weight: 600 }
  .bar { fill: #a6b4c2 } .bar.ours { fill: #d9480f }
  @media (prefers-color-scheme: dark) {
    .card { fill: #0d1117; stroke: #30363d } text { fill: #e6edf3 } .note { fill: #9198a1 }
    .bar { fill: #56636f } .bar.ours { fill: #ff7b39 }
  }
"""


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: whose it is, how long, and what stands at its end."""

    label: str
    value: float
    text: str
    ours: bool


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart: bars from the best to the worst."""

    title: str
    note: str
    bars: Sequence[Bar]


def draw(panels: Sequence[Panel]) -> str:
    """Return the panels in two columns as one SVG."""
    pieces: list[str] = []
    top = _MARGIN
    for row in range(0, len(panels), 2):
        pair = panels[row : row + 2]
        for column, panel in enumerate(pair):
            pieces += _panel(panel, _MARGIN + column * _COLUMN, top)
        top += _TITLE + max(len(panel.bars) for panel in pair) * _ROW + _GAP
    width, height = 2 * _COLUMN + _MARGIN, top + _MARGIN - _GAP
    card = f'<rect class="card" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8"/>'
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    content = "\n".join([f"<style>{_STYLE}</style>", card, *pieces])
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">\n{content}\n</svg>\n'


def _panel(panel: Panel, left: int, top: int) -> list[str]:
    longest = max((bar.value for bar in panel.bars), default=0) or 1
    pieces = [
        f'<text class="title" x="{left}" y="{top + 12}">{escape(panel.title)}</text>',
        f'<text class="note" x="{left}" y="{top + 29}">{escape(panel.note)}</text>',
    ]
    for number, bar in enumerate(panel.bars):
        y = top + _TITLE + number * _ROW
        ours = " ours" if bar.ours else ""
        length = max(bar.value / longest * _BAR, 1)
        start = left + _LABEL
        pieces += [
            f'<text class="{ours.strip()}" x="{start - 8}" y="{y + 12}" text-anchor="end">{escape(bar.label)}</text>',
            f'<rect class="bar{ours}" x="{start}" y="{y}" width="{length:.1f}" height="15" rx="2"/>',
            f'<text class="{ours.strip()}" x="{start + length + 6:.1f}" y="{y + 12}">{escape(bar.text)}</text>',
        ]
    return pieces
