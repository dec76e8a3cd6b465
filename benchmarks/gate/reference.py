"""The other commit: found in git, and its package taken out of it."""

import io
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gate.contest import PACKAGE

REQUIREMENTS = "requirements.txt"


class GateError(Exception):
    """There is nothing to compare with, or nothing that measures: one line says why and what to do."""


@dataclass(frozen=True)
class Reference:
    """A commit of the repository that `root` lies in; `name` is what the user called it."""

    root: Path
    name: str
    commit: str

    @classmethod
    def of(cls, root: Path, name: str) -> "Reference":
        if not name or name[0] in "-^":
            raise GateError(f"{name!r} names no commit")
        try:
            found = _git(root, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
            if found.returncode == 0:
                return cls(root, name, found.stdout.decode().strip())
            shallow = _git(root, "rev-parse", "--is-shallow-repository")
        except OSError as error:
            raise GateError(f"git is needed, and cannot be run ({error.strerror})") from None
        if shallow.returncode:
            raise GateError(_said(shallow.stderr))
        if shallow.stdout.strip() == b"true":
            raise GateError(f"{name} is not in this shallow clone; get all commits with: git fetch --unshallow")
        raise GateError(f"there is no commit {name!r} in this repository")

    def extract(self, directory: str) -> None:
        """Write its `imgstore` below `directory`.

        An archive leaves no trace in the repository, not even while it is read, and runs none of its hooks; a
        worktree of git's own would do both.
        """
        made = _git(self.root, "archive", "--format=tar", self.commit, PACKAGE)
        if made.returncode:
            raise GateError(f"{self.name} has no {PACKAGE} to compare with ({_said(made.stderr)})")
        with tarfile.open(fileobj=io.BytesIO(made.stdout)) as archive:
            archive.extractall(directory, filter="data")

    def requirements_differ(self) -> bool:
        there = _git(self.root, "show", f"{self.commit}:./{REQUIREMENTS}").stdout.decode()
        path = self.root / REQUIREMENTS
        return _packages(there) != _packages(path.read_text(encoding="utf-8") if path.exists() else "")


def _git(root: Path, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(["git", "-C", root, *arguments], capture_output=True, stdin=subprocess.DEVNULL)


def _said(output: bytes) -> str:
    return " ".join(output.decode(errors="replace").split()) or "git gave no reason"  # what to do may be on line two


def _packages(text: str) -> set[str]:
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return {line for line in lines if line}
