"""Panoptic quality: hand-computed numbers, golden results, errors."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from knet.evaluation.panoptic_quality import (
    PanopticStatistics,
    id2rgb,
    image_statistics,
    pq_compute,
    rgb2id,
)

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "panoptic_quality.json"

CATEGORIES = [
    {"id": 3, "name": "cat", "isthing": 1},
    {"id": 7, "name": "dog", "isthing": 1},
    {"id": 11, "name": "bird", "isthing": 1},
    {"id": 90, "name": "grass", "isthing": 0},
    {"id": 200, "name": "sky", "isthing": 0},
]


def random_case(seed: int, images: int = 3) -> list[tuple]:
    """``images`` tuples of ground truth ids, predicted ids (H, W) and the two record lists.

    numpy promises a stable stream for ``RandomState`` only, and golden results need one.
    """
    rng = np.random.RandomState(seed)
    return [_random_image(rng) for _ in range(images)]


def _random_image(rng: np.random.RandomState) -> tuple:
    # Sizes of a few cells make IoUs and void shares of exactly one half common.
    cell, rows, columns = int(rng.choice([1, 2, 5])), rng.randint(2, 9), rng.randint(2, 9)
    gt, gt_segments = _random_map(rng, rows, columns, crowd=True)
    if rng.rand() < 0.6:  # a disturbed copy, so that there are matches
        pred = np.where(rng.rand(rows, columns) < rng.choice([0.0, 0.2, 0.45]), 0, gt)
        pred, pred_segments = pred.copy(), [dict(s) for s in gt_segments]
        for segment in pred_segments:
            segment.pop("iscrowd")
            if rng.rand() < 0.15:
                segment["category_id"] = int(rng.choice([c["id"] for c in CATEGORIES]))
        spill = rng.rand(rows, columns) < 0.2
        pred[spill] = np.roll(gt, 1, axis=rng.randint(2))[spill]
    else:
        pred, pred_segments = _random_map(rng, rows, columns, crowd=False)
    pred_segments = [s for s in pred_segments if (pred == s["id"]).any()]
    enlarge = np.ones((cell, cell), dtype=np.int32)
    return np.kron(gt, enlarge), np.kron(pred, enlarge), gt_segments, pred_segments


def _random_map(
    rng: np.random.RandomState, rows: int, columns: int, *, crowd: bool
) -> tuple[np.ndarray, list[dict]]:
    ids = np.zeros((rows, columns), dtype=np.int32)
    segments, crowded, laid = [], set(), set()
    for _ in range(rng.randint(0, 7)):
        category = CATEGORIES[rng.randint(len(CATEGORIES))]
        if not category["isthing"] and category["id"] in laid:
            continue  # one segment of each stuff category
        laid.add(category["id"])
        top, left = rng.randint(rows), rng.randint(columns)
        bottom, right = rng.randint(top, rows) + 1, rng.randint(left, columns) + 1
        segment_id = int(rng.randint(1, 256**3 - 1))  # ids use all three bytes
        ids[top:bottom, left:right] = segment_id
        segment = {"id": segment_id, "category_id": category["id"]}
        if crowd:
            may_crowd = category["isthing"] and category["id"] not in crowded
            segment["iscrowd"] = int(may_crowd and rng.rand() < 0.3)
            if segment["iscrowd"]:
                crowded.add(category["id"])
        segments.append(segment)
    return ids, [s for s in segments if (ids == s["id"]).any()]


# ---- golden results ------------------------------------------------------------------------------


def test_random_cases_equal_golden_results():
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))["cases"]
    assert len(golden) == 40
    for seed, expected in golden.items():
        total = PanopticStatistics()
        for gt, pred, gt_segments, pred_segments in random_case(int(seed)):
            total += image_statistics(gt, pred, gt_segments, pred_segments)
        for category_id, (iou, tp, fp, fn) in expected.items():
            got = total[int(category_id)]
            assert (got.tp, got.fp, got.fn) == (tp, fp, fn), f"seed {seed}, {category_id}"
            assert got.iou == pytest.approx(iou, abs=1e-12)


# ---- by hand -------------------------------------------------------------------------------------


def one_row(gt, pred, gt_segments, pred_segments):
    """Statistics of category 1; segments as {id: category} or {id: (category, iscrowd)}."""

    def records(segments):
        for key, value in segments.items():
            category, iscrowd = value if isinstance(value, tuple) else (value, 0)
            yield {"id": key, "category_id": category, "iscrowd": iscrowd}

    statistics = image_statistics(
        np.array([gt]), np.array([pred]), list(records(gt_segments)), list(records(pred_segments))
    )[1]
    return statistics.iou, statistics.tp, statistics.fp, statistics.fn


def test_iou_of_a_half_is_no_match():
    # 2 of 4 pixels; then 3 of 4.
    assert one_row([5, 5, 5, 5], [0, 0, 8, 8], {5: 1}, {8: 1}) == (0, 0, 1, 1)
    assert one_row([5, 5, 5, 5], [0, 8, 8, 8], {5: 1}, {8: 1}) == (0.75, 1, 0, 0)


def test_union_leaves_out_predicted_pixels_on_void():
    # 3 common, 3 predicted on void, 1 missed: 3 / 4, not 3 / 7.
    gt, pred = [0, 0, 0, 5, 5, 5, 5], [8, 8, 8, 8, 8, 8, 0]
    assert one_row(gt, pred, {5: 1}, {8: 1}) == (0.75, 1, 0, 0)


def test_other_category_does_not_match():
    assert one_row([5, 5], [8, 8], {5: 1}, {8: 2}) == (0, 0, 0, 1)
    assert one_row([5, 5], [8, 8], {5: 2}, {8: 1}) == (0, 0, 1, 0)


def test_prediction_mostly_on_void_is_not_counted():
    assert one_row([0, 0, 0, 5], [8, 8, 8, 8], {5: 2}, {8: 1}) == (0, 0, 0, 0)
    # Exactly half is not more than half.
    assert one_row([0, 0, 5, 5], [8, 8, 8, 8], {5: 2}, {8: 1}) == (0, 0, 1, 0)


def test_crowd_is_never_missed_and_never_matched():
    assert one_row([5, 5, 5, 6], [0, 0, 0, 0], {5: (1, 1), 6: 2}, {}) == (0, 0, 0, 0)
    assert one_row([5, 5, 5, 5], [8, 8, 8, 8], {5: (1, 1)}, {8: 1}) == (0, 0, 0, 0)


def test_crowd_excuses_its_own_category_together_with_void():
    gt, pred = [0, 5, 5, 6, 6], [8, 8, 8, 8, 8]  # 1 void + 2 crowd of 5
    assert one_row(gt, pred, {5: (1, 1), 6: 2}, {8: 1}) == (0, 0, 0, 0)
    assert one_row(gt, pred, {5: (2, 1), 6: 2}, {8: 1}) == (0, 0, 1, 0)


def test_quality_of_a_category():
    total = PanopticStatistics()
    total[1].add(1.5, 2, 1, 3)
    total += total
    quality = total[1].quality()
    assert quality == {"pq": 1.5 / 4, "sq": 0.75, "rq": 0.5}
    assert total.average([1, 2]) == {**quality, "n": 1}  # 2 does not occur
    assert total.average([]) == {"pq": 0.0, "sq": 0.0, "rq": 0.0, "n": 0}


# ---- colours -------------------------------------------------------------------------------------


def test_ids_and_colors():
    ids = np.array([[0, 255, 256], [65536, 256**3 - 1, 70000]])
    rgb = id2rgb(ids)
    assert rgb.dtype == np.uint8 and rgb.shape == (2, 3, 3)
    assert rgb[0, 2].tolist() == [0, 1, 0] and rgb[1, 0].tolist() == [0, 0, 1]
    assert (rgb2id(rgb) == ids).all()
    assert id2rgb(70000) == [112, 17, 1] and rgb2id([112, 17, 1]) == 70000
    with pytest.raises(ValueError, match="-1"):
        id2rgb(np.array([-1]))


# ---- files ---------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    """Two images, of which the second's only prediction has the wrong category."""
    content = {"gt": {"categories": CATEGORIES, "annotations": []}, "pred": {"annotations": []}}
    for folder, second_category in (("gt", 90), ("pred", 200)):
        (tmp_path / folder).mkdir()
        for k in range(2):
            ids = np.zeros((4, 6), dtype=np.int32)
            ids[:, 3:] = 300 + k
            Image.fromarray(id2rgb(ids)).save(tmp_path / folder / f"{k}.png")
            segment = {"id": 300 + k, "category_id": second_category if k else 3, "iscrowd": 0}
            content[folder]["annotations"].append(
                {"image_id": k, "file_name": f"{k}.png", "segments_info": [segment]}
            )

    def write(change=lambda content: None):
        change(content)
        for name, value in content.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
        return tmp_path / "gt.json", tmp_path / "pred.json"

    return write


def test_files(files):
    gt, pred = files()
    result = pq_compute(gt, pred)
    assert list(result) == ["All", "per_class", "Things", "Stuff"]
    assert result["All"] == {"pq": 1 / 3, "sq": 1 / 3, "rq": 1 / 3, "n": 3}
    assert result["Things"] == {"pq": 1, "sq": 1, "rq": 1, "n": 1}
    assert result["Stuff"] == {"pq": 0, "sq": 0, "rq": 0, "n": 2}
    assert set(result["per_class"]) == {c["id"] for c in CATEGORIES}
    assert result["per_class"][3] == {"pq": 1, "sq": 1, "rq": 1}


def test_byte_order_marks_and_labels_as_large_as_their_picture(files, monkeypatch):
    sizes = [{"id": k, "height": 4, "width": 6} for k in range(2)]
    expected = pq_compute(*files())
    gt, pred = files(lambda content: content["gt"].update(images=sizes))
    for path in (gt, pred):
        path.write_text(path.read_text(), encoding="utf-8-sig")
    monkeypatch.setattr("knet.data.images.MAX_PIXELS", 10)
    assert pq_compute(gt, pred) == expected
    pred.write_text("{")
    with pytest.raises(ValueError, match=r"pred\.json: is not JSON"):
        pq_compute(gt, pred)


def _segments(content):
    return content["pred"]["annotations"][1]["segments_info"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["pred"]["annotations"].pop(),
            r"pred\.json' has no prediction for 1 of 2",
        ),
        (lambda c: _segments(c).clear(), r"Image 1 .*1\.png.* 301 are in the PNG but not in the J"),
        (
            lambda c: _segments(c).append({"id": 9, "category_id": 3}),
            r"Image 1 .* 9 are in the JSON but not in the PNG",
        ),
        (lambda c: _segments(c)[0].update(category_id=4), r"segment 301 has unknown category id 4"),
        (lambda c: _segments(c).append(_segments(c)[0]), r"segment id 301 is listed twice"),
    ],
)
def test_errors_name_file_and_record(files, change, message):
    with pytest.raises(ValueError, match=message):
        pq_compute(*files(change))


def test_sizes_must_agree(files, tmp_path):
    gt, pred = files()
    Image.new("RGB", (6, 5)).save(tmp_path / "pred" / "1.png")
    with pytest.raises(ValueError, match=r"Image 1 .*\(5, 6\) differs .*\(4, 6\)"):
        pq_compute(gt, pred)


def test_sizes_in_the_json_decide_nothing_and_alpha_is_ignored(files, tmp_path):
    expected = pq_compute(*files())
    wrong = [{"id": k, "height": 5, "width": 7} for k in range(2)]
    for path in (tmp_path / "gt" / "0.png", tmp_path / "pred" / "0.png"):
        Image.open(path).convert("RGBA").save(path)
    paths = files(lambda content: content["gt"].update(images=wrong))
    assert pq_compute(*paths) == expected
    grey = tmp_path / "gt" / "0.png"
    Image.new("L", (6, 4)).save(grey)
    with pytest.raises(ValueError, match=rf"{grey}: image 0: .* in mode L"):
        pq_compute(*paths)


def test_missing_folder(files, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        pq_compute(*files(), pred_folder=tmp_path / "nowhere")


def test_needs_numpy_and_pillow_only():
    code = (
        "import sys, types\n"
        "sys.modules.update(dict.fromkeys(['torch', 'detectron2']))\n"
        "package = sys.modules['knet'] = types.ModuleType('knet')\n"
        "package.__path__ = [sys.argv[1]]\n"  # without what the true package imports
        "from knet.evaluation.panoptic_quality import pq_compute, rgb2id\n"
        "assert rgb2id([1, 1, 0]) == 257\n"
    )
    subprocess.run([sys.executable, "-c", code, str(ROOT / "projects" / "knet")], check=True)


def test_sums_are_the_same_in_any_order():
    rng = np.random.default_rng(0)
    ious = rng.uniform(0.5, 1, 300)
    one, other = PanopticStatistics(), PanopticStatistics()
    for iou in ious:
        one[1].add(iou, 1, 0, 0)
    for part in np.split(ious[::-1], 10):  # as of several processes
        share = PanopticStatistics()
        for iou in part:
            share[1].add(iou, 1, 0, 0)
        other += share
    assert one == other and one[1].iou == math.fsum(ious)
