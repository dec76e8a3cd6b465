"""The page of one run or of several, written into a folder."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.report.runs import read_run


def write_page(files: Sequence[Path], out: Path) -> Path:
    """Write the page and the charts of saved runs below the folder `out`; gives the page's path. Raises RunError."""
    from benchmarks.report import page

    return page.write([read_run(path) for path in files], out)
