"""How many operators a GPU would launch, and how often Python would wait for it."""

import pytest
from counting import count_all
from workload import Workload

pytestmark = pytest.mark.slow


def _sum(counter):
    return sum(counter.values())


# operators are as many in a model of few channels
_NARROW = (
    "MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16",
    "MODEL.RESNETS.WIDTH_PER_GROUP", "8", "MODEL.FPN.OUT_CHANNELS", "32",
    "MODEL.KNET.HIDDEN_DIM", "32", "MODEL.KNET.FFN_DIM", "32",
)  # fmt: skip


@pytest.fixture(scope="module")
def r50():
    config = "configs/coco/panoptic/knet_r50_fpn_1x.yaml"
    work = Workload(config, _NARROW, size=(64, 96), output_size=(50, 70))
    return count_all(work, images=2, objects=3)


def test_one_image_of_the_published_model(r50):
    assert 300 < _sum(r50["image"].operators) <= 450 and _sum(r50["image"].waits) == 1
    assert _sum(r50["post-processing"].operators) <= 50
    assert _sum(r50["forward"].waits) == 0


def test_one_step_waits_for_the_matching_alone(r50):
    assert 1000 < _sum(r50["step"].operators) <= 1800 and dict(r50["step"].waits) == {"cpu": 1}


def test_images_and_objects_cost_no_operators(tiny_work):
    few, many = (count_all(tiny_work, images=b, objects=g) for b, g in ((2, 2), (8, 11)))
    assert _sum(many["step"].operators) <= 1.1 * _sum(few["step"].operators)
    assert few["step"].waits == many["step"].waits
