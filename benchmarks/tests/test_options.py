"""Options that were mistyped, or given where they are of no use."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.tests.test_run import ROOT, measure


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("--image=x", "--images"),
        ("--cutoff=10", "--cutoffs"),
        ("--backend=disk", "--backends"),
        ("--reader=2", "--readers"),
    ],
)
def test_the_nearest_option_is_named(tmp_path: Path, given: str, meant: str) -> None:
    run = measure(tmp_path, given)
    assert run.status == pytest.ExitCode.USAGE_ERROR and f"did you mean: {meant}\n" in run.err


def test_nothing_is_named_that_is_not_near(tmp_path: Path) -> None:
    run = measure(tmp_path, "--nothing-like-it")
    assert run.status == pytest.ExitCode.USAGE_ERROR and "did you mean" not in run.err


@pytest.mark.parametrize(
    "where", [[], ["imgstore/tests"], ["benchmarks/tests/test_options.py::test_x", "imgstore/tests"]]
)
def test_the_tests_take_no_images(where: list[str], tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", f"--images={tmp_path}", *where],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"the tests take no images; to measure with them: pytest benchmarks --images={tmp_path}" in ended.stderr


def test_images_that_are_not_there_are_refused_before_anything_is_collected(tmp_path: Path) -> None:
    broken = tmp_path / "test_broken.py"
    broken.write_text("raise RuntimeError")
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "--images=/nowhere", str(broken), "benchmarks"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "--images: /nowhere: there is no such file or folder" in ended.stderr and "RuntimeError" not in ended.stdout


def test_what_is_not_installed_is_named_in_a_line(tmp_path: Path) -> None:
    hidden = """
import importlib.util, sys, pytest
genuine = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "lmdb" else genuine(name, *rest)
sys.exit(pytest.main(["benchmarks"]))
"""
    ended = subprocess.run([sys.executable, "-c", hidden], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == pytest.ExitCode.USAGE_ERROR and "Traceback" not in ended.stdout + ended.stderr
    assert "lmdb: not installed; pip install -r requirements.txt" in ended.stdout + ended.stderr
