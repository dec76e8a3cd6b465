"""TFRecord without TensorFlow, by the tfrecord package: a `tf.train.Example` for each image; no random access.

tfrecord's README, "Writing" and "Reading tf.Example records in Python". It writes the format's checksums and does
not read them.
"""

import os
from collections.abc import Sequence

import numpy as np
from tfrecord import TFRecordWriter, tfrecord_loader

from benchmarks.peers import Array, Many, sync
from benchmarks.peers._records import form_of, images_of

_FEATURES = {"image": "byte", "form": "byte", "label": "int"}


def store_many(root: str, images: Array | Sequence[Array], labels: Array, *, durable: bool = True) -> None:
    os.makedirs(root, exist_ok=True)
    writer = TFRecordWriter(_path(root))
    for image, label in zip(images, labels.tolist(), strict=True):
        writer.write({"image": (image.tobytes(), "byte"), "form": (form_of(image), "byte"), "label": (label, "int")})
    writer.close()
    sync(root, durable)


def read_many(root: str, *, verify: bool = True) -> Many:
    examples = list(tfrecord_loader(_path(root), None, _FEATURES))
    images = images_of([example["form"] for example in examples], [example["image"] for example in examples])
    return images, np.concatenate([example["label"] for example in examples])


def _path(root: str) -> str:
    return os.path.join(root, "images.tfrecord")
