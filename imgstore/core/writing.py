"""One writer at a time: its lock, and how what it wrote takes the place of what was there, all or nothing."""

import contextlib
import fcntl
import json
import os
import secrets
import weakref
from collections.abc import Callable, Iterator
from io import FileIO
from typing import Any

from imgstore.core.checksums import checksum
from imgstore.core.files import (
    NewFile,
    opened,
    passing_over_errors,
    replace_file,
    sync_file,
    sync_file_system,
    sync_folder,
    sync_folder_once,
    sync_once,
    sync_with_parents,
    write_file,
)
from imgstore.core.generations import FORMAT, Generation, generations, live_name, must_be_ours
from imgstore.core.removing import remove_generation, remove_generations
from imgstore.core.singles import listing, single_name
from imgstore.errors import InvalidArgumentError, StoreBusyError

_FEW = 8  # files that are synced one by one


_locks: weakref.WeakSet[FileIO] = weakref.WeakSet()


def _close_locks() -> None:
    """In a forked child, which is not the writer: a lock is held as long as anybody has its file open."""
    for lock in list(_locks):
        lock.close()


os.register_at_fork(after_in_child=_close_locks)


def writing(root: str) -> FileIO:
    """Make `root` where it is missing and hold it as its only writer until this is closed; else StoreBusyError.

    It is for a `with` statement, and to be bound to no name: then nothing that is raised, at whatever moment, leaves
    it open.
    """
    if os.path.exists(root) and not os.path.isdir(root):
        raise InvalidArgumentError("root", f"{root} is a file; give a directory")
    os.makedirs(root, exist_ok=True)
    return _locked([FileIO(os.path.join(root, "LOCK"), "r+", opener=_open_lock)], root)


def _open_lock(path: str, flags: int) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def _locked(held: list[FileIO], root: str) -> FileIO:
    """The file that is held, locked: taken out, so that a traceback of this function does not hold it."""
    try:
        _locks.add(held[0])  # before it is locked: a child that is forked closes it
        fcntl.flock(held[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        return held.pop()
    except BlockingIOError:
        held.pop().close()
        raise StoreBusyError(root, "another writer is at work; try again when it is done") from None
    except BaseException as error:
        for lock in held:
            lock.close()
        if isinstance(error, OSError) and error.errno is not None:
            error.filename = root
        raise


def must_be_writer(writer: int, root: str) -> None:
    """Raise StoreBusyError in a child that was forked while process `writer` was storing at `root`."""
    if os.getpid() != writer:
        raise StoreBusyError(root, "this is a forked child, and its parent is the writer; store nothing in the child")


def replace_generation(root: str, backend: str, durable: bool, write: Callable[[str], dict[str, Any]]) -> None:
    """Let `write` fill the next generation, make it the live one, and remove all others.

    `write` gets the directory and returns the DESCRIPTION. Whatever fails before CURRENT is replaced leaves
    the store as it was. The caller holds the writer's lock.
    """
    must_be_ours(root)
    place = os.stat(root)
    if (live := live_name(root)) and generations(root) != [live]:
        sync_with_parents(root)  # a writer may have been killed before it did, and before it removed the others
        remove_generations(root, live)
    writer = os.getpid()
    number = max((int(name.split("-")[1]) for name in generations(root)), default=0) + 1
    name = f"imgstore-{number % 10**18:06d}-{secrets.token_hex(6)}"
    path = os.path.join(root, name)
    try:
        with opened(root) as file_system:  # before the first write: syncfs tells of its errors
            os.mkdir(path)
            text = json.dumps({**write(path), "needs": []}, separators=(",", ":")).encode()
            write_file(os.path.join(path, "DESCRIPTION"), text)
            if durable:
                _sync_generation(root, path, file_system)
            must_be_writer(writer, root)
            _must_still_be(place, root)
            _replace_current(root, backend, name, durable, f"{checksum(text):016x}")
    except BaseException:
        # an interrupt may arrive when CURRENT was just replaced; and a forked child removes nothing
        if os.getpid() == writer and live_name(root) != name:
            remove_generation(path)
        raise
    with passing_over_errors():
        if os.path.samestat(place, os.stat(root)):
            remove_generations(root, name)


def _must_still_be(place: os.stat_result, root: str) -> None:
    """Raise StoreBusyError where `root` is no longer the folder that was locked, as where a link was switched."""
    if not os.path.samestat(place, os.stat(root)):
        raise StoreBusyError(root, "it leads to another folder since the call began; store again")


def make_durable(generation: Generation) -> None:
    """Have the live generation on the disk: it may have been written with durable=False, or by a killed writer."""
    if generation.synced:
        sync_once(
            os.path.realpath(generation.root), os.lstat(generation.root).st_dev, generation.name, generation.checksum
        )
        return
    with opened(generation.root) as file_system:
        sync_file_system(generation.root, file_system)
    _replace_current(generation.root, generation.backend, generation.name, True, generation.checksum)


def replace_single(
    generation: Generation, image_id: int, suffix: str, durable: bool, write: Callable[[NewFile], None]
) -> None:
    """Let `write` make the file of a single under another name, which then takes its own."""
    path, folder = generation.path(single_name(image_id, suffix)), generation.path("singles")
    is_first, writer = not os.path.isdir(folder), os.getpid()
    if is_first:
        os.mkdir(folder)
    must_be_listed = not os.path.lexists(path) or not generation.is_listed(image_id)
    try:
        if durable:
            sync_folder_once(os.path.realpath(generation.path()), os.lstat(folder).st_ino)
        with listing(generation.path(), image_id) if must_be_listed else contextlib.nullcontext():
            replace_file(path, f"{folder}/.new", durable, write)
            if durable:
                with _confirming(path):
                    sync_folder(folder)
    except BaseException:
        if is_first and os.getpid() == writer:
            sync_folder_once.cache_clear()  # a folder that is made again may have the same number
            with passing_over_errors():
                os.rmdir(folder)
        raise


def replace_text(root: str, name: str, text: str, durable: bool = True) -> None:
    """Let a file directly in `root` have this text, all or nothing."""
    path = os.path.join(root, name)
    replace_file(path, new_name(root, name), durable, lambda new: new.write(text.encode()))
    if durable:
        with _confirming(path):
            sync_with_parents(root)


def new_name(root: str, name: str) -> str:
    """Where the next file of this name is written: a name that no person gives."""
    return os.path.join(root, f".{name}.imgstore-new")


@contextlib.contextmanager
def _confirming(path: str) -> Iterator[None]:
    """Errors of a sync after a rename say that what was renamed is in place."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        message = f"what was stored is in place, but the disk did not confirm it ({error.strerror}); store it again"
        raise OSError(error.errno, message, path) from None


def _replace_current(root: str, backend: str, name: str, durable: bool, description: str) -> None:
    line = f"imgstore {FORMAT} {backend} {name} {'synced' if durable else 'unsynced'} {description}"
    replace_text(root, "CURRENT", f"{line} {checksum(line.encode()):016x}\n", durable)


def _sync_generation(root: str, path: str, file_system: int) -> None:
    """Sync what was written to `path`, and its name: a few files one by one, many with their file system."""
    files = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]
    if len(files) > _FEW:
        sync_file_system(root, file_system)
        return
    for file in files:
        sync_file(file)
    for folder in (*(folder for folder, _, _ in os.walk(path)), root):
        sync_folder(folder)
