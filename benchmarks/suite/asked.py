"""What the options ask for: images, folders and terms."""

import os
import shutil
import tempfile
from dataclasses import asdict
from typing import Any

import pytest

from benchmarks.gate.reference import Reference
from benchmarks.measure.cell import Terms
from benchmarks.measure.images import Source
from benchmarks.measure.machine import free_memory
from benchmarks.sources import memory_to_open, open_source
from imgstore.errors import ImgstoreError, printable

LABEL_BYTES = 8
SOURCES = pytest.StashKey[dict[int | None, Source]]()
REFERENCE = pytest.StashKey[Reference]()
DIRECTORY = pytest.StashKey[str]()


def store_directory(config: pytest.Config) -> str:
    """Where stores are made; UsageError where nothing can be."""
    path = config.getoption("--store-dir") or tempfile.gettempdir()
    if not os.path.isdir(path):
        raise pytest.UsageError(f"--store-dir: {path} is not a folder; give one that exists")
    if not os.access(path, os.W_OK | os.X_OK):
        raise pytest.UsageError(f"--store-dir: {path} cannot be written to; give a folder of yours")
    return os.path.abspath(path)


def source_of(config: pytest.Config, image_size: int | None) -> Source:
    """The images of the run of this size, opened when first asked for; UsageError where there are none."""
    opened = config.stash.setdefault(SOURCES, {})
    if image_size not in opened:
        location, count = config.getoption("--images"), max(config.getoption("--cutoffs"))
        if image_size:
            must_fit("--image-size", f"one of {image_size}x{image_size}", memory_to_open(location, 1, image_size))
        must_fit("--cutoffs", f"{count} images", count * LABEL_BYTES + memory_to_open(location, count, image_size))
        try:
            opened[image_size] = open_source(location, count, image_size, config.getoption("--max-pixels"))
        except ImgstoreError as error:
            raise pytest.UsageError(printable(f"--images: {error}")) from None
    return opened[image_size]


def must_fit(option: str, what: str, need: int) -> None:
    """Raise UsageError where so many bytes are more than the free memory."""
    free = free_memory()
    if need > free:
        room = f"{what} would need {need >> 20} MiB of memory or more, {free >> 20} MiB are free"
        raise pytest.UsageError(f"{option}: {room}; choose a smaller number")


def sizes_of(config: pytest.Config) -> tuple[int | None, ...]:
    """Pixels a side; None for the images' own sizes."""
    return config.getoption("--image-size") or (None,)


def sources_of(config: pytest.Config) -> list[Source]:
    return [source_of(config, size) for size in sizes_of(config)]


def terms_of(config: pytest.Config) -> Terms:
    return Terms(
        durable=not config.getoption("--no-durable"),
        cold=config.getoption("--cache") == ("cold",),
        verify=not config.getoption("--no-verify"),
    )


def told_terms(config: pytest.Config) -> dict[str, Any]:
    """The terms of the run, as they are shown and recorded."""
    both = {"cold": "both"} if len(config.getoption("--cache")) > 1 else {}
    elsewhere = {"readers": "other processes"} if config.getoption("--readers") else {}  # each with its share, by ids
    return asdict(terms_of(config)) | both | elsewhere


def run_directory(config: pytest.Config) -> str:
    """The run's own folder below the store directory, removed however the run ends."""
    if DIRECTORY not in config.stash:
        try:
            path = tempfile.mkdtemp(prefix="imgstore-", dir=store_directory(config))
        except OSError as error:
            where = f"--store-dir: {store_directory(config)} cannot be written to; give a folder of yours"
            raise pytest.UsageError(f"{where} ({error.strerror})") from None
        config.add_cleanup(lambda: shutil.rmtree(path, ignore_errors=True))
        config.stash[DIRECTORY] = path
    return config.stash[DIRECTORY]
