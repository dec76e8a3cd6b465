"""`python -m imgstore`: convert images into a store, verify a store, and tell what is in it.

The exit status is 0; 1 for damage, or for what cannot be read or stored; 2 for a bad argument; 130 after Ctrl-C.
"""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import imgstore
from imgstore.command.convert import run_convert
from imgstore.command.progress import START_OF_LINE
from imgstore.command.tell import run_info, run_verify
from imgstore.errors import ImgstoreError, InvalidArgumentError, StoreNotFoundError, printable, reason_of

PROGRAM = "imgstore" if os.path.basename(sys.argv[0]) == "imgstore" else "python -m imgstore"  # as it was called
READER_GONE = 141  # as a shell tells of a program that SIGPIPE ended


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
    parsed.add_argument("--version", action="version", version=f"imgstore {imgstore.__version__}")
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
        sys.stdout.flush()
    except BrokenPipeError as error:
        if error.filename:
            return ended(1, f"{error.filename}: {reason_of(error)}")
        leave_standard_output()
        return READER_GONE
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


def leave_standard_output() -> None:
    """Have nothing left to write to a reader that is gone, such as `head`: Python would complain at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def ended(status: int, message: str) -> int:
    start = START_OF_LINE if sys.stderr.isatty() else ""
    print(f"{start}{PROGRAM}: {printable(message)}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
