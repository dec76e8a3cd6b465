"""A name put into all modules of `benchmarks.measure` that have it."""

import sys
from typing import Any

import pytest


def put(monkeypatch: pytest.MonkeyPatch, name: str, value: Any) -> None:
    modules = [
        module
        for path, module in [*sys.modules.items()]
        if path.startswith("benchmarks.measure.") and hasattr(module, name)
    ]
    assert modules, f"no module has {name}"
    for module in modules:
        monkeypatch.setattr(module, name, value)
