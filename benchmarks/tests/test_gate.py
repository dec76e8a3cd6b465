"""Tests of `pytest benchmarks --against REF`: what it compares, says, refuses and leaves behind."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gate import compare as gate
from benchmarks.gate.contest import Contest, Key
from benchmarks.gate.reference import GateError, Reference
from benchmarks.gate.tables import Outcome, as_json, markdown, sentence, table, write_reports
from benchmarks.gate.verdicts import FASTER, INCONCLUSIVE, NOT_COMPARABLE, SAME, SLOWER, Change, Row
from benchmarks.measure.cell import Terms
from benchmarks.measure.synthetic import synthetic
from benchmarks.suite.options import parsed_budget, parsed_report
from benchmarks.tests.test_run import ROOT, SECONDS, Run, environment, killed_at_last, must_be_refused, plugin, wait_for

CODE = ("benchmarks", "imgstore", "conftest.py", "pytest.ini", "requirements.txt")
CELLS = [Key("read_many", 100, name) for name in ("disk", "lmdb", "hdf5", "new", "odd")]
ROWS = {
    CELLS[0]: Row(SLOWER, Change(0.2, 0.1, 0.3, 8)),
    CELLS[1]: Row(SAME, Change(0.001, -0.01, 0.011, 4)),
    CELLS[2]: Row(FASTER, Change(-0.2, -0.3, -0.1, 8)),
    CELLS[3]: Row(NOT_COMPARABLE, reason="REF: there is no backend 'new' | or so"),
    CELLS[4]: Row(INCONCLUSIVE, Change(0.2, -0.1, 0.3, 8), "the control moved"),
}
NOT_OURS = {"__pycache__", ".benchmarks"}  # Python's, and the folder that pytest-benchmark makes in any run
# Processes that take turns in no time: the working tree's read_many of disk is slower by half.
SIMULATED = """
    import itertools
    import os

    from benchmarks.gate import contest

    moods = itertools.cycle([0.99, 1.0, 1.01, 1.0, 1.005])


    class Simulated:
        def __init__(self, name, tree, folder, *_):
            self.slow, self.folder, self.factor = name == "working tree" and "SLOW" in os.environ, folder, 1

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def ask(self, request, *arguments):
            if request == "open":
                self.factor = 1.5 if self.slow and arguments == ("read_many", 10, "disk") else 1
            if request == "pilot":
                return 0.001, 0.001
            return 0.001 * self.factor * next(moods)


    contest.Worker = Simulated
"""
NO_WORKER = """
if __name__ == "__main__":
    raise RuntimeError("planted")
"""
BROKEN = """

def read_single(*arguments, **options):
    raise RuntimeError("planted")
"""
OTHER_SIGNATURE = """

def read_single(root, image_id):
    return BACKEND.read_single(root, image_id)
"""
HANGS = """

def read_single(*arguments, **options):
    import os
    import time

    with open({path!r} + ".new", "w") as file:
        file.write(str(os.getpid()))
    os.rename({path!r} + ".new", {path!r})
    time.sleep(60)
"""


def git(root: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    ended = subprocess.run(["git", "-C", root, *identity, *arguments], capture_output=True, text=True, check=True)
    return ended.stdout


def append(path: Path, text: str) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of this code, with one commit."""
    root = tmp_path_factory.mktemp("template") / "imgstore"
    for name in CODE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "tests"))
        else:
            shutil.copy(ROOT / name, root / name)
    append(root / ".gitignore", "\n".join(sorted(NOT_OURS)))
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "one")
    return root


@pytest.fixture
def repository(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "imgstore"))


def command(tmp_path: Path, *options: str) -> list[str]:
    quick = ["-pno:cacheprovider", "--cutoffs=10", f"--store-dir={tmp_path / 'stores'}"]
    return [sys.executable, "-m", "pytest", "benchmarks", *quick, *options]


def compare(tmp_path: Path, repository: Path, *options: str, **variables: str) -> Run:
    (tmp_path / "stores").mkdir()
    before = traces(repository)
    ended = subprocess.run(
        command(tmp_path, *options),
        cwd=repository,
        env=environment(tmp_path) | variables,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert traces(repository) == before
    return Run(ended.returncode, ended.stdout, ended.stderr, os.listdir(tmp_path / "stores"))


def traces(repository: Path) -> Any:
    """What a comparison might leave in a repository: files, branches, worktrees, objects."""
    files = sorted(str(path) for path in repository.rglob("*") if not NOT_OURS & {*path.parts})
    return files, git(repository, "status", "--porcelain", "--ignored=no"), git(repository, "worktree", "list")


def test_a_slower_cell_fails_the_run_and_is_named(tmp_path: Path, repository: Path) -> None:
    append(repository / "requirements.txt", "another==1\n")
    reports = [tmp_path / "report.md", tmp_path / "report.json"]
    options = [f"--against-report={path}" for path in reports]
    run = compare(tmp_path, repository, "--against", "HEAD", "-kread", plugin(tmp_path, SIMULATED), *options, SLOW="1")
    assert run.status == 1
    text = run.out[run.out.index("Slower than HEAD: read_many[10-disk] by ") :].splitlines()[0]
    assert text.endswith("requirements.txt differs: both sides ran with the packages that are installed.")
    assert "1 slower" in run.out.splitlines()[-1] and "11 same" in run.out.splitlines()[-1]
    assert text in reports[0].read_text(encoding="utf-8")
    told = json.loads(reports[1].read_text(encoding="utf-8"))
    assert told["slower"] == ["read_many[10-disk]"] and told["sentence"] == text
    operations, backends = ("read_many", "read_batch", "read_one", "read_single"), ("disk", "lmdb", "hdf5")
    cells = [f"{operation}[10-{backend}]" for operation in operations for backend in backends]
    assert [cell["cell"] for cell in told["cells"]] == cells
    assert told["commit"] == git(repository, "rev-parse", "HEAD").strip()
    assert "passed" not in run.out and "Median" not in run.out and not run.left


def test_a_report_that_cannot_be_written_takes_nothing_from_the_table(tmp_path: Path, repository: Path) -> None:
    (tmp_path / "taken.md").mkdir()
    option = f"--against-report={tmp_path / 'taken.md'}"
    run = compare(tmp_path, repository, "--against=HEAD", "-kread", plugin(tmp_path, SIMULATED), option, SLOW="1")
    assert run.status == pytest.ExitCode.USAGE_ERROR and "Slower than HEAD: read_many[10-disk] by " in run.out
    assert f"--against-report: {tmp_path / 'taken.md'} cannot be written (Is a directory)" in run.err
    assert "Traceback" not in run.err and "INTERNALERROR" not in run.out


def test_nothing_slower_passes(tmp_path: Path, repository: Path) -> None:
    run = compare(tmp_path, repository, "--against=HEAD", plugin(tmp_path, SIMULATED))
    assert run.status == 0 and "No slowdown against HEAD was found.\n" in run.out
    lines = [line for line in run.out.splitlines() if " pairs done, " in line]
    assert [line.split(": ")[1].split()[0] for line in lines] == ["0", "1", "2", "3"]
    assert "18 same" in run.out.splitlines()[-1] and not run.left


def test_uncommitted_changes_are_compared_and_what_ref_cannot_run_is_told(tmp_path: Path, repository: Path) -> None:
    genuine = (repository / "imgstore" / "lmdb.py").read_text(encoding="utf-8")
    append(repository / "imgstore" / "lmdb.py", OTHER_SIGNATURE)
    append(repository / "imgstore" / "__init__.py", "\ndel BACKENDS['hdf5']\n")
    git(repository, "commit", "-qam", "two")
    git(repository, "checkout", "-q", "HEAD~1", "--", "imgstore/__init__.py")
    (repository / "imgstore" / "lmdb.py").write_text(genuine, encoding="utf-8")
    append(repository / "imgstore" / "disk.py", BROKEN)
    run = compare(tmp_path, repository, "--against=HEAD", "-kread_single")
    rows = {line.split()[0]: line.partition("not comparable: ")[2] for line in run.out.splitlines() if "able: " in line}
    assert rows["read_single[10-disk]"] == "working tree: RuntimeError: planted"
    assert rows["read_single[10-hdf5]"] == "REF: there is no backend 'hdf5'"
    assert rows["read_single[10-lmdb]"].startswith("REF: TypeError: read_single() got an unexpected keyword argument")
    assert "Nothing can be compared with HEAD (3 of 3 cells not comparable).\n" in run.out
    assert run.status == 0 and not run.left


def test_processes_that_do_not_start_are_no_pass(tmp_path: Path, repository: Path) -> None:
    worker = repository / "benchmarks" / "measure" / "worker.py"
    worker.write_text(NO_WORKER + worker.read_text(encoding="utf-8"), encoding="utf-8")
    run = compare(tmp_path, repository, "--against=HEAD", "-kread_single")
    assert run.status == pytest.ExitCode.USAGE_ERROR and not run.left
    assert re.search(
        r"--against: nothing can be measured: .*: its process ended with status 1 \(RuntimeError: planted\)", run.err
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_interrupted_comparison_leaves_nothing(tmp_path: Path, repository: Path, number: signal.Signals) -> None:
    marker = tmp_path / "hangs"
    append(repository / "imgstore" / "disk.py", HANGS.format(path=str(marker)))
    (tmp_path / "stores").mkdir()
    before = traces(repository)
    run = subprocess.Popen(
        command(tmp_path, "--against=HEAD", "-kread_single and disk"),
        cwd=repository,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    with run, killed_at_last(run):
        wait_for(marker)
        run.send_signal(number)
        out, _ = run.communicate(timeout=20)  # less than it would hang
    assert run.returncode == pytest.ExitCode.INTERRUPTED and "Traceback" not in out and "INTERNALERROR" not in out
    assert not os.listdir(tmp_path / "stores") and traces(repository) == before
    with pytest.raises(ProcessLookupError):
        os.kill(int(marker.read_text(encoding="ascii")), 0)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--against=nowhere"], "--against: there is no commit 'nowhere' in this repository"),
        (["--against=HEAD", "-kfloor"], "--against: no cell of ours was chosen"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_compared_is_refused_in_one_line(
    tmp_path: Path, repository: Path, options: list[str], reason: str
) -> None:
    must_be_refused(compare(tmp_path, repository, *options), reason)


@pytest.mark.parametrize(
    ("parsed", "text", "reason"),
    [
        (parsed_budget, "0", "--against-budget: '0' is not a number of seconds"),
        (parsed_budget, "nan", "--against-budget: 'nan' is not a number of seconds"),
        (parsed_budget, "soon", "--against-budget: 'soon' is not a number of seconds"),
        (parsed_report, "x.txt", "--against-report: x.txt should end in .md or .json"),
        (parsed_report, "no/x.md", "--against-report: there is no folder no"),
    ],
)
def test_options_are_checked_before_anything_is_measured(
    parsed: Callable[[str], object], text: str, reason: str
) -> None:
    with pytest.raises(pytest.UsageError, match=re.escape(reason)):
        parsed(text)


def shallow(repository: Path) -> Path:
    git(repository, "commit", "-q", "--allow-empty", "-m", "two")
    clone = repository.parent / "shallow"
    git(repository, "clone", "-q", "--depth=1", f"file://{repository}", str(clone))
    return clone


def without_git(repository: Path) -> Path:
    shutil.rmtree(repository / ".git")
    return repository


@pytest.mark.parametrize(
    ("made", "name", "reason"),
    [
        (Path, "HEAD~9", "there is no commit 'HEAD~9' in this repository"),
        (Path, "HEAD:conftest.py", "there is no commit 'HEAD:conftest.py' in this repository"),
        (Path, "--all", "'--all' names no commit"),
        (Path, "^HEAD", "'^HEAD' names no commit"),
        (Path, "", "'' names no commit"),
        (shallow, "HEAD~1", "HEAD~1 is not in this shallow clone; get all commits with: git fetch --unshallow"),
        (without_git, "HEAD", "fatal: not a git repository"),
    ],
)
def test_a_reference_that_is_none(repository: Path, made: Callable[[Path], Path], name: str, reason: str) -> None:
    with pytest.raises(GateError) as caught:
        Reference.of(made(repository), name)
    assert str(caught.value).startswith(reason) and "\n" not in str(caught.value)


def test_what_git_advises_is_told(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # as in a container with another user's clone
    with pytest.raises(GateError, match=r"^fatal: detected dubious ownership .* git config --global --add"):
        Reference.of(repository, "HEAD")


def test_without_git_there_is_no_reference(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(GateError, match="git is needed, and cannot be run"):
        Reference.of(repository, "HEAD")


@pytest.mark.parametrize("name", ["HEAD", "HEAD~1", "tagged", "v1"])
def test_a_reference_is_a_commit_and_its_package(repository: Path, tmp_path: Path, name: str) -> None:
    git(repository, "tag", "tagged")
    git(repository, "tag", "-a", "v1", "-m", "annotated")
    append(repository / "imgstore" / "disk.py", "# two\n")
    git(repository, "commit", "-qam", "two")
    append(repository / "imgstore" / "disk.py", "# uncommitted\n")
    reference = Reference.of(repository, name)
    reference.extract(str(tmp_path / "ref"))
    text = (tmp_path / "ref" / "imgstore" / "disk.py").read_text(encoding="utf-8")
    assert text.endswith("# two\n") == (name == "HEAD") and "# uncommitted" not in text
    assert os.listdir(tmp_path / "ref") == ["imgstore"]


def test_a_reference_without_the_package(repository: Path, tmp_path: Path) -> None:
    git(repository, "rm", "-rq", "imgstore")
    git(repository, "commit", "-qm", "none")
    with pytest.raises(GateError, match="HEAD has no imgstore to compare with"):
        Reference.of(repository, "HEAD").extract(str(tmp_path / "ref"))


@pytest.mark.parametrize(
    ("there", "differ"), [("a==1\nb==2\n", False), ("# why\nb==2 # so\n\na==1\n", False), ("a==1\nb==3\n", True)]
)
def test_requirements_differ_by_packages_not_by_words(repository: Path, there: str, differ: bool) -> None:
    (repository / "requirements.txt").write_text(there)
    git(repository, "commit", "-qam", "there")
    (repository / "requirements.txt").write_text("a==1\nb==2\n")
    assert Reference.of(repository, "HEAD").requirements_differ() == differ


def test_what_measures_is_copied_too(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Measured(Contest):
        def run(self, keys: Iterable[Key]) -> dict[Key, Row]:
            assert all(os.path.exists(os.path.join(tree, "benchmarks", "measure", "worker.py")) for tree in self.trees)
            return {}

    monkeypatch.setattr(gate, "Contest", Measured)
    reference = Reference.of(repository, "HEAD")
    gate.compare(reference, [], str(tmp_path), synthetic(10), Terms(), 1.0, lambda cell, pairs, left: None)


def outcome(*keys: Key, differ: bool = False) -> Outcome:
    return Outcome(Reference(ROOT, "main", 40 * "a"), {key: ROWS[key] for key in keys}, 20, 58.6, differ)


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (CELLS[:2], "Slower than main: read_many[100-disk] by 22.1%."),
        (CELLS[1:3], "No slowdown against main was found."),
        (CELLS[1:], "No slowdown against main was found (1 of 4 cells inconclusive, 1 of 4 cells not comparable)."),
        (CELLS[2:5:2], "No slowdown against main was found (1 of 2 cells inconclusive)."),
        (CELLS[4:], "Nothing could be shown against main in the time (1 of 1 cells inconclusive)."),
        (
            CELLS[3:],
            "Nothing could be shown against main in the time (1 of 2 cells inconclusive, 1 of 2 cells not comparable).",
        ),
        (CELLS[3:4], "Nothing can be compared with main (1 of 1 cells not comparable)."),
    ],
)
def test_the_sentence(keys: list[Key], text: str) -> None:
    assert sentence(outcome(*keys)) == text
    assert sentence(outcome(*keys, differ=True)).startswith(f"{text} requirements.txt differs")


def test_the_table_has_a_row_for_each_cell() -> None:
    lines = list(table(outcome(*CELLS)))
    assert lines[0].split()[:1] == ["cell"] and lines[-1] == sentence(outcome(*CELLS)) and not lines[-2]
    assert [line.split()[0] for line in lines[1:-2]] == [str(key) for key in CELLS]
    assert lines[1].split() == ["read_many[100-disk]", "+22.1", "+10.5", "to", "+35.0", "8", "slower"]
    assert lines[4].endswith("not comparable: REF: there is no backend 'new' | or so")
    assert {line.index(line.split()[-1]) for line in lines[1:4]} == {lines[0].index("verdict")}


def test_the_markdown_shows_what_changed_and_folds_the_rest(tmp_path: Path) -> None:
    text = markdown(outcome(*CELLS))
    shown, _, folded = text.partition("<details>")
    assert text.startswith("### imgstore against main\n\nSlower than main: read_many[100-disk] by 22.1%")
    assert "| read_many[100-disk] | +22.1 | +10.5 to +35.0 | 8 | slower |" in shown
    assert "no backend 'new' \\| or so |" in shown
    assert "| read_many[100-lmdb] | +0.1 | -1.0 to +1.1 | 4 | same |" in folded
    assert "aaaaaaaaaaaa; 20 pairs of processes in 59 s." in folded
    assert "<details>" not in markdown(outcome(CELLS[0])) and "| slower |" not in markdown(outcome(CELLS[1]))


def test_the_json_has_percents(tmp_path: Path) -> None:
    write_reports(outcome(*CELLS), [str(tmp_path / "a.json"), str(tmp_path / "a.md")])
    told = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert told == as_json(outcome(*CELLS)) and (tmp_path / "a.md").read_text(encoding="utf-8") == markdown(
        outcome(*CELLS)
    )
    first, *_, odd = told["cells"]
    assert (first["change"], first["low"], first["high"], first["verdict"]) == (22.1, 10.5, 35.0, "slower")
    assert (first["operation"], first["cutoff"], first["backend"]) == ("read_many", 100, "disk")
    assert odd["reason"] == "the control moved" and "change" not in told["cells"][3]
