"""Settings follow from numbers of the data and the machine."""

import numpy as np
import pytest
from PIL import Image

from knet.config import get_cfg_from_file
from knet.errors import UserError
from knet.recipe.choices import Choice, Data, Machine, choose, format_choices, used_brightness
from knet.recipe.steps import Cost, choose_steps
from knet.zoo import config_path

CUSTOM = get_cfg_from_file(config_path("custom/instance.yaml"))
PUBLISHED = get_cfg_from_file(config_path("coco/instance/knet_r50_fpn_3x.yaml"))
CPU, GPU = Machine("cpu", cores=2), Machine("cuda", cores=16)


@pytest.fixture(autouse=True)
def _no_backbone_is_built(monkeypatch):
    monkeypatch.setattr("knet.recipe.choices.mask_cell", lambda _: 4.0)


def make_data(task="instance", *, size=(256, 256), objects=(20,) * 100, sides=(0.1,) * 2000,
              brightness=0.9, test_pictures=20):  # fmt: skip
    if task == "semantic":
        objects, sides = (), ()
    return Data(task, [size] * 100, objects, sides, brightness, test_pictures)


def chosen(data, machine=CPU, base=CUSTOM, **arguments):
    arguments = {"whole": base is PUBLISHED, **arguments}
    return {c.key: c.value for c in choose(data, machine, base, **arguments)}


def test_small_objects_enlarge_the_pictures():
    # 256 pixels, objects of 3.3 % of that: 4.25 cells of 4 pixels take 515 pixels
    assert chosen(make_data(sides=(0.033,) * 100))["INPUT.MIN_SIZE_TEST"] == 512
    assert chosen(make_data(sides=(0.1,) * 100))["INPUT.MIN_SIZE_TEST"] == 256
    # never to more than twice their size
    assert chosen(make_data(size=(96, 96), sides=(0.01,) * 9))["INPUT.MIN_SIZE_TEST"] == 192


def test_large_pictures_are_reduced_to_what_the_machine_can():
    data = make_data(size=(1080, 1920))
    cpu, gpu = chosen(data, CPU), chosen(data, GPU)
    assert (cpu["INPUT.MIN_SIZE_TEST"], gpu["INPUT.MIN_SIZE_TEST"]) == (384, 640)
    assert cpu["INPUT.MAX_SIZE_TEST"] == 672  # 16:9
    assert cpu["INPUT.MIN_SIZE_TRAIN"] == (336, 432) and cpu["INPUT.CROP.SIZE"] == (256, 256)
    assert gpu["INPUT.CROP.SIZE"] == (512, 512)
    assert chosen(data, Machine("mps"))["INPUT.MIN_SIZE_TEST"] == 384


def test_large_objects_take_larger_crops_up_to_whole_pictures():
    data = make_data(size=(480, 640), sides=(0.9,) * 100)
    assert chosen(data)["INPUT.CROP.SIZE"] == (384, 384)
    small = make_data(size=(96, 128), sides=(0.9,) * 100)
    assert chosen(small)["INPUT.CROP.SIZE"] == (128, 128)


def test_kernels_are_as_many_as_the_fullest_picture_and_crop_hold():
    data = make_data(objects=[30] * 99 + [257], sides=(0.033,) * 100)
    choices = chosen(data)
    assert choices["MODEL.KNET.TEST.NUM_KERNELS"] == choices["TEST.DETECTIONS_PER_IMAGE"] == 260
    # a crop of 256 of 512 pixels: a quarter of 32, and two and a quarter times as many
    assert choices["MODEL.KNET.NUM_KERNELS"] == 20
    jitter = CUSTOM.clone()
    jitter.INPUT.SCALE_JITTER = (0.1, 2.0)  # shows whole pictures: 2.25 times 32
    assert chosen(data, base=jitter)["MODEL.KNET.NUM_KERNELS"] == 80
    few = chosen(make_data(objects=[3] * 100))
    assert few["MODEL.KNET.TEST.NUM_KERNELS"] == 30 and few["TEST.DETECTIONS_PER_IMAGE"] == 100
    many = chosen(make_data(objects=[900] * 100))
    assert many["MODEL.KNET.TEST.NUM_KERNELS"] == 300


def test_much_data_get_the_published_kernels():
    data = Data("instance", [(256, 256)] * 20_000, [20] * 20_000, [0.1], 0.9, 20)
    choices = chosen(data)
    assert not choices["MODEL.KNET.KERNEL_PEAKS"] and not choices["MODEL.KNET.RESIDUAL_MASKS"]
    assert (choices["MODEL.KNET.NUM_KERNELS"], choices["MODEL.KNET.TEST.NUM_KERNELS"]) == (100, 0)
    assert chosen(make_data())["MODEL.KNET.KERNEL_PEAKS"]


def test_a_whole_model_keeps_its_kind_of_kernels():
    choices = chosen(make_data(), base=PUBLISHED)
    assert "MODEL.KNET.KERNEL_PEAKS" not in choices and choices["MODEL.KNET.NUM_KERNELS"] == 100
    assert chosen(make_data(objects=[180] * 100), base=PUBLISHED)["MODEL.KNET.NUM_KERNELS"] == 180
    saved = chosen(make_data(objects=[3] * 9), base=CUSTOM, whole=True)
    assert saved["MODEL.KNET.TEST.NUM_KERNELS"] == 300 and "MODEL.KNET.NUM_KERNELS" not in saved


def test_the_rate_follows_the_batch_and_has_a_limit():
    one, recipe = chosen(make_data(), batch=1), chosen(make_data())
    assert recipe["SOLVER.BASE_LR"] == 0.001 and recipe["SOLVER.IMS_PER_BATCH"] == 4
    assert one["SOLVER.BASE_LR"] == 0.0005
    for machine, batch in ((GPU, 10), (Machine("cuda", processes=8), 32)):
        choices = chosen(make_data(), machine)
        assert (choices["SOLVER.IMS_PER_BATCH"], choices["SOLVER.BASE_LR"]) == (batch, 0.001)
    published = chosen(make_data(), base=PUBLISHED)
    assert published["SOLVER.BASE_LR"] == 0.00005  # of 0.0001 for 16 pictures
    with pytest.raises(UserError, match=r"--batch 1 .*semantic"):
        chosen(make_data("semantic"), batch=1)


@pytest.mark.parametrize("task", ["instance", "panoptic", "semantic"])
def test_the_task_decides_what_is_found(task):
    choices = chosen(make_data(task))
    on = {kind: choices[f"MODEL.KNET.TEST.{kind.upper()}_ON"]
          for kind in ("instance", "panoptic", "semantic")}  # fmt: skip
    assert on[task] and sum(on.values()) == (3 if task == "panoptic" else 1)
    assert ("TEST.DETECTIONS_PER_IMAGE" in choices) == (task != "semantic")


def test_dim_pictures_are_stretched(tmp_path):
    rng = np.random.default_rng(0)
    for name, high in (("dim", 80), ("bright", 256)):
        paths = []
        for k in range(3):
            paths.append(str(tmp_path / f"{name}{k}.png"))
            Image.fromarray(rng.integers(0, high, (64, 64, 3), np.uint8)).save(paths[-1])
        used = used_brightness(paths)
        data = make_data(brightness=used)
        assert data.dim == (name == "dim") == ("INPUT.CONTRAST_CUTOFF" in chosen(data))


def steps(data=None, machine=CPU, **arguments):
    data = data or make_data()
    return {c.key: c.value for c in choose_steps(data, machine, batch=4, **arguments)}


def test_steps_by_epochs_time_and_rule():
    assert steps(epochs=6)["SOLVER.MAX_ITER"] == 150
    cost = Cost(step=1.0, picture=0.5)
    # 10 minutes less 6 %, what has gone by, 10 s of start, and four evaluations of 20 pictures
    timed = steps(minutes=10, cost=cost, elapsed=14.0)
    assert timed["SOLVER.MAX_ITER"] == 564 - 24 - 40 and timed["TEST.EVAL_PERIOD"] == 125
    assert steps(cost=cost)["SOLVER.MAX_ITER"] == 1128 - 10 - 40  # 20 minutes on a CPU
    assert steps(machine=GPU)["SOLVER.MAX_ITER"] == 12_000  # 48,000 pictures
    assert steps(steps=7)["SOLVER.MAX_ITER"] == 7 == steps(steps=7)["TEST.EVAL_PERIOD"]
    with pytest.raises(ValueError, match="measured cost"):
        steps(minutes=3)


def test_evaluations_take_a_small_part_of_the_time():
    slow = steps(make_data(test_pictures=200), minutes=5, cost=Cost(step=0.1, picture=0.5))
    assert slow["TEST.EVAL_PERIOD"] == slow["SOLVER.MAX_ITER"]  # one, at the end
    with pytest.raises(ValueError, match=r"1 minutes are too short: .* 0\.5 s, .* 100 s"):
        steps(make_data(test_pictures=200), minutes=1, cost=Cost(step=0.5, picture=0.5))


def test_lines_have_key_value_and_reason():
    text = format_choices([Choice("MODEL.KNET.A", 1, "one"), Choice("B", 20, "two"),
                           Choice("C", 3, "")])  # fmt: skip
    assert text == "  A  1   one\n  B  20  two"
