"""imgstore convert: make a store of images, and compare it with them."""

import argparse
import contextlib
import errno
import functools
import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator

import numpy as np

import imgstore
from imgstore import shards
from imgstore.command.cluster import connected
from imgstore.command.progress import shown
from imgstore.core.blocks import Labels
from imgstore.core.compared import Lock, convert, must_be_free, must_be_usable
from imgstore.core.generations import is_store
from imgstore.core.writing import writing
from imgstore.decoding import Less
from imgstore.errors import (
    ClusterError,
    InvalidArgumentError,
    SourceError,
    StoreNotFoundError,
    UnsupportedImageError,
    printable,
)
from imgstore.shards.manifest import MOST_SHARDS
from imgstore.shards.reader import ShardedReader
from imgstore.shards.storing import must_be_free as shards_must_be_free
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
    backend, show = imgstore.BACKENDS[options.backend].BACKEND, functools.partial(shown, total=len(source))
    with named(source, options.source):
        convert(source, *without_and_behind_a_gap(source), options.dest, backend, options.replace, show, lock)
    conclude(source, f"{options.dest}: {len(source):,} images, stored and read back")


def without_and_behind_a_gap(source: Source) -> tuple[int, Labels]:
    """How many ids from 0 on there are, and those behind a gap. The source may claim more ids than memory holds."""
    if not isinstance(source, imgstore.Reader):
        return len(source), np.empty(0, np.int64)
    many = bisect_left(range(len(source)), True, key=lambda position: source.id_at(position) > position)
    return many, np.array([source.id_at(position) for position in range(many, len(source))], np.int64)


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
    shards_must_be_free(options.dest, argument="DEST")
    size = options.shard_images
    with connected(options.scheduler) as client:
        source = opened_whole(options)
        if len(source) > size * MOST_SHARDS:
            message = f"{size} makes more than {MOST_SHARDS} shards of {len(source):,} images; give a larger number"
            raise InvalidArgumentError("--shard-images", message)
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
    if isinstance(source, imgstore.Reader) and len(source) and source.id_at(-1) != len(source) - 1:
        message = f"there are gaps in the ids of {options.source}, which shards do not keep"
        raise InvalidArgumentError("--shard-images", message)
    return source


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
