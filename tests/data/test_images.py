"""`images:FOLDER`: which pictures, which classes, which side of the split, and what is wrong with a folder."""

import re
import resource
from dataclasses import replace

import pytest
import torch

from understudy.core.picture import PictureInput
from understudy.core.records.errors import BadData, UnknownName
from understudy.data import images
from understudy.data.images import ImageFolder, class_numbers, middle, read_picture

Image = pytest.importorskip("PIL.Image", reason="pictures are read with Pillow")

READS = PictureInput(
    (4, 4), 1, mean=(1.0,), std=(-1.0,), resized=(4, 4), classes=("cat", "dog, hound", "crane", "Crane")
)


def fill(folder, names, shade=128, size=(4, 4), mode="L"):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, shade).save(path)
    return folder


@pytest.fixture
def folder(tmp_path):
    return fill(tmp_path / "pets", [f"{c}/{i}.png" for c in ("cat", "Hound") for i in range(15)])


def names(where, split):
    return {(p.parent.name, p.name) for p, _ in ImageFolder(str(where), split, READS).files}


def test_the_split_goes_by_names_and_a_new_file_moves_no_other(folder, tmp_path):
    train, held_out = names(folder, "train"), names(folder, "held_out")
    assert not train & held_out
    assert len(train | held_out) == 30
    assert 2 <= len(held_out) <= 12
    moved = tmp_path / "elsewhere"
    folder.rename(moved)
    fill(moved, ["cat/new.png"])
    assert held_out <= names(moved, "held_out") <= held_out | {("cat", "new.png")}


def test_few_pictures_still_give_two_to_judge_on(tmp_path):
    fill(tmp_path, [f"cat/{i}.png" for i in range(4)])
    assert (len(names(tmp_path, "train")), len(names(tmp_path, "held_out"))) == (2, 2)


def test_a_batch_holds_values_and_classes(folder):
    images = ImageFolder(str(folder), "train", READS)
    batch = images.batch([0, 1])
    torch.testing.assert_close(batch.inputs["pixel_values"], torch.full((2, 1, 4, 4), 1 - 128 / 255))
    assert batch.targets.tolist() == [[images.files[0][1]], [images.files[1][1]]]
    assert {label for _, label in images.files} == {0, 1}
    assert torch.equal(images.batch(torch.tensor([1])).inputs["pixel_values"], batch.inputs["pixel_values"][1:])
    assert images.batch(slice(0, 3)).n_sequences == 3


def test_names_of_classes_are_labels_their_parts_and_numbers():
    numbers = class_numbers(["tench, Tinca_tinca", "LABEL_1"])
    assert (numbers["tinca tinca"], numbers["tench"], numbers["label 1"], numbers["1"]) == ([0], [0], [1], [1])


def test_the_middle_is_taken_and_black_is_put_around():
    row = torch.arange(1, 6, dtype=torch.uint8).reshape(1, 1, 5)
    assert middle(row, (1, 3)).flatten().tolist() == [2, 3, 4]
    assert middle(row[..., :2], (1, 5)).flatten().tolist() == [0, 0, 1, 2, 0]


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda d: d / "nowhere", UnknownName, "folder"),
        (lambda d: fill(d, []), BadData, "no pictures"),
        (lambda d: (d / "notes.txt").write_text("x") and d, BadData, "only .txt"),
        (lambda d: fill(d, ["a.png", "b.png"]), BadData, "class is not known.*cat/a.png"),
        (lambda d: fill(d, [f"kat/{i}.png" for i in range(5)]), UnknownName, "cat"),
        (lambda d: fill(d, [f"crane/{i}.png" for i in range(5)]), UnknownName, "by its number"),
        (lambda d: fill(d, ["cat/0.png", "cat/1.png"]), BadData, "at least 4"),
    ],
)
def test_a_folder_that_will_not_do_says_what_to_do(tmp_path, make, error, says):
    with pytest.raises(error, match=says):
        ImageFolder(str(make(tmp_path)), "train", READS)


@pytest.mark.parametrize("damage", ["cut", "text", "deep", "other"])
def test_a_broken_picture_is_named(tmp_path, damage):
    fill(tmp_path, [f"cat/{i}.png" for i in range(3)])
    bad = tmp_path / "cat" / "bad.png"
    Image.effect_noise((64, 64), 50).save(bad)
    if damage == "cut":
        bad.write_bytes(bad.read_bytes()[:900])
    elif damage == "text":
        bad.write_text("<html>404</html>")
    elif damage == "deep":
        Image.new("I;16", (8, 8), 999).save(bad)
    else:
        Image.new("L", (8, 8)).save(bad, format="BMP")
    with pytest.raises(BadData, match=r"bad\.png"):
        read_all(tmp_path)


def read_all(folder):
    for split in ("train", "held_out"):
        side = ImageFolder(str(folder), split, READS)
        side.batch(slice(0, len(side)))


def test_what_a_network_wants_and_is_not_done_is_refused(folder):
    odd = PictureInput((4, 4), unsupported="do_flip_channel_order")
    with pytest.raises(BadData, match="do_flip_channel_order"):
        ImageFolder(str(folder), "train", odd)


@pytest.mark.parametrize(
    ("size", "resized", "says"),
    [
        ((2, 60_000), 4096, "4,096 x 122,880,000 pixels on the way to a shorter edge of 4,096"),
        ((60_000, 2), 4096, "122,880,000 x 4,096 pixels on the way to a shorter edge of 4,096"),
        ((1, 60_000), (4, 4096), "4,096 x 60,000 pixels on the way to 4,096 x 4"),
        ((4, 4), (10**9, 10**9), "1,000,000,000 x 1,000,000,000 pixels on the way to 1,000,000,000 x 1,000,000,000"),
        ((4, 4), 0, "0 x 0 pixels"),
    ],
)
def test_a_picture_that_would_take_all_memory_on_the_way_is_refused_with_its_sizes(tmp_path, size, resized, says):
    """Once a strip of 2 x 60,000 pixels was stretched to 1.5 terabytes. The third passes through a high, wide picture:
    what Pillow makes between is larger than either end."""
    fill(tmp_path, ["cat/strip.png"], size=size)
    before = _memory()
    with pytest.raises(BadData, match=re.escape(says)) as found:
        read_picture(tmp_path / "cat/strip.png", replace(READS, resized=resized))
    assert "strip.png" in str(found.value)
    assert f"{images.MOST:,}" in str(found.value)
    assert _memory() - before < 1 << 26


def test_a_picture_with_too_many_pixels_is_refused_before_it_is_read(tmp_path, monkeypatch):
    fill(tmp_path, ["cat/large.png"], size=(40, 40))
    monkeypatch.setattr(images, "MOST", 1599)
    with pytest.raises(BadData, match=r"large.png \(40 x 40 pixels\) has 40 x 40 pixels in the file"):
        read_picture(tmp_path / "cat/large.png", READS)
    monkeypatch.setattr(images, "MOST", 1600)
    assert read_picture(tmp_path / "cat/large.png", READS).shape == (1, 4, 4)
    with pytest.raises(BadData, match="50 x 40 pixels at the size that the network reads"):
        read_picture(tmp_path / "cat/large.png", replace(READS, size=(40, 50)))


def _memory():
    """The most bytes that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
