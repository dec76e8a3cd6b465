"""The formats by name, and that of a store."""

from types import ModuleType

from imgstore import disk, hdf5, lmdb
from imgstore.core.generations import Generation
from imgstore.core.verbs import Backend
from imgstore.errors import StoreNotFoundError

BACKENDS: dict[str, ModuleType] = {"disk": disk, "lmdb": lmdb, "hdf5": hdf5}


def backend_of(generation: Generation) -> Backend:
    """What reads it. Raises StoreNotFoundError for a format that is not among ours."""
    name = generation.backend
    if name not in BACKENDS:
        known = ", ".join(BACKENDS)
        raise StoreNotFoundError(generation.root, f"this is a store of {name}, which is not among {known}")
    backend: Backend = BACKENDS[name].BACKEND
    return backend
