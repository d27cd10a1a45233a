"""Detectron2's evaluators as ``build_evaluator`` chooses them, on a data set of four images."""

from __future__ import annotations

import builtins
import functools
import json
import os
import shutil

import numpy as np
import pytest

import knet  # noqa: F401  (has to come before detectron2)

# isort: split
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image

from knet.data import images, label_png
from knet.data.derive import panoptic_to_instances
from knet.evaluation import build_evaluator, id2rgb, instance_dataset, semantic_dataset

SIZE = 40
THINGS, STUFF = ["cat", "dog"], ["grass", "sky"]
# Data set id → contiguous id.
THING_IDS, STUFF_IDS = {3: 0, 7: 1}, {20: 2, 31: 3}


def config(panoptic=True, instance=True, semantic=True, top_k=100):
    test = {"PANOPTIC_ON": panoptic, "INSTANCE_ON": instance, "SEMANTIC_ON": semantic}
    return CfgNode(
        {
            "MODEL": {"KNET": {"TEST": test, "NUM_KERNELS": 100}},
            "TEST": {"DETECTIONS_PER_IMAGE": top_k},
        }
    )


def labels_of(image_id):
    """Ids of the four segments 1 … 4, of the classes 0 … 3; each image is shifted a bit."""
    ids = np.full((SIZE, SIZE), 3)
    ids[SIZE // 2 :] = 4
    ids[2 + image_id : 14 + image_id, 3:15] = 1
    ids[18:34, 20 + image_id : 30 + image_id] = 2
    ids[-1] = 0  # void
    return ids


@pytest.fixture
def make_dataset(tmp_path):
    """Register a panoptic data set without instances JSON and without semantic PNGs."""
    names = []

    def make(name, **metadata):
        (tmp_path / "panoptic").mkdir(exist_ok=True)
        content = {
            "images": [],
            "annotations": [],
            "categories": [
                {"id": key, "name": (THINGS + STUFF)[k], "isthing": int(k < 2)}
                for key, k in {**THING_IDS, **STUFF_IDS}.items()
            ],
        }
        records = []
        for image_id in range(4):
            ids = labels_of(image_id)
            Image.fromarray(id2rgb(ids)).save(tmp_path / "panoptic" / f"{image_id}.png")
            contiguous = dict(enumerate(THING_IDS | STUFF_IDS))
            segments = [
                {
                    "id": k + 1,
                    "category_id": contiguous[k],
                    "iscrowd": 0,
                    "area": int((ids == k + 1).sum()),
                    "bbox": [0, 0, SIZE, SIZE],
                }
                for k in range(4)
            ]
            content["images"].append(
                {"id": image_id, "file_name": f"{image_id}.jpg", "height": SIZE, "width": SIZE}
            )
            content["annotations"].append(
                {"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": segments}
            )
            records.append(
                {
                    "file_name": str(tmp_path / f"{image_id}.jpg"),
                    "image_id": image_id,
                    "height": SIZE,
                    "width": SIZE,
                    "pan_seg_file_name": str(tmp_path / "panoptic" / f"{image_id}.png"),
                    "segments_info": [
                        dict(s, category_id=k, isthing=k < 2) for k, s in enumerate(segments)
                    ],
                }
            )
        (tmp_path / "panoptic.json").write_text(json.dumps(content), encoding="utf-8")
        DatasetCatalog.register(name, lambda: records)
        values = {
            "panoptic_json": str(tmp_path / "panoptic.json"),
            "panoptic_root": str(tmp_path / "panoptic"),
            "thing_classes": THINGS,
            "stuff_classes": THINGS + STUFF,
            "thing_dataset_id_to_contiguous_id": THING_IDS,
            "stuff_dataset_id_to_contiguous_id": THING_IDS | STUFF_IDS,
            "evaluator_type": "coco_panoptic_seg",
            "ignore_label": 255,
            **metadata,
        }
        MetadataCatalog.get(name).set(**values)
        names.append(name)
        return records

    yield make
    for catalog in (DatasetCatalog, MetadataCatalog):
        for name in [n for n in catalog.list() if n.split("/")[0] in names]:
            catalog.remove(name)


def outputs_of(ids):
    """What a model gives that finds the segments 1 … 4 of ``ids``."""
    things = [k for k in (1, 2) if (ids == k).any()]
    instances = Instances((SIZE, SIZE))
    instances.pred_masks = torch.stack([torch.as_tensor(ids == k) for k in things])
    instances.pred_classes = torch.as_tensor(things) - 1
    instances.scores = torch.linspace(0.9, 0.8, len(things))
    instances.pred_boxes = Boxes(torch.zeros(len(things), 4))
    segments = [
        {"id": k, "category_id": k - 1, "isthing": k < 3} for k in range(1, 5) if (ids == k).any()
    ]
    semantic = torch.nn.functional.one_hot(torch.as_tensor(np.maximum(ids - 1, 0)), 4)
    return {
        "panoptic_seg": (torch.as_tensor(ids, dtype=torch.int32), segments),
        "instances": instances,
        "sem_seg": semantic.permute(2, 0, 1).float(),
    }


def evaluate(evaluator, records, ids_of=labels_of):
    evaluator.reset()
    for record in records:
        evaluator.process([dict(record)], [outputs_of(ids_of(record["image_id"]))])
    return evaluator.evaluate()


STANDARD = {  # the form of Detectron2's own coco_2017_val_panoptic
    "thing_classes": THINGS + STUFF,
    "stuff_dataset_id_to_contiguous_id": STUFF_IDS,
    "json_file": None,
}


@pytest.mark.parametrize("metadata", [{}, STANDARD], ids=["knet", "standard"])
def test_perfect_results(make_dataset, tmp_path, metadata):
    records = make_dataset("evaluated", **metadata)
    out = str(tmp_path / "out")
    results = evaluate(build_evaluator(config(), "evaluated", out), records)
    assert results["panoptic_seg"]["PQ"] == results["panoptic_seg"]["PQ_st"] == 100
    assert results["segm"]["AP"] == pytest.approx(100)
    assert results["segm"]["AP-cat"] == pytest.approx(100)
    assert results["sem_seg"]["mIoU"] == 100
    # A second evaluation finds the derived files, also by another name for the same folder.
    derived = tmp_path / "out" / "derived" / "evaluated"
    times = {p: p.stat().st_mtime_ns for p in derived.rglob("*")}
    assert {p.name for p in times} >= {"instances.json", "semantic", "0.png"}
    results = evaluate(build_evaluator(config(), "evaluated", out), records)
    assert results["segm"]["AP"] == pytest.approx(100)
    assert times == {p: p.stat().st_mtime_ns for p in derived.rglob("*")}


def test_wrong_results(make_dataset, tmp_path):
    records = make_dataset("evaluated")

    def ids_of(image_id):
        ids = labels_of(image_id)
        ids[ids == 2] = 4  # the dog is taken for sky
        return ids

    results = evaluate(build_evaluator(config(), "evaluated", str(tmp_path)), records, ids_of)
    dog, sky = 160, [int((labels_of(k) == 4).sum()) for k in range(4)]
    iou_sky = np.mean([pixels / (pixels + dog) for pixels in sky])
    panoptic = results["panoptic_seg"]
    assert panoptic["PQ_th"] == pytest.approx(50)  # cat 100, dog 0
    assert panoptic["PQ_st"] == pytest.approx(50 * (1 + iou_sky))
    assert results["segm"]["AP"] == pytest.approx(50)
    assert results["segm"]["AP-dog"] == 0
    assert results["sem_seg"]["IoU-dog"] == 0
    sky_over_all = sum(sky) / (sum(sky) + 4 * dog)
    assert results["sem_seg"]["mIoU"] == pytest.approx(100 * (2 + sky_over_all) / 4)


def test_classes_without_ground_truth_are_named(make_dataset, tmp_path, caplog):
    def without_dog(image_id):
        ids = labels_of(image_id)
        ids[ids == 2] = 0
        return ids

    records = make_dataset("evaluated")
    content = json.loads((tmp_path / "panoptic.json").read_text())
    for record, annotation in zip(records, content["annotations"]):
        Image.fromarray(id2rgb(without_dog(record["image_id"]))).save(record["pan_seg_file_name"])
        del annotation["segments_info"][1], record["segments_info"][1]
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    cfg = config(panoptic=False, instance=False)
    results = evaluate(build_evaluator(cfg, "evaluated", str(tmp_path)), records, without_dog)
    assert results["sem_seg"]["mIoU"] == 100
    assert "mIoU is that of 3 of 4 classes: no label of 'evaluated/semantic' shows dog; 12." in (
        caplog.text
    )
    evaluate(build_evaluator(cfg, "evaluated", str(tmp_path)), records[1:], lambda _: labels_of(0))
    assert "so with an IoU of 0 in the mean: dog" in caplog.text


def test_any_encoding_of_the_locale_byte_order_marks_and_large_labels(
    make_dataset, tmp_path, monkeypatch
):
    """Evaluation takes what training takes, with a raised INPUT.MAX_PIXELS too."""
    records = make_dataset("evaluated")
    path = tmp_path / "panoptic.json"
    content = json.loads(path.read_text())
    content["info"] = {"description": "été"}
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8-sig")
    instances = tmp_path / "instances.json"
    panoptic_to_instances(str(path), str(tmp_path / "panoptic"), str(instances))
    text = json.dumps(json.loads(instances.read_text()), ensure_ascii=False)
    instances.write_text(text, encoding="utf-8-sig")
    MetadataCatalog.get("evaluated").json_file = str(instances)
    for module in (images, label_png):
        monkeypatch.setattr(module, "MAX_PIXELS", 100)
    monkeypatch.setitem(images.open_image.__wrapped__.__kwdefaults__, "max_pixels", 100)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr(builtins, "open", functools.partial(_open_as_ascii, open))
    evaluator = build_evaluator(config(), "evaluated", str(tmp_path / "out"))
    scores = evaluate(evaluator, records, labels_of)
    assert scores["panoptic_seg"]["PQ"] == scores["segm"]["AP"] == scores["sem_seg"]["mIoU"] == 100


def _open_as_ascii(function, file, mode="r", *args, **kwargs):
    if "b" not in mode and not args:
        kwargs.setdefault("encoding", "ascii")
    return function(file, mode, *args, **kwargs)


def test_a_kill_behind_the_new_files_does_not_leave_them_under_the_old_stamp(
    make_dataset, tmp_path, monkeypatch
):
    make_dataset("evaluated")
    folder = tmp_path / "out" / "derived" / "evaluated"
    for derived, name in ((instance_dataset, "instances.json"), (semantic_dataset, "semantic")):
        derived("evaluated", str(tmp_path / "out"))
        stamp = folder / f"{name}.source.json"
        assert stamp.exists()
        before = (tmp_path / "panoptic.json").stat()
        (tmp_path / "panoptic.json").touch()  # other annotations …
        with monkeypatch.context() as patch:
            patch.setattr("knet.evaluation.derived.write_json", _killed)
            with pytest.raises(KeyboardInterrupt):
                derived("evaluated", str(tmp_path / "out"))
        times = (before.st_atime_ns, before.st_mtime_ns)
        os.utime(tmp_path / "panoptic.json", ns=times)  # … and back to the first
        assert (folder / name).exists() and not stamp.exists()
        derived("evaluated", str(tmp_path / "out"))
        assert stamp.exists()
    assert len(os.listdir(folder)) == 4


def _killed(*_, **__):
    raise KeyboardInterrupt


def test_switches_choose(make_dataset, tmp_path):
    make_dataset("evaluated")
    for switches, expected in (
        ((True, False, False), ["PanopticEvaluator"]),
        ((False, True, False), ["InstanceEvaluator"]),
        ((False, False, True), ["SemanticEvaluator"]),
    ):
        evaluators = build_evaluator(config(*switches), "evaluated", str(tmp_path))._evaluators
        assert [type(e).__name__ for e in evaluators] == expected
    with pytest.raises(ValueError, match=r"'evaluated'.*PANOPTIC_ON or .*INSTANCE_ON"):
        build_evaluator(config(False, False, False), "evaluated", str(tmp_path))


def test_newer_annotations_are_derived_again(make_dataset, tmp_path):
    make_dataset("evaluated")
    alias = instance_dataset("evaluated", str(tmp_path / "out"))
    json_file = tmp_path / "out" / "derived" / "evaluated" / "instances.json"
    assert MetadataCatalog.get(alias).json_file == str(json_file)
    json_file.write_text("old", encoding="utf-8")
    instance_dataset("evaluated", str(tmp_path / "out"))
    assert json_file.read_text(encoding="utf-8") == "old"
    (tmp_path / "panoptic.json").touch()
    instance_dataset("evaluated", str(tmp_path / "out"))
    assert len(json.loads(json_file.read_text(encoding="utf-8"))["annotations"]) == 8


def shifted(image_id):
    return np.roll(labels_of(image_id), 5, axis=1)


def test_other_pngs_and_another_folder_are_derived_again(make_dataset, tmp_path):
    records = make_dataset("evaluated")
    out = str(tmp_path / "out")

    def scores():
        found = evaluate(build_evaluator(config(), "evaluated", out), records, shifted)
        return found["segm"]["AP"], found["sem_seg"]["mIoU"]

    assert max(scores()) < 70
    for image_id in range(4):  # the JSON stays
        Image.fromarray(id2rgb(shifted(image_id))).save(tmp_path / f"panoptic/{image_id}.png")
    assert scores() == pytest.approx((100, 100))
    shutil.copytree(tmp_path / "panoptic", tmp_path / "other")
    for image_id in range(4):
        Image.fromarray(id2rgb(labels_of(image_id))).save(tmp_path / f"other/{image_id}.png")
    vars(MetadataCatalog.get("evaluated"))["panoptic_root"] = str(tmp_path / "other")
    for record in records:
        record["pan_seg_file_name"] = record["pan_seg_file_name"].replace("/panoptic/", "/other/")
    assert max(scores()) < 70


def test_other_labels_are_derived_again(make_dataset, tmp_path):
    records = make_dataset("evaluated")

    def values():
        alias = semantic_dataset("evaluated", str(tmp_path / "out"))
        (first, *_) = DatasetCatalog.get(alias)
        return set(np.unique(np.asarray(Image.open(first["sem_seg_file_name"]))).tolist())

    assert values() == {0, 1, 2, 3, 255} and len(records) == 4
    MetadataCatalog.remove("evaluated")
    DatasetCatalog.remove("evaluated")
    make_dataset("evaluated", ignore_label=77)
    assert values() == {0, 1, 2, 3, 77}


def test_instances_without_a_file_are_written_each_time(tmp_path):
    outline = [[10, 10, 20, 10, 20, 20, 10, 20]]
    box = {"bbox": [10, 10, 10, 10], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    record = {"file_name": "0.jpg", "image_id": 0, "height": SIZE, "width": SIZE}
    record["annotations"] = [{**box, "segmentation": outline}]
    DatasetCatalog.register("listed", lambda: [record])
    MetadataCatalog.get("listed").set(thing_classes=["cat"], evaluator_type="coco")
    found = Instances((SIZE, SIZE))
    found.pred_masks = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    found.pred_masks[:, 20:30, 20:30] = True
    found.pred_classes, found.scores = torch.zeros(1, dtype=torch.long), torch.ones(1)
    found.pred_boxes = Boxes(torch.tensor([[20.0, 20, 30, 30]]))
    try:
        for expected in (0, 100):
            evaluator = build_evaluator(config(False, True, False), "listed", str(tmp_path))
            evaluator.reset()
            evaluator.process([record], [{"instances": found}])
            assert evaluator.evaluate()["segm"]["AP"] == pytest.approx(expected)
            record["annotations"] = [
                {**box, "bbox": [20, 20, 10, 10], "segmentation": [[v + 10 for v in outline[0]]]}
            ]
    finally:
        for catalog in (DatasetCatalog, MetadataCatalog):
            for name in [n for n in catalog.list() if n.split("/")[0] == "listed"]:
                catalog.remove(name)


def test_complete_data_set_is_taken_as_it_is(make_dataset, tmp_path):
    records = make_dataset("evaluated", json_file=str(tmp_path / "instances.json"))
    (tmp_path / "instances.json").write_text("{}", encoding="utf-8")
    for record in records:
        record["sem_seg_file_name"] = record["pan_seg_file_name"]
    assert instance_dataset("evaluated", None) == "evaluated"
    assert semantic_dataset("evaluated", None) == "evaluated"


def test_errors_say_what_is_missing(make_dataset):
    make_dataset("evaluated", evaluator_type="lvis")
    with pytest.raises(ValueError, match=r"'evaluated' has evaluator_type 'lvis'.*sem_seg"):
        build_evaluator(config(), "evaluated")
    with pytest.raises(ValueError, match=r"'evaluated'.*output folder"):
        instance_dataset("evaluated", None)


@pytest.mark.parametrize(
    "labels, words",
    [
        (np.full((SIZE, SIZE), 4, np.uint8), r"0\.png.*4"),
        (np.zeros((SIZE, SIZE + 1), np.uint8), r"0\.png is 41x40"),
        (np.full((SIZE, SIZE), 700, np.uint16), r"0\.png.*700"),
    ],
)
def test_labels_are_checked_when_scored(tmp_path, labels, words):
    path = tmp_path / "0.png"
    Image.fromarray(labels).save(path)
    name = f"checked_{labels.dtype}_{labels.shape[1]}"
    DatasetCatalog.register(name, lambda: [{"file_name": "0.jpg", "sem_seg_file_name": str(path)}])
    MetadataCatalog.get(name).set(
        stuff_classes=["a", "b"], ignore_label=255, evaluator_type="sem_seg"
    )
    try:
        evaluator = build_evaluator(config(panoptic=False, instance=False), name, None)
        evaluator.reset()
        with pytest.raises(ValueError, match=words):
            evaluator.process([{"file_name": "0.jpg"}], [{"sem_seg": torch.rand(2, SIZE, SIZE)}])
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
