"""Every config builds its model, which trains and infers one step at reduced size."""

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances

from knet.config import get_cfg_from_file

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).parents[1] / "configs"
# variants for one GPU differ in the schedule only, see test_config.py; those of configs/plus for
# COCO are made small in test_plus.py
FILES = sorted(
    str(f.relative_to(CONFIGS))
    for f in CONFIGS.rglob("*.yaml")
    if f.parent != CONFIGS and not f.stem.endswith("_1gpu") and not f.match("plus/coco_*")
)

# data sets that are drawn or registered on demand: their numbers of things and stuff classes
ON_DEMAND = {"shapes": (4, 4), "photos": (80, 53), "custom": (80, 53),
             "plus/shapes": (4, 4), "plus/nuclei": (1, 0)}  # fmt: skip


def load(name):
    cfg = get_cfg_from_file(
        str(CONFIGS / name), ["MODEL.DEVICE", "cpu", "MODEL.KNET.MIN_TRAIN_SIZE", "(0, 0)"]
    )
    kind = name.split("_")[0] if name.startswith("plus") else name.split("/")[0]
    things, stuff = ON_DEMAND.get(kind, (-1, -1))
    if things >= 0:
        if cfg.MODEL.KNET.KERNEL_HEAD != "learned":
            things, stuff = 0, things + stuff
        elif cfg.DATASETS.TRAIN[0].endswith("_instance"):
            stuff = 0
        cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()
        cfg.MODEL.KNET.NUM_THING_CLASSES, cfg.MODEL.KNET.NUM_STUFF_CLASSES = things, stuff
    return cfg


def example(size=(64, 96)):
    instances = Instances(size)
    masks = torch.zeros(1, *size, dtype=torch.bool)
    masks[0, 8:40, 8:40] = True
    instances.gt_masks = BitMasks(masks)
    instances.gt_classes = torch.tensor([0])
    sem_seg = torch.full(size, 1)
    sem_seg[:, :10] = 255
    return {"image": torch.randint(0, 256, (3, *size)), "height": 50, "width": 70,
            "instances": instances, "sem_seg": sem_seg}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_config_trains_and_infers(name):
    cfg = load(name)
    model = build_model(cfg).train()
    x = example()
    if "cityscapes" in name:
        x["instances"].gt_classes[:] = 11  # its things come after its stuff
    losses = model([x, x])
    sum(losses.values()).backward()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), key
    (out,) = model.eval()([x])
    test = cfg.MODEL.KNET.TEST
    wanted = {"instances": test.INSTANCE_ON, "panoptic_seg": test.PANOPTIC_ON,
              "sem_seg": test.SEMANTIC_ON}  # fmt: skip
    assert set(out) == {key for key, on in wanted.items() if on}
    if test.SEMANTIC_ON:
        assert out["sem_seg"].shape[-2:] == (50, 70)


def test_model_zoo_lists_every_config():
    text = (CONFIGS.parent / "docs" / "MODEL_ZOO.md").read_text()
    listed = [n for n in FILES if n.split("/")[0] in ("coco", "ade20k", "cityscapes")]
    listed += [f"plus/{f.name}" for f in (CONFIGS / "plus").iterdir()]
    assert not [name for name in listed if f"(../configs/{name})" not in text]
