"""docs/settings.md lists every setting, with its default."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import SecretStr

from choreo import duration
from choreo.config.settings import Settings

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"
ROW = re.compile(r"^\| `CHOREO_(\w+)` \| `(\w+)` \| (?:`([^`]*)`)? ?\|", re.MULTILINE)


def test_every_setting_is_on_the_page_with_its_default() -> None:
    """The table has a row per field, spelt as variable and as key, and the default that the code has."""
    rows = {key: (variable.lower(), default) for variable, key, default in ROW.findall(PAGE.read_text())}
    assert set(rows) == set(Settings.model_fields)
    for name, field in Settings.model_fields.items():
        variable, default = rows[name]
        assert variable == name
        value = field.default
        if isinstance(value, SecretStr):
            value = value.get_secret_value()
        if isinstance(value, float):
            value = duration.text(value)
        if isinstance(value, bool):
            value = str(value).lower()
        assert default == ("" if value is None else str(value)), name
