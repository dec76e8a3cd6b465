"""How modules lie and what they import: downwards only, in modules that a reader takes in."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LONGEST, LONGEST_CONFTEST = 300, 40  # lines
FILES = [
    path.relative_to(ROOT) for path in chain((ROOT / "imgstore").rglob("*.py"), (ROOT / "benchmarks").rglob("*.py"))
]
OF_NO_TEST = [path for path in FILES if "tests" not in path.parts]
DOORS = ("gate", "report", "studies")  # none of which needs another


def module(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(path) for path in FILES}


def imported(text: str, everywhere: bool = True) -> Iterator[str]:
    """The modules of the project that a module imports, also in its functions."""
    tree = ast.parse(text)
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{name.name}" for name in node.names}
            yield from names & MODULES or {node.module} & MODULES


@pytest.mark.parametrize("path", OF_NO_TEST, ids=str)
def test_a_module_is_short(path: Path) -> None:
    assert len((ROOT / path).read_text().splitlines()) <= LONGEST


def test_the_conftest_only_names_the_plugins() -> None:
    assert len((ROOT / "conftest.py").read_text().splitlines()) <= LONGEST_CONFTEST


@pytest.mark.parametrize("path", [path for path in OF_NO_TEST if "measure" in path.parts], ids=str)
def test_what_runs_beside_another_commit_imports_nothing_inside_imgstore(path: Path) -> None:
    text = (ROOT / path).read_text()
    assert not [name for name in imported(text) if name.startswith("imgstore.")] and "from imgstore." not in text


@pytest.mark.parametrize("door", DOORS)
def test_a_door_needs_no_other(door: str) -> None:
    others = tuple(f"benchmarks.{other}" for other in (*DOORS, "suite") if other != door)
    for path in OF_NO_TEST:
        if door in path.parts:
            assert not [name for name in imported((ROOT / path).read_text()) if name.startswith(others)], path


def test_nothing_is_imported_in_a_circle() -> None:
    graph = {module(path): set(imported((ROOT / path).read_text(), everywhere=False)) for path in OF_NO_TEST}
    assert list(TopologicalSorter(graph).static_order())
    assert not [name for name, others in graph.items() if name.startswith("imgstore") and "benchmarks" in str(others)]
