"""`python -m imgstore`: convert images into a store, verify a store, and tell what is in it.

The exit status is 0; 1 for damage, or for what cannot be read or stored; 2 for a bad argument; 130 after Ctrl-C.
"""

import argparse
import contextlib
import errno
import functools
import importlib
import io
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

import numpy as np

import imgstore
from imgstore import shards
from imgstore._convert import Lock, convert, must_be_free, must_be_usable
from imgstore._generations import FORMAT, is_store, writing
from imgstore._images import Form, image_bytes
from imgstore._shards import ShardedReader, is_sharded, read_manifest
from imgstore.errors import (
    ClusterError,
    ImgstoreError,
    InvalidArgumentError,
    SourceError,
    StoreNotFoundError,
    UnsupportedImageError,
)
from imgstore.sources import (
    ImageFolder,
    Source,
    fingerprint,
    nothing_readable,
    open_source,
    part_of,
    reason_of,
)

T = TypeVar("T")

PROGRAM = "python -m imgstore"
SHOWN_EVERY = 0.1  # seconds
MOST_FORMS = 10
CONNECT_SECONDS = 10
START_OF_LINE = "\r\x1b[K"  # what stood there is erased


class Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)  # else --r would be --replace

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{PROGRAM}: {message}\n")


def path(text: str) -> str:
    if not text:  # as a shell gives for a variable that is not set
        raise argparse.ArgumentTypeError("is empty; give a path")
    return text


def parser() -> argparse.ArgumentParser:
    parsed = Parser(prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parsed.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("convert", help="store a folder of images, CIFAR-10 or another store as DEST")
    command.set_defaults(run=run_convert)
    command.add_argument("source", metavar="SOURCE", type=path, help="a folder of image files, CIFAR-10, or a store")
    command.add_argument("dest", metavar="DEST", type=path, help="the store to make, a folder")
    command.add_argument("--backend", required=True, choices=imgstore.BACKENDS, help="the format of DEST")
    command.add_argument("--replace", action="store_true", help="let it take the place of a store at DEST")
    command.add_argument(
        "--skip-unreadable",
        action="store_true",
        help="leave out image files that cannot be read, and name them; each file is read twice",
    )
    command.add_argument(
        "--shard-images",
        type=positive,
        metavar="N",
        help="make DEST a sharded store of N images a shard; the same command goes on where it was stopped",
    )
    command.add_argument("--scheduler", metavar="ADDRESS", help="with --shard-images: of Dask, as tcp://HOST:PORT")
    for name, run, text in (
        ("verify", run_verify, "read everything in a store and check it"),
        ("info", run_info, "tell what is in a store"),
    ):
        command = commands.add_parser(name, help=text)
        command.set_defaults(run=run)
        command.add_argument("root", metavar="ROOT", type=path, help="a store")
        if name == "verify":
            command.add_argument("--scheduler", metavar="ADDRESS", help="of Dask; for a sharded store")
    return parsed


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may be no text; as of itself on stderr
    try:
        options.run(options)
    except KeyboardInterrupt:
        return ended(130, "stopped")
    except (InvalidArgumentError, StoreNotFoundError) as error:
        return ended(2, str(error))
    except ImgstoreError as error:
        return ended(1, str(error))
    except OSError as error:
        return ended(1, f"{error.filename}: {reason_of(error)}" if error.filename else reason_of(error))
    return 0


def ended(status: int, message: str) -> int:
    start = START_OF_LINE if sys.stderr.isatty() else ""
    print(f"{start}{PROGRAM}: {message}", file=sys.stderr)
    return status


def run_convert(options: argparse.Namespace) -> None:
    if options.shard_images:
        run_convert_to_shards(options)
        return
    if options.scheduler:
        raise InvalidArgumentError("--scheduler", "only shards are spread over workers; give --shard-images, too")
    must_be_usable(options.dest)  # before anything is read
    must_be_free(options.dest, options.replace)
    lock = writing(options.dest)
    if is_store(options.dest):
        with lock:  # already now: if it is SOURCE as well, a single stored once that is open would be lost
            store(options, contextlib.nullcontext())
    else:
        store(options, lock)


def store(options: argparse.Namespace, lock: Lock) -> None:
    source = opened(options.source, options.dest, options.skip_unreadable)
    ids = source.ids if isinstance(source, imgstore.Reader) else np.arange(len(source))
    backend, show = imgstore.BACKENDS[options.backend].BACKEND, functools.partial(shown, total=len(ids))
    with named(source, options.source):
        convert(source, ids, options.dest, backend, options.replace, show, lock)
    print(f"{options.dest}: {len(ids):,} images, stored and read back")


def run_convert_to_shards(options: argparse.Namespace) -> None:
    if options.replace:
        raise InvalidArgumentError("--replace", "shards do not take the place of a store; give another DEST")
    must_be_usable(options.dest)  # before anything is read
    shards.must_be_free(options.dest, argument="DEST")
    size = options.shard_images
    with connected(options.scheduler) as client:
        source = opened_whole(options)
        parts = [part_of(source, range(len(source))[first : first + size]) for first in range(0, len(source), size)]
        with named(source, options.source, size, client is not None):
            shards.store(
                options.dest,
                [functools.partial(iter, part) for part in parts],
                backend=options.backend,
                client=client,
                fingerprint=f"{size} {fingerprint(source)}",
                show=functools.partial(shown, doing="storing", total=len(parts), what="shards"),
            )
    print(f"{options.dest}: {len(source):,} images in {len(parts):,} shards, stored and read back")


def opened_whole(options: argparse.Namespace) -> Source:
    """The images to store in shards."""
    # absolute, as a worker may have another current folder
    source = opened(os.path.abspath(options.source), options.dest, options.skip_unreadable)
    if isinstance(source, ShardedReader):  # which has no gaps, and may have more ids than memory holds
        return source
    if isinstance(source, imgstore.Reader) and len(source) and source.ids[-1] != len(source) - 1:
        message = f"there are gaps in the ids of {options.source}, which shards do not keep"
        raise InvalidArgumentError("--shard-images", message)
    return source


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
        message = f"Dask is not installed; pip install -r {shards.REQUIREMENTS}"
        raise InvalidArgumentError("--scheduler", message) from None
    except (OSError, ValueError) as error:
        raise InvalidArgumentError("--scheduler", f"{address}: {reason_of(error)}") from None
    with client:
        yield client


@contextlib.contextmanager
def named(source: Source, location: str, shard_images: int = 0, workers: bool = False) -> Iterator[None]:
    """Errors about an image name its file, those about the store DEST, and those of workers what they do not see."""
    try:
        yield
    except InvalidArgumentError as error:
        if error.argument != "root":
            raise
        raise InvalidArgumentError("DEST", error.reason) from None
    except UnsupportedImageError as error:
        position = (error.shard or 0) * shard_images + error.image_id
        where = source.paths[position] if isinstance(source, ImageFolder) else location
        raise SourceError(where, str(error)) from None
    except (StoreNotFoundError, SourceError) as error:
        if workers and is_missing(error) and os.path.exists(error.path):
            message = f"a worker does not see {error.path}; have all workers see it under the same path"
            raise ClusterError(message) from None
        if isinstance(error, StoreNotFoundError):
            raise
        raise (advised(error) if isinstance(source, ImageFolder) else error) from None


def is_missing(error: StoreNotFoundError | SourceError) -> bool:
    return isinstance(error, StoreNotFoundError) or error.reason == os.strerror(errno.ENOENT)


def opened(source: str, dest: str, skip: bool) -> Source:
    """The images to store, but not from a folder that the store would lie in, where they would be found again."""
    above, below = (os.path.realpath(path) for path in (source, dest))
    if below.startswith(os.path.join(above, "")):
        raise InvalidArgumentError("DEST", f"{dest} lies in {source}; give a folder elsewhere")
    try:
        found = open_source(source)
    except SourceError as error:
        raise InvalidArgumentError("SOURCE", str(error)) from None
    if isinstance(found, ImageFolder):
        return kept(found, skip)
    if skip:
        raise InvalidArgumentError("--skip-unreadable", f"{source} has no files to leave out; omit the option")
    return found


def kept(source: ImageFolder, skip: bool) -> ImageFolder:
    """The files to store: all, or those that can be read. Names the others."""
    positions, errors = list[int](), [*source.unlisted]
    if not skip:
        if errors:
            raise advised(errors[0])
        return source
    for position in shown(range(len(source)), "reading", len(source)):
        try:
            source[position]
            positions.append(position)
        except SourceError as error:
            errors.append(error)
    for left_out in errors:
        print(f"{PROGRAM}: left out: {left_out}", file=sys.stderr)
    if not positions:
        raise InvalidArgumentError("SOURCE", str(nothing_readable(source.root, errors)))
    return source.part(positions)


def advised(error: SourceError) -> SourceError:
    return SourceError(error.path, f"{error.reason}; --skip-unreadable leaves such files out")


def shown(items: Iterable[T], doing: str, total: int, what: str = "images") -> Iterator[T]:
    """The items, with a line on the terminal that tells how many are done; elsewhere there is no such line."""
    if not sys.stderr.isatty():
        yield from items
        return
    start = last = time.monotonic()
    for done, item in enumerate(items):
        yield item
        now = time.monotonic()
        if now - last > SHOWN_EVERY:
            last, left = now, (now - start) / (done + 1) * (total - done - 1)
            text = f"{doing} {done + 1:,} of {total:,} {what}, {left:.0f} s left"
            print(f"{START_OF_LINE}{text}", end="", file=sys.stderr, flush=True)
    print(START_OF_LINE, end="", file=sys.stderr, flush=True)


def run_verify(options: argparse.Namespace) -> None:
    if is_sharded(options.root):
        show = functools.partial(shown, doing="verifying", total=len(read_manifest(options.root).shards), what="shards")
        with connected(options.scheduler) as client:
            shards.verify(options.root, client, show)
    elif options.scheduler:
        raise InvalidArgumentError("--scheduler", f"{options.root} is no sharded store; verify it without")
    else:
        imgstore.verify(options.root)
    print(f"{options.root}: everything is as it was stored")


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


if __name__ == "__main__":
    sys.exit(main())
