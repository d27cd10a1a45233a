"""The evaluators as ``build_evaluator`` chooses them, and their processes together."""

from __future__ import annotations

import builtins
import functools
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from PIL import Image

from knet.data import images, label_png
from knet.data.derive import panoptic_to_instances
from knet.evaluation import build_evaluator, instance_dataset
from knet.evaluation.instances import InstanceEvaluator
from knet.evaluation.panoptic import PanopticEvaluator
from knet.evaluation.semantic import SemanticEvaluator

from ..processes import call_in_two
from . import photos
from .drawn import STUFF, STUFF_IDS, THINGS, config, evaluate, labels_of

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


def test_errors_say_what_is_missing(make_dataset):
    make_dataset("evaluated", evaluator_type="lvis")
    with pytest.raises(ValueError, match=r"'evaluated' has evaluator_type 'lvis'.*sem_seg"):
        build_evaluator(config(), "evaluated")
    with pytest.raises(ValueError, match=r"'evaluated'.*output folder"):
        instance_dataset("evaluated", None)


def _evaluators(folder: Path) -> dict:
    return {
        "panoptic": PanopticEvaluator(photos.NAME, str(folder)),
        "instances": InstanceEvaluator(photos.NAME, str(folder)),
        "semantic": SemanticEvaluator(photos.NAME, output_dir=str(folder)),
    }


def _evaluate_share(folder: Path) -> None:
    records = (
        DatasetCatalog.get(photos.NAME) if photos.NAME in DatasetCatalog else photos.register()
    )
    share = records[comm.get_rank() :: comm.get_world_size()]
    results = {name: photos.evaluate(e, share) for name, e in _evaluators(folder).items()}
    if comm.is_main_process():
        (folder / "results.pkl").write_bytes(pickle.dumps(results))
    else:
        assert not any(results.values())


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(records, tmp_path):
    for count in (1, 2):
        (tmp_path / str(count)).mkdir()
    _evaluate_share(tmp_path / "1")
    call_in_two(_evaluate_share, tmp_path / "2")
    one, two = (pickle.loads((tmp_path / n / "results.pkl").read_bytes()) for n in "12")
    np.testing.assert_equal(two, one)
    for name in ("coco_instances_results", "predictions", "sem_seg_predictions"):
        one, two = (json.loads((tmp_path / n / f"{name}.json").read_text()) for n in "12")
        if isinstance(one, dict):
            one, two = one["annotations"], two["annotations"]
        assert sorted(map(json.dumps, two)) == sorted(map(json.dumps, one))
