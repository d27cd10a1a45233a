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

from knet.data import register_coco_panoptic
from knet.data.annotations.panoptic_png import read_panoptic_png
from knet.evaluation.instances import InstanceEvaluator
from knet.evaluation.panoptic import _THREADS, PanopticEvaluator
from knet.evaluation.semantic import SemanticEvaluator
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
def test_mask_ap_is_pycocotools(records, tmp_path, limit, monkeypatch):
    monkeypatch.setattr("knet.evaluation.instances._CHUNK_BYTES", 10 << 20)  # several an image
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
    panoptic._collect(0)
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


def test_threads_keep_the_order_and_the_model_waits_when_they_are_behind(records, tmp_path):
    evaluator = PanopticEvaluator(NAME, str(tmp_path))
    evaluator.reset()
    gate, judge, running = threading.Event(), evaluator._judge, []

    def wait(image_id, *rest):
        running.append(image_id)
        gate.wait(10)
        return judge(image_id, *rest)

    evaluator._judge = wait
    done = [{**records[0], "image_id": k} for k in range(2 * _THREADS + 1)]
    for record in done[:-1]:
        evaluator.process([record], [predictions(records[0])])
    assert len(running) <= _THREADS and len(evaluator._waiting) == 2 * _THREADS
    threading.Timer(0.05, gate.set).start()
    evaluator.process(done[-1:], [predictions(records[0])])  # has to wait for the first
    assert gate.is_set() and len(evaluator._waiting) <= 2 * _THREADS
    evaluator._collect(0)
    evaluator._spool.write(str(tmp_path / "all.json"))
    found = json.loads((tmp_path / "all.json").read_text())
    assert [record["image_id"] for record in found] == list(range(len(done)))


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
