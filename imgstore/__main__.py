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
from imgstore.decoding import Less
from imgstore.errors import (
    ClusterError,
    ImgstoreError,
    InvalidArgumentError,
    SourceError,
    StoreNotFoundError,
    UnsupportedImageError,
    printable,
    reason_of,
)
from imgstore.sources import (
    ImageFolder,
    Source,
    account,
    classes_of,
    fingerprint,
    nothing_readable,
    open_source,
    part_of,
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
        self.exit(2, f"{PROGRAM}: {printable(message)}\n")


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
        help="leave out image files that cannot be read or are damaged, and name them; each file is read twice",
    )
    command.add_argument(
        "--classes-from",
        type=path,
        metavar="STORE_OR_FOLDER",
        help="give labels by the classes there, as those of the training images where SOURCE has the others",
    )
    command.add_argument(
        "--max-pixels",
        type=positive,
        metavar="N",
        help="read image files of up to N pixels; default: 89,478,485, as more may be a decompression bomb",
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
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  # where the shell closed it
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
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
    except MemoryError:
        return ended(1, "there is not enough memory for what was asked")
    except OSError as error:
        return ended(1, f"{error.filename}: {reason_of(error)}" if error.filename else reason_of(error))
    return 0


def ended(status: int, message: str) -> int:
    start = START_OF_LINE if sys.stderr.isatty() else ""
    print(f"{start}{PROGRAM}: {printable(message)}", file=sys.stderr)
    return status


def run_convert(options: argparse.Namespace) -> None:
    if options.shard_images:
        run_convert_to_shards(options)
        return
    if options.scheduler:
        raise InvalidArgumentError("--scheduler", "only shards are spread over workers; give --shard-images, too")
    must_not_lie_in_dest(options, options.source)  # said first: of DEST, it would be other files
    must_be_usable(options.dest)  # before anything is read
    must_be_free(options.dest, options.replace)
    lock = functools.partial(writing, options.dest)
    if is_store(options.dest):
        with lock():  # already now: if it is SOURCE as well, a single stored once that is open would be lost
            store(options, contextlib.nullcontext)
    else:
        store(options, lock)


def store(options: argparse.Namespace, lock: Lock) -> None:
    source = opened(options, options.source)
    ids = source.ids if isinstance(source, imgstore.Reader) else np.arange(len(source))
    backend, show = imgstore.BACKENDS[options.backend].BACKEND, functools.partial(shown, total=len(ids))
    with named(source, options.source):
        convert(source, ids, options.dest, backend, options.replace, show, lock)
    conclude(source, f"{options.dest}: {len(ids):,} images, stored and read back")


def conclude(source: Source, last: str, counted: bool = True) -> None:
    """Say what was stored, and of a folder what was not."""
    if isinstance(source, ImageFolder):
        for line in account(source):
            print(printable(line))
        if not counted:
            print("what is not kept of files is not counted on a cluster; --skip-unreadable has it counted")
        number = len(source.left_out)
        last += f"; {number:,} {'file' if number == 1 else 'files'} left out" if number else ""
    print(printable(last))


def run_convert_to_shards(options: argparse.Namespace) -> None:
    if options.replace:
        raise InvalidArgumentError("--replace", "shards do not take the place of a store; give another DEST")
    must_not_lie_in_dest(options, options.source)  # said first: of DEST, it would be other files
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
    last = f"{options.dest}: {len(source):,} images in {len(parts):,} shards, stored and read back"
    conclude(source, last, client is None or options.skip_unreadable)


def opened_whole(options: argparse.Namespace) -> Source:
    """The images to store in shards."""
    # absolute, as a worker may have another current folder
    source = opened(options, os.path.abspath(options.source))
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


def opened(options: argparse.Namespace, location: str) -> Source:
    """The images to store."""
    must_lie_apart(options, [os.path.realpath(location)])
    classes = asked_for(options.classes_from) if options.classes_from else None
    try:
        found = open_source(location, classes=classes, max_pixels=options.max_pixels)
    except SourceError as error:
        raise InvalidArgumentError("SOURCE", str(error)) from None
    if isinstance(found, ImageFolder):
        must_lie_apart(options, found.roots[1:], linked=True)
        return kept(found, options.skip_unreadable)
    for option in ("skip_unreadable", "classes_from", "max_pixels"):
        if getattr(options, option):
            message = f"{options.source} has no image files, which it is for; omit the option"
            raise InvalidArgumentError(f"--{option.replace('_', '-')}", message)
    return found


def must_lie_apart(options: argparse.Namespace, roots: Iterable[str], linked: bool = False) -> None:
    """Raise InvalidArgumentError where a store would be found as its own source, or take the place of it.

    DEST may be SOURCE itself, a store that is replaced; not what a link in SOURCE leads to.
    """
    dest = os.path.join(os.path.realpath(options.dest), "")
    for root in (os.path.join(root, "") for root in roots):
        if dest.startswith(root) and (linked or dest != root):
            raise InvalidArgumentError("DEST", f"{options.dest} lies in {options.source}; give a folder elsewhere")
        must_not_lie_in_dest(options, root)


def must_not_lie_in_dest(options: argparse.Namespace, root: str) -> None:
    dest, source = (os.path.join(os.path.realpath(path), "") for path in (options.dest, root))
    if source.startswith(dest) and dest != source:
        raise InvalidArgumentError("SOURCE", f"{options.source} lies in {options.dest}; give a DEST elsewhere")


def asked_for(location: str) -> list[str]:
    try:
        return classes_of(location)
    except SourceError as error:
        raise InvalidArgumentError("--classes-from", str(error)) from None


def kept(source: ImageFolder, skip: bool) -> ImageFolder:
    """The files to store: all, or those that can be read. Notes the others."""
    if not skip:
        if source.unlisted:
            raise advised(source.unlisted[0])
        return source
    positions, errors = list[int](), [*source.unlisted]
    for position in shown(range(len(source)), "reading", len(source)):
        try:
            source[position]
        except SourceError as error:
            errors.append(error.with_traceback(None))  # which holds what was read
            continue
        if source.less[position] & Less.DAMAGED:
            errors.append(SourceError(source.paths[position], "it is damaged"))
        else:
            positions.append(position)
    if not positions:
        raise InvalidArgumentError("SOURCE", str(nothing_readable(source.root, errors)))
    source.left_out += errors
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


if __name__ == "__main__":
    sys.exit(main())
