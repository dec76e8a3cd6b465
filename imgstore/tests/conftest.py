"""What every test of the package shares: the backends, and how long Hypothesis looks."""

import os
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import Phase, settings

from imgstore import BACKENDS

# No deadline: a sync waits for the disk. No database: an example that fails is printed, and leaves no file.
settings.register_profile(
    "imgstore",
    deadline=None,
    database=None,
    derandomize="CI" in os.environ,
    max_examples=30,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    report_multiple_bugs=False,
)
settings.load_profile("imgstore")


@pytest.fixture(scope="session", params=list(BACKENDS.values()), ids=list(BACKENDS))
def backend(request: pytest.FixtureRequest) -> ModuleType:
    module: ModuleType = request.param
    return module


@pytest.fixture
def store(backend: ModuleType, tmp_path: Path) -> Path:
    """A store of three images, ids 0 to 2."""
    root = tmp_path / "store"
    backend.store_many(root, np.arange(3 * 5 * 4, dtype=np.uint8).reshape(3, 5, 4), [7, 8, 9], durable=False)
    return root
