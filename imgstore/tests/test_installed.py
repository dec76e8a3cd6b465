"""What `pip install ./imgstore` gives: the package, its types, and the command."""

import os
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

import imgstore
from imgstore.tests.checks import A_MINUTE

ROOT = Path(imgstore.__file__).parents[1]
HOW = {"folder": ["./imgstore"], "editable": ["-e", "./imgstore"], "git": ["git+file://{copy}#subdirectory=imgstore"]}
QUICK = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A repository with the files of this one, committed."""
    (tmp_path / "imgstore").mkdir()
    run(["cp", "-r", ROOT / "imgstore", ROOT / ".gitignore", tmp_path])
    run(["find", tmp_path, "-name", "__pycache__", "-prune", "-exec", "rm", "-r", "{}", "+"])
    for command in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "all"],
    ):
        run(["git", "-C", tmp_path, *command])
    return tmp_path


def run(command: list[str | Path], **options: object) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * A_MINUTE, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


@pytest.mark.parametrize("how", HOW)
def test_installed(how: str, copy: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    pytest.importorskip("setuptools", "70.1", reason="builds the package; without it pip needs the network")
    place = tmp_path_factory.mktemp("elsewhere") / "venv"
    venv.create(place, system_site_packages=False, with_pip=True)
    (place / f"lib/python3.{sys.version_info.minor}/site-packages/others.pth").write_text("\n".join(others()))
    python = place / "bin" / "python"
    run([python, "-m", "pip", "install", *QUICK, *(each.format(copy=copy) for each in HOW[how])], cwd=copy)
    assert run(["git", "-C", copy, "status", "--short"]) == ""
    assert run([place / "bin" / "imgstore", "--version"], cwd=place) == f"imgstore {imgstore.__version__}\n"
    script = "import imgstore, os; print(os.path.dirname(imgstore.__file__))"
    package = Path(run([python, "-P", "-c", script], cwd=place).strip())
    assert (package / "py.typed").is_file() and (package == copy / "imgstore") == (how == "editable")
    assert how == "editable" or not (package / "tests").exists()
    root = place / "store"
    run(
        [
            python,
            "-c",
            f"import imgstore, numpy as n; imgstore.lmdb.store_many({str(root)!r}, n.zeros((2, 3, 3)), [0, 1])",
        ]
    )
    assert "everything is as it was stored" in run([place / "bin" / "imgstore", "verify", root], cwd=place)


def others() -> list[str]:
    """Where this process has its packages, but not this one."""
    return [path for path in sys.path if "site-packages" in path]


def test_all_its_folders_are_packages() -> None:
    listed = tomllib.loads((ROOT / "imgstore" / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "imgstore").rglob("*.py")}
    assert set(listed) == {".".join(folder.parts) for folder in folders if "tests" not in folder.parts}


@pytest.mark.parametrize("name", ["h5py", "lmdb", "numpy", "PIL", "xxhash"])
def test_without_a_dependency(name: str) -> None:
    hidden = f"""
import sys
from importlib.machinery import PathFinder
genuine = PathFinder.find_spec
sys.modules.pop({name!r}, None)
PathFinder.find_spec = classmethod(lambda cls, name, *rest: None if name == {name!r} else genuine(name, *rest))
try:
    import imgstore
except ImportError as error:
    print(error)
"""
    shown = run([sys.executable, "-c", hidden], cwd=ROOT, env=os.environ | {"PYTHONPATH": ""})
    assert shown.startswith(f"imgstore needs {name}; to install all that it needs: pip install -r requirements.txt")
