"""The suite is `benchmarks/suite`: its options, fixtures and reports are plugins of pytest."""

import importlib.util

import pytest

NEEDED = ("h5py", "hypothesis", "jinja2", "lmdb", "matplotlib", "numpy", "PIL", "pytest_benchmark", "xxhash")

if missing := [name for name in NEEDED if not importlib.util.find_spec(name)]:
    pytest.exit(f"{', '.join(missing)}: not installed; pip install -r requirements.txt", pytest.ExitCode.USAGE_ERROR)

pytest_plugins = [
    "benchmarks.suite.options",
    "benchmarks.suite.cells",
    "benchmarks.suite.comparing",
    "benchmarks.suite.reporting",
    "benchmarks.suite.session",
]
