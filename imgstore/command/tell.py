"""imgstore verify and imgstore info."""

import argparse
import functools
import os
from collections import Counter
from collections.abc import Iterator

import imgstore
from imgstore import shards
from imgstore.command.cluster import connected
from imgstore.command.progress import shown
from imgstore.core.blocks import Form, image_bytes
from imgstore.core.generations import FORMAT
from imgstore.errors import InvalidArgumentError, printable
from imgstore.shards.manifest import is_sharded, read_manifest
from imgstore.shards.reader import ShardedReader

MOST_FORMS = 10


def run_verify(options: argparse.Namespace) -> None:
    if is_sharded(options.root):
        show = functools.partial(shown, doing="verifying", total=len(read_manifest(options.root).shards), what="shards")
        with connected(options.scheduler) as client:
            shards.verify(options.root, client, show)
    elif options.scheduler:
        raise InvalidArgumentError("--scheduler", f"{options.root} is no sharded store; verify it without")
    else:
        imgstore.verify(options.root)
    print(printable(f"{options.root}: everything is as it was stored"))


def run_info(options: argparse.Namespace) -> None:
    with imgstore.open_reader(options.root) as reader:
        for name, value in told(reader):
            print(f"{name:<11} {value}")


def told(reader: imgstore.Reader) -> Iterator[tuple[str, str]]:
    generations, forms = [each.generation for each in reader.readers()], reader.forms()
    walked = (entry for generation in generations for entry in os.walk(generation.path()))
    files = (os.path.join(folder, name) for folder, _, names in walked for name in names)
    yield "backend", ", ".join(sorted({generation.backend for generation in generations})) or "none"
    yield "images", f"{len(reader):,}"
    yield "shapes", listed(forms)
    yield "pixels", f"{sum(count * image_bytes(form) for form, count in forms.items()):,} bytes"
    yield "files", f"{sum(os.lstat(path).st_size for path in files):,} bytes"
    synced = "synced" if all(generation.synced for generation in generations) else "not synced"
    if isinstance(reader, ShardedReader):
        yield "shards", f"{len(generations):,}, {synced}"
    else:
        yield "generation", f"{reader.generation.name}, {synced}"
    yield "format", str(FORMAT)


def listed(forms: Counter[Form]) -> str:
    """Shapes and dtypes, the most frequent first."""
    texts = [f"{'x'.join(map(str, shape))} {dtype} ({count:,})" for (shape, dtype), count in forms.most_common()]
    more = [f"and {len(texts) - MOST_FORMS:,} others"] if len(texts) > MOST_FORMS else []
    return ", ".join(texts[:MOST_FORMS] + more) or "none"
