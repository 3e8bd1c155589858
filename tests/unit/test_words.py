"""Docs, messages, help and docstrings use the words of CONTRIBUTING.md's glossary, not their synonyms."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
CODE = [path for folder in ("choreo", "agents", "demo") for path in sorted((ROOT / folder).rglob("*.py"))]
GENERATED = {"performance.md", "reliability.md"}  # their sentences are in tests/benchmarks and tests/faults
PAGES = [CONTRIBUTING, ROOT / "README.md"] + [
    path for path in sorted((ROOT / "docs").glob("*.md")) if path.name not in GENERATED
]

_DETERMINERS = (
    r"an?|the|each|every|one|another|first|next|last|this|that|no|which|its|all|other|further|two|many|several"
)

# A word of the glossary, and how its synonyms look where they stand for it.
SYNONYMS = {
    "attempt": rf"\b(?:{_DETERMINERS}|\d+)\s+(?:try\b(?!\s*:)|tries\b)",
    "retry": r"\btr(?:y|ied) again (?:in|at once|later|every)\b",
    "requeue": (
        r"\b(?:g[ia]ve[sn]?|giving|hand(?:s|ed|ing)?)\s+"
        r"(?:(?:it|them|its|the|a|what|rest|delivery|deliveries|messages?|suspects)\s+){0,3}back\b"
    ),
    "dead-letter": r"\b(?:bury|buries|buried|burying)\b",
    "hop": r"\bsteps?\s+(?:that were gone|were gone|gone|of a choreography|that the signatures)\b",
    "cycle": r"\bevent loops? without\b|\bloops? (?:of events|through a program|that is meant|that amplifies)\b",
    "hint": r"\bways? out\b",
    "fix": r"\bmend(?:s|ed|ing)?\b",
}
# Wording that a native engineer stumbles over, whatever it stands for.
QUAINT = {
    "by default": r"\bunless\b[^.|]{0,40}\b(?:says?|said|told)\s+otherwise\b",
    "other messages": r"\bneighbours?\b",
    "is not a": (
        r"(?<!there )\bis no "
        r"(?!longer|more\b|better\b|reason\b|business\b|limit\b|agent's|broker's|answer of)[a-z]+"
    ),
    "again": r"\b(?:starts?|began|begins?|declared?|opened?|pins) anew\b",
}


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the number and the text of each piece of prose: paragraphs of a page; texts and comments of a module."""
    text = without_glossary(path.read_text())
    if path.suffix == ".md":
        yield 1, re.sub(r"(?ms)^```.*?^```", lambda block: "\n" * block[0].count("\n"), text)
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
    comments = [
        token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type == tokenize.COMMENT
    ]
    yield from ((token.start[0], token.string) for token in comments)


def found(path: Path, patterns: dict[str, str]) -> list[str]:
    """Return `file:line: "what is written": use "word"` for each match in the prose of `path`."""
    complaints = []
    for first, text in prose(path):
        for word, pattern in patterns.items():
            for match in re.finditer(pattern, text, re.IGNORECASE):
                line, written = first + text.count("\n", 0, match.start()), " ".join(match[0].split())
                complaints.append(f'{path.relative_to(ROOT)}:{line}: "{written}": use "{word}"')
    return complaints


def without_glossary(text: str) -> str:
    """Return the page without the section that has to name the synonyms."""
    return re.sub(r"(?ms)^## Glossary$.*?(?=^## )", lambda section: "\n" * section[0].count("\n"), text)


@pytest.mark.parametrize("path", [*PAGES, *CODE], ids=lambda path: str(path.relative_to(ROOT)))
def test_one_word_for_each_meaning(path: Path) -> None:
    """Prose names a thing as the glossary does, and in plain English."""
    assert found(path, SYNONYMS | QUAINT) == []


def test_every_word_that_is_looked_for_is_in_the_glossary() -> None:
    """The glossary says which word to use, and which not, for whatever the test would refuse."""
    section = re.search(r"(?ms)^## Glossary$(.*?)^## ", CONTRIBUTING.read_text())
    assert section
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in section[1].splitlines() if line.startswith("|")
    ]
    with_synonyms = {word.removesuffix(" (verb)") for word, _, synonyms in rows[2:] if synonyms}
    assert set(SYNONYMS) == with_synonyms


@pytest.mark.parametrize(
    ("written", "word"),
    [
        ("the next try is due", "attempt"),
        ("it is handed back", "requeue"),
        ("hand the rest\nback", "requeue"),
        ("give its delivery back", "requeue"),
        ("the way out", "hint"),
        ("mends it", "fix"),
        ("the broker buries it", "dead-letter"),
        ("it tries to connect, then tries again", None),
    ],
)
def test_what_is_refused(written: str, word: str | None) -> None:
    """The patterns see a synonym where it stands for the word, over line ends too, and nothing else."""
    assert [each for each, pattern in SYNONYMS.items() if re.search(pattern, written, re.IGNORECASE)] == (
        [word] if word else []
    )
