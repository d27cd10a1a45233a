"""What is found, in words."""

import torch
from detectron2.structures import Instances

from knet.classes import Category
from knet.predict.describe import describe_result

CATEGORIES = [
    Category(0, 1, "dog", True), Category(1, 2, "cat", True), Category(2, 9, "sky", False),
    Category(3, 7, "grass", False),
]  # fmt: skip


def test_panoptic_scenes():
    segments = [{"category_id": c, "isthing": c < 2} for c in (1, 0, 1, 3, 2)]
    assert describe_result((None, segments), CATEGORIES) == "2 cat, 1 dog; grass, sky"
    assert describe_result((None, []), CATEGORIES) == "nothing"
    assert describe_result((None, segments[3:]), CATEGORIES) == "grass, sky"


def test_instances_from_the_threshold_on():
    found = Instances((4, 4))
    found.scores = torch.tensor([0.9, 0.5, 0.1])
    found.pred_classes = torch.tensor([0, 0, 1])
    assert describe_result(found, CATEGORIES, task="instance") == "2 dog"
    assert describe_result(found, CATEGORIES, task="instance", score_threshold=0) == "2 dog, 1 cat"


def test_shares_of_a_semantic_map():
    scores = torch.zeros(4, 20, 10)
    scores[2], scores[3, :5] = 0.5, 1
    scores[1, 0, 0] = 2  # half a percent
    assert describe_result(scores, CATEGORIES, task="semantic") == "sky 75 %, grass 24 %"


def test_many_classes_are_cut_short():
    many = [Category(k, k, f"c{k}", True) for k in range(12)]
    segments = [{"category_id": k, "isthing": True} for k in range(12)]
    text = describe_result((None, segments), many)
    assert text.startswith("1 c0, 1 c1") and text.endswith("1 c7, 4 more")
