"""What the documents say can be done, and read once."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import imgstore
from imgstore.tests.checks import A_MINUTE, ROOT, blocks_of

DOCUMENTS = [
    "README.md",
    "imgstore/README.md",
    "imgstore/tests/faults/README.md",
    "benchmarks/README.md",
    "benchmarks/METHOD.md",
    "benchmarks/RESULTS.md",
]
LONGEST, LONGEST_SENTENCE = 150, 30  # lines of the first page; words
ELSEWHERE = ("python3 -m venv", "bencher ", "dask ", "PYTHONPATH=", "pip install pytest-codspeed", "tcp://")
COMPARED = ("--benchmark-compare", "--against", "origin/main", "HEAD", "HEAD~1")  # with what is not here
PLACES = {"../photos": "photos", "../cifar-10-python.tar.gz": "photos", "/mnt/data": ".", "...": "."}


def sentences(text: str) -> Iterator[str]:
    prose = re.sub(r"```.*?```", "\n\n", text, flags=re.DOTALL)
    for part in re.split(r"\n\s*\n|\n(?=[-*|#] )", prose):
        if not part.lstrip().startswith(("|", "![")):
            words = re.sub(r"\]\([^)]*\)|`[^`]*`", "code", part)
            yield from re.split(r"(?<=[.!?:;])\s+", " ".join(words.split()))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_sentence_is_long(document: str) -> None:
    found = sentences((ROOT / document).read_text())
    assert not [sentence for sentence in found if len(sentence.split()) > LONGEST_SENTENCE]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", (ROOT / document).read_text()):
        path = (ROOT / document).parent / target if target else ROOT / document
        assert path.exists(), target
        titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE) if anchor else [""]
        assert anchor in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], anchor


def test_the_first_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= LONGEST


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With photographs in two classes, and a store in each format."""
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 6, 3), np.uint8)
    for name, of_class in (("cat", images[:10]), ("dog", images[10:])):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number, image in enumerate(of_class):
            Image.fromarray(image).save(tmp_path / "photos" / name / f"{number}.png")
    for name, backend in (("in_hdf5", "hdf5"), ("in_lmdb", "lmdb"), ("on_disk", "disk")):
        imgstore.BACKENDS[backend].store_many(tmp_path / name, images, range(20), durable=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_other_tools_read_a_store(folder: Path) -> None:
    names: dict[str, object] = {}
    (block,) = (each for each in blocks_of("imgstore/README.md", "python") if "import h5py" in each)
    for part in re.split(r"\n(?=\(path,\))", block.replace("photos/", "in_hdf5/"))[1:]:
        names.pop("image", None)
        exec(block.partition("\n\n")[0] + "\n" + part, names)
        image, label = imgstore.disk.read_single("on_disk", 7)
        np.testing.assert_array_equal(names["image"], image)
        assert names.get("label", label) == label


def commands() -> list[str]:
    lines = [line for document in DOCUMENTS for block in blocks_of(document, "sh") for line in block.splitlines()]
    return list(dict.fromkeys(line.partition(" # ")[0].strip() for line in lines))


@pytest.mark.parametrize("command", [line for line in commands() if line and not line.startswith(ELSEWHERE)])
def test_a_command_is_understood(command: str, folder: Path) -> None:
    """Those of the package are run, those that measure choose their cells, the others show their options."""
    for given, place in PLACES.items():
        command = command.replace(given, str(folder / place))
    words = shlex.split(command)
    if words[0] == "pip":
        assert all((ROOT / word).exists() for word in words if word.endswith(".txt") or word.startswith("./"))
        return
    if words[:3] == ["python", "-m", "imgstore"]:
        run_imgstore(words[3:], folder)
        return
    if words[0] == "pytest":
        words = ["python", "-m", *words, "--collect-only", "-q"]
    else:
        words.append("--help")
    words = [word for word in words if word not in COMPARED]
    done = subprocess.run([sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=A_MINUTE)
    assert done.returncode == 0, done.stdout + done.stderr


def run_imgstore(arguments: list[str], folder: Path) -> None:
    """With a folder of photographs in place of `photos` where it is SOURCE, and without Dask."""
    if "--scheduler" in arguments:
        arguments = arguments[: arguments.index("--scheduler")]
    name, *rest = arguments
    places = {"photos": str(folder / "new") if name == "convert" else str(folder / "in_lmdb")}
    command = [sys.executable, "-m", "imgstore", name, *(places.get(each, each) for each in rest)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=A_MINUTE)
    assert done.returncode == 0, done.stderr
