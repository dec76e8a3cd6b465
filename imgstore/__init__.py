"""Store images and read them back, every pixel and label, as PNG files, in LMDB or in HDF5.

`BACKENDS` maps a format's name to its module; every module has the same verbs. `root` is a directory, and it
is the store. An image is a NumPy array `(H, W)` or `(H, W, C)`, a label an int64, an id 0 to 2**63 - 1.

    store_single(root, image, image_id, label, *, durable=True)   add or replace one
    store_many(root, images, labels, *, durable=True)             hold exactly these, ids 0 to N - 1
    read_single(root, image_id, *, verify=True)                   (image, label)
    read_many(root, image_ids=None, *, verify=True)               (images, labels), in the order asked for
    open_reader(root, *, verify=True)                             a sequence of (image, label), kept open
    verify(root)                                                  read and check everything

**All or nothing.** A store is what it was before a call, or what the call makes of it: after an exception, a
full disk, a killed process. With `durable`, also after a power cut once the call has returned. Without it
nothing waits for the disk, and a power cut may lose the store, with what it replaced, or damage it; the
damage is noticed. One process writes at a time; a second gets StoreBusyError. Readers never wait.

**What is stored comes back.** Pixels, shape and label as they were; dtype too, in the machine's byte order.
`(H, W)` and `(H, W, 1)` are different shapes. disk holds what PNG does without loss: uint8 with 1 to 4
channels, uint16 and bool with one; lmdb and hdf5 hold every integer, float, complex and bool dtype. What a
format cannot hold is refused with UnsupportedImageError before the store changes. What comes back owns its
memory and may be written to.

**Damage is noticed.** With `verify`, each image and label that is returned was checked against its checksum,
else CorruptStoreError names the file. `verify=False` skips that, never the checks that keep the process
alive. A checksum is no signature: run `imgstore.verify` on a store from a stranger before you read it.

Errors are in `imgstore.errors`. `python -m imgstore` makes stores of folders, of CIFAR-10 and of other stores.
"""

import os
from types import ModuleType

from imgstore import disk, hdf5, lmdb
from imgstore._generations import Generation, Root, open_live
from imgstore._store import Backend, Reader
from imgstore.errors import StoreNotFoundError

__all__ = ["BACKENDS", "Reader", "open_reader", "verify"]

BACKENDS: dict[str, ModuleType] = {"disk": disk, "lmdb": lmdb, "hdf5": hdf5}


def open_reader(root: Root, *, verify: bool = True) -> Reader:
    """A reader of the store at `root`, whatever its backend. Raises StoreNotFoundError, CorruptStoreError."""
    return open_live(os.path.abspath(root), lambda found: Reader(_backend(found), found, verify))


def verify(root: Root) -> None:
    """Read everything at `root` and check it. Raises CorruptStoreError for the first fault found."""
    open_live(root, lambda found: _backend(found).verify_generation(found))


def _backend(generation: Generation) -> Backend:
    name = generation.backend
    if name not in BACKENDS:
        known = ", ".join(BACKENDS)
        raise StoreNotFoundError(generation.root, f"this is a store of {name}, which is not among {known}")
    backend: Backend = BACKENDS[name].BACKEND
    return backend
