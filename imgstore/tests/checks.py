"""What the tests compare: images as stored and as read, a folder before and after, a child process's answer."""

import contextlib
import multiprocessing
import re
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from imgstore.errors import ImgstoreError
from imgstore.tests.strategies import Array, Stored

Record = tuple[tuple[int, ...], str, bytes, int]

A_MINUTE = 60
ROOT = Path(__file__).parents[2]


def record(image: Array, label: int) -> Record:
    """An image and its label, exact to the byte: shape, dtype in the machine's order, values, label."""
    native = image if image.dtype.isnative else image.byteswap()
    return image.shape, image.dtype.newbyteorder("=").str, native.tobytes(), int(label)


def records(images: Iterable[Array], labels: Iterable[int]) -> list[Record]:
    return [record(image, label) for image, label in zip(images, labels, strict=True)]


def read_back(images: Iterable[Array], labels: Iterable[int]) -> list[Record]:
    """`records` of what the package returned, each image in memory of its own or a row of such."""
    images = list(images)
    assert all(image.dtype.isnative and image.flags.writeable for image in images)
    return records(images, labels)


def fill(backend: ModuleType, root: str | Path, stored: Stored) -> dict[int, Record]:
    """Store everything; gives id -> record, in ascending order of ids."""
    backend.store_many(root, stored.images, stored.labels, durable=False)
    for image, image_id, label in stored.singles:
        backend.store_single(root, image, image_id, label, durable=False)
    return {image_id: record(*pair) for image_id, pair in stored.pairs().items()}


def files(root: Path) -> dict[str, bytes | None]:
    """Every file under `root` with its bytes, and every folder."""
    return {str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


def blocks_of(document: str, language: str) -> list[str]:
    """The blocks of code of a document, such as "imgstore/README.md", in order."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


def current(root: Path) -> list[str]:
    """The words of CURRENT: imgstore, 3, backend, generation, synced or unsynced, checksums."""
    return (root / "CURRENT").read_text().split()


@contextlib.contextmanager
def refused(root: Path, kind: type[ImgstoreError], begins: str) -> Iterator[list[Any]]:
    """Expect this very error, in one sentence that begins so, and nothing changed under `root`."""
    before, caught = files(root), list[Any]()
    with pytest.raises(kind) as info:
        yield caught
    caught.append(info.value)
    assert type(info.value) is kind
    assert str(info.value).startswith(begins)
    assert "\n" not in str(info.value)
    assert ". " not in str(info.value)
    assert files(root) == before


def in_child(method: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function` returns or raises in a process that inherits the arguments (fork) or unpickles them (spawn)."""
    context: Any = multiprocessing.get_context(method)
    receiving, sending = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(sending, function, arguments), daemon=True)
    child.start()
    sending.close()
    assert receiving.poll(A_MINUTE), "the child does not answer"
    answer = receiving.recv()
    child.join(A_MINUTE)
    assert child.exitcode == 0
    if isinstance(answer, Exception):
        raise answer
    return answer


def _answer(sending: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        sending.send(function(*arguments))
    except Exception as error:
        sending.send(error)
