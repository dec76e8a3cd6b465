"""WebDataset: a tar file with an .npy and a .cls member for each image; there is no random access.

webdataset's README, "The WebDataset Format" and "The `webdataset` Library"; `TarWriter` and `WebDataset`. As .npy,
because PNG's encoder and decoder take longer than the tar file itself.
"""

import os
from collections.abc import Sequence

import numpy as np
import webdataset

from benchmarks.peers import Array, Many, gathered, sync


def store_many(root: str, images: Array | Sequence[Array], labels: Array, *, durable: bool = True) -> None:
    os.makedirs(root, exist_ok=True)
    with webdataset.TarWriter(_path(root)) as writer:
        for image_id, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            writer.write({"__key__": f"{image_id:08}", "npy": image, "cls": label})
    sync(root, durable)


def read_many(root: str, *, verify: bool = True) -> Many:
    samples = webdataset.WebDataset(_path(root), shardshuffle=False).decode().to_tuple("npy", "cls")
    images, labels = zip(*samples, strict=True)
    return gathered(images), np.array(labels, np.int64)


def _path(root: str) -> str:
    return os.path.join(root, "images.tar")
