"""python -m benchmarks.report RUN... --out DIR"""

import argparse
from pathlib import Path

from benchmarks.report.runs import RunError
from benchmarks.report.writing import write_page


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report",
        description="Make one page and its charts of saved runs; of several, their history too.",
    )
    parser.add_argument(
        "files",
        metavar="FILE.json",
        nargs="+",
        type=Path,
        help="saved by --report, --benchmark-json or --benchmark-autosave",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="where index.html and the charts go")
    options = parser.parse_args()
    try:
        print(write_page(options.files, options.out))
    except RunError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"--out: {options.out} cannot be written to ({error.strerror}); give a folder of yours")


if __name__ == "__main__":
    main()
