"""`python -m imgstore`: convert images into a store, verify a store, and tell what is in it.

The exit status is 0; 1 for damage, or for what cannot be read or stored; 2 for a bad argument; 130 after Ctrl-C.
"""

import argparse
import functools
import io
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NoReturn, TypeVar

import numpy as np

import imgstore
from imgstore._convert import Lock, convert, must_be_free, must_be_usable
from imgstore._generations import FORMAT, is_store, writing
from imgstore._images import Form, image_bytes
from imgstore.errors import ImgstoreError, InvalidArgumentError, SourceError, StoreNotFoundError, UnsupportedImageError
from imgstore.sources import Cifar10, ImageFolder, nothing_readable, open_source, reason_of

T = TypeVar("T")

PROGRAM = "python -m imgstore"
SHOWN_EVERY = 0.1  # seconds
MOST_FORMS = 10
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
    for name, run, text in (
        ("verify", run_verify, "read everything in a store and check it"),
        ("info", run_info, "tell what is in a store"),
    ):
        command = commands.add_parser(name, help=text)
        command.set_defaults(run=run)
        command.add_argument("root", metavar="ROOT", type=path, help="a store")
    return parsed


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
    must_be_usable(options.dest)  # before anything is read
    must_be_free(options.dest, options.replace)
    lock = writing(options.dest)
    if is_store(options.dest):
        with lock:  # already now: if it is SOURCE as well, a single stored once that is open would be lost
            store(options, nullcontext())
    else:
        store(options, lock)


def store(options: argparse.Namespace, lock: Lock) -> None:
    source = opened(options.source, options.dest)
    if options.skip_unreadable and not isinstance(source, ImageFolder):
        raise InvalidArgumentError("--skip-unreadable", f"{options.source} has no files to leave out; omit the option")
    positions = kept(source, options.skip_unreadable) if isinstance(source, ImageFolder) else range(len(source))
    ids = source.ids if isinstance(source, imgstore.Reader) else np.arange(len(positions))
    backend, show = imgstore.BACKENDS[options.backend].BACKEND, functools.partial(shown, total=len(ids))
    try:
        convert(map(source.__getitem__, positions), ids, options.dest, backend, options.replace, show, lock)
    except UnsupportedImageError as error:
        where = source.paths[positions[error.image_id]] if isinstance(source, ImageFolder) else options.source
        raise SourceError(where, str(error)) from None
    except SourceError as error:
        raise advised(error) from None
    print(f"{options.dest}: {len(ids):,} images, stored and read back")


def opened(source: str, dest: str) -> imgstore.Reader | Cifar10 | ImageFolder:
    """The images to store, but not from a folder that the store would lie in, where they would be found again."""
    above, below = (os.path.realpath(path) for path in (source, dest))
    if below.startswith(os.path.join(above, "")):
        raise InvalidArgumentError("DEST", f"{dest} lies in {source}; give a folder elsewhere")
    try:
        return open_source(source)
    except SourceError as error:
        raise InvalidArgumentError("SOURCE", str(error)) from None


def kept(source: ImageFolder, skip: bool) -> Sequence[int]:
    """The positions of the files to store: all, or those that can be read. Names the others."""
    positions, errors = list[int](), [*source.unlisted]
    if not skip:
        if errors:
            raise advised(errors[0])
        return range(len(source))
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
    return positions


def advised(error: SourceError) -> SourceError:
    return SourceError(error.path, f"{error.reason}; --skip-unreadable leaves such files out")


def shown(items: Iterable[T], doing: str, total: int) -> Iterator[T]:
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
            text = f"{doing} {done + 1:,} of {total:,} images, {left:.0f} s left"
            print(f"{START_OF_LINE}{text}", end="", file=sys.stderr, flush=True)
    print(START_OF_LINE, end="", file=sys.stderr, flush=True)


def run_verify(options: argparse.Namespace) -> None:
    imgstore.verify(options.root)
    print(f"{options.root}: everything is as it was stored")


def run_info(options: argparse.Namespace) -> None:
    with imgstore.open_reader(options.root) as reader:
        for name, value in told(reader):
            print(f"{name:<11} {value}")


def told(reader: imgstore.Reader) -> Iterator[tuple[str, str]]:
    generation, forms = reader.generation, reader.forms()
    files = (os.path.join(folder, name) for folder, _, names in os.walk(generation.path()) for name in names)
    yield "backend", generation.backend
    yield "images", f"{len(reader):,}"
    yield "shapes", listed(forms)
    yield "pixels", f"{sum(count * image_bytes(form) for form, count in forms.items()):,} bytes"
    yield "files", f"{sum(os.lstat(path).st_size for path in files):,} bytes"
    yield "generation", f"{generation.name}, {'synced' if generation.synced else 'not synced'}"
    yield "format", str(FORMAT)


def listed(forms: Counter[Form]) -> str:
    """Shapes and dtypes, the most frequent first."""
    texts = [f"{'x'.join(map(str, shape))} {dtype} ({count:,})" for (shape, dtype), count in forms.most_common()]
    more = [f"and {len(texts) - MOST_FORMS:,} others"] if len(texts) > MOST_FORMS else []
    return ", ".join(texts[:MOST_FORMS] + more) or "none"


if __name__ == "__main__":
    sys.exit(main())
