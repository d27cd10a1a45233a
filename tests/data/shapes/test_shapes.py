import json
import runpy
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from knet.data import (
    SHAPES_CATEGORIES,
    STUFF_NAMES,
    THING_NAMES,
    draw_scene,
    read_panoptic_png,
    write_shapes,
)

SCENES = 150


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(0, index) for index in range(SCENES)]


def test_scene_is_a_function_of_its_arguments(scenes):
    again = draw_scene(0, 7)
    np.testing.assert_array_equal(again.image, scenes[7].image)
    np.testing.assert_array_equal(again.segments, scenes[7].segments)
    assert again.names == scenes[7].names
    for other in (draw_scene(1, 7), draw_scene(0, 8), draw_scene(0, 7, split="val")):
        assert (other.image != scenes[7].image).mean() > 0.5


def test_every_segment_owns_pixels_and_there_is_no_void(scenes):
    for scene in scenes:
        assert scene.image.shape == (96, 96, 3) and scene.image.dtype == np.uint8
        assert set(np.unique(scene.segments)) == set(range(len(scene.names)))
        stuff = [name for name in scene.names if name in STUFF_NAMES]
        assert len(set(stuff)) == len(stuff) <= 4
        assert len(scene.names) - len(stuff) <= 6


def test_things_stay_recognisable(scenes):
    for scene in scenes:
        areas = np.bincount(scene.segments.ravel())
        for name, area in zip(scene.names, areas):
            assert name in STUFF_NAMES or area >= 40


def test_numbers_and_classes_are_balanced(scenes):
    counts = Counter(sum(name in THING_NAMES for name in scene.names) for scene in scenes)
    assert set(counts) == set(range(7))
    assert 0.02 < counts[0] / SCENES < 0.15
    classes = Counter(name for scene in scenes for name in scene.names)
    for group in (THING_NAMES, STUFF_NAMES):
        numbers = [classes[name] for name in group]
        assert max(numbers) < 1.6 * min(numbers), dict(classes)


def test_things_occlude_each_other(scenes):
    """A disc is cut by others: some visible discs are far smaller than their own hull."""
    touching = 0
    for scene in scenes:
        first = sum(name in STUFF_NAMES for name in scene.names)
        left, right = scene.segments[:, :-1], scene.segments[:, 1:]
        touching += bool(((left >= first) & (right >= first) & (left != right)).any())
    assert 0.3 < touching / SCENES < 0.9


def test_colour_does_not_tell_the_class(scenes):
    """The nearest class mean in RGB is right hardly more often than chance (8 classes)."""
    colours, classes = [], []
    for scene in scenes:
        for row, name in enumerate(scene.names):
            colours.append(scene.image[scene.segments == row].mean(0))
            classes.append(name)
    colours, classes = np.array(colours), np.array(classes)
    half = len(classes) // 2
    names = sorted(set(classes))
    means = np.stack([colours[:half][classes[:half] == name].mean(0) for name in names])
    distances = np.linalg.norm(colours[half:, None] - means[None], axis=2)
    assert (np.array(names)[distances.argmin(1)] == classes[half:]).mean() < 0.3


def test_patterns_differ_in_light_and_dark(scenes):
    """Grey level varies within every pattern but the plain one."""
    spread = {name: [] for name in STUFF_NAMES}
    for scene in scenes:
        grey = scene.image.mean(2)
        for row, name in enumerate(scene.names):
            inside = scene.segments == row
            if name in STUFF_NAMES and inside.sum() > 1500:
                spread[name].append(grey[inside].std() / grey[inside].mean())
    medians = {name: np.median(values) for name, values in spread.items()}
    assert medians["plain"] < 0.1
    assert min(medians[name] for name in STUFF_NAMES if name != "plain") > 0.12, medians


@pytest.mark.parametrize("size", [48, 160])
def test_other_sizes(size):
    scene = draw_scene(0, 1, size=size)
    assert scene.segments.shape == (size, size)


@pytest.mark.parametrize("arguments", [{"seed": -1}, {"index": -1}, {"size": 20}])
def test_scene_arguments_are_checked(arguments):
    with pytest.raises(ValueError, match="need seed"):
        draw_scene(**{"seed": 0, "index": 0, **arguments})


def test_files_agree(shapes_root):
    folder = shapes_root / "train"
    content = json.loads((folder / "panoptic.json").read_text())
    assert len(content["images"]) == len(content["annotations"]) == 24
    assert content["categories"] == [dict(c) for c in SHAPES_CATEGORIES]
    ids = sorted(c["id"] for c in SHAPES_CATEGORIES)
    assert ids != list(range(ids[0], ids[0] + len(ids))), "ids should have gaps"
    for index, record in enumerate(content["annotations"]):
        png = read_panoptic_png(str(folder / "panoptic" / record["file_name"]))
        values, areas = np.unique(png, return_counts=True)
        found = dict(zip(values.tolist(), areas.tolist()))
        assert found == {s["id"]: s["area"] for s in record["segments_info"]}
        for segment in record["segments_info"]:
            rows, columns = np.nonzero(png == segment["id"])
            x, y, width, height = segment["bbox"]
            assert (columns.min(), rows.min()) == (x, y)
            assert (columns.max() + 1 - x, rows.max() + 1 - y) == (width, height)
        image = np.array(Image.open(folder / "images" / record["file_name"]))
        np.testing.assert_array_equal(image, draw_scene(3, index).image)


def test_semantic_labels_follow_from_panoptic(shapes_root):
    folder = shapes_root / "val"
    content = json.loads((folder / "panoptic.json").read_text())
    contiguous = {3: 0, 5: 1, 8: 2, 13: 3, 2: 4, 6: 5, 9: 6, 14: 7}
    for record in content["annotations"]:
        png = read_panoptic_png(str(folder / "panoptic" / record["file_name"]))
        labels = np.array(Image.open(folder / "semantic" / record["file_name"]))
        for segment in record["segments_info"]:
            assert (labels[png == segment["id"]] == contiguous[segment["category_id"]]).all()


def test_second_call_does_nothing_and_other_parameters_rewrite(tmp_path):
    folder = write_shapes(tmp_path, split="val", num_scenes=2, seed=0)
    stamp = (folder / "panoptic.json").stat().st_mtime_ns
    first = (folder / "images" / "000001.png").read_bytes()
    write_shapes(tmp_path, split="val", num_scenes=2, seed=0)
    assert (folder / "panoptic.json").stat().st_mtime_ns == stamp
    write_shapes(tmp_path, split="val", num_scenes=3, seed=1)
    assert len(list((folder / "images").iterdir())) == 3
    assert (folder / "images" / "000001.png").read_bytes() != first
    assert [path.name for path in tmp_path.iterdir()] == ["val"], "temporary folders are left"


def test_foreign_folder_is_not_touched(tmp_path):
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="not written by write_shapes"):
        write_shapes(tmp_path, split="val", num_scenes=2, seed=0)
    assert (tmp_path / "val" / "mine.txt").read_text() == "keep"


def test_failure_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_args, **_kwargs):
        raise RuntimeError("disk full")

    monkeypatch.setattr("knet.data.shapes.writer.panoptic_to_semantic", fail)
    with pytest.raises(RuntimeError, match="disk full"):
        write_shapes(tmp_path, split="val", num_scenes=1, seed=0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [{"num_scenes": 0}, {"split": "a/b"}, {"split": ""}])
def test_write_arguments_are_checked(tmp_path, arguments):
    with pytest.raises(ValueError, match="num_scenes"):
        write_shapes(tmp_path, **{"split": "val", "num_scenes": 1, "seed": 0, **arguments})


def test_tool(tmp_path, monkeypatch, capsys):
    tool = str(Path(__file__).parents[3] / "datasets" / "make_shapes.py")
    options = ["--train", "2", "--val", "1", "--root", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [tool, *options])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(tool, run_name="__main__")
    assert end.value.code == 0
    assert "2 scenes in" in capsys.readouterr().out
    assert (tmp_path / "val" / "panoptic.json").is_file()


def test_scenes_of_some_thing_classes(tmp_path):
    folder = write_shapes(tmp_path, split="train", num_scenes=6, seed=0, things=("disc", "star"))
    content = json.loads((folder / "panoptic.json").read_text())
    things = {c["id"]: c["name"] for c in content["categories"] if c["isthing"]}
    assert set(things.values()) == {"disc", "star"}
    assert len(content["categories"]) == 6
    known = {c["id"] for c in content["categories"]}
    seen = {s["category_id"] for a in content["annotations"] for s in a["segments_info"]}
    assert seen <= known and seen & set(things)
    labels = np.unique([np.array(Image.open(f)) for f in (folder / "semantic").iterdir()])
    assert labels.max() < 6
    assert write_shapes(tmp_path, split="train", num_scenes=6, seed=0, things=("disc", "star")) == (
        folder
    )
    with pytest.raises(ValueError, match=r"not \('hexagon',\)"):
        draw_scene(0, 0, things=("hexagon",))
