"""The reader of COCO instance annotations."""

import json
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from knet.data import register_coco_instances
from knet.data.coco_instances import scan_coco_instances
from knet.data.defects import DataError

from .good_sets import make_good


def without_additions(records):
    """Our records without the keys that Detectron2 does not give."""
    return [
        {
            **{key: value for key, value in record.items() if key != "annotation_file"},
            "annotations": [
                {key: value for key, value in annotation.items() if key not in ("id", "area")}
                for annotation in record["annotations"]
            ],
        }
        for record in records
    ]


def test_same_records_as_detectron2(tmp_path, coco_root):
    good = make_good("coco_instances", tmp_path / "good")
    annotations = coco_root / "annotations" / "instances_val.json"
    for number, (root, file) in enumerate(
        [
            (coco_root / "images" / "val", annotations),
            (good["IMAGE_ROOT"], good["JSON_FILE"]),  # with counts that are not compressed
        ]
    ):
        name = f"own_{number}"
        register_coco_instances(name, image_root=root, json_file=file)
        ours = DatasetCatalog.get(name)
        theirs = load_coco_json(str(file), str(root), f"theirs_{number}")
        assert without_additions(ours) == theirs
        meta = MetadataCatalog.get(f"theirs_{number}")
        assert meta.thing_classes == MetadataCatalog.get(name).thing_classes
        assert all("id" in a and "area" in a for r in ours for a in r["annotations"])
        MetadataCatalog.remove(f"theirs_{number}")


def test_all_defects_of_a_file_are_found_at_once(tmp_path):
    good = make_good("coco_instances", tmp_path / "good")
    content = json.loads(Path(good["JSON_FILE"]).read_text())
    content["images"] += [7, {"id": [1], "file_name": "x.png", "height": 4, "width": 4}]
    content["annotations"][0].update(category_id=[3], bbox="large", iscrowd=2)
    content["annotations"][2].update(image_id=[6])
    content["annotations"] += ["none", {}]
    Path(good["JSON_FILE"]).write_text(json.dumps(content))
    scan = scan_coco_instances(good["JSON_FILE"], good["IMAGE_ROOT"], {3: 0, 7: 1})
    assert [(d.kind, d.record) for d in scan.defects if d.severity == "error"] == [
        ("bad-value", "images[3]"),
        ("bad-value", "images[4]"),
        ("unknown-category", "image 5, annotation 11"),
        ("bad-value", "image 5, annotation 11"),
        ("bbox-wrong", "image 5, annotation 11"),
        ("orphan-annotation", "image [6], annotation 13"),
        ("bad-value", "annotations[5]"),
        ("missing-key", "annotations[6]"),
        ("missing-segmentation", "annotations[6]"),
    ]
    assert scan.broken == {0} and [r["image_id"] for r in scan.records] == [5, 6, 7]
    assert [a["id"] for r in scan.records for a in r["annotations"]] == [12, 14, 15]
    register_coco_instances("own", image_root=good["IMAGE_ROOT"], json_file=good["JSON_FILE"])
    with pytest.raises(DataError, match=r"images\[3\]: is a int.* \(8 more such errors"):
        DatasetCatalog.get("own")


@pytest.mark.parametrize(
    ("text", "message"),
    [("[1, 2]", "holds a list"), ('{"images": 3}', "`images` is no list"), ("{", "is not JSON")],
)
def test_files_that_are_something_else(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"x\.json: {message}"):
        scan_coco_instances(str(path), str(tmp_path), {})
