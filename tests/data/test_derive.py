import json
import shutil

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from knet.data import (
    DataError,
    panoptic_to_instances,
    panoptic_to_semantic,
    write_panoptic_png,
)


@pytest.fixture
def tiny(tmp_path):
    """One 6x8 picture: a thing, a crowd, stuff and void; returns (json path, folder, content)."""
    ids = np.zeros((6, 8), np.uint32)
    ids[:, :3] = 70000
    ids[1:4, 4:8] = 301
    ids[5, 4:] = 9
    (tmp_path / "png").mkdir()
    write_panoptic_png(str(tmp_path / "png" / "a.png"), ids)
    content = {
        "images": [{"id": 5, "file_name": "a.jpg", "height": 6, "width": 8}],
        "categories": [
            {"id": 4, "name": "thing", "isthing": 1},
            {"id": 2, "name": "stuff", "isthing": 0},
        ],
        "annotations": [
            {
                "image_id": 5,
                "file_name": "a.png",
                "segments_info": [
                    {"id": 70000, "category_id": 2, "iscrowd": 0},
                    {"id": 301, "category_id": 4, "iscrowd": 0},
                    {"id": 9, "category_id": 4, "iscrowd": 1},
                ],
            }
        ],
    }
    return tmp_path / "panoptic.json", tmp_path / "png", content


def _save(tiny):
    tiny[0].write_text(json.dumps(tiny[2]))
    return str(tiny[0]), str(tiny[1])


def test_instances(tiny, tmp_path):
    out = tmp_path / "instances.json"
    assert panoptic_to_instances(*_save(tiny), str(out)) == 2
    coco = COCO(str(out))
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == ["thing"]
    thing, crowd = coco.loadAnns(coco.getAnnIds())
    assert (thing["area"], thing["bbox"], thing["iscrowd"]) == (12, [4, 1, 4, 3], 0)
    assert (crowd["area"], crowd["bbox"], crowd["iscrowd"]) == (4, [4, 5, 4, 1], 1)
    expected = np.zeros((6, 8))
    expected[1:4, 4:8] = 1
    np.testing.assert_array_equal(coco.annToMask(thing), expected)


def test_semantic(tiny, tmp_path):
    out = tmp_path / "semantic"
    assert panoptic_to_semantic(*_save(tiny), str(out), class_ids={4: 0, 2: 1}) == 1
    labels = np.array(Image.open(out / "a.png"))
    assert labels.dtype == np.uint8
    assert np.bincount(labels.ravel(), minlength=256)[[0, 1, 255]].tolist() == [16, 18, 14]
    panoptic_to_semantic(*_save(tiny), str(out), class_ids={2: 7})
    assert set(np.unique(Image.open(out / "a.png"))) == {7, 255}


@pytest.mark.parametrize("split", ["train", "val"])
def test_real_images(coco_root, tmp_path, split):
    """Derived annotations equal those that were derived independently."""
    annotations = coco_root / "annotations"
    source = str(annotations / f"panoptic_{split}.json"), str(annotations / f"panoptic_{split}")
    panoptic_to_instances(*source, str(tmp_path / "instances.json"))
    ours = json.loads((tmp_path / "instances.json").read_text())["annotations"]
    theirs = json.loads((annotations / f"instances_{split}.json").read_text())["annotations"]
    keys = ("image_id", "category_id", "iscrowd", "area", "bbox")
    pick = [sorted([[a[k] for k in keys] for a in side]) for side in (ours, theirs)]
    assert pick[0] == pick[1]

    classes = json.loads((coco_root / "classes_133.json").read_text())
    class_ids = {c["id"]: c["index"] for c in classes}
    panoptic_to_semantic(*source, str(tmp_path / "semantic"), class_ids=class_ids)
    for path in (annotations / f"semantic_{split}").iterdir():
        np.testing.assert_array_equal(
            np.array(Image.open(tmp_path / "semantic" / path.name)), np.array(Image.open(path))
        )


def _spoil_size(content, _folder):
    content["images"][0]["height"] = 7


def _spoil_png(_content, folder):
    shutil.rmtree(folder)


def _spoil_grey(_content, folder):
    Image.new("L", (8, 6)).save(folder / "a.png")


def _spoil_bytes(_content, folder):
    (folder / "a.png").write_bytes(b"no picture")


def _spoil_lacking(content, _folder):
    content["annotations"][0]["segments_info"].pop(1)


def _spoil_twice(content, _folder):
    content["annotations"][0]["segments_info"][1]["id"] = 9


def _spoil_zero(content, _folder):
    content["annotations"][0]["segments_info"][1]["id"] = 0


def _spoil_category(content, _folder):
    content["annotations"][0]["segments_info"][1]["category_id"] = 99


def _spoil_image(content, _folder):
    content["images"][0]["id"] = 6


def _spoil_keys(content, _folder):
    del content["categories"]


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (_spoil_size, ValueError, r"a\.png is 8x6 .* 8x7"),
        (_spoil_png, FileNotFoundError, r"no panoptic PNG at .*a\.png"),
        (_spoil_grey, ValueError, r"a\.png.*mode L"),
        (_spoil_bytes, ValueError, r"a\.png cannot be read"),
        (_spoil_lacking, DataError, r"a\.png: image 5: segment id 301 \(12 pixels\)"),
        (_spoil_twice, DataError, r"panoptic\.json: image 5: segment 9: the id is twice"),
        (_spoil_zero, DataError, r"image 5: segment 0: the id 0 is reserved"),
        (_spoil_category, DataError, r"image 5: segment 301: unknown category 99"),
        (_spoil_image, DataError, r"image 5: image_id 5 is no image's id"),
        (_spoil_keys, DataError, r"panoptic\.json: has no `categories`"),
    ],
)
def test_errors_name_file_and_record(tiny, tmp_path, spoil, error, message):
    spoil(tiny[2], tiny[1])
    with pytest.raises(error, match=message):
        panoptic_to_semantic(*_save(tiny), str(tmp_path / "s"), class_ids={4: 0, 2: 1})
    with pytest.raises(error, match=message):
        panoptic_to_instances(*_save(tiny), str(tmp_path / "i.json"))
    assert not (tmp_path / "i.json").exists()


def test_file_errors(tiny, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        panoptic_to_instances(str(tmp_path / "nowhere.json"), ".", "x.json")
    tiny[0].write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        panoptic_to_instances(str(tiny[0]), str(tiny[1]), "x.json")


@pytest.mark.parametrize("label", [-1, 255, 256])
def test_label_range(tiny, tmp_path, label):
    with pytest.raises(ValueError, match=f"label {label} of category 4"):
        panoptic_to_semantic(*_save(tiny), str(tmp_path / "s"), class_ids={4: label})


def test_what_trains_is_derived(tiny, tmp_path):
    """No sizes in the JSON, a segment without pixels, a PNG in a subfolder."""
    (image,), (annotation,) = tiny[2]["images"], tiny[2]["annotations"]
    del image["height"], image["width"]
    annotation["segments_info"].append({"id": 77, "category_id": 4})
    for folder in ("x", "y"):
        (tiny[1] / folder).mkdir()
    shutil.copy(tiny[1] / "a.png", tiny[1] / "x" / "a.png")
    write_panoptic_png(str(tiny[1] / "y" / "a.png"), np.zeros((6, 8), np.uint32))
    annotation["file_name"] = "x/a.png"
    tiny[2]["images"].append({"id": 6, "file_name": "b.jpg"})
    second = {"image_id": 6, "file_name": "y/a.png", "segments_info": []}
    tiny[2]["annotations"].append(second)
    out = tmp_path / "instances.json"
    assert panoptic_to_instances(*_save(tiny), str(out)) == 2
    assert json.loads(out.read_text())["images"][0] == {**image, "height": 6, "width": 8}
    assert panoptic_to_semantic(*_save(tiny), str(tmp_path / "s"), class_ids={4: 0, 2: 1}) == 2
    assert (np.array(Image.open(tmp_path / "s" / "y" / "a.png")) == 255).all()
    assert (np.array(Image.open(tmp_path / "s" / "x" / "a.png")) == 0).sum() == 16
    annotation["file_name"] = "../png/a.png"  # the same file
    assert panoptic_to_semantic(*_save(tiny), str(tmp_path / "t"), class_ids={4: 0, 2: 1}) == 2
    shutil.copy(tiny[1] / "a.png", tmp_path / "a.png")
    annotation["file_name"] = "../a.png"
    with pytest.raises(DataError, match="image 5: its PNG is not below"):
        panoptic_to_semantic(*_save(tiny), str(tmp_path / "u"), class_ids={4: 0, 2: 1})
