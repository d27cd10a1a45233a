"""Small models of the three tasks, and pictures for them."""

from __future__ import annotations

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata
from detectron2.modeling import build_model

from knet.config import get_cfg_from_file
from knet.predictor import KNetPredictor

THINGS = ["disc", "square", "ring", "star"]
STUFF = ["sky", "grass", "sand"]

_SMALL = [
    "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "DATASETS.TRAIN", "()", "DATASETS.TEST", "()",
    "MODEL.SMALL_RESNET.CHANNELS", "[16, 24, 32, 48]", "MODEL.SMALL_RESNET.BLOCKS", "[1, 1, 1, 1]",
    "MODEL.KNET.HIDDEN_DIM", "16", "MODEL.KNET.FFN_DIM", "32", "MODEL.KNET.NORM_GROUPS", "4",
    "MODEL.KNET.NUM_HEADS", "4", "MODEL.KNET.LOSS.AUX_WEIGHT", "0.0",
]  # fmt: skip
TASKS = {
    # a thing id after a stuff id, as in Cityscapes: results hold ids, not rows
    "panoptic": ["MODEL.KNET.NUM_THING_CLASSES", "4", "MODEL.KNET.NUM_STUFF_CLASSES", "3",
                 "MODEL.KNET.THING_IDS", "[0, 1, 3, 5]", "MODEL.KNET.NUM_ROUNDS", "2",
                 "MODEL.KNET.NUM_KERNELS", "18", "MODEL.KNET.TEST.THING_THRESH", "0.2",
                 "MODEL.KNET.TEST.OVERLAP_THRESH", "0.3",
                 "MODEL.KNET.TEST.PANOPTIC_MASK_SCORES", "2.0"],
    "instance": ["MODEL.KNET.NUM_THING_CLASSES", "4", "MODEL.KNET.NUM_STUFF_CLASSES", "0",
                 "MODEL.KNET.NUM_ROUNDS", "1", "TEST.DETECTIONS_PER_IMAGE", "20",
                 "MODEL.KNET.TEST.MIN_AREA", "5", "INPUT.FORMAT", "BGR"],
    "mask scores": ["MODEL.KNET.NUM_THING_CLASSES", "4", "MODEL.KNET.NUM_STUFF_CLASSES", "0",
                    "MODEL.KNET.NUM_ROUNDS", "1", "TEST.DETECTIONS_PER_IMAGE", "20",
                    "MODEL.KNET.TEST.MASK_SCORES", "True", "MODEL.KNET.TEST.SCORE_THRESH", "0.5",
                    "MODEL.KNET.KERNEL_PEAKS", "True", "MODEL.KNET.NUM_KERNELS", "10",
                    "MODEL.KNET.TEST.NUM_KERNELS", "18", "MODEL.KNET.MASK_LEVEL", "0",
                    "MODEL.KNET.MASK_UPSAMPLE", "1", "INPUT.CONTRAST_CUTOFF", "1.0"],
    "semantic": ["MODEL.KNET.NUM_THING_CLASSES", "0", "MODEL.KNET.NUM_STUFF_CLASSES", "19",
                 "MODEL.KNET.NUM_ROUNDS", "1"],
}  # fmt: skip


def small_cfg(task: str, *opts: object) -> CfgNode:
    config = "instance" if task == "mask scores" else task
    return get_cfg_from_file(f"configs/shapes/{config}.yaml", [*_SMALL, *TASKS[task], *opts])


def spread_weights(model: torch.nn.Module, scale: float) -> None:
    """Scores and masks as unlike each other as those of a trained model; `scale` is the masks'."""
    generator = torch.Generator().manual_seed(5)
    for name, module in model.named_modules():
        if name.endswith("class_predictor"):
            module.weight.data.normal_(std=0.7, generator=generator)
            module.bias.data.normal_(std=0.5, generator=generator)
        if name.endswith("mask_predictor"):
            module.weight.data.mul_(scale)
            module.bias.data.zero_()
        if name.endswith(("localise.norm", "classify.norm")):
            module.bias.data.fill_(-0.6)  # few channels at a pixel: masks of parts of the image
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.2, generator=generator)
            module.running_var.uniform_(0.2, 0.8, generator=generator)


def small_predictor(cfg: CfgNode, task: str) -> KNetPredictor:
    torch.manual_seed(1)
    model = build_model(cfg).eval()
    # sums over soft groups are large, and their logits would leave no doubt anywhere
    spread_weights(model, 0.03 if task == "semantic" else 4.0)
    metadata = Metadata(name=f"small {task}")
    if task == "semantic":
        metadata.set(stuff_classes=[f"class {i}" for i in range(19)])
    elif task in ("instance", "mask scores"):
        metadata.set(thing_classes=THINGS)
    else:
        names = ["disc", "square", "sky", "ring", "grass", "star", "sand"]
        metadata.set(
            thing_classes=names,
            stuff_classes=names,
            thing_dataset_id_to_contiguous_id={11: 0, 12: 1, 14: 3, 16: 5},
            stuff_dataset_id_to_contiguous_id={13: 2, 15: 4, 17: 6},
        )
    return KNetPredictor(cfg, model, metadata)


def scene(height: int, width: int, seed: int) -> np.ndarray:
    """(H, W, 3) uint8: coloured rectangles on a slope, with noise."""
    rng = np.random.default_rng(seed)
    image = np.linspace(40, 200, width)[None, :, None] * np.ones((height, 1, 3))
    for _ in range(6):
        y, x = rng.integers(0, height * 3 // 4), rng.integers(0, width * 3 // 4)
        image[y : y + height // 3, x : x + width // 4] = rng.integers(0, 256, 3)
    return (image + rng.normal(0, 6, image.shape)).clip(0, 255).astype(np.uint8)
