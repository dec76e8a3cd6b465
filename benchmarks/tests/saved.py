"""Saved runs as pytest-benchmark writes them, made up for tests: known medians, known intervals."""

import json
from pathlib import Path
from typing import Any

from benchmarks.measure.floor import FLOOR
from benchmarks.measure.operations import OPERATIONS
from benchmarks.measure.synthetic import synthetic
from benchmarks.report.contact_sheet import contact_sheet
from benchmarks.report.runs import Run, read_run
from imgstore import BACKENDS

MOVED = {"read_batch": 256, "read_many": None, "store_many": None}  # images in a call; None for all
SECONDS = {FLOOR: 1.0, "disk": 40.0, "lmdb": 3.0, "hdf5": 2.0}  # microseconds of an image


def cell(
    operation: str,
    backend: str,
    cutoff: int = 1000,
    median: float = 0.5,
    interval: tuple[float, float] = (0.98, 1.02),
    rounds: int = 10,
    disk: float = 4096.0,
    **facts: Any,
) -> dict[str, Any]:
    """A measured cell: its median in seconds and its interval in multiples of it; the extremes lie farther out."""
    images = MOVED.get(operation, 1) or cutoff
    stats = {
        "min": median * interval[0] * 0.9,
        "q1": median * interval[0],
        "median": median,
        "q3": median * interval[1],
        "max": median * interval[1] * 1.1,
        "rounds": rounds,
    }
    extra = {
        "operation": operation,
        "backend": backend,
        "cutoff": cutoff,
        "images_per_call": images,
        "pixel_bytes_per_call": 3072.0 * images,
        "disk_bytes_per_image": disk,
        **facts,
    }
    return {"name": f"test_{operation}[{cutoff}-{backend}]", "stats": stats, "extra_info": extra}


def grid(cutoffs: tuple[int, ...] = (10, 1000), slower: float = 1.0, **facts: Any) -> list[dict[str, Any]]:
    """Every operation of ours with every backend."""
    return [
        cell(name, backend, cutoff, slower * SECONDS[backend] * 1e-6 * (MOVED.get(name, 1) or cutoff), **facts)
        for name in OPERATIONS
        for backend in (FLOOR, *BACKENDS)
        for cutoff in cutoffs
    ]


def document(cells: list[dict[str, Any]], day: int = 1, **parts: Any) -> dict[str, Any]:
    """A run of that day of November; `parts` replace those of what it was made of."""
    source = synthetic(3)
    made_of = {
        "command": "pytest benchmarks --report out",
        "images": {"name": source.name, "fingerprint": "00", "count": 3, "sizes": "32x32x3 uint8"},
        "contact sheet": "",
        "terms": {"durable": True, "cold": False, "verify": True},
        "file system": {"type": "ext4", "device": "/dev/sda1"},
        "kernel": "6.1",
        "versions": {"numpy": "2.4.6"},
        **parts,
    }
    return {
        "machine_info": {
            "machine": "x86_64",
            "system": "Linux",
            "python_version": "3.11.7",
            "cpu": {"brand_raw": "a processor", "count": 2},
            "imgstore": made_of,
        },
        "command": made_of.pop("command"),
        "commit_info": {"id": f"{day:02d}abcdef0123", "time": f"2026-11-{day:02d}T10:00:00+00:00", "dirty": False},
        "datetime": f"2026-11-{day:02d}T12:00:00+00:00",
        "benchmarks": cells,
    }


def saved(folder: Path, *documents: dict[str, Any]) -> list[Path]:
    paths = [folder / f"{number:04d}.json" for number in range(len(documents))]
    for path, content in zip(paths, documents, strict=True):
        path.write_text(json.dumps(content), encoding="utf-8")
    return paths


def runs(folder: Path, *documents: dict[str, Any]) -> list[Run]:
    return [read_run(path) for path in saved(folder, *documents)]


def sheet() -> bytes:
    return contact_sheet(synthetic(6).images)
