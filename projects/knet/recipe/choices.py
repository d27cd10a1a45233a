"""Settings that follow from the data and the machine, each with its reason.

The rules are for data sets of one's own: some dozen to some ten thousand pictures. What they start
from is configs/custom, whose comments give the reasons of all that does not depend on the data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.config import CfgNode

from knet.config_file import inference_kernels
from knet.data.check.data_set import mask_cell
from knet.data.check.report import DatasetReport
from knet.data.images import open_image
from knet.errors import UserError
from knet.training.optimizer import scaled_rate

__all__ = ["Choice", "Data", "Machine", "choose", "format_choices"]

# pictures, from which on the published settings learn, too
FEW_PICTURES = 20_000
_DIVISOR = 32  # sizes of pictures are multiples
# of a CPU and of a GPU: the shorter side at most, and for small objects; sides of crops; pictures
# of a step
_SIDES = ((384, 512), (640, 800))
_CROPS = (256, 512)
_BATCHES = (4, 16)
_SCALES = (0.875, 1.125)
_SMALL_CELLS = 4.25  # sides of small objects in cells of the masks: fewer, and their shape is lost
_LARGE_SHARE = 0.9  # of a crop's side: objects that are larger are seldom seen whole
_CROWDED = 2.25  # objects of a crowded crop, relative to the mean of the picture
_MAX_KERNELS = 300
_MAX_RATE = 1e-3  # AdamW diverges above
_LOOKED_AT = 50  # pictures
_DIM = 0.5  # of the range of brightness, below which pictures are stretched


@dataclass(frozen=True)
class Choice:
    """A setting: the config key, its value, and why."""

    key: str
    value: Any
    reason: str


def format_choices(choices: Sequence[Choice]) -> str:
    """Lines of key, value and reason; what only follows from others has none, and no line."""
    rows = [
        (c.key.removeprefix("MODEL.KNET."), f"{c.value}", c.reason) for c in choices if c.reason
    ]
    widths = [max((len(row[k]) for row in rows), default=0) for k in (0, 1)]
    return "\n".join(f"  {k:{widths[0]}}  {v:{widths[1]}}  {why}" for k, v, why in rows)


@dataclass(frozen=True)
class Data:
    """What the rules look at.

    Attributes:
        task: "instance", "panoptic" or "semantic".
        sizes: (H, W) of the training pictures.
        objects: number of objects of each training picture; empty for semantic data.
        sides: square roots of the objects' areas, in parts of the shorter side of their picture.
        brightness: the share of its range that half of the pictures use, 0 to 1.
        test_pictures: number of pictures that are scored.
    """

    task: str
    sizes: Sequence[tuple[int, int]]
    objects: Sequence[int]
    sides: Sequence[float]
    brightness: float
    test_pictures: int

    @classmethod
    def from_reports(cls, task: str, train: DatasetReport, test: DatasetReport) -> Data:
        """What the checks of both parts have counted, and the brightness of some pictures."""
        sides = [math.sqrt(area) / min(size) for size, areas in train.image_areas for area in areas]
        brightness = used_brightness([record["file_name"] for record in train.usable])
        return cls(task, train.sizes, train.objects, sides, brightness, test.num_images)

    @property
    def ratio(self) -> float:
        """Longer by shorter side, which 9 in 10 pictures do not exceed."""
        return float(np.percentile([max(size) / min(size) for size in self.sizes], 90))

    @property
    def dim(self) -> bool:
        """Whether pictures use little of the range of brightness, as those of microscopes do."""
        return self.brightness < _DIM


def used_brightness(paths: Sequence[str]) -> float:
    """The share of the range of brightness, 0 to 1, that half of the pictures use.

    Looked at are some, evenly spread; a picture uses what lies between its darkest and its
    brightest half percent.
    """
    ranges = []
    for path in paths[:: max(1, len(paths) // _LOOKED_AT)]:
        with open_image(path) as image:
            image.draft("L", (256, 256))  # JPEG's own reduction
            low, high = np.percentile(np.asarray(image.convert("L")), (0.5, 99.5))
            ranges.append((high - low) / 255)
    return float(np.median(ranges))


@dataclass(frozen=True)
class Machine:
    """Where the training runs.

    Attributes:
        device: "cpu" or "cuda".
        processes: that train together.
        cores: of the machine.
    """

    device: str
    processes: int = 1
    cores: int = 1

    @property
    def on_gpu(self) -> bool:
        """Whether it has the sizes of a GPU; all other devices get those of a CPU."""
        return self.device == "cuda"

    @property
    def name(self) -> str:
        """In words."""
        return "GPU" if self.on_gpu else "CPU"


def choose(
    data: Data, machine: Machine, base: CfgNode, *, whole: bool, batch: int | None = None
) -> Iterator[Choice]:
    """All settings that depend on the data but for the number of steps.

    Args:
        data: of the training.
        machine: that trains.
        base: the config that it starts from.
        whole: whether its weights are those of a whole model, whose own settings then stay.
        batch: pictures of a step; None: the recipe's.

    Raises:
        UserError: the batch is too small for the model.
    """
    yield from _results(data)
    cell = mask_cell(base) if data.sides else 0.0
    side, reason = _side(data, machine, cell)
    yield Choice("INPUT.MIN_SIZE_TEST", side, reason)
    longest = _round(side * min(data.ratio, 2.0))
    yield Choice("INPUT.MAX_SIZE_TEST", longest, f"9 in 10 pictures are {data.ratio:.2g}:1 or less")
    smallest, largest = (round(side * scale) for scale in _SCALES)
    text = f"{_SCALES[0]} to {_SCALES[1]} times that of tests: objects come in several sizes"
    yield Choice("INPUT.MIN_SIZE_TRAIN", (smallest, largest), text)
    yield Choice("INPUT.MIN_SIZE_TRAIN_SAMPLING", "range", "")
    longest = _round(largest * min(data.ratio, 2.0))
    yield Choice("INPUT.MAX_SIZE_TRAIN", longest, "")
    crop, reason = _crop(data, machine, side)
    if crop >= longest:
        crop, reason = longest, "whole pictures"
    yield Choice("INPUT.CROP.ENABLED", True, "")
    yield Choice("INPUT.CROP.TYPE", "absolute", "")
    yield Choice("INPUT.CROP.SIZE", (crop, crop), reason)
    if data.task != "semantic":
        few = not whole and len(data.sizes) < FEW_PICTURES
        if not whole:
            yield from _little_data(data, few)
        own = base if whole and base.MODEL.KNET.KERNEL_PEAKS else None
        # jitter may show a picture whole
        share = data.ratio if base.INPUT.SCALE_JITTER else crop / side
        yield from _kernels(data, few, own, share)
    if data.dim:
        yield Choice(
            "INPUT.CONTRAST_CUTOFF",
            0.5,
            f"half of the pictures use {100 * data.brightness:.0f} % of the range of brightness",
        )
    yield from _solver(data, machine, base, batch)


def _little_data(data: Data, few: bool) -> Iterator[Choice]:
    """What configs/custom turns on, and large data do not need."""
    count = f"{len(data.sizes):,} pictures are {'few' if few else 'many'}"
    yield Choice(
        "MODEL.KNET.KERNEL_PEAKS",
        few,
        f"{count}: learned kernels take thousands of steps to share out a picture",
    )
    yield Choice("MODEL.KNET.RESIDUAL_MASKS", few, f"{count}: rounds start from what is there")
    yield Choice("MODEL.KNET.CLASS_PRIOR", 0.1 if few else 0.01, f"{count}; 0.01 is published")


def _results(data: Data) -> Iterator[Choice]:
    on = {"instance": ("INSTANCE",), "semantic": ("SEMANTIC",)}
    for kind in ("INSTANCE", "PANOPTIC", "SEMANTIC"):
        wanted = kind in on.get(data.task, (kind,))
        yield Choice(f"MODEL.KNET.TEST.{kind}_ON", wanted, "")
    targets = {"instance": ["instances"], "semantic": ["sem_seg"]}
    yield Choice("INPUT.KNET_TARGETS", targets.get(data.task, ["instances", "sem_seg"]), "")


def _side(data: Data, machine: Machine, cell: float) -> tuple[int, str]:
    """The shorter side of pictures in tests, and why; `cell` is the side of one of the masks."""
    own = float(np.median([min(size) for size in data.sizes]))
    limit, small_limit = _SIDES[machine.on_gpu]
    side, reason = min(own, limit), f"half of the pictures have a shorter side of {own:.0f} or less"
    if own > limit:
        reason += f"; {limit} is what a {machine.name} gets through in the time"
    if data.sides:
        small = float(np.percentile(data.sides, 25))
        needed = _SMALL_CELLS * cell / small
        if needed > side:
            side = min(needed, small_limit, 2 * own)
            reason = (
                f"a quarter of the objects is below {100 * small:.1f} % of the shorter side, "
                f"which is {side * small / cell:.1f} cells of the masks then, {cell:g} pixels each"
            )
    return _round(side), reason


def _crop(data: Data, machine: Machine, side: int) -> tuple[int, str]:
    crop = _CROPS[machine.on_gpu]
    reason = f"what a {machine.name} gets through in the time"
    if data.sides:
        large = side * float(np.percentile(data.sides, 90))
        if large > _LARGE_SHARE * crop:
            crop = min(_round(large / _LARGE_SHARE), 2 * crop)
            reason = f"a tenth of the objects is larger than {large:.0f} pixels"
    return crop, reason


def _kernels(data: Data, few: bool, peaks: CfgNode | None, share: float) -> Iterator[Choice]:
    """Numbers of kernels.

    Args:
        data: of the training.
        few: whether these are to start on peaks.
        peaks: the config of a whole model whose kernels do.
        share: the crop's side in parts of the picture's shorter one.
    """
    most, usual = max(data.objects, default=0), float(np.percentile(data.objects or [0], 99))
    kernels = min(max(10 * math.ceil(most / 10), 30), _MAX_KERNELS)
    reason = f"a picture has up to {most} objects, 99 in 100 have at most {usual:.0f}"
    if few:
        cropped = min(1.0, share) * min(1.0, share / data.ratio)
        in_crop = 10 * math.ceil(_CROWDED * cropped * usual / 10)
        yield Choice(
            "MODEL.KNET.NUM_KERNELS",
            min(max(in_crop, 20), kernels),
            f"a crop shows {100 * cropped:.0f} % of a picture, some have more of the objects",
        )
        yield Choice("MODEL.KNET.TEST.NUM_KERNELS", kernels, reason)
    elif peaks is not None:
        kernels = max(kernels, inference_kernels(peaks)[1])
        yield Choice("MODEL.KNET.TEST.NUM_KERNELS", kernels, reason)
    else:
        kernels = max(kernels, 100)
        yield Choice("MODEL.KNET.NUM_KERNELS", kernels, f"{reason}; 100 is published")
        yield Choice("MODEL.KNET.TEST.NUM_KERNELS", 0, "")
    yield Choice("TEST.DETECTIONS_PER_IMAGE", max(kernels, 100), "as many, and no less than COCO's")


def _solver(data: Data, machine: Machine, base: CfgNode, batch: int | None) -> Iterator[Choice]:
    if batch is not None:
        reason = "as asked for"
    else:
        # no more than a tenth of the pictures a step, but what every process needs
        batch = _BATCHES[machine.on_gpu] * machine.processes
        batch = max(min(batch, len(data.sizes) // 10), 4 * machine.processes)
        reason = f"for a {machine.name} and {len(data.sizes):,} pictures"
    if data.task == "semantic" and batch < 2 * machine.processes:
        raise UserError(
            f"--batch {batch} is too small for a semantic model, whose batch norms need two "
            "pictures in every process"
        )
    yield Choice("SOLVER.IMS_PER_BATCH", batch, reason)
    own = base.SOLVER.REFERENCE_BATCH or base.SOLVER.IMS_PER_BATCH
    rate = min(scaled_rate(base.SOLVER.BASE_LR, own, batch), _MAX_RATE)
    reason = f"{base.SOLVER.BASE_LR:g} is for {own} pictures a step"
    if batch != own:
        reason += f", by the square root; at most {_MAX_RATE:g}"
    yield Choice("SOLVER.BASE_LR", rate, reason)
    yield Choice("SOLVER.REFERENCE_BATCH", 0, "")
    yield Choice("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "falls from the start to zero")
    cores = machine.cores // machine.processes
    workers = min(4, cores - 1) if cores > 2 else 0
    yield Choice("DATALOADER.NUM_WORKERS", workers, f"{machine.cores} cores")


def _round(side: float) -> int:
    return max(_DIVISOR, _DIVISOR * round(side / _DIVISOR))
