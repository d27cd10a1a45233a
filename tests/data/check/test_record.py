"""What the checker says of one record, whoever read it."""

import numpy as np

from knet.data.check.record import Expected, inspect_record
from knet.data.coco_instances import scan_coco_instances

from ..good_sets import make_good


def test_all_defects_of_a_record_are_named(tmp_path):
    good = make_good("coco_instances", tmp_path / "good")
    scan = scan_coco_instances(good["JSON_FILE"], good["IMAGE_ROOT"], {3: 0, 7: 1})
    record = scan.records[0]
    record["file_name"] = str(tmp_path / "gone.png")
    far = {
        "category_id": 5,
        "segmentation": [[99, 1, 120, 1, 99, 9], [1, 1, float("nan"), 1, 9, 9]],
    }
    record["annotations"] += [far, {"category_id": 0, "segmentation": np.zeros((3, 3), bool)}]
    found = inspect_record(record, Expected(annotation_file="x.json", thing_ids=[0, 1])).defects
    assert [(d.kind, d.record) for d in found] == [
        ("image-missing", "image 5"),
        ("polygon-outside", "image 5, annotation 3 of 4"),
        ("polygon-coordinates", "image 5, annotation 3 of 4"),
        ("unknown-category", "image 5, annotation 3 of 4"),
        ("mask-size", "image 5, annotation 4 of 4"),
    ]
    assert [d.file for d in found[1:]] == ["x.json"] * 4
    assert found[1].problem.startswith("polygon 1 of 2: ")


def test_records_of_others(tmp_path):
    """A defect where a key is missing, one that names the record for all else."""
    entry = make_good("coco_panoptic", tmp_path / "good")
    picture, png = f"{entry['IMAGE_ROOT']}/a.png", f"{entry['PANOPTIC_ROOT']}/a.png"
    record = {"file_name": picture, "image_id": 3, "height": 40}
    outline = [[10, 10, 20, 10, 20, 20]]
    for labels, kinds in (
        ({"annotations": [{"segmentation": outline}]}, ["missing-key"]),
        ({"annotations": [{"segmentation": outline, "category_id": "x"}]}, ["bad-value"]),
        ({"pan_seg_file_name": png}, ["missing-key"]),
        ({"pan_seg_file_name": png, "segments_info": [{"category_id": 1}]}, ["missing-key"]),
        ({"pan_seg_file_name": png, "segments_info": []}, ["png-id-unknown"] * 2),
    ):
        found = inspect_record({**record, **labels}, Expected()).defects
        assert [defect.kind for defect in found] == kinds
    assert [d.kind for d in inspect_record({"image_id": 3}, Expected()).defects] == ["missing-key"]
    (defect,) = inspect_record({**record, "annotations": 5}, Expected()).defects
    assert (defect.kind, defect.file, defect.record) == ("record-unchecked", picture, "image 3")
    assert defect.problem.startswith("cannot be checked: TypeError")
