"""What a run was made of: machine, file system, versions, images and terms; and when two runs compare."""

import base64
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import h5py
import lmdb

from benchmarks.measure.images import Source
from benchmarks.measure.machine import total_memory
from benchmarks.report.contact_sheet import contact_sheet, sizes

RAM_DISKS = ("tmpfs", "ramfs")
COMPARED = ("images", "terms", "file system")
SHOWN = ("images", "contact sheet")  # in which runs may differ that compare


def file_system(directory: str) -> tuple[str, str]:
    """Type and device of the file system that `directory` lies on, as the kernel names them."""
    status = os.stat(directory)
    number = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    with open("/proc/self/mountinfo", encoding="utf-8") as mounts:
        for line in reversed(mounts.readlines()):
            fields, _, source = line.partition(" - ")
            if fields.split()[2] == number:
                kind, device = source.split()[:2]
                return kind, device
    return "unknown", number


def recorded(sources: Sequence[Source], terms: dict[str, Any], store_directory: str) -> dict[str, Any]:
    """What the JSON's machine information says beside what pytest-benchmark puts there."""
    kind, device = file_system(store_directory)
    packages = ("numpy", "pillow", "lmdb", "h5py", "xxhash", "pytest-benchmark")
    return {
        "images": {
            "name": "; ".join(source.name for source in sources),
            "fingerprint": "-".join(source.fingerprint for source in sources),
            "count": len(sources[0].images),
            "sizes": "; ".join(sizes(source.images) for source in sources),
            **not_measured(sources[0]),
        },
        "contact sheet": base64.b64encode(contact_sheet(sources[0].images)).decode(),
        "memory_bytes": total_memory(),
        "terms": terms,
        "file system": {"type": kind, "device": device},
        "kernel": platform.release(),
        "versions": {name: version(name) for name in packages}
        | {"LMDB": ".".join(map(str, lmdb.version())), "HDF5": h5py.version.hdf5_version},
    }


def not_measured(source: Source) -> dict[str, Any]:
    """What of a folder is not among the images, where there is such."""
    kinds = {"left out": len(source.left_out), "not looked at": source.not_looked_at}
    return {kind: found for kind, found in kinds.items() if found}


def incomparable(now: dict[str, Any], saved: dict[str, Any]) -> str | None:
    """Why two recorded runs cannot be compared, in one line, or None."""
    if not saved:
        return "the saved run does not say what was measured"
    for name in COMPARED:
        if compared_part(now, name) != compared_part(saved, name):
            return f"not the same {name}: {shown(now[name])} now, {shown(saved.get(name, {}))} in the saved run"
    return None


def compared_part(run: dict[str, Any], name: str) -> Any:
    """Images are the same whatever they are called."""
    part = run.get(name, {})
    return part.get("fingerprint") if name == "images" else part


def shown(part: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in part.items()) or "nothing"


def missing_rows(compared: dict[Any, dict[str, Any]], cells: list[str], all_must_match: bool) -> str | None:
    """Why a comparison with these saved runs would say nothing, or None; `cells` are this run's names."""
    saved = {name for run in compared.values() for name in run}
    missing = [name for name in cells if name not in saved]
    if not compared:
        return "there is no such saved run; make one with --benchmark-autosave"
    if len(missing) == len(cells):
        return "the saved run has no cell of this one; choose the same --cutoffs and --backends"
    if all_must_match and missing:
        return f"{len(missing)} of {len(cells)} cells are not in the saved run, {missing[0]} among them"
    return None


def forget_clock_speed(machine_info: dict[str, Any]) -> None:
    """Drop what wavers from run to run on one machine, and would make each look like another machine."""
    for name in [name for name in machine_info.get("cpu", {}) if name.startswith("hz_actual")]:
        del machine_info["cpu"][name]
