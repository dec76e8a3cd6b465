"""python -m benchmarks.gate --prove"""

import argparse
import signal
from functools import partial
from pathlib import Path

from benchmarks.gate.proving import KINDS, prove

RESULTS = Path(".benchmarks", "proving.json")  # not in the repository: they are of one machine


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate", description=__doc__.partition("\n\n")[2])
    parser.add_argument("--prove", action="store_true", required=True, help="judge planted changes and print the rates")
    parser.add_argument("--against-budget", metavar="SECONDS", type=float, default=60, help="of a run; default: 60")
    most = max(kind.runs for kind in KINDS)
    parser.add_argument(
        "--runs", metavar="N", type=int, default=most, help="at most so many of each kind; default: all"
    )
    parser.add_argument(
        "--results",
        metavar="FILE",
        type=Path,
        default=RESULTS,
        help="what is kept, and gone on with; default: %(default)s",
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        prove(options.results, options.against_budget, options.runs, partial(print, flush=True))
    except ValueError as error:
        parser.error(f"--results: {error}")
    except KeyboardInterrupt:
        parser.exit(130, f"stopped; {options.results} keeps the runs that are done, and the same command goes on\n")


if __name__ == "__main__":
    main()
