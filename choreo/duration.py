"""Lengths of time as people write them: "500ms", "30s", "5m", "1h30m", "2d"."""

from __future__ import annotations

import re
from datetime import timedelta

FORMS = "500ms, 30s, 5m, 2h, 1d, 1h30m or a number of seconds"

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")

Duration = str | int | float | timedelta


def seconds(value: Duration) -> float:
    """Return `value` in seconds. A bare number is seconds already.

    Raises ValueError that names the value and the allowed forms; a negative length is refused as well.
    """
    if isinstance(value, timedelta):
        result = value.total_seconds()
    elif isinstance(value, bool):
        raise _wrong(value)
    elif isinstance(value, int | float):
        result = float(value)
    elif isinstance(value, str):
        result = _parse(value)
    else:
        raise _wrong(value)
    if not 0 <= result < float("inf"):
        raise _wrong(value)
    return result


def text(value: float) -> str:
    """Return `value` seconds as a person would write it: 90 gives "1m30s", 0.25 gives "250ms"."""
    rest = round(value, 3)
    if rest < 1:
        return f"{value * 1000:.3f}".rstrip("0").rstrip(".") + "ms" if value else "0s"
    parts = []
    for unit in ("d", "h", "m"):
        count, rest = divmod(rest, _UNITS[unit])
        if count:
            parts.append(f"{count:.0f}{unit}")
    if rest:
        parts.append(f"{rest:.3f}".rstrip("0").rstrip(".") + "s")
    return "".join(parts)


def _parse(value: str) -> float:
    stripped = value.strip()
    try:
        return float(stripped)
    except ValueError:
        parts = _PART.findall(stripped)
    if not parts or "".join(number + unit for number, unit in parts) != stripped:
        raise _wrong(value)
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def _wrong(value: object) -> ValueError:
    return ValueError(f"{value!r} is not a length of time; write it as {FORMS}")
