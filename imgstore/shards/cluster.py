"""Tasks run here, or by Dask on other machines."""

import contextlib
import importlib
import itertools
import logging
import pickle
import secrets
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from imgstore.errors import ClusterError

log = logging.getLogger("imgstore")  # to stderr, where nobody configured it otherwise
REQUIREMENTS = "imgstore/requirements-dask.txt"


class _Call:
    """A call that is made where it is unpickled.

    Left to Dask, a scheduler without imgstore could not pass it on, and a worker without it would end at its arrival.
    """

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def run_all(function: Callable[..., Any], tasks: Iterable[tuple[Any, ...]], client: Any) -> Iterator[Any]:
    """What the function gives for each task: here, one after the other, or as Dask has them done."""
    if client is None:
        return itertools.starmap(function, tasks)
    return _run_there(function, tasks, client)


def _run_there(function: Callable[..., Any], tasks: Iterable[tuple[Any, ...]], client: Any) -> Iterator[Any]:
    cloudpickle, distributed = map(importlib.import_module, ("cloudpickle", "distributed"))
    run = f"{function.__name__}-{secrets.token_hex(8)}"
    calls = (cloudpickle.dumps(_Call(function, task)) for task in tasks)
    with _explained(distributed), contextlib.ExitStack() as stack:
        futures = [client.submit(pickle.loads, call, key=f"{run}-{number}") for number, call in enumerate(calls)]
        stack.callback(client.cancel, futures)
        if not client.scheduler_info()["workers"]:
            log.warning("%s has no workers yet; waiting", client.scheduler.address)
        for future in distributed.as_completed(futures):
            result = future.result()
            future.release()  # held there, it would be made anew where its worker ended
            yield result


@contextlib.contextmanager
def _explained(distributed: Any) -> Iterator[None]:
    """What Dask raises is a ClusterError that says what happened."""
    # however a call shows that there is no scheduler any more: begun before, under way, or made after
    asyncio, client, comm = importlib.import_module("asyncio"), distributed.client, distributed.comm
    lost = distributed.CancelledError, asyncio.CancelledError, comm.CommClosedError, client.ClosedClientError
    try:
        yield
    except lost:
        message = "the scheduler was lost, or cancelled a task; start it, and do the same again"
        raise ClusterError(message) from None
    except distributed.KilledWorker as error:
        ended = f"{error.allowed_failures + 1} workers ended at the same task, the last at {error.last_worker.address}"
        raise ClusterError(f"{ended}; look there for the reason, which may be their --memory-limit") from None
    except ImportError as error:
        message = f"a worker cannot import what it needs ({error})"
        raise ClusterError(f"{message}; start workers with PYTHONPATH set to where it lies") from None
