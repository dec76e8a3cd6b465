"""The connection to Dask's scheduler."""

import contextlib
import importlib
import logging
from collections.abc import Iterator
from typing import Any

from imgstore.errors import InvalidArgumentError, reason_of
from imgstore.shards import cluster

CONNECT_SECONDS = 10


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """A client of Dask's scheduler at this address; None for none."""
    if address is None:
        yield None
        return
    try:
        distributed = importlib.import_module("distributed")
        logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # what it tells, the error does
        client = distributed.Client(address, timeout=CONNECT_SECONDS)
    except ImportError:
        message = f"Dask is not installed; pip install -r {cluster.REQUIREMENTS}"
        raise InvalidArgumentError("--scheduler", message) from None
    except (OSError, ValueError) as error:
        raise InvalidArgumentError("--scheduler", f"{address}: {reason_of(error)}") from None
    with client:
        yield client
