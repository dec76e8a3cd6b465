"""Generations: what one `store_many` writes, beside the live one, until CURRENT names it.

    root/LOCK                           held by the one writer
    root/CURRENT                        format, backend, live generation, whether it was synced, checksums
    root/imgstore-000007-3f9a1c5e7b20/  a generation; once named it never changes, its singles aside
        DESCRIPTION                     JSON: count; where all agree, shape, dtype and the number of images in
                                        each block but the last; what the backend notes; needs: names of what a
                                        reader has to know beyond this, none so far
        singles/                        a file for each image that store_single added or replaced since
        SINGLES                         their ids, so that one that is lost is missed: records of an id and a check

LevelDB and RocksDB switch versions with a CURRENT for the same reason: readers need no locks. Only what bears names
that no person gives is ever removed. A line is added to SINGLES when its single is in place and synced; it is not
synced itself, which would cost `store_single` two fifths more, and reaches the disk when the system writes it back.
"""

import contextlib
import fcntl
import json
import os
import re
import secrets
import stat
import weakref
from collections.abc import Callable, Iterator
from io import FileIO
from typing import Any, NamedTuple, TypeVar

import numpy as np

from imgstore._checksums import checksum
from imgstore._files import (
    NewFile,
    Root,
    open_file,
    opened,
    passing_over_errors,
    read_file,
    read_parts,
    replace_file,
    sync_file,
    sync_file_system,
    sync_folder,
    sync_folder_once,
    sync_once,
    sync_with_parents,
    write_file,
)
from imgstore._images import Labels
from imgstore.errors import (
    CorruptStoreError,
    ImgstoreError,
    InvalidArgumentError,
    StoreBusyError,
    StoreNotFoundError,
    StoreReplacedError,
)

T = TypeVar("T")

FORMAT = 3  # the version of all that lies in a store
_READS_OLDER = {2: "409e50d"}  # the last commits that read them
SHARDS, PLAN = "SHARDS", "PLAN"  # of a sharded store: see imgstore/_shards.py

_ATTEMPTS = 100
_FEW = 8  # files that are synced one by one
_LARGEST_CURRENT = 4096
_LARGEST_DESCRIPTION = 1 << 20
_LARGEST_SINGLES = 1 << 26
_PART = 1 << 20  # bytes of it that are read at once
GENERATION_NAME = r"imgstore-[0-9]{6,18}-[0-9a-f]{12}"
_GENERATION = re.compile(GENERATION_NAME)
_OWN = re.compile(r"DESCRIPTION|SINGLES|labels\.csv|images\.(mdb|h5)|[0-9]{8,19}\.png")  # the files in one
_OWN_SINGLES = re.compile(r"[0-9]{8,19}\.(png|mdb|h5)|\.new")
_CURRENT = re.compile(
    rb"(imgstore (?P<format>\d{1,9}) (?P<backend>\w+) (?P<name>\S{1,99}) (?P<synced>synced|unsynced)"
    rb" (?P<description>[0-9a-f]{16})) (?P<checksum>[0-9a-f]{16})\n"
)
_SINGLE = np.dtype([("id", "<i8"), ("check", "<u8")])
_CHECK = np.uint64(0x9E3779B97F4A7C15)


class Generation(NamedTuple):
    """A generation as CURRENT named it and as its DESCRIPTION tells."""

    root: str
    backend: str
    name: str
    synced: bool
    checksum: str  # of DESCRIPTION
    description: dict[str, Any]

    def path(self, *names: str) -> str:
        """The path of a file in it."""
        return "/".join((self.root, self.name, *names))

    def singles(self, suffix: str) -> Labels:
        """The ids of the images that were stored singly, ascending: also of those whose file was lost."""
        return np.union1d(self._there(suffix), _listed(self.path("SINGLES")))

    def is_listed(self, image_id: int) -> bool:
        """Whether an image of this id was stored singly, though its file may be lost."""
        return any((ids == image_id).any() for ids in _parts_listed(self.path("SINGLES")))

    def _there(self, suffix: str) -> Labels:
        folder = self.path("singles")
        try:
            stems = [name.removesuffix(suffix) for name in os.listdir(folder) if name.endswith(suffix)]
        except FileNotFoundError:  # it is made with the first one
            return np.empty(0, np.int64)
        for stem in stems:
            if not (stem.isdecimal() and f"{int(stem):08d}" == stem and int(stem) < 2**63):
                raise CorruptStoreError(folder, f"holds {stem}{suffix}, which is not the name of a single")
        return np.fromiter(map(int, stems), np.int64, len(stems))

    def fault(self, path: str, message: str, image_id: int | None = None) -> OSError:
        """The error for what cannot be read: damage, or a store that was replaced meanwhile."""
        if _live_name(self.root) == self.name:
            return CorruptStoreError(path, message, image_id)
        return StoreReplacedError(self.root, "the store was replaced since it was opened; open it again")


def single_name(image_id: int, suffix: str) -> str:
    """Where a single lies in a generation, whether it exists or not."""
    return f"singles/{image_id:08d}{suffix}"


def open_live(root: Root, open_generation: Callable[[Generation], T]) -> T:
    """`open_generation` of the generation that CURRENT names, again when CURRENT changed meanwhile.

    While a generation is being removed, its files are a mixture: what was opened counts only when CURRENT
    is the same afterwards. Raises StoreNotFoundError where there is no store, CorruptStoreError for damage.
    """
    root = os.fsdecode(root)
    for _ in range(_ATTEMPTS):
        descriptor, status = _open_current(root)
        try:
            result = open_generation(_generation(root, os.read(descriptor, _LARGEST_CURRENT)))
        except (FileNotFoundError, NotADirectoryError, ImgstoreError) as error:
            if not _is_current(root, status):
                continue
            if type(error) is FileNotFoundError:
                raise CorruptStoreError(error.filename, "is missing from the store") from None
            raise
        else:
            if _is_current(root, status):
                return result
        finally:
            os.close(descriptor)  # only now: while it is open, no other CURRENT is given its inode
    raise StoreReplacedError(root, "the store was replaced again and again while it was being opened")


def is_store(root: str) -> bool:
    """Whether a store is there, also a damaged one; LevelDB and RocksDB have a CURRENT and a LOCK, too."""
    try:
        ours = read_file(f"{root}/CURRENT", _LARGEST_CURRENT).startswith(b"imgstore ")
    except (FileNotFoundError, NotADirectoryError):
        return False
    except CorruptStoreError:
        ours = False
    return ours or bool(generations(root))


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
    if (live := _live_name(root)) and generations(root) != [live]:
        sync_with_parents(root)  # a writer may have been killed before it did, and before it removed the others
        _remove_generations(root, live)
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
        if os.getpid() == writer and _live_name(root) != name:
            _remove_generation(path)
        raise
    with passing_over_errors():
        if os.path.samestat(place, os.stat(root)):
            _remove_generations(root, name)


def _must_still_be(place: os.stat_result, root: str) -> None:
    """Raise StoreBusyError where `root` is no longer the folder that was locked, as where a link was switched."""
    if not os.path.samestat(place, os.stat(root)):
        raise StoreBusyError(root, "it leads to another folder since the call began; store again")


def sharded(root: str) -> str | None:
    """Why no ordinary store can be made at `root`: a sharded one is there, or what was stored of it. Else None."""
    if os.path.lexists(os.path.join(root, SHARDS)):
        return f"{root} is a sharded store; give another folder"
    if os.path.lexists(os.path.join(root, PLAN)):
        return f"{root} holds a part of another sharded store; remove it, or give another folder"
    return None


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


@contextlib.contextmanager
def listing(generation: str, image_id: int) -> Iterator[None]:
    """Add the id of a single to SINGLES when it is in place; the room for it is made before."""
    record, path = np.array([(image_id, 0)], _SINGLE), f"{generation}/SINGLES"
    record["check"] = _checks(record["id"])
    is_made = not os.path.lexists(path)
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW) as descriptor:
        end = os.fstat(descriptor).st_size // record.nbytes * record.nbytes  # without what is left of half a record
        if end >= _LARGEST_SINGLES:
            message = (
                f"{generation} holds {end // record.nbytes} images that were stored singly; store all with store_many"
            )
            raise InvalidArgumentError("image_id", message)
        file, writer = NewFile(path, descriptor), os.getpid()
        try:
            file.write_at(end, bytes(record.nbytes))
            yield
        except BaseException:
            if os.getpid() == writer:
                with passing_over_errors():
                    os.unlink(path) if is_made else os.ftruncate(descriptor, end)
            raise
        with passing_over_errors():  # the single is in place, and what cannot be written now was room made for
            file.write_at(end, record.tobytes())


def _listed(path: str) -> Labels:
    """The ids in SINGLES; what is no record is passed over, as a power cut may leave it."""
    return np.unique(np.concatenate([np.empty(0, np.int64), *_parts_listed(path)]))


def _parts_listed(path: str) -> Iterator[Labels]:
    with contextlib.suppress(FileNotFoundError):
        for part in read_parts(path, _LARGEST_SINGLES, _PART):
            records = np.frombuffer(part, _SINGLE, len(part) // _SINGLE.itemsize)
            yield records["id"][(records["check"] == _checks(records["id"])) & (records["id"] >= 0)]


def _checks(ids: Any) -> Any:
    return ~(ids.astype(np.uint64) * _CHECK)


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


def _open_current(root: str) -> tuple[int, os.stat_result]:
    try:
        return open_file(f"{root}/CURRENT")
    except (FileNotFoundError, NotADirectoryError):
        raise StoreNotFoundError(root, "there is no imgstore store here") from None


def _is_current(root: str, status: os.stat_result) -> bool:
    """Whether this is the status of CURRENT: each is a new file, under the name of the last."""
    try:
        return os.path.samestat(os.lstat(f"{root}/CURRENT"), status)
    except FileNotFoundError:
        return False


def _whole(current: bytes) -> re.Match[bytes] | None:
    """The entry of a CURRENT of any format that matches its own checksum."""
    entry = _CURRENT.fullmatch(current)
    return entry if entry and b"%016x" % checksum(entry[1]) == entry["checksum"] else None


def _entry(root: str, current: bytes) -> re.Match[bytes]:
    entry = _whole(current)
    if not entry:
        raise CorruptStoreError(f"{root}/CURRENT", "does not match its own checksum")
    if other := _other_format(entry):
        raise CorruptStoreError(f"{root}/CURRENT", other)
    if not _GENERATION.fullmatch(entry["name"].decode("ascii", "replace")):
        raise CorruptStoreError(f"{root}/CURRENT", "names no generation")
    return entry


def _other_format(entry: re.Match[bytes]) -> str | None:
    number = int(entry["format"])
    if number == FORMAT:
        return None
    other = f"commit {_READS_OLDER[number]}" if number in _READS_OLDER else "another version"
    return f"is of format {number}, which {other} of imgstore reads; this one reads {FORMAT}"


def _generation(root: str, current: bytes) -> Generation:
    backend, name, synced, digest = _entry(root, current).group("backend", "name", "synced", "description")
    path = f"{root}/{name.decode()}"
    for folder in (path, f"{path}/singles"):
        # no symbolic link, say, that could lead out of the store
        if not stat.S_ISDIR(_mode(folder, may_lack=folder != path)):
            raise CorruptStoreError(folder, "is not a directory of the store's own")
    text = read_file(f"{path}/DESCRIPTION", _LARGEST_DESCRIPTION)
    try:
        description = json.loads(text)
    except (ValueError, RecursionError):
        description = None
    if b"%016x" % checksum(text) != digest or not isinstance(description, dict):
        raise CorruptStoreError(f"{path}/DESCRIPTION", "is not what CURRENT tells of it")
    if description.get("needs") != []:
        raise StoreNotFoundError(root, f"a newer imgstore is needed to read this store, for {description.get('needs')}")
    return Generation(root, backend.decode(), name.decode(), synced == b"synced", digest.decode(), description)


def _mode(path: str, may_lack: bool) -> int:
    try:
        return os.lstat(path).st_mode
    except FileNotFoundError:
        if may_lack:
            return stat.S_IFDIR
        raise


def _live_name(root: str) -> str | None:
    try:
        return _entry(root, read_file(f"{root}/CURRENT", _LARGEST_CURRENT))["name"].decode()
    except (FileNotFoundError, CorruptStoreError):
        return None


def must_be_ours(root: str) -> None:
    """Raise InvalidArgumentError where something else than a store of this format is at `root`."""
    reason = sharded(root)
    try:
        current = read_file(f"{root}/CURRENT", _LARGEST_CURRENT)
    except FileNotFoundError:
        current = b""
    except CorruptStoreError:
        current = b"a link, a folder or more than we write"
    if entry := _whole(current):
        other = _other_format(entry)
        reason = reason or (f"{root}/CURRENT {other}; give another folder" if other else None)
    elif current and not current.startswith(b"imgstore ") and not generations(root):
        reason = reason or f"{root}/CURRENT is not of imgstore; give another folder"
    if reason:
        raise InvalidArgumentError("root", reason)


def _replace_current(root: str, backend: str, name: str, durable: bool, description: str) -> None:
    line = f"imgstore {FORMAT} {backend} {name} {'synced' if durable else 'unsynced'} {description}"
    replace_text(root, "CURRENT", f"{line} {checksum(line.encode()):016x}\n", durable)


def generations(root: str) -> list[str]:
    """The names of all that lie there, also of those that a killed writer left."""
    return [name for name in os.listdir(root) if _GENERATION.fullmatch(name)]


def _remove_generations(root: str, keep: str) -> None:
    for name in generations(root):
        if name != keep:
            _remove_generation(os.path.join(root, name))


def _remove_generation(path: str) -> None:
    """Remove what is provably ours, and the folders if nothing else lies in them."""
    with passing_over_errors():
        with _held(path) as generation:
            with passing_over_errors():
                with _held("singles", generation) as singles:
                    _remove_files(singles, _OWN_SINGLES)
                os.rmdir("singles", dir_fd=generation)
            _remove_files(generation, _OWN)
        os.rmdir(path)


@contextlib.contextmanager
def _held(path: str, folder: int | None = None) -> Iterator[int]:
    """A descriptor of a folder that is no link, as its name may come to lead elsewhere."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _remove_files(folder: int, own: re.Pattern[str]) -> None:
    for name in os.listdir(folder):
        if own.fullmatch(name):
            with passing_over_errors():
                os.unlink(name, dir_fd=folder)


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
