"""What commands say on stderr when they cannot go on."""

from __future__ import annotations

import pytest

from choreo.cli import complaints, output
from choreo.errors import ChoreoError

URL = "amqps://shop:hunter2@broker.internal"


def test_no_password_of_a_url_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither of our own errors nor of those of a user's module or of a library, with or without a traceback."""
    for error in (ChoreoError(f"no broker at {URL}"), ValueError(f"cannot parse {URL!r}"), SyntaxError(URL)):
        complaints.complain(str(error), f"look at {URL}")
        complaints.of_import("agents.shop", error)
        complaints.of_anything_else(error)
        output.note(f"choreo: {error}")
    said = capsys.readouterr().err
    assert said.count("amqps://shop:***@broker.internal") >= 12
    assert "hunter2" not in said
