"""Evaluation image by image: the numbers and files of Detectron2's evaluators, in little memory."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, COCOPanopticEvaluator, SemSegEvaluator
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from PIL import Image
from pycocotools import mask as mask_util

from knet.data import register_coco_panoptic
from knet.data.panoptic_png import read_panoptic_png
from knet.evaluation.background import Background
from knet.evaluation.evaluators import SemanticEvaluator
from knet.evaluation.instances import InstanceEvaluator, encode_masks
from knet.evaluation.panoptic import PanopticEvaluator
from knet.evaluation.spool import Spool
from knet.training.launch import launch

PHOTOS = Path(__file__).parents[1] / "fixtures" / "coco_panoptic_fixture"
NAME = "streamed_photos"


def register() -> list[dict]:
    annotations = PHOTOS / "annotations"
    register_coco_panoptic(
        NAME,
        image_root=PHOTOS / "images" / "val",
        panoptic_root=annotations / "panoptic_val",
        panoptic_json=annotations / "panoptic_val.json",
        instances_json=annotations / "instances_val.json",
        sem_seg_root=annotations / "semantic_val",
    )
    return DatasetCatalog.get(NAME)


@pytest.fixture
def records():
    yield register()
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def predictions(record: dict, detections: int = 40) -> dict:
    """Ground truth that was shifted, with wrong classes, equal scores, and unfounded masks."""
    rng = np.random.RandomState(record["image_id"])
    ids = read_panoptic_png(record["pan_seg_file_name"]).astype(np.int32)
    found = np.roll(ids, rng.randint(-6, 7, 2), (0, 1))
    rows, labels, segments = [], [], []
    for number, segment in enumerate(record["segments_info"], start=1):
        mask = found == segment["id"]
        found[mask] = number
        label = segment["category_id"] if rng.rand() < 0.8 else int(rng.randint(80))
        if mask.any():
            segments.append({"id": number, "category_id": label, "isthing": label < 80})
        if segment["isthing"]:
            rows.append(mask)
            labels.append(label)
    while len(rows) < detections:
        y, x, h, w = rng.randint(1, 200, 4)
        rows.append(np.zeros(ids.shape, bool))
        rows[-1][y : y + h, x : x + w] = True
        labels.append(int(rng.choice(labels)) if labels else 0)
    instances = Instances(ids.shape)
    instances.pred_masks = torch.as_tensor(np.stack(rows))
    instances.pred_boxes = Boxes(torch.as_tensor(rng.rand(len(rows), 4) * 100).float())
    instances.pred_classes = torch.as_tensor(labels)
    instances.scores = torch.as_tensor(rng.rand(len(rows)).round(1)).float()
    scores = torch.as_tensor(rng.rand(133, 8, 8)).float()
    semantic = torch.nn.functional.interpolate(scores[None], size=ids.shape, mode="nearest")[0]
    found[~np.isin(found, [s["id"] for s in segments])] = 0
    return {
        "instances": instances,
        "panoptic_seg": (torch.as_tensor(found), segments),
        "sem_seg": semantic,
    }


def evaluate(evaluator, records):
    evaluator.reset()
    for record in records:
        evaluator.process([record], [predictions(record)])
    with contextlib.redirect_stdout(io.StringIO()):
        return evaluator.evaluate()


def compare(ours, theirs, records, ours_file, theirs_file):
    results = evaluate(ours, records)
    expected = {task: dict(metrics) for task, metrics in evaluate(theirs, records).items()}
    np.testing.assert_equal(results, expected)  # to the last bit; NaN equals NaN
    assert json.loads(ours_file.read_text()) == json.loads(theirs_file.read_text())
    return results


@pytest.mark.parametrize("limit", [100, 150, 7])
def test_mask_ap_is_pycocotools(records, tmp_path, limit):
    file = "coco_instances_results.json"
    ours = InstanceEvaluator(NAME, str(tmp_path / "ours"), max_dets_per_image=limit)
    theirs = COCOEvaluator(NAME, ("segm",), output_dir=str(tmp_path / "theirs"),
                           max_dets_per_image=limit, use_fast_impl=False)  # fmt: skip
    results = compare(ours, theirs, records, tmp_path / "ours" / file, tmp_path / "theirs" / file)
    assert 5 < results["segm"]["AP"] < 95
    assert not list((tmp_path / "ours").glob("*.pth"))


def test_images_without_predictions_count_as_missed(records):
    few = evaluate(InstanceEvaluator(NAME), records[:1])
    theirs = evaluate(COCOEvaluator(NAME, ("segm",), use_fast_impl=False), records[:1])
    np.testing.assert_equal(few["segm"], dict(theirs["segm"]))
    assert evaluate(InstanceEvaluator(NAME), []) == {}


def test_panoptic_quality_is_that_of_the_files(records, tmp_path):
    file = "predictions.json"
    ours = PanopticEvaluator(NAME, str(tmp_path / "ours"), write_png=True)
    theirs = COCOPanopticEvaluator(NAME, str(tmp_path / "theirs"))
    results = compare(ours, theirs, records, tmp_path / "ours" / file, tmp_path / "theirs" / file)
    assert 20 < results["panoptic_seg"]["PQ"] < 95
    assert evaluate(PanopticEvaluator(NAME), records) == results
    for record in records:  # a submission: the PNGs that the JSON names
        png = tmp_path / "ours" / "predictions" / f"{Path(record['file_name']).stem}.png"
        expected = predictions(record)["panoptic_seg"][0]
        assert (read_panoptic_png(str(png)) == expected.numpy()).all()


def test_semantic_results_are_detectron2s(records, tmp_path):
    file = "sem_seg_predictions.json"
    ours = SemanticEvaluator(NAME, output_dir=str(tmp_path / "ours"))
    theirs = SemSegEvaluator(NAME, output_dir=str(tmp_path / "theirs"))
    compare(ours, theirs, records, tmp_path / "ours" / file, tmp_path / "theirs" / file)
    assert ours._predictions == []


def _evaluators(folder: Path) -> dict:
    return {
        "panoptic": PanopticEvaluator(NAME, str(folder)),
        "instances": InstanceEvaluator(NAME, str(folder)),
        "semantic": SemanticEvaluator(NAME, output_dir=str(folder)),
    }


def _evaluate_share(folder: Path) -> None:
    records = DatasetCatalog.get(NAME) if NAME in DatasetCatalog else register()
    share = records[comm.get_rank() :: comm.get_world_size()]
    results = {name: evaluate(e, share) for name, e in _evaluators(folder).items()}
    if comm.is_main_process():
        (folder / "results.pkl").write_bytes(pickle.dumps(results))
    else:
        assert not any(results.values())


def test_two_processes_give_the_numbers_of_one(records, tmp_path):
    for count in (1, 2):
        folder = tmp_path / str(count)
        folder.mkdir()
        launch(_evaluate_share, count, on_gpu=False, args=(folder,))
    one, two = (pickle.loads((tmp_path / n / "results.pkl").read_bytes()) for n in "12")
    np.testing.assert_equal(two, one)
    for name in ("coco_instances_results", "predictions", "sem_seg_predictions"):
        one, two = (json.loads((tmp_path / n / f"{name}.json").read_text()) for n in "12")
        if isinstance(one, dict):
            one, two = one["annotations"], two["annotations"]
        assert sorted(map(json.dumps, two)) == sorted(map(json.dumps, one))


def test_little_is_kept_of_an_image(records):
    panoptic, instances = PanopticEvaluator(NAME), InstanceEvaluator(NAME)
    for evaluator in (panoptic, instances):
        evaluator.reset()
        for record in records:
            evaluator.process([record], [predictions(record, detections=100)])
    panoptic._judging.finish()
    assert len(pickle.dumps(panoptic._judged)) < 700 * len(records)
    assert len(pickle.dumps(instances._images)) < 4000 * len(records)


def test_errors_name_the_image_or_class(records):
    evaluator = InstanceEvaluator(NAME)
    evaluator.reset()
    out = predictions(records[0])
    with pytest.raises(ValueError, match=r"instances_val\.json' has no image with the id 3"):
        evaluator.process([{"image_id": 3}], [out])
    out["instances"].pred_classes[1] = 80
    with pytest.raises(
        ValueError,
        match=rf"at least 81 thing .*val\.json' \(data set '{NAME}'\) .* 80 .*: 1 'person', 2",
    ):
        evaluator.process([records[0]], [out])

    evaluator = PanopticEvaluator(NAME)
    evaluator.reset()
    evaluator.process([records[0]], [predictions(records[0])])
    with pytest.raises(ValueError, match=rf"panoptic_val\.json' .*: {records[1]['image_id']}"):
        evaluator.evaluate()
    evaluator.reset()
    out = predictions(records[1])
    out["panoptic_seg"][1].append({"id": 77, "category_id": 0, "isthing": True})
    with pytest.raises(ValueError, match=rf"Image {records[1]['image_id']} .* 77 are in the JSON"):
        evaluator.process([records[1]], [out])
        evaluator.evaluate()
    evaluator.reset()  # a failed evaluation leaves nothing behind
    for record in records:
        evaluator.process([record], [predictions(record)])
    assert evaluator.evaluate()["panoptic_seg"]["PQ"] > 0


def test_data_without_annotations_get_their_pngs_written(records, tmp_path):
    metadata = MetadataCatalog.get(NAME)
    content = json.loads(Path(metadata.panoptic_json).read_text())
    del content["annotations"]
    (tmp_path / "test.json").write_text(json.dumps(content))
    MetadataCatalog.remove(NAME)
    MetadataCatalog.get(NAME).set(
        **{**metadata.as_dict(), "panoptic_json": str(tmp_path / "test.json")}
    )
    assert evaluate(PanopticEvaluator(NAME, str(tmp_path / "out")), records) == {}
    saved = json.loads((tmp_path / "out" / "predictions.json").read_text())
    for record in saved["annotations"]:
        assert Image.open(tmp_path / "out" / "predictions" / record["file_name"]).mode == "RGB"


@pytest.mark.parametrize("shape", [(0, 5, 7), (3, 5, 7), (40, 31, 64)])
def test_masks_are_encoded_as_pycocotools_does(shape, monkeypatch):
    monkeypatch.setattr("knet.evaluation.instances._CHUNK_BYTES", 5000)
    masks = torch.rand(shape) > 0.5
    masks[:1] = True
    expected = [mask_util.encode(np.asfortranarray(m, np.uint8)) for m in masks.numpy()]
    found = encode_masks(masks)
    assert [rle["counts"].encode() for rle in found] == [rle["counts"] for rle in expected]
    assert [rle["size"] for rle in found] == [rle["size"] for rle in expected]


def test_background_keeps_the_order_and_waits_when_it_is_behind():
    gate, collected, running = threading.Event(), [], []

    def work(k):
        running.append(k)
        gate.wait(10)
        return k

    background = Background(work, collected.append, threads=2)
    for k in range(4):
        background.put(k)
    assert len(running) <= 2 and collected == []
    threading.Timer(0.05, gate.set).start()
    background.put(4)  # the fifth has to wait for the first
    assert collected[:1] == [0]
    background.finish()
    assert collected == list(range(5))


def test_background_raises_the_error_of_a_call():
    background = Background(lambda x: 1 // x, print, threads=1)
    with pytest.raises(ZeroDivisionError):
        background.put(0)
        background.finish()
    background.cancel()


def test_spool_joins_lines_of_several_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr("knet.evaluation.spool._BLOCK_BYTES", 20)
    spool = Spool(tmp_path)
    for k in range(30):
        spool.add(json.dumps({"number": k, "text": "ä\n"}))
    assert not list(tmp_path.iterdir())
    spool.write(str(tmp_path / "all.json"))
    found = json.loads((tmp_path / "all.json").read_text())
    assert found == [{"number": k, "text": "ä\n"} for k in range(30)]
    Spool(tmp_path).write(str(tmp_path / "none.json"), before='{"a": [', after="]}")
    assert json.loads((tmp_path / "none.json").read_text()) == {"a": []}


def test_result_files_are_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    path.write_text("old")
    spool = Spool(tmp_path)
    spool.add("1")

    def stop():
        yield "1"
        raise KeyboardInterrupt

    monkeypatch.setattr(spool, "_gathered", stop)
    with pytest.raises(KeyboardInterrupt):
        spool.write(str(path))
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    spool.write(str(path))
    assert json.loads(path.read_text()) == [1]
