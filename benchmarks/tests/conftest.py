"""What tests of the report share."""

import pytest

from benchmarks.report import drawing


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts are empty, for tests of something else: drawing them takes most of the time of a report."""
    monkeypatch.setattr(drawing, "_drawn", lambda figure, kind: b"<svg></svg>")
