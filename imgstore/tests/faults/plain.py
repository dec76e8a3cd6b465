"""What tutorials do, with the verbs of a backend, to stand under the same faults."""

import csv
import os
import pickle
from typing import Any

import h5py
import lmdb
import numpy as np
from PIL import Image

from imgstore.core.blocks import Array, Labels

Root = str | os.PathLike[str]

_MAP_SIZE = 1 << 30  # "large enough"


class Plain:
    """What none of them has."""

    def verify(self, root: Root) -> None:
        """There is nothing to check against."""


class PlainPng(Plain):
    """A PNG file for each image and a labels.csv."""

    def store_many(self, root: Root, images: Array, labels: Labels) -> None:
        os.makedirs(root, exist_ok=True)
        with open(os.path.join(root, "labels.csv"), "w", newline="") as table:
            for image_id, (image, label) in enumerate(zip(images, labels, strict=True)):
                Image.fromarray(image).save(os.path.join(root, f"{image_id}.png"))
                csv.writer(table).writerow([image_id, label])

    def store_single(self, root: Root, image: Array, image_id: int, label: int) -> None:
        labels = self._labels(root) if os.path.exists(os.path.join(root, "labels.csv")) else {}
        os.makedirs(root, exist_ok=True)
        Image.fromarray(image).save(os.path.join(root, f"{image_id}.png"))
        with open(os.path.join(root, "labels.csv"), "w", newline="") as table:
            csv.writer(table).writerows({**labels, image_id: label}.items())

    def read_single(self, root: Root, image_id: int) -> tuple[Array, int]:
        return np.array(Image.open(os.path.join(root, f"{image_id}.png"))), self._labels(root)[image_id]

    def read_many(self, root: Root) -> tuple[list[Array], list[int]]:
        labels = self._labels(root)
        return [np.array(Image.open(os.path.join(root, f"{image_id}.png"))) for image_id in labels], [*labels.values()]

    def _labels(self, root: Root) -> dict[int, int]:
        with open(os.path.join(root, "labels.csv"), newline="") as table:
            return {int(image_id): int(label) for image_id, label in csv.reader(table)}


class PlainLmdb(Plain):
    """A pickled image and label for each key."""

    def store_many(self, root: Root, images: Array, labels: Labels) -> None:
        with self._open(root) as environment, environment.begin(write=True) as transaction:
            transaction.drop(environment.open_db(txn=transaction), delete=False)
            for image_id, pair in enumerate(zip(images, labels, strict=True)):
                transaction.put(f"{image_id:08d}".encode(), pickle.dumps(pair))

    def store_single(self, root: Root, image: Array, image_id: int, label: int) -> None:
        with self._open(root) as environment, environment.begin(write=True) as transaction:
            transaction.put(f"{image_id:08d}".encode(), pickle.dumps((image, label)))

    def read_single(self, root: Root, image_id: int) -> tuple[Array, int]:
        return self._read(root)[image_id]

    def read_many(self, root: Root) -> tuple[list[Array], list[int]]:
        pairs = self._read(root).values()
        return [image for image, _ in pairs], [label for _, label in pairs]

    def _read(self, root: Root) -> dict[int, tuple[Array, int]]:
        os.stat(os.path.join(root, "data.mdb"))
        with self._open(root, readonly=True) as environment, environment.begin() as transaction:
            return {int(bytes(key)): pickle.loads(value) for key, value in transaction.cursor()}

    def _open(self, root: Root, **options: Any) -> lmdb.Environment:
        if not options:
            os.makedirs(root, exist_ok=True)
        return lmdb.open(os.fspath(root), map_size=_MAP_SIZE, **options)


class PlainHdf5(Plain):
    """Images and labels as two datasets of one file, which can grow."""

    def store_many(self, root: Root, images: Array, labels: Labels) -> None:
        os.makedirs(root, exist_ok=True)
        with h5py.File(self._path(root), "w") as file:
            file.create_dataset("images", data=images, maxshape=(None, *images.shape[1:]))
            file.create_dataset("labels", data=labels, maxshape=(None,))

    def store_single(self, root: Root, image: Array, image_id: int, label: int) -> None:
        if not os.path.exists(self._path(root)):
            self.store_many(root, image[np.newaxis], np.array([label]))
            return
        with h5py.File(self._path(root), "r+") as file:
            for name, value in (("images", image), ("labels", label)):
                file[name].resize(max(len(file[name]), image_id + 1), axis=0)
                file[name][image_id] = value

    def read_single(self, root: Root, image_id: int) -> tuple[Array, int]:
        with h5py.File(self._path(root), "r") as file:
            return file["images"][image_id], int(file["labels"][image_id])

    def read_many(self, root: Root) -> tuple[Array, Labels]:
        with h5py.File(self._path(root), "r") as file:
            return file["images"][:], file["labels"][:]

    def _path(self, root: Root) -> str:
        return os.path.join(root, "images.h5")


PLAIN: dict[str, Plain] = {"disk": PlainPng(), "lmdb": PlainLmdb(), "hdf5": PlainHdf5()}
