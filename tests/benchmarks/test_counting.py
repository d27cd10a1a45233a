"""How many operators a GPU would launch, and how often Python would wait for it."""

import pytest
from counting import count_all
from workload import Workload

pytestmark = pytest.mark.slow


def _work(config):
    return Workload(config, size=(64, 96), output_size=(50, 70))


def _sum(counter):
    return sum(counter.values())


@pytest.fixture(scope="module")
def r50():
    return count_all(_work("configs/coco/panoptic/knet_r50_fpn_1x.yaml"), images=2, objects=3)


def test_one_image_of_the_published_model(r50):
    assert 300 < _sum(r50["image"].operators) <= 450 and _sum(r50["image"].waits) == 1
    assert _sum(r50["post-processing"].operators) <= 50
    assert _sum(r50["forward"].waits) == 0


def test_one_step_waits_for_the_matching_alone(r50):
    assert 1000 < _sum(r50["step"].operators) <= 1800 and dict(r50["step"].waits) == {"cpu": 1}


def test_images_and_objects_cost_no_operators():
    work = _work("configs/shapes/panoptic.yaml")
    few, many = (count_all(work, images=b, objects=g) for b, g in ((2, 2), (8, 11)))
    assert _sum(many["step"].operators) <= 1.1 * _sum(few["step"].operators)
    assert few["step"].waits == many["step"].waits
