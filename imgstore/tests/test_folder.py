"""A folder of images: which files are read, which labels they get, and what is said of the rest."""

import importlib
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import imgstore
from imgstore import decoding
from imgstore.command import main as __main__
from imgstore.errors import SourceError
from imgstore.sources import ImageFolder, not_looked_at, open_source, part_of

Run = Callable[..., tuple[int, list[str], str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The status of a command, the lines that it printed, and what it said is wrong."""

    def running(*arguments: Any) -> tuple[int, list[str], str]:
        try:
            status = __main__.main([str(argument) for argument in arguments])
        except SystemExit as ended:  # as argparse does
            status = int(str(ended.code))
        out, err = capsys.readouterr()
        return status, out.splitlines(), err.removeprefix("python -m imgstore: ").removesuffix("\n")

    return running


def make(root: Path, *names: str) -> Path:
    """A small image for each name; of other suffixes some bytes."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".png", ".jpg", ".gif", ".mpo"):
            Image.new("L", (2, 2), 7).save(path)
        else:
            path.write_bytes(b"something")
    return root


def ours(root: Path) -> dict[str, int]:
    folder = ImageFolder(root)
    names = [str(path.relative_to(root)) for path in folder.paths]
    return dict(zip(names, folder.labels.tolist(), strict=True))


def of_torchvision(root: Path) -> dict[str, int] | None:
    """By torchvision's own ImageFolder; None where it is not installed."""
    try:
        datasets = importlib.import_module("torchvision.datasets")
    except (ImportError, RuntimeError):  # a version for another torch
        return None
    samples = datasets.ImageFolder(root, allow_empty=True).samples
    return {os.path.relpath(path, root): label for path, label in samples}


def must_be_labels(root: Path, recorded: dict[str, int], others: dict[str, int] | None = None) -> None:
    """Ours are the recorded ones; torchvision's, too, where `others` does not say otherwise."""
    assert ours(root) == recorded
    theirs = of_torchvision(root)
    assert theirs is None or theirs == (recorded if others is None else others)


def test_labels_are_those_of_torchvision(tmp_path: Path) -> None:
    """A class without images keeps its number; upper case sorts before lower case; files lie at any depth."""
    root = make(tmp_path, "dog/1.png", "Cat/deep/er/2.png", "Cat/10.png", "dog/3.txt")
    (root / "bee").mkdir()
    must_be_labels(root, {"Cat/10.png": 0, "Cat/deep/er/2.png": 0, "dog/1.png": 2})
    assert ImageFolder(root).classes == ("Cat", "bee", "dog")


def test_a_class_folder_that_is_a_link_is_followed(tmp_path: Path) -> None:
    root = make(tmp_path / "a", "cat/1.png", "zebra/2.png")
    make(tmp_path / "real", "3.png", "deep/4.png")
    (root / "dog").symlink_to(tmp_path / "real")
    (root / "zebra/more").symlink_to(tmp_path / "real/deep")
    must_be_labels(root, {"cat/1.png": 0, "dog/3.png": 1, "dog/deep/4.png": 1, "zebra/2.png": 2, "zebra/more/4.png": 2})


def test_two_classes_may_be_links_to_one_folder(tmp_path: Path) -> None:
    root = make(tmp_path / "a", "cat/1.png")
    for name in ("dog", "wolf"):
        (root / name).symlink_to(root / "cat")
    must_be_labels(root, {"cat/1.png": 0, "dog/1.png": 1, "wolf/1.png": 2})


def test_loops_of_links_end(tmp_path: Path) -> None:
    """torchvision's end when the path is too long."""
    root = make(tmp_path / "a", "cat/1.png", "dog/2.png")
    (root / "cat/again").symlink_to(root)
    (root / "cat/itself").symlink_to("itself")
    make(tmp_path / "elsewhere", "3.png")
    (tmp_path / "elsewhere/back").symlink_to(root / "dog")
    (root / "dog/out").symlink_to(tmp_path / "elsewhere")
    folder = ImageFolder(root)
    assert [str(path.relative_to(root)) for path in folder.paths] == ["cat/1.png", "dog/2.png", "dog/out/3.png"]
    assert sorted(folder.skipped) == ["cat/again", "dog/out/back"]
    assert folder.passed_over == {"": 1}  # the link to itself, which is a file that cannot be read


def test_a_file_beside_class_folders_has_no_class(tmp_path: Path, run: Run) -> None:
    root = make(tmp_path / "a", "cat/1.png", "cover.jpg", "dog/2.png", "notes.txt")
    must_be_labels(root, {"cat/1.png": 0, "dog/2.png": 1})
    status, out, _ = run("convert", root, tmp_path / "dest", "--backend=disk")
    assert status == 0 and out[-2:] == [
        f"left out: {root / 'cover.jpg'}: it lies beside the class folders, so it has no class",
        f"{tmp_path / 'dest'}: 2 images, stored and read back; 1 file left out",
    ]


def test_labels_of_a_flat_folder_are_0(tmp_path: Path, run: Run) -> None:
    """Also beside a folder that has no image."""
    root = make(tmp_path / "a", "1.png", "2.png", "texts/3.txt", ".git/4.png")
    assert ours(root) == {"1.png": 0, "2.png": 0}
    status, out, _ = run("convert", root, tmp_path / "dest", "--backend=disk")
    assert status == 0 and out[0] == "classes: none, so every label is 0"


def test_what_is_no_class_shifts_no_label(tmp_path: Path, run: Run) -> None:
    root = make(tmp_path / "a", ".git/0.png", ".ipynb_checkpoints/1.png", "__MACOSX/._2.png", "cat/3.png", "dog/4.png")
    make(root, "dog/.ipynb_checkpoints/4-checkpoint.png", "cat/._3.png")
    others = {".git/0.png": 0, ".ipynb_checkpoints/1.png": 1, "__MACOSX/._2.png": 2, "cat/3.png": 3, "dog/4.png": 4}
    others |= {"dog/.ipynb_checkpoints/4-checkpoint.png": 4, "cat/._3.png": 3}
    must_be_labels(root, {"cat/3.png": 0, "dog/4.png": 1}, others)
    _, out, _ = run("convert", root, tmp_path / "dest", "--backend=disk")
    folders = ".git", ".ipynb_checkpoints", "__MACOSX", "dog/.ipynb_checkpoints"
    assert out[1] == "not looked at: 1 ._*, " + ", ".join(f"the folder {name}" for name in folders)


@pytest.mark.parametrize("names", [("train", "val"), ("test", "training"), ("Train2017", "Valid"), ("dev", "test_set")])
def test_parts_of_a_data_set_are_no_classes(tmp_path: Path, run: Run, names: tuple[str, str]) -> None:
    root = make(tmp_path / "a", *(f"{name}/cat/1.png" for name in names), "other/1.png")
    status, _, err = run("convert", root, tmp_path / "dest", "--backend=disk")
    parts = " and ".join(sorted(names))
    assert (status, err) == (2, f"SOURCE: {root}: {parts} are parts of a data set, not classes; give one of them")
    assert not (tmp_path / "dest").exists()


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    must_be_labels(make(tmp_path, "bus/1.png", "train/2.png"), {"bus/1.png": 0, "train/2.png": 1})


@pytest.mark.parametrize("name", ["CURRENT", "SHARDS", "PLAN"])
def test_a_class_may_be_called_as_a_file_of_a_store(tmp_path: Path, name: str) -> None:
    root = make(tmp_path, f"{name}/1.png", "cat/2.png")
    assert isinstance(open_source(root), ImageFolder)
    must_be_labels(root, {f"{name}/1.png": 0, "cat/2.png": 1})


def labels_in(root: Path) -> list[int]:
    with imgstore.open_reader(root) as reader:
        return [label for _, label in reader]


def test_classes_are_taken_from_another_folder(tmp_path: Path, run: Run) -> None:
    """Those of the validation images lack one, which would shift the labels."""
    make(tmp_path / "train", "ant/1.png", "bee/2.png", "cat/3.png")
    val = make(tmp_path / "val", "ant/1.png", "cat/3.png")
    other = "--classes-from", tmp_path / "train"
    status, out, _ = run("convert", val, tmp_path / "dest", "--backend=disk", *other)
    assert status == 0 and out[0] == "classes: 0 ant (1), 1 bee (0), 2 cat (1)"
    assert labels_in(tmp_path / "dest") == [0, 2]
    make(val, "dodo/4.png")
    status, _, err = run("convert", val, tmp_path / "two", "--backend=disk", *other)
    assert (status, err) == (2, f"SOURCE: {val}: its class dodo is not among the given classes; give others")


def test_classes_that_cannot_be_taken(tmp_path: Path, run: Run) -> None:
    flat, dest = make(tmp_path / "flat", "1.png"), tmp_path / "dest"
    classes = make(tmp_path / "classes", "cat/1.png")
    imgstore.disk.store_many(tmp_path / "store", np.zeros((1, 2, 2), np.uint8), [0])
    parts = make(tmp_path / "parts", "train/1.png", "val/1.png")
    for source, other, reason in [
        (classes, tmp_path / "nowhere", f"--classes-from: {tmp_path / 'nowhere'}: there is no such folder"),
        (classes, flat, f"--classes-from: {flat}: it has no class folders"),
        (classes, parts, f"--classes-from: {parts}: train and val are parts of a data set"),
        (
            classes,
            tmp_path / "store",
            f"--classes-from: {tmp_path / 'store'}: this store does not have the names of its",
        ),
        (flat, classes, f"SOURCE: {flat}: it has no class folders, so it takes the classes of no other"),
        (tmp_path / "store", classes, f"--classes-from: {tmp_path / 'store'} has no image files, which it is for"),
    ]:
        status, _, err = run("convert", source, dest, "--backend=disk", "--classes-from", other)
        assert status == 2 and err.startswith(reason)
        assert not dest.exists()


def test_the_classes_of_a_store_that_has_them_are_taken(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a later format will."""
    imgstore.disk.store_many(tmp_path / "store", np.zeros((1, 2, 2), np.uint8), [0])
    monkeypatch.setattr(imgstore.Reader, "classes", ("ant", "cat"), raising=False)
    source = make(tmp_path / "a", "cat/1.png")
    assert run("convert", source, tmp_path / "b", "--backend=disk", "--classes-from", tmp_path / "store")[0] == 0
    assert labels_in(tmp_path / "b") == [1]


def test_what_is_not_looked_at_is_counted(tmp_path: Path, run: Run) -> None:
    root = make(tmp_path / "a", *(f"cat/{i}.HEIC" for i in range(5)), "cat/1.txt", "dog/2.txt", "cat/1.png")
    make(root, "cat/store.h5", "cat/film.mpg", "cat/drawing.eps", *(f"dog/IMG_{i}" for i in range(3)))
    folder = ImageFolder(root)
    assert not_looked_at(folder) == "5 .heic, 3 without a suffix, 2 .txt, 1 .eps, 1 .h5, 1 .mpg"
    status, out, _ = run("convert", root, tmp_path / "dest", "--backend=disk")
    assert status == 0 and out[1] == f"not looked at: {not_looked_at(folder)}"
    (root / "cat/1.png").unlink()
    with pytest.raises(
        SourceError, match=r"no file has an image's suffix; not looked at: 5 \.heic, 3 without a suffix"
    ):
        ImageFolder(root)


def test_no_more_kinds_are_told_than_are_read(tmp_path: Path) -> None:
    root = make(tmp_path, "1.png", *(f"file.{i:03d}" for i in range(20)))
    assert not_looked_at(ImageFolder(root)).endswith(", 1 .009, and 10 other kinds")


def test_a_photograph_of_two_views_is_read(tmp_path: Path) -> None:
    views = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green")]
    views[0].save(tmp_path / "one.mpo", save_all=True, append_images=views[1:])
    (image, label) = ImageFolder(tmp_path)[0]
    assert label == 0 and image[4, 4, 0] > 200


def write_all_kinds(root: Path) -> Path:
    make(root, "cat/1.png", "cat/2.heic", "dog/3.png", "loose.png")
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "green")]
    for i in range(2):
        frames[0].save(root / f"cat/film{i}.gif", save_all=True, append_images=frames[1:])
    Image.new("L", (4, 4)).save(root / "dog/profile.png", icc_profile=b"a profile")
    (root / "dog/broken.png").write_bytes(b"broken")
    return root


def test_convert_ends_with_what_it_stored_and_what_not(tmp_path: Path, run: Run) -> None:
    """In this order."""
    root, dest = write_all_kinds(tmp_path / "a"), tmp_path / "dest"
    status, out, err = run("convert", root, dest, "--backend=disk", "--skip-unreadable")
    assert (status, err) == (0, "")
    assert out == [
        "classes: 0 cat (3), 1 dog (2)",
        "2 have further frames, of which the first is kept",
        "1 has a colour profile (ICC), which is not applied",
        "not looked at: 1 .heic",
        f"left out: {root / 'loose.png'}: it lies beside the class folders, so it has no class",
        f"left out: {root / 'dog/broken.png'}: it is not an image of a kind that can be read",
        f"{dest}: 5 images, stored and read back; 2 files left out",
    ]


@pytest.mark.parametrize("skip", [False, True])
def test_what_is_not_kept_is_counted_over_shards(tmp_path: Path, run: Run, skip: bool) -> None:
    root = write_all_kinds(tmp_path / "a")
    (root / "dog/broken.png").unlink()
    options = ["--skip-unreadable"] if skip else []
    _, out, _ = run("convert", root, tmp_path / "dest", "--backend=disk", "--shard-images=1", *options)
    assert out[1:3] == [
        "2 have further frames, of which the first is kept",
        "1 has a colour profile (ICC), which is not applied",
    ]


def test_a_part_of_a_folder_notes_what_is_read_of_it(tmp_path: Path) -> None:
    root = write_all_kinds(tmp_path)
    folder = ImageFolder(root)
    for part in (part_of(folder, range(1, 3)), part_of(folder, [1])):
        assert isinstance(part, ImageFolder)
        assert [part[i][1] for i in range(len(part))] == [0] * len(part)
        assert part.less[0] == decoding.Less.FRAMES
    assert folder.less.tolist() == [0, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("skip", [False, True])
def test_damaged_images_are_stored_and_named_or_left_out(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, skip: bool
) -> None:
    def strict(content: bytes, **options: Any) -> None:
        if b"a hole" in content:
            raise ValueError

    monkeypatch.setattr(decoding, "_strict_decoder", lambda: strict)
    root, dest = tmp_path / "a", tmp_path / "dest"
    make(root, "cat/1.jpg", "cat/2.jpg")
    with open(root / "cat/2.jpg", "ab") as file:
        file.write(b"a hole")
    _, out, _ = run("convert", root, dest, "--backend=disk", *(["--skip-unreadable"] if skip else []))
    if skip:
        assert out[1:] == [
            f"left out: {root / 'cat/2.jpg'}: it is damaged",
            f"{dest}: 1 images, stored and read back; 1 file left out",
        ]
    else:
        assert out[1:] == [
            "1 has damage, and the pixels that Pillow makes of it are kept",
            f"damaged: {root / 'cat/2.jpg'}",
            f"{dest}: 2 images, stored and read back",
        ]


def test_what_moves_the_cursor_is_escaped(tmp_path: Path, run: Run) -> None:
    root = make(tmp_path / "a", "cat\n/1.png", "dog/\x1b[2J.png", "dog/1.\x1b[2J")
    (root / "dog/\x1b[2J.png").write_bytes(b"no image")
    status, out, err = run("convert", root, tmp_path / "dest", "--backend=disk")
    assert status == 1 and err.startswith(f"{root}/dog/\\x1b[2J.png: it is not an image") and "\n" not in err
    status, out, _ = run("convert", root, tmp_path / "dest", "--backend=disk", "--skip-unreadable")
    assert out[:2] == ["classes: 0 cat\\n (1), 1 dog (0)", "not looked at: 1 .\\x1b[2j"]
    assert out[2].startswith(f"left out: {root}/dog/\\x1b[2J.png: ") and len(out) == 4


@pytest.mark.parametrize("name", ["photo.jpg", "photo.PNG"])
def test_one_image_is_no_source(tmp_path: Path, run: Run, name: str) -> None:
    Image.new("L", (2, 2)).save(tmp_path / name)
    status, _, err = run("convert", tmp_path / name, tmp_path / "dest", "--backend=disk")
    assert (status, err) == (2, f"SOURCE: {tmp_path / name}: this is one image; give the folder that it lies in")


def test_larger_images_are_read_when_asked(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3)
    root, dest = make(tmp_path / "a", "1.png"), tmp_path / "dest"
    status, _, err = run("convert", root, dest, "--backend=disk")
    assert status == 1 and "it has 4 pixels and may be a decompression bomb; --max-pixels=4 has it read" in err
    assert run("convert", root, dest, "--backend=disk", "--max-pixels=3")[0] == 1
    assert run("convert", root, dest, "--backend=disk", "--max-pixels=4")[0] == 0


def test_a_source_in_dest_is_not_removed(tmp_path: Path, run: Run) -> None:
    """A folder with a time for a name, which was once taken for an old generation."""
    source = make(tmp_path / "d/20251128-084743", "photo.png")
    status, _, err = run("convert", source, tmp_path / "d", "--backend=lmdb")
    assert (status, err) == (2, f"SOURCE: {source} lies in {tmp_path / 'd'}; give a DEST elsewhere")
    assert (source / "photo.png").exists()


def test_a_link_in_source_leads_neither_to_dest_nor_into_it(tmp_path: Path, run: Run) -> None:
    source, linked = make(tmp_path / "a", "cat/1.png"), make(tmp_path / "b/imgstore-000007-3f9a1c5e7b20", "2.png")
    (source / "dog").symlink_to(linked)
    for dest, argument in ((tmp_path / "b", "SOURCE"), (linked / "new", "DEST")):
        status, _, err = run("convert", source, dest, "--backend=disk")
        assert status == 2 and err.startswith(f"{argument}: ") and " lies in " in err
    linked.rename(tmp_path / "c")
    (tmp_path / "c/2.png").unlink()
    (source / "dog").unlink()
    (source / "dog").symlink_to(tmp_path / "c")
    status, _, err = run("convert", source, tmp_path / "c", "--backend=disk")
    assert status == 2 and err.startswith("DEST: ")


def cut(path: Path, size: tuple[int, int]) -> None:
    Image.effect_noise(size, 20).save(path, "JPEG", quality=90)
    os.truncate(path, path.stat().st_size // 2)


IMAGE, ROOM = 2500 * 2000 * 4, 64 << 20  # bytes: as Pillow has it; what may be held beside one


@pytest.mark.parametrize("what", ["convert", "measure"])
def test_images_that_cannot_be_read_are_not_kept(tmp_path: Path, what: str) -> None:
    """In a process of its own, whose largest size is then known."""
    root = make(tmp_path / "a", "good.png")
    cut(root / "00.jpg", (2500, 2000))
    for i in range(1, 20):
        os.link(root / "00.jpg", root / f"{i:02d}.jpg")
    done = {
        "convert": f"__main__.main(['convert', {str(root)!r}, {str(tmp_path / 'dest')!r}, '--backend=lmdb', *skip])",
        "measure": f"images.open_source({str(root)!r}, 1)",
    }
    script = f"""
import resource, sys
from benchmarks import sources as images
from imgstore.command import main as __main__
skip = ["--skip-unreadable"]
import imgstore.sources, PIL.JpegImagePlugin, PIL.Image
PIL.Image.init()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
{done[what]}
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10)
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert int(ended.stdout.split()[-1]) < IMAGE + ROOM, ended


def test_folders_that_link_to_one_another_are_looked_into_once_for_each_class(tmp_path: Path) -> None:
    """Else five folders gave 325 images, and ten would have given millions."""
    names = [f"class-{number}" for number in range(6)]
    for name in names:
        make(tmp_path / name, "1.png")
    for one, other in itertools.permutations(names, 2):
        (tmp_path / one / other).symlink_to(tmp_path / other)
    source = open_source(tmp_path)
    assert isinstance(source, ImageFolder)
    assert np.bincount(source.labels).tolist() == [len(names)] * len(names)
    assert source.skipped
