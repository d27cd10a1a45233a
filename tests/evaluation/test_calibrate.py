"""Thresholds with the highest panoptic quality, where it is known which they are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from knet.classes import ClassIds
from knet.evaluation.calibrate import Calibration, Mean, Thresholds, ThresholdSearch, calibrate
from knet.evaluation.panoptic import PanopticEvaluator
from knet.modeling.postprocess import InferenceOptions
from knet.modeling.predictions import Frame, MaskPredictions
from knet.modeling.task import MaskTask, SemanticTask

from .drawn import SIZE, labels_of


def task_of(**options):
    options = InferenceOptions(instance=False, semantic=False, **options)
    return MaskTask(class_ids=ClassIds((0, 1), (2, 3)), options=options)


def predictions_of(image_id, *, scores=(0.6, 0.6), wrong=0.47):
    """What a model says that finds the segments 1 … 4 of `labels_of`, things at `scores`.

    It makes two mistakes: at score `wrong` a cat where there is sky, and at 0.9 a cat that hardly
    wins more of its mask than the line above the dog.
    """
    ids = torch.as_tensor(labels_of(image_id))
    masks = torch.stack([(ids == k).float() for k in (1, 2, 1, 1, 3, 4)]) * 0.98 + 0.01
    masks[2] = 0.01
    masks[2, 35:39, 2:14] = 0.995
    masks[3] = 0.01
    masks[3, 17:34, 20 + image_id : 30 + image_id] = 0.51
    masks[3, 17, 20 + image_id : 30 + image_id] = 0.99
    class_scores = torch.zeros(6, 4)
    class_scores[0, 0], class_scores[1, 1] = scores
    class_scores[2, 0], class_scores[3, 0] = wrong, 0.9
    class_scores[4, 2] = class_scores[5, 3] = 0.3  # which stuff needs no more of
    return MaskPredictions(class_scores, masks, Frame((SIZE, SIZE), (SIZE, SIZE)), are_logits=False)


def search(name, task, **thresholds):
    found = ThresholdSearch(name, task, **thresholds)
    for image_id in range(4):
        found.add({"image_id": image_id, "height": SIZE, "width": SIZE}, predictions_of(image_id))
    return found.result()


def test_the_best_threshold_is_between_the_mistakes_and_the_objects(make_dataset):
    make_dataset("drawn_calibrate")
    found = search("drawn_calibrate", task_of(overlap_threshold=0.5))
    # a mistake of 0.47 and objects of 0.6: 0.5, 0.55 and 0.6 are alike, the model has 0.3
    assert found.best == (0.5, 0.0, 0.5)

    def quality(*thresholds):
        return found.quality(Thresholds(*thresholds))

    # 0.6 as a float32 is above 0.6; from 0.65 on both classes of things are lost
    assert quality(0.6, 0.0, 0.5) == pytest.approx(quality(0.5, 0.0, 0.5))
    assert quality(0.65, 0.0, 0.5) < quality(0.3, 0.0, 0.5) < quality(0.5, 0.0, 0.5)
    # stuff at 0.3
    assert quality(0.5, 0.25, 0.5) == quality(0.5, 0.0, 0.5) > quality(0.5, 0.35, 0.5)
    text = found.describe()
    keys = "THING_THRESH 0.5 MODEL.KNET.TEST.STUFF_THRESH 0.0 MODEL.KNET.TEST.OVERLAP_THRESH 0.5"
    assert f"MODEL.KNET.TEST.{keys}\n" in text
    assert (
        "report scores on others" in text
        and "under the model's own (0.3, 0, 0.5 for things, stuff and overlaps)" in text
    )


@pytest.mark.parametrize("options", [{}, {"min_area": 60}, {"panoptic_mask_scores": 2.0}])
def test_every_quality_is_that_of_the_evaluator(make_dataset, options):
    records = make_dataset("drawn_calibrate")
    task = task_of(**options)
    scores, overlaps = [0.0, 0.25, 0.45, 0.5, 0.7, 0.95], [0.02, 0.3, 0.9, 1.0]
    found = search("drawn_calibrate", task, score_thresholds=scores, overlap_thresholds=overlaps)
    assert len(found.things) == len(found.stuff) == 7 * 5
    evaluator, qualities = PanopticEvaluator("drawn_calibrate"), set()
    for thing, overlap in found.things:
        for stuff in (0.0, 0.25, 0.95):
            task.options = replace(
                task.options,
                thing_threshold=thing,
                stuff_threshold=stuff,
                overlap_threshold=overlap,
            )
            evaluator.reset()
            for record in records:
                results = task.results(predictions_of(record["image_id"]), (SIZE, SIZE))
                evaluator.process([record], [results])
            expected = evaluator.evaluate()["panoptic_seg"]["PQ"]
            ours = found.quality(Thresholds(thing, stuff, overlap))
            assert ours == pytest.approx(expected, abs=1e-9)
            qualities.add(round(ours, 6))
    assert len(qualities) >= 4


def test_each_image_is_predicted_once(make_dataset):
    records = make_dataset("drawn_calibrate")
    seen = []

    class Model(torch.nn.Module):
        task = task_of()

        def predict(self, batch):
            assert not self.training and not torch.is_grad_enabled()
            seen.extend(record["image_id"] for record in batch)
            return [predictions_of(record["image_id"]) for record in batch]

    model = Model().train()
    found = calibrate(model, [records[:2], records[2:]], "drawn_calibrate")
    assert seen == [0, 1, 2, 3] and model.training
    assert found == search("drawn_calibrate", task_of())
    with pytest.raises(ValueError, match="2 of 4 images have no prediction"):
        calibrate(model, [records[:2]], "drawn_calibrate")


def test_of_equal_thresholds_the_nearest_to_the_models():
    things = {(t, o): Mean(50.0, 2) for t in (0.1, 0.2, 0.3, 0.4) for o in (0.5, 0.6)}
    stuff = {(t, o): Mean(40.0, 1) for t in (0.0, 0.1) for o in (0.5, 0.6)}

    def best():
        return Calibration("x", things, stuff, Thresholds(0.3, 0.1, 0.6)).best

    assert best() == (0.3, 0.1, 0.6)
    things[0.1, 0.5] = things[0.2, 0.5] = Mean(50.1, 2)
    assert best() == (0.2, 0.1, 0.5)
    things[0.1, 0.5] = Mean(50.1 + 1e-12, 2)  # rounding
    assert best() == (0.2, 0.1, 0.5)
    # a class that no longer occurs leaves the mean
    stuff[0.0, 0.5] = Mean(0.0, 0)
    assert best() == (0.2, 0.0, 0.5)


def test_what_cannot_be_calibrated(make_dataset):
    make_dataset("drawn_calibrate", panoptic_json="")
    with pytest.raises(ValueError, match="'drawn_calibrate' has no panoptic annotations"):
        ThresholdSearch("drawn_calibrate", task_of())
    for task in (SemanticTask(), task_of(panoptic=False)):
        with pytest.raises(ValueError, match=r"MODEL\.KNET\.TEST\.PANOPTIC_ON"):
            ThresholdSearch("drawn_calibrate", task)
