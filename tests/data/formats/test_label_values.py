"""What values and colours of label maps mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from knet.data.defects import DataError
from knet.data.formats import recognise

from .makers import CLASSES, COLORS, STEMS, binary, colors, label_pngs, labels, picture, png


def maps(root: Path, change, suffix=".png") -> None:
    for stem in STEMS:
        picture(root / "images" / f"{stem}.jpg", stem)
        path = root / "labels" / f"{stem}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(change(labels(stem))).save(path)


def written(entry, stem=STEMS[0]) -> np.ndarray:
    lines = Path(entry["PAIRS_FILE"]).read_text().splitlines()
    pairs = dict(line.split("\t") for line in lines)
    return np.array(Image.open(Path(entry["SEM_SEG_ROOT"]) / pairs[f"images/{stem}.jpg"]))


def prepared(root: Path):
    data = recognise(root, task="semantic").prepare(root.parent / "out")
    for entry in (data.train, data.val):
        if STEMS[0] in Path(entry["PAIRS_FILE"]).read_text():
            return data, entry
    raise AssertionError


def test_maps_that_can_be_used_are_paired_where_they_are(tmp_path):
    label_pngs(tmp_path / "data")
    data = recognise(tmp_path / "data").prepare(tmp_path / "out")
    assert data.train["SEM_SEG_ROOT"] == str(tmp_path / "data")
    lines = Path(data.train["PAIRS_FILE"]).read_text().splitlines()
    assert lines[0] == f"images/train/{STEMS[0]}.jpg\tmasks/train/{STEMS[0]}.png"
    assert len(lines) == 4


def test_values_with_gaps_become_indices(tmp_path):
    maps(tmp_path / "data", lambda x: np.array([0, 7, 11], np.uint8)[x])
    data, entry = prepared(tmp_path / "data")
    assert data.classes == ["class 0", "class 7", "class 11"]
    assert (written(entry) == labels(STEMS[0])).all()
    assert any("called by their values, 0, 7, 11 (255" in note for note in data.notes)


def test_masks_of_two_values(tmp_path):
    binary(tmp_path / "data")
    data = recognise(tmp_path / "data").prepare(tmp_path / "out")
    path = next((tmp_path / "out").rglob("*.png"))
    assert np.unique(np.array(Image.open(path))).tolist() == [0, 1]
    assert "value 255 of the maps is the foreground, 0 the background" in data.notes


@pytest.mark.parametrize("foreground", [1, 255])
@pytest.mark.parametrize("listed", ["leaf", "ground\nleaf"])
def test_masks_of_two_values_with_names(foreground, listed, tmp_path):
    maps(tmp_path / "data", lambda x: np.where(x > 0, foreground, 0).astype(np.uint8))
    (tmp_path / "data" / "classes.txt").write_text(listed)
    data, entry = prepared(tmp_path / "data")
    assert data.classes == [*(listed.split() if "\n" in listed else ["background", "leaf"])]
    assert (written(entry) == (labels(STEMS[0]) > 0)).all()


@pytest.mark.parametrize(
    "change",
    [
        lambda x: np.stack([x, x, x], axis=-1),  # grey, stored as RGB
        lambda x: x.astype(np.uint16),
    ],
)
def test_modes(change, tmp_path):
    maps(tmp_path / "data", change)
    data, entry = prepared(tmp_path / "data")
    assert data.classes == ["class 0", "class 1", "class 2"]
    assert (written(entry) == labels(STEMS[0])).all()


def test_other_exact_formats(tmp_path):
    maps(tmp_path / "data", lambda x: x, suffix=".tif")
    _, entry = prepared(tmp_path / "data")
    assert (written(entry) == labels(STEMS[0])).all()


def test_a_value_beyond_the_list_is_no_label_and_said(tmp_path):
    def change(values):
        values[0] = 9
        return values

    maps(tmp_path / "data", change)
    (tmp_path / "data" / "classes.txt").write_text("ground\ncross\nsquare\n")
    data, entry = prepared(tmp_path / "data")
    assert (written(entry)[0] == 255).all() and data.classes == ["ground", *CLASSES]
    note = "2.1% of the pixels have values that classes.txt does not name (9); they count as"
    assert any(text.startswith(note) for text in data.notes)


def test_a_class_that_no_map_shows_is_kept_and_said(tmp_path):
    maps(tmp_path / "data", lambda x: x)
    (tmp_path / "data" / "classes.txt").write_text("ground\ncross\nsquare\nwheel\n")
    data, _ = prepared(tmp_path / "data")
    assert data.classes[3] == "wheel"
    assert "labels: no label shows wheel; kept as a class" in data.notes


def test_colours_need_a_list(tmp_path):
    colors(tmp_path / "data")
    (tmp_path / "data" / "class_dict.csv").unlink()
    with pytest.raises(DataError, match=r"no file says which class each is; add classes.txt"):
        recognise(tmp_path / "data").prepare(tmp_path / "out")


def test_colours_of_another_list(tmp_path):
    colors(tmp_path / "data")
    (tmp_path / "data" / "class_dict.csv").write_text("name,r,g,b\na,9,9,9\nb,8,8,8\n")
    with pytest.raises(DataError, match=r"does not name \(0 0 0, .*; correct the list"):
        recognise(tmp_path / "data").prepare(tmp_path / "out")


def test_palettes_with_colours_of_the_list(tmp_path):
    for stem in STEMS:
        picture(tmp_path / "data" / "images" / f"{stem}.jpg", stem)
        palette = np.zeros((256, 3), np.uint8)
        palette[[4, 9, 2]] = COLORS
        image = Image.fromarray(np.array([4, 9, 2], np.uint8)[labels(stem)])
        image.putpalette(palette.ravel().tolist())
        (tmp_path / "data" / "labels").mkdir(exist_ok=True)
        image.save(tmp_path / "data" / "labels" / f"{stem}.png")
    lines = [f"{name} {r} {g} {b}" for name, (r, g, b) in zip(["ground", *CLASSES], COLORS)]
    (tmp_path / "data" / "classes.txt").write_text("\n".join(lines))
    data, entry = prepared(tmp_path / "data")
    assert data.classes == ["ground", *CLASSES]
    assert (written(entry) == labels(STEMS[0])).all()


def test_jpegs_and_soft_masks_are_refused(tmp_path):
    maps(tmp_path / "jpeg", lambda x: x * 100, suffix=".jpg")
    with pytest.raises(DataError, match="a JPEG file, which does not keep the values of labels"):
        recognise(tmp_path / "jpeg", task="semantic")
    ramp = np.arange(64, dtype=np.uint8) * 4
    maps(tmp_path / "soft", lambda x: x + ramp + np.arange(48, dtype=np.uint8)[:, None] % 4)
    with pytest.raises(DataError, match="values, which are no classes unless a file"):
        recognise(tmp_path / "soft", task="semantic").prepare(tmp_path / "out")


def test_a_map_of_another_size(tmp_path):
    maps(tmp_path / "data", lambda x: x.astype(np.uint16))
    png(tmp_path / "data" / "labels" / f"{STEMS[2]}.png", np.ones((5, 7), np.uint16))
    with pytest.raises(DataError, match=rf"{STEMS[2]}.png is 7x5 .*, but its picture"):
        prepared(tmp_path / "data")


def test_one_class_is_not_enough(tmp_path):
    maps(tmp_path / "data", lambda x: x * 0)
    with pytest.raises(DataError, match="show class 0 alone; semantic segmentation needs two"):
        prepared(tmp_path / "data")
