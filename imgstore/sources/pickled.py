"""A batch of CIFAR-10 that Python 2 has pickled, read without calling or making anything that it asks for."""

import pickle
from collections.abc import Callable
from typing import IO, Any, ClassVar, NoReturn, cast

NAMES = ("numpy.core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype")
# What Python 2 writes for a dict of bytes, lists, integers and an array. Of the rest, some take long or much memory.
OPCODES = (
    *(pickle.PROTO, pickle.STOP, pickle.MARK, pickle.GLOBAL, pickle.INST, pickle.REDUCE, pickle.BUILD, pickle.NONE),
    *(pickle.EMPTY_DICT, pickle.EMPTY_LIST, pickle.EMPTY_TUPLE, pickle.APPEND, pickle.APPENDS),
    *(pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.NEWTRUE, pickle.NEWFALSE),
    *(pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.STRING, pickle.BINSTRING, pickle.SHORT_BINSTRING),
    *(pickle.BINPUT, pickle.LONG_BINPUT, pickle.BINGET, pickle.LONG_BINGET),
)
MOST_KEYS = 16
LONGEST_LINE = 256
PIECE, SMALLEST_PIXELS = 2**20, 3072  # bytes: what is read at once; of one image
BYTES_A_READ = 100  # of a genuine batch there are 440 for each opcode and argument
SPARE_READS = 1000


def read_whole(file: IO[bytes], size: int) -> bytearray:
    """So many bytes, read piece by piece: at once, what unpacks an archive would hold them several times."""
    content = bytearray(size)
    for first in range(0, size, PIECE):
        piece = file.read(min(PIECE, size - first))
        content[first : first + len(piece)] = piece
        if len(piece) < min(PIECE, size - first):
            raise EOFError("it ends too early")
    return content


def load(file: IO[bytes], size: int) -> tuple[int, bool, bytearray, list[int]]:
    """How many images, whether they lie in Fortran's order, their pixels and labels. Raises whatever it meets."""
    limited = _Limited(file, size, SPARE_READS + size // BYTES_A_READ)
    match _Unpickler(cast(Any, limited), encoding="bytes").load():
        case {
            b"data": _Recorded(state=(1, (int(n), 3072), dtype, bool(fortran), bytearray(pixels))),
            b"labels": list(labels),
        } if dtype.arguments == (b"u1", 0, 1) and n == len(labels) and {int} == set(map(type, labels)):
            return n, fortran, pixels, labels
    raise ValueError("it holds no uint8 (n, 3072) under b'data' with a list of n integers under b'labels'")


class _Recorded:
    """What a pickle calls and the state it sets, recorded and not carried out.

    It stands in for NumPy's array and dtype, which a hostile pickle can have reserve terabytes, or take its
    bytes for pointers.
    """

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Limited:
    """A file of which only so much is read at so many calls: each opcode is a call, or more."""

    def __init__(self, file: IO[bytes], size: int, reads: int) -> None:
        self.file, self.size, self.left = file, size, reads

    def read(self, size: int) -> bytes | bytearray:
        self.left -= 1
        if self.left < 0 or size > self.size:
            raise pickle.UnpicklingError("it has more opcodes, or longer ones, than a batch of its size")
        return self.file.read(size) if size < SMALLEST_PIXELS else read_whole(self.file, size)

    def readline(self) -> bytes:
        return self.file.readline(LONGEST_LINE)


class _Opcodes(dict[int, Callable[[Any], None]]):
    def __missing__(self, opcode: int) -> NoReturn:
        raise pickle.UnpicklingError(f"it has the opcode {opcode}, which CIFAR-10 has not")


# The one in Python: its memo is a dict, where that in C makes an array up to the highest index.
class _Unpickler(pickle._Unpickler):
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = _Opcodes(
        {opcode[0]: pickle._Unpickler.dispatch[opcode[0]] for opcode in OPCODES}
    )

    def find_class(self, module: str, name: str) -> type[_Recorded]:
        if f"{module}.{name}" in NAMES:
            return _Recorded
        raise pickle.UnpicklingError(f"it names {module}.{name}, which CIFAR-10 does not and which may do harm")

    def load_setitem(self: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def load_setitems(self: Any) -> None:
        self.set_items(self.pop_mark())

    def set_items(self: Any, items: list[Any]) -> None:
        # other keys can be made so that their hashes are alike, or take forever
        if len(items) > 2 * MOST_KEYS or {*map(type, items[::2])} != {bytes}:
            raise pickle.UnpicklingError("it has a dict that CIFAR-10 has not")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    dispatch[pickle.SETITEM[0]], dispatch[pickle.SETITEMS[0]] = load_setitem, load_setitems
