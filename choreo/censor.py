"""Credentials are not shown: neither in log lines nor in whatever else says what went wrong."""

from __future__ import annotations

import re
from typing import Final

_BLANK: Final = re.compile(r"\s")
_WORD: Final = re.compile(r"\S+")
_NEXT_URL: Final = re.compile(r"(?<=,)(?=[a-z]{1,10}://)")


def censored(text: str) -> str:
    """Return `text` with the password of every URL in it replaced by ***.

    Where a password holds an unescaped "@", "/" or ":", rather more is hidden: up to the word's last "@".
    """
    if "://" not in text or "@" not in text:
        return text
    # Plain splitting, no backtracking: the time is linear in texts that somebody else wrote.
    return _WORD.sub(lambda word: "".join(map(_without_password, _NEXT_URL.split(word[0]))), text)


def _without_password(piece: str) -> str:
    scheme, _, rest = piece.partition("://")
    credentials, at, host = rest.rpartition("@")
    user, colon, _password = credentials.partition(":")
    return f"{scheme}://{user}:***@{host}" if at and colon else piece


def ended(text: str) -> str:
    """Return `text`, whose end is cut off, without the URL that the cut may run through.

    Half a URL is not recognised any more.
    """
    before, mark, after = text.rpartition("://")
    return before if mark and not _BLANK.search(after) else text


def begun(text: str) -> str:
    """Return `text`, whose beginning is cut off, without the URL that the cut may run through."""
    touched = _WORD.match(text)
    return text[touched.end() :] if touched and "@" in touched[0] else text
