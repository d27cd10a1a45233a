"""The reader of COCO instance annotations, and the checks of masks behind it."""

import json
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from knet.data import register_coco_instances
from knet.data.annotations.coco_json import scan_coco_instances
from knet.data.annotations.polygons import (
    TooManyPairs,
    _crossing_paths,
    crossing_edges,
    polygon_errors,
    polygon_warnings,
)
from knet.data.annotations.segmentations import rle_counts, rle_defect, segmentation_errors
from knet.data.check.record import Expected, check_record
from knet.data.defects import DataError
from knet.data.labels import encode_segmentation

from ..good_sets import HEIGHT, WIDTH, make_good


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


def random_masks():
    rng = np.random.default_rng(0)
    for share in (0.0, 0.02, 0.5, 0.98, 1.0):
        for _ in range(10):
            height, width = rng.integers(1, 90, 2)
            yield (rng.random((height, width)) < share).astype(np.uint8)
    large = np.zeros((700, 900), np.uint8)
    large[600:, 500:] = 1
    yield large


def test_rle_counts_are_those_of_pycocotools():
    for mask in random_masks():
        flat = mask.ravel(order="F")
        ends = np.flatnonzero(np.diff(flat)) + 1
        runs = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
        runs = [0, *runs] if flat[0] else runs
        rle = mask_util.encode(np.asfortranarray(mask))
        assert rle_counts(rle["counts"]).tolist() == runs
        assert rle_counts(rle["counts"].decode()).tolist() == runs
        assert rle_counts(runs).tolist() == runs
        assert rle_defect(rle, "x", "") is None


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ("b0\x7f!", "characters that no RLE has"),
        ("ü", "characters that no RLE has"),
        ("1P", "ends in the middle of a number"),
        ("PPPPPPPP0", "a run is longer than any picture"),
        ([2**60, -(2**60)], "a run is longer than any picture"),
        ([1.5], "not all whole numbers"),
        ([], "runs cover 0 pixels, its size 40x60 has 2400"),
        ("", "runs cover 0 pixels, its size 40x60 has 2400"),
        ([2400, 1], "runs cover 2401 pixels"),
        ([2401, -1], "a run of -1 pixels"),
    ],
)
def test_broken_rle(counts, message):
    rle = {"size": [HEIGHT, WIDTH], "counts": counts}
    (defect,) = segmentation_errors(rle, (HEIGHT, WIDTH), "x.json", "image 1")
    assert defect.kind == "rle-invalid" and message in defect.problem


def test_every_damage_to_an_rle_is_found_or_harmless():
    """No text that passes the check makes pycocotools write beyond the picture."""
    rng = np.random.default_rng(1)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[5:30, 7:44] = rng.random((25, 37)) < 0.5
    whole = mask_util.encode(np.asfortranarray(mask))["counts"]
    passed = 0
    for _ in range(400):
        text = bytearray(whole)
        for position in rng.integers(0, len(text), rng.integers(1, 4)):
            text[position] = rng.integers(40, 120)
        rle = {"size": [HEIGHT, WIDTH], "counts": bytes(text)}
        if not segmentation_errors(rle, (HEIGHT, WIDTH), "x", ""):
            passed += 1
            counts = rle_counts(rle["counts"])
            assert counts.sum() == HEIGHT * WIDTH and (counts >= 0).all()
            assert mask_util.decode(rle).sum() == counts[1::2].sum()
    assert passed < 400


def brute_force_crosses(points) -> bool:
    """Whether two edges of a polygon have a common inner point, by solving for it."""
    edges = list(zip(points, np.roll(points, -1, axis=0)))
    for i, (a, b) in enumerate(edges):
        for c, d in edges[i + 1 :]:
            matrix = np.stack([b - a, c - d], axis=1)
            if abs(np.linalg.det(matrix)) > 1e-9:
                at = np.linalg.solve(matrix, c - a)
                if (at > 1e-6).all() and (at < 1 - 1e-6).all():
                    return True
    return False


def test_crossing_edges(monkeypatch):
    rng = np.random.default_rng(0)
    polygons = [rng.uniform(0, 100, (rng.integers(3, 9), 2)) for _ in range(150)]
    expected = [brute_force_crosses(points) for points in polygons]
    assert 0 < sum(expected) < len(expected)
    for pairs in (1 << 19, 2):  # at once, and in blocks
        monkeypatch.setattr("knet.data.annotations.polygons._PAIRS", pairs)
        assert [crossing_edges(points) is not None for points in polygons] == expected
    assert crossing_edges(np.array([[0, 0], [10, 10], [10, 0], [0, 10]])) == (0, 2)


def test_crossing_in_a_vertex():
    bow_tie = np.array([[0, 0], [5, 5], [10, 10], [10, 0], [5, 5], [0, 10]])
    assert crossing_edges(bow_tie) == (1, 4)
    assert crossing_edges(bow_tie[::-1] + 0.3) == (1, 4)
    rng = np.random.default_rng(0)
    found = set()
    for _ in range(60):
        directions = rng.uniform(0, 2 * np.pi, 4)  # of the ends of two paths: 0 to 1, and 2 to 3
        a, b, c, d = 10 * np.stack([np.cos(directions), np.sin(directions)], axis=1)
        points = np.array([a, np.zeros(2), b, c, np.zeros(2), d])
        around = np.argsort(directions)
        expected = around[0] // 2 == around[2] // 2  # the paths take turns
        assert (_crossing_paths(points) is not None) == expected
        found.add(expected)
    assert found == {True, False}


@pytest.mark.parametrize(
    "points",
    [
        [[0, 0], [10, 0], [10, 10], [0, 10]],
        [[0, 0], [10, 0], [10, 10], [0, 10], [0, 0]],  # the first point again
        [[0, 0], [10, 0], [10, 0], [10, 10]],  # a point twice
        [[0, 0], [5, 5], [10, 0], [10, 10], [5, 5], [0, 10]],  # touches itself in a point
        [[0, 0], [10, 0], [10, 10], [10, 0]],  # goes back on itself
        [[5, 5], [0, 0], [5, 5], [10, 0], [5, 5], [9, 9], [0, 9]],  # touches thrice
        [[0, 0], [4, 4], [8, 0], [8, 9], [4, 4], [4, 4], [0, 9]],  # and stays there
        [[0, 0], [4, 0], [8, 0], [8, 9], [4, 0], [4, 0.001]],  # shallower than rounding
        [[3, 3], [3, 3], [3, 3]],
    ],
)
def test_touching_is_not_crossing(points):
    assert crossing_edges(np.array(points)) is None


@pytest.mark.parametrize(
    ("polygon", "problem"),
    [
        ([-1, -1, 61, -1, 61, 41], None),
        ([-9, 5, -2, 5, -2, 9], "wholly outside the picture (x -9 to -2 of 60, y 5 to 9 of 40)"),
        ([5, 42, 9, 42, 9, 50], "wholly outside"),
        ([5, 5, 9, 5, 9, 500], "far outside"),
        ([5, 5, 9, float("inf"), 9, 9], "a coordinate is inf"),
        ([5, 5, "9", None, 9, 9], "no numbers"),
        ([[5, 5], [9, 5], [9, 9]] * 2, "no numbers"),
    ],
)
def test_points(polygon, problem):
    found = [text for _, text in polygon_errors(polygon, (HEIGHT, WIDTH), tolerance=1.0)]
    assert len(found) == (problem is not None)
    assert problem is None or problem in found[0]


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
    found = check_record(record, Expected(annotation_file="x.json", thing_ids=[0, 1]))
    assert [(d.kind, d.record) for d in found] == [
        ("image-missing", "image 5"),
        ("polygon-outside", "image 5, annotation 3 of 4"),
        ("polygon-coordinates", "image 5, annotation 3 of 4"),
        ("unknown-category", "image 5, annotation 3 of 4"),
        ("mask-size", "image 5, annotation 4 of 4"),
    ]
    assert [d.file for d in found[1:]] == ["x.json"] * 4
    assert found[1].problem.startswith("polygon 1 of 2: ")


def test_every_form_of_a_mask_encodes_alike():
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[10:20, 10:20] = True
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    for form in (mask, rle, [[10, 10, 20, 10, 20, 20, 10, 20]]):
        assert mask_util.area(encode_segmentation(form, (HEIGHT, WIDTH))) == 100


def test_long_edges_are_compared_up_to_a_limit(monkeypatch):
    comb = np.array([[x, y] for y in range(60) for x in ((0, 100) if y % 2 else (100, 0))])
    comb = np.concatenate([comb * 1.0, [[-5, 59], [-5, -5], [105, -5]]])
    assert crossing_edges(comb) is None
    monkeypatch.setattr("knet.data.annotations.polygons._MOST_PAIRS", 100)
    with pytest.raises(TooManyPairs):
        crossing_edges(comb)
    ((kind, problem),) = polygon_warnings(comb.ravel(), (105, 105), tolerance=9)
    assert kind == "polygon-unchecked"
    assert problem == "not checked for self-intersection: 123 points"
