"""The suite's options."""

import difflib
import functools
import os
from collections.abc import Iterable

import pytest

import imgstore
from benchmarks.gate import compare as gate
from benchmarks.gate import tables
from benchmarks.measure.floor import FLOOR

CACHES = ("warm", "cold")
CUTOFFS = (10, 100, 1000, 10_000)
LARGEST_CUTOFF = 100_000
NEAR = 0.8  # of 1, for names that are alike


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    groups = add_measuring_options(parser), add_comparing_options(parser), add_fault_options(parser)
    ours = [name for group in groups for option in group.options for name in option.names()]
    config: pytest.Config = pluginmanager.get_plugin("pytestconfig")  # type: ignore[assignment]
    if meant := meant_by(config.invocation_params.args, ours):
        parser.extra_info["did you mean"] = meant  # which pytest shows where it refuses what it was given


def meant_by(arguments: Iterable[str | os.PathLike[str]], ours: list[str]) -> str:
    """The options of ours that are nearest to what looks like one of them mistyped."""
    given = [str(argument).partition("=")[0] for argument in arguments]
    mistyped = [name for name in given if name.startswith("--") and name not in ours]
    return ", ".join(nearest for name in mistyped for nearest in difflib.get_close_matches(name, ours, 1, NEAR))


def add_measuring_options(parser: pytest.Parser) -> pytest.OptionGroup:
    group = parser.getgroup("imgstore", "imgstore: what is measured (write options with a path as --name=PATH)")
    group.addoption(
        "--images",
        metavar="PATH",
        help="the images to measure with: a folder of image files, or CIFAR-10 (cifar-10-python.tar.gz, "
        "cifar-10-binary.tar.gz, or what either unpacks to); default: synthetic 32x32x3 images",
    )
    group.addoption(
        "--max-pixels",
        metavar="N",
        type=parsed_pixels,
        help="read image files of up to N pixels; default: 89,478,485, as more may be a decompression bomb",
    )
    group.addoption(
        "--cutoffs",
        metavar="N,...",
        type=parsed_cutoffs,
        help="how many images a store holds: positive integers, or `all` for the default and "
        f"{LARGEST_CUTOFF}; default: {','.join(map(str, CUTOFFS))}, "
        f"with --against {','.join(map(str, gate.DEFAULT_CUTOFFS))}",
    )
    group.addoption(
        "--backends",
        metavar="NAME,...",
        type=parsed_backends,
        default=tuple(imgstore.BACKENDS),
        help=f"the formats to measure beside the floor; default: {','.join(imgstore.BACKENDS)}",
    )
    group.addoption(
        "--store-dir",
        metavar="PATH",
        help="an existing folder on the disk to measure; stores are made below it and removed again; "
        "default: the system's temporary folder",
    )
    group.addoption(
        "--cache",
        metavar="STATE,...",
        type=parsed_caches,
        default=("warm",),
        help="warm: read from the page cache; cold: after evicting the store from it before each round; "
        "warm,cold: both; default: warm",
    )
    group.addoption(
        "--readers",
        metavar="N,...",
        type=functools.partial(positive_integers, "--readers"),
        help="read batches and all images in so many processes at once, also while the store is replaced, and load "
        "epochs with PyTorch's DataLoader; default: no other process",
    )
    group.addoption(
        "--image-size",
        metavar="PIXELS,...",
        type=functools.partial(positive_integers, "--image-size"),
        help="measure with square images of so many pixels a side; default: the images' own sizes",
    )
    group.addoption(
        "--peers",
        action="store_true",
        help="also measure other formats: those whose packages are installed, see benchmarks/peers/requirements.txt",
    )
    group.addoption(
        "--report",
        metavar="DIR",
        help="write a page with the answer, charts and tables of the run into this folder, and the run as run.json",
    )
    group.addoption("--no-durable", action="store_true", help="store without waiting for the disk")
    group.addoption("--no-verify", action="store_true", help="read without checking checksums")
    return group


def add_comparing_options(parser: pytest.Parser) -> pytest.OptionGroup:
    against = parser.getgroup("against", "imgstore: compare with another commit")
    against.addoption(
        "--against",
        metavar="REF",
        help="compare the cells of the run with those of this commit, instead of measuring them the usual way; "
        "exit with 1 when one is slower",
    )
    against.addoption(
        "--against-budget",
        metavar="SECONDS",
        type=parsed_budget,
        default=gate.DEFAULT_BUDGET,
        help=f"how long that may take; default: {gate.DEFAULT_BUDGET:.0f}",
    )
    against.addoption(
        "--against-report",
        metavar="FILE",
        type=parsed_report,
        action="append",
        default=[],
        help="also write the verdicts to a file, .md or .json; may be given several times",
    )
    return against


def add_fault_options(parser: pytest.Parser) -> pytest.OptionGroup:
    faults = parser.getgroup("faults", "imgstore: the fault tests of `pytest imgstore/tests/faults`")
    faults.addoption(
        "--long",
        action="store_true",
        help="try each fault often, as imgstore/tests/faults/README.md shows",
    )
    faults.addoption("--fault-seed", type=int, default=0, help="what the faults are drawn from; default: 0")
    return faults


def parsed_cutoffs(text: str) -> tuple[int, ...]:
    return (*CUTOFFS, LARGEST_CUTOFF) if text == "all" else positive_integers("--cutoffs", text)


def parsed_pixels(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise pytest.UsageError(f"--max-pixels: {text!r} is not a positive integer such as 200000000")
    return int(text)


def positive_integers(option: str, text: str) -> tuple[int, ...]:
    if not all(part.isascii() and part.isdigit() and int(part) for part in text.split(",")):
        raise pytest.UsageError(f"{option}: {text!r} is not a list of positive integers such as 10,1000")
    return tuple(sorted({int(part) for part in text.split(",")}))


def parsed_caches(text: str) -> tuple[str, ...]:
    states = tuple(dict.fromkeys(text.split(",")))
    if not set(states) <= set(CACHES):
        raise pytest.UsageError(f"--cache: {text!r} is neither warm nor cold, nor warm,cold")
    return states


def parsed_backends(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in {*imgstore.BACKENDS, FLOOR}:
            raise pytest.UsageError(f"--backends: there is no {name!r}; choose from {', '.join(imgstore.BACKENDS)}")
    return names


def parsed_budget(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise pytest.UsageError(f"--against-budget: {text!r} is not a number of seconds")
    return seconds


def parsed_report(path: str) -> str:
    if not path.endswith(tables.REPORTS):
        raise pytest.UsageError(f"--against-report: {path} should end in {' or '.join(tables.REPORTS)}")
    if not os.path.isdir(os.path.dirname(path) or "."):
        raise pytest.UsageError(f"--against-report: there is no folder {os.path.dirname(path)}")
    return os.path.abspath(path)
