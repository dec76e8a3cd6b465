"""Tests that tools of others can read a run: what each takes from the JSON, and pytest-codspeed itself."""

import importlib.util
import json
import math
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tests.test_run import BACKENDS, CELLS, ROOT, SECONDS, command, environment, measure

# What github-action-benchmark says of its tool `pytest`, in src/extract.ts: PytestBenchmarkJson.
STATISTICS = ("min", "max", "mean", "stddev", "median", "q1", "q3", "ld15iqr", "hd15iqr", "ops", "total")
COUNTS = ("rounds", "iterations", "stddev_outliers")
MACHINE = (
    "node",
    "processor",
    "machine",
    "python_compiler",
    "python_implementation",
    "python_implementation_version",
    "python_version",
    "release",
    "system",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("consumers")
    assert measure(folder, f"--benchmark-json={folder / 'run.json'}", "-kread_one").status == 0
    saved: dict[str, Any] = strict((folder / "run.json").read_text(encoding="utf-8"))
    return saved


def strict(text: str) -> Any:
    """As other languages read JSON, which know neither NaN nor Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def test_github_action_benchmark_reads_it(run: dict[str, Any]) -> None:
    assert all(isinstance(run["machine_info"][name], str) for name in MACHINE)
    assert all(isinstance(run["commit_info"][name], str) for name in ("id", "time", "author_time", "project", "branch"))
    assert isinstance(run["commit_info"]["dirty"], bool) and isinstance(run["datetime"], str)
    assert len(run["benchmarks"]) == len(BACKENDS)
    for benchmark in run["benchmarks"]:
        stats = benchmark["stats"]
        assert all(is_number(stats[name]) for name in STATISTICS)
        assert all(isinstance(stats[name], int) for name in COUNTS)
        assert isinstance(benchmark["extra_info"], dict) and all(map(is_number, stats["data"]))
        assert stats["ops"] == pytest.approx(1 / stats["mean"])


def test_names_tell_every_cell_apart(run: dict[str, Any]) -> None:
    names = [benchmark["fullname"] for benchmark in run["benchmarks"]]
    assert len(set(names)) == len(names) and all(isinstance(name, str) and name.strip() for name in names)


def test_bencher_reads_it(run: dict[str, Any]) -> None:
    """Its adapter `python_pytest` wants two objects, and of each benchmark a name and four statistics."""
    assert isinstance(run["machine_info"], dict) and isinstance(run["commit_info"], dict)
    for benchmark in run["benchmarks"]:
        assert 0 < len(benchmark["fullname"]) <= 1024
        assert all(is_number(benchmark["stats"][name]) for name in ("mean", "stddev", "median", "iqr"))


def test_pytest_codspeed_runs_every_cell(tmp_path: Path) -> None:
    if importlib.util.find_spec("pytest_codspeed") is None:
        pytest.skip("pytest-codspeed is not installed; see .ci/requirements.txt")
    (tmp_path / "stores").mkdir()
    quick = ("--codspeed", "--codspeed-warmup-time=0", "--codspeed-max-rounds=1")
    ended = subprocess.run(
        command(tmp_path / "stores", *quick),
        cwd=ROOT,
        env=environment(tmp_path, "pytest_codspeed.plugin") | {"CODSPEED_PROFILE_FOLDER": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"{CELLS} benchmarked" in ended.stdout and f"{CELLS} passed" in ended.stdout
