"""What the run says at its end, saves and draws."""

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gate import tables
from benchmarks.report import conditions as terms
from benchmarks.report import terminal as report
from benchmarks.report import writing
from benchmarks.report.runs import RunError
from benchmarks.suite.asked import sources_of, store_directory, told_terms
from benchmarks.suite.comparing import OUTCOME

REPORT = pytest.StashKey[Path]()
SAVED = pytest.StashKey[dict[str, Any]]()  # the run as pytest-benchmark saves it
RUN_FILE = "run.json"


def prepare_report(config: pytest.Config) -> None:
    """Have pytest-benchmark save the run that the report will be made from."""
    directory = config.getoption("--report")
    if directory is None:
        return
    if config.getoption("--against") is not None:
        raise pytest.UsageError("--report: with --against nothing is measured that it shows; see --against-report")
    try:
        os.makedirs(directory, exist_ok=True)
    except OSError as error:
        raise pytest.UsageError(
            f"--report: {directory} cannot be made ({error.strerror}); give another folder"
        ) from None
    if not os.access(directory, os.W_OK | os.X_OK):
        raise pytest.UsageError(f"--report: {directory} cannot be written to; give a folder of yours")
    config.stash[REPORT] = Path(directory).absolute()
    if not config.option.benchmark_json:
        config.option.benchmark_json = str(config.stash[REPORT] / RUN_FILE)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    terms.forget_clock_speed(machine_info)
    machine_info["imgstore"] = terms.recorded(sources_of(config), told_terms(config), store_directory(config))


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Add the command, which is no part of the machine: runs whose machines differ are warned of."""
    output_json["command"] = shlex.join(["pytest", *map(str, config.invocation_params.args)])
    config.stash[SAVED] = output_json


@pytest.hookimpl(optionalhook=True, tryfirst=True)  # before pytest-benchmark compares them
def pytest_benchmark_compare_machine_info(machine_info: dict[str, Any], compared_benchmark: dict[str, Any]) -> None:
    reason = terms.incomparable(machine_info["imgstore"], compared_benchmark["machine_info"].get("imgstore", {}))
    if reason:
        raise pytest.UsageError(f"--benchmark-compare: {reason}")
    for name in terms.SHOWN:  # how many images there were, say, which makes no other machine for pytest-benchmark
        compared_benchmark["machine_info"]["imgstore"][name] = machine_info["imgstore"][name]


def measured(config: pytest.Config) -> list[Any]:
    """The benchmarks of the run; none where another runner has taken pytest-benchmark's place."""
    session = getattr(config, "_benchmarksession", None)
    return session.benchmarks if session else []


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before pytest-benchmark saves
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    benchmarks = measured(session.config)
    # an interrupted cell has no round, which pytest-benchmark does not expect; a failed one has no figure
    benchmarks[:] = [benchmark for benchmark in benchmarks if benchmark and not benchmark.has_error]
    report.add_figures(benchmarks)
    yield


@pytest.hookimpl(wrapper=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> Iterator[None]:
    try:
        yield  # pytest-benchmark's tables
    finally:
        outcome = config.stash.get(OUTCOME, None)
        for line in report.summary(measured(config)) if outcome is None else tables.table(outcome):
            terminalreporter.write_line(line)
        if REPORT in config.stash:
            terminalreporter.write_line(f"report: {write_report(config, terminalreporter)}")


def write_report(config: pytest.Config, reporter: pytest.TerminalReporter) -> str:
    """Keep the run and make its page; gives the page's path, or says why there is none, which fails the run."""
    if not any("operation" in benchmark.extra_info for benchmark in measured(config)):
        return "nothing was measured, so there is none"
    path = config.stash[REPORT] / RUN_FILE
    try:
        path.write_text(json.dumps(to_be_shown(config.stash[SAVED]), indent=4, default=repr), encoding="utf-8")
        return str(writing.write_page([path], config.stash[REPORT]))
    except (RunError, OSError) as error:
        session = reporter._session
        assert session
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED
        return f"none, because of {error}"


def to_be_shown(run: dict[str, Any]) -> dict[str, Any]:
    """A saved run without the machine's name, nor megabytes of the seconds of each round."""
    benchmarks = [
        {**each, "stats": {name: value for name, value in each["stats"].items() if name != "data"}}
        for each in run["benchmarks"]
    ]
    return {**run, "machine_info": {**run["machine_info"], "node": ""}, "benchmarks": benchmarks}
