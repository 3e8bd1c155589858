"""Foreign text on a terminal: what would move its cursor, turn its lines around or hide in them is shown as an escape.

That is whatever Unicode says is not printable: controls (C0, DEL, C1), marks of the direction of writing and others
that cannot be seen, separators of lines that are no line break, halves of characters.
"""

from __future__ import annotations

import re
from typing import Final

_DOUBTFUL: Final = re.compile(r"[^ -~]")
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")
_WORDS: Final = re.compile(r"( *)([^ ]+)")


def visible(text: str, keep: str = "\n\t") -> str:
    r"""Return `text` with everything escaped that is not printable, as Python writes it: \x9b, \u202e."""
    if text.isprintable():
        return text
    return _DOUBTFUL.sub(lambda found: _escaped(found[0], keep), text)


def visible_json(text: str) -> str:
    """Return JSON that means the same as `text`, which is JSON, without anything that is not printable."""
    if text.isprintable():
        return text
    return _DOUBTFUL.sub(lambda found: _json(found[0]), text)


def _escaped(character: str, keep: str) -> str:
    if character.isprintable() or character in keep:
        return character
    return character.encode("unicode_escape").decode()


def _json(character: str) -> str:
    if character.isprintable() or character == "\n":  # the only one outside of its strings
        return character
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


def folded(text: str, width: int | None, indent: int) -> str:
    """Return `text`, a line, on as many lines of `width` characters as it takes, never cut within a word.

    The later lines are indented. Colours, as ECMA-48 writes them, take no room. None: the line as it is.
    """
    if width is None or width < 2 * indent or len(_COLOUR.sub("", text)) <= width:
        return text
    lines, room = [""], width
    for gap, word in _WORDS.findall(text):
        needed = len(_COLOUR.sub("", gap + word))
        if needed > room and lines[-1].strip():
            lines.append(" " * indent + word)
            room = width - indent - len(_COLOUR.sub("", word))
        else:
            lines[-1] += gap + word
            room -= needed
    return "\n".join(lines)
