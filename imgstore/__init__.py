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
damage is noticed. One process writes at a time; a second gets StoreBusyError, and so does a child that was
forked while its parent stores. Readers never wait. Only files of a store's own are ever removed; what else lies
in `root` stays, and is named where it is in the way.

**What is stored comes back.** Pixels, shape and label as they were; dtype too, in the machine's byte order.
`(H, W)` and `(H, W, 1)` are different shapes. disk holds what PNG does without loss: uint8 with 1 to 4
channels, uint16 and bool with one; lmdb and hdf5 hold every integer, float, complex and bool dtype. What a
format cannot hold is refused with UnsupportedImageError before the store changes. What comes back owns its
memory and may be written to.

**Damage is noticed.** With `verify`, each image and label that is returned was checked against its checksum,
else CorruptStoreError names the file. `verify=False` skips that, never the checks that keep the process
alive. A sector that the disk cannot read is the system's OSError, a file that was cut a CorruptStoreError; no
read ends the process. A single that was lost is missed, too: its id is listed, but the list reaches the disk up
to half a minute after the image does. A checksum is no signature: run `imgstore.verify` on a store from a
stranger before you read it.

**Memory is bounded.** Beside what it returns, reading holds no more than one copy of one image and 64 MiB,
whatever a store claims; for disk also Pillow's copy of an image that Pillow decodes.

**More than one disk holds.** `imgstore.shards.store` makes a sharded store, a folder of stores, in this process or on
a cluster; `open_reader` and `verify` take it as any other, under ids that run through all shards.

Errors are in `imgstore.errors`. `python -m imgstore` makes stores of folders, of CIFAR-10 and of other stores.
"""

import os
from importlib.util import find_spec

if missing := [name for name in ("h5py", "lmdb", "numpy", "PIL", "xxhash") if not find_spec(name)]:
    install = "pip install -r requirements.txt, or pip install ./imgstore"
    raise ImportError(f"imgstore needs {', '.join(missing)}; to install all that it needs: {install}")

from imgstore import shards
from imgstore.core.files import Root
from imgstore.core.generations import open_live
from imgstore.core.reader import Reader
from imgstore.formats import BACKENDS, backend_of
from imgstore.shards.manifest import is_sharded, read_manifest
from imgstore.shards.reader import ShardedReader

__all__ = ["BACKENDS", "Reader", "open_reader", "verify"]
__version__ = "0.3.0"


def open_reader(root: Root, *, verify: bool = True) -> Reader:
    """A reader of the store at `root`, whatever its backend. Raises StoreNotFoundError, CorruptStoreError."""
    path = os.path.abspath(os.fsdecode(root))
    if is_sharded(path):
        return ShardedReader(read_manifest(path), verify)
    return open_live(path, lambda found: Reader(backend_of(found), found, verify))


def verify(root: Root) -> None:
    """Read everything at `root` and check it. Raises CorruptStoreError for the first fault found."""
    if is_sharded(os.fsdecode(root)):
        shards.verify(root)
    else:
        open_live(root, lambda found: backend_of(found).verify_generation(found))
