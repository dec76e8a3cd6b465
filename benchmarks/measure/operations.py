"""Each operation once: what is prepared before a round, the call that is timed, and the check of its result.

`Workload.call` is the backend's bare function. Preparing, the syncing of earlier writes, the eviction of a
cold cache and the check all stand outside the clock.
"""

from typing import Any

from benchmarks.measure.cell import Rounds
from benchmarks.measure.machine import disk_bytes
from benchmarks.measure.memory import peak_growth
from benchmarks.measure.reading import ReadBatch, ReadMany, ReadOne, ReadSingle
from benchmarks.measure.storing import StoreMany, StoreSingle
from benchmarks.measure.workload import Workload

OPERATIONS: dict[str, type[Workload]] = {
    kind.operation: kind for kind in (StoreMany, ReadMany, ReadBatch, ReadOne, ReadSingle, StoreSingle)
}


def stores(operation: str) -> bool:
    return operation.startswith("store")


def verb_of(operation: str) -> str:
    """The verb of a backend that the operation calls."""
    return "open_reader" if operation in (ReadOne.operation, ReadBatch.operation) else operation


def measure(benchmark: Any, workload: Workload, rounds: Rounds | None) -> None:
    """Time a workload with pytest-benchmark's fixture and check its result; with no rounds, just once.

    A cell that fails is marked, so that pytest-benchmark leaves it out of its JSON.
    """
    try:
        if workload.repeats and not (workload.cell.terms.cold and rounds):
            workload.prepare()
            result = benchmark(workload.call)
        else:
            count = rounds.after(workload.pilot()) if rounds else 1
            result = benchmark.pedantic(workload.call, setup=lambda: (workload.prepare(), {}), rounds=count)
        workload.check(result)
        benchmark.extra_info.update(facts(workload))
        if rounds and workload.cell.forks and workload.grows:
            benchmark.extra_info["peak_bytes"] = peak_growth(workload.call_for_memory)
    except BaseException:
        benchmark.has_error = True
        raise
    finally:
        workload.finish()


def facts(workload: Workload) -> dict[str, Any]:
    """What the JSON says of a cell beside its times; the rates are added when all are known."""
    cell = workload.cell
    return {
        "operation": workload.operation,
        "backend": cell.name,
        "cutoff": len(cell.images),
        **({"image_size": cell.image_size} if cell.image_size else {}),
        "readers": workload.readers,
        "cache": workload.cache,
        "calls": workload.calls,
        "images_per_call": workload.images_per_call,
        "pixel_bytes_per_call": workload.bytes_per_call,
        "disk_bytes_per_image": disk_bytes(cell.stored) / len(cell.images),
    }
