"""Tests of what is recorded with a run, and of when two runs compare."""

import base64
import copy
import io
import json
import os
import platform
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import lmdb
import numpy as np
import PIL
import pytest
import xxhash

from benchmarks.measure.cell import Terms
from benchmarks.measure.images import Source
from benchmarks.measure.machine import free_memory
from benchmarks.measure.synthetic import synthetic
from benchmarks.report import conditions as terms
from benchmarks.report.conditions import file_system, forget_clock_speed, incomparable, missing_rows, recorded, shown
from benchmarks.report.contact_sheet import contact_sheet

FLOOR, LMDB, HDF5 = (f"benchmarks/test_read.py::test_read_one[10-{name}]" for name in ("floor", "lmdb", "hdf5"))


@pytest.mark.parametrize(("directory", "kind"), [("/proc", "proc"), ("/sys", "sysfs"), ("/dev/shm", "tmpfs")])
def test_file_system_of_a_known_mount(directory: str, kind: str) -> None:
    if not os.path.ismount(directory):
        pytest.skip(f"{directory} is no mount of its own here")
    assert file_system(directory)[0] == kind
    assert file_system(directory)[1]


@pytest.mark.parametrize("directory", ["/", "/dev", "/proc/self", "."])
def test_file_system_agrees_with_findmnt(tmp_path: Path, directory: str) -> None:
    if not shutil.which("findmnt"):
        pytest.skip("there is no findmnt")
    path = tmp_path if directory == "." else directory
    found = subprocess.run(["findmnt", "-nr", "-o", "FSTYPE,SOURCE", "-T", path], capture_output=True, text=True)
    assert " ".join(file_system(str(path))) == found.stdout.splitlines()[-1]


def test_file_system_without_a_mount_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        terms, "open", lambda *_, **__: io.StringIO("24 1 999:9 / / rw - ext4 /dev/x rw\n"), raising=False
    )
    status = os.stat(tmp_path)
    assert file_system(str(tmp_path)) == ("unknown", f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}")


def test_the_last_of_stacked_mounts_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = os.stat(tmp_path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    lines = f"1 0 {number} / / rw - rootfs none rw\n2 1 {number} / / rw shared:1 - ext4 /dev/disk rw,relatime\n"
    monkeypatch.setattr(terms, "open", lambda *_, **__: io.StringIO(lines), raising=False)
    assert file_system(str(tmp_path)) == ("ext4", "/dev/disk")


@pytest.fixture
def source() -> Source:
    return synthetic(3)


@pytest.fixture
def run(tmp_path: Path, source: Source) -> dict[str, Any]:
    terms = asdict(Terms(durable=False, cold=True, verify=False))
    return recorded([source], terms, str(tmp_path))


def test_recorded_says_what_was_measured(tmp_path: Path, source: Source, run: dict[str, Any]) -> None:
    kind, device = file_system(str(tmp_path))
    assert run["images"] == {
        "name": "synthetic 32x32x3",
        "fingerprint": source.fingerprint,
        "count": 3,
        "sizes": "32x32x3 uint8",
    }
    assert base64.b64decode(run["contact sheet"]) == contact_sheet(source.images)
    assert run["memory_bytes"] > free_memory()
    assert run["terms"] == {"durable": False, "cold": True, "verify": False}
    assert run["file system"] == {"type": kind, "device": device}
    assert run["kernel"] == platform.release()


def test_recorded_names_the_images_of_each_size(tmp_path: Path) -> None:
    sources = [synthetic(3), synthetic(3, 48)]
    images = recorded(sources, {}, str(tmp_path))["images"]
    assert images["name"] == "synthetic 32x32x3; synthetic 48x48x3"
    assert images["fingerprint"] == f"{sources[0].fingerprint}-{sources[1].fingerprint}"


def test_recorded_names_the_versions_that_ran(run: dict[str, Any]) -> None:
    assert run["versions"] == {
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "lmdb": lmdb.__version__,
        "h5py": h5py.__version__,
        "xxhash": xxhash.VERSION,
        "pytest-benchmark": run["versions"]["pytest-benchmark"],
        "LMDB": "{}.{}.{}".format(*lmdb.version()),
        "HDF5": h5py.version.hdf5_version,
    }


def test_what_is_recorded_survives_json(run: dict[str, Any]) -> None:
    assert json.loads(json.dumps(run)) == run
    assert incomparable(run, json.loads(json.dumps(run))) is None


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("images", "fingerprint", "0123456789abcdef"),
        ("terms", "durable", True),
        ("terms", "cold", False),
        ("terms", "verify", True),
        ("file system", "type", "xfs"),
        ("file system", "device", "/dev/other"),
    ],
)
def test_runs_that_differ_do_not_compare(run: dict[str, Any], part: str, key: str, value: Any) -> None:
    saved = copy.deepcopy(run)
    saved[part][key] = value
    reason = incomparable(run, saved)
    assert reason and reason.startswith(f"not the same {part}: ") and "\n" not in reason
    now, _, then = reason.partition(" now, ")
    assert f"{key} {run[part][key]}" in now and f"{key} {value}" in then


@pytest.mark.parametrize(("part", "value"), [("kernel", "9.9"), ("versions", {"numpy": "1.0"})])
def test_other_versions_compare(run: dict[str, Any], part: str, value: Any) -> None:
    assert incomparable(run, {**run, part: value}) is None


def test_the_same_images_under_another_name_compare(run: dict[str, Any]) -> None:
    renamed = {**run, "images": {**run["images"], "name": "folder elsewhere (3 images)"}}
    assert incomparable(run, renamed) is None


@pytest.mark.parametrize("part", ["images", "terms", "file system"])
def test_a_saved_run_that_lacks_a_part_does_not_compare(run: dict[str, Any], part: str) -> None:
    saved = {name: value for name, value in run.items() if name != part}
    assert (incomparable(run, saved) or "").endswith("nothing in the saved run")


def test_a_run_of_another_suite_does_not_compare(run: dict[str, Any]) -> None:
    assert incomparable(run, {}) == "the saved run does not say what was measured"


def test_shown_is_one_line() -> None:
    assert shown({"durable": True, "cold": False}) == "durable True, cold False"
    assert shown({}) == "nothing"


def saved_with(*runs: list[str]) -> dict[str, dict[str, Any]]:
    """What pytest-benchmark holds of saved runs: for each path, the cells by name."""
    return {f"{number:04d}.json": {name: {} for name in names} for number, names in enumerate(runs)}


@pytest.mark.parametrize(
    ("compared", "cells", "all_must_match", "reason"),
    [
        (saved_with([FLOOR, LMDB]), [FLOOR, LMDB], True, None),
        (saved_with([FLOOR, LMDB, HDF5]), [LMDB], True, None),
        (saved_with([FLOOR], [LMDB]), [FLOOR, LMDB], True, None),
        (saved_with([FLOOR]), [FLOOR, LMDB], False, None),
        (saved_with([FLOOR]), [FLOOR, LMDB, HDF5], True, f"2 of 3 cells are not in the saved run, {LMDB} among them"),
        (saved_with([FLOOR]), [LMDB], False, "the saved run has no cell of this one"),
        (saved_with([]), [LMDB], False, "the saved run has no cell of this one"),
        (saved_with(), [LMDB], False, "there is no such saved run"),
        (saved_with(), [LMDB], True, "there is no such saved run"),
    ],
)
def test_missing_rows(
    compared: dict[str, dict[str, Any]], cells: list[str], all_must_match: bool, reason: str | None
) -> None:
    given = missing_rows(compared, cells, all_must_match)
    assert given == reason if reason is None else (given or "").startswith(reason)


def test_forget_clock_speed_keeps_what_a_machine_is() -> None:
    kept = {"brand_raw": "a CPU", "hz_advertised": [2, 0], "count": 2}
    machine_info = {"node": "here", "cpu": {**kept, "hz_actual": [1, 0], "hz_actual_friendly": "1 Hz"}}
    forget_clock_speed(machine_info)
    assert machine_info == {"node": "here", "cpu": kept}


@pytest.mark.parametrize("machine_info", [{}, {"cpu": {}}])
def test_forget_clock_speed_where_there_is_none(machine_info: dict[str, Any]) -> None:
    before = copy.deepcopy(machine_info)
    forget_clock_speed(machine_info)
    assert machine_info == before
