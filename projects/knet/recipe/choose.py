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

from knet.data.check.report import DatasetReport
from knet.data.images import open_image

__all__ = ["Choice", "Data", "Machine", "choose", "format_choices"]

MASK_STRIDE = 4  # of configs/lite
_DIVISOR = 32  # sizes of pictures are multiples
# the shorter side at most, and for small objects; sides of crops; pictures of a step
_SIDES = {"cpu": (384, 512), "cuda": (640, 800)}
_CROPS = {"cpu": 256, "cuda": 512}
_BATCHES = {"cpu": 4, "cuda": 16}
_SCALES = (0.875, 1.125)
_SMALL_CELLS = 4.25  # sides of small objects in cells of the masks: fewer, and their shape is lost
_LARGE_SHARE = 0.9  # of a crop's side: objects that are larger are seldom seen whole
_CROWDED = 1.5  # objects of a crowded crop, relative to the mean of the picture
_MAX_KERNELS = 300
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
    def name(self) -> str:
        """In words."""
        return "GPU" if self.device == "cuda" else "CPU"


def choose(
    data: Data, machine: Machine, *, whole: bool, batch: int | None = None
) -> Iterator[Choice]:
    """All settings that depend on the data but for the number of steps.

    Args:
        data: of the training.
        machine: that trains.
        whole: whether it starts from a whole model, whose own settings then stay; else from the
            recipe's config, whose masks have the stride MASK_STRIDE.
        batch: pictures of a step; None: the recipe's.
    """
    yield from _results(data)
    side, reason = _side(data, machine)
    yield Choice("INPUT.MIN_SIZE_TEST", side, reason)
    longest = _round(side * min(data.ratio, 2.0))
    yield Choice("INPUT.MAX_SIZE_TEST", longest, f"9 in 10 pictures are {data.ratio:.2g}:1 or less")
    smallest, largest = _round(side * _SCALES[0]), _round(side * _SCALES[1])
    text = "of the size in tests: objects are seen at several sizes"
    yield Choice(
        "INPUT.MIN_SIZE_TRAIN", (smallest, largest), f"{_SCALES[0]} to {_SCALES[1]} {text}"
    )
    yield Choice("INPUT.MIN_SIZE_TRAIN_SAMPLING", "range", "")
    longest = _round(largest * min(data.ratio, 2.0))
    yield Choice("INPUT.MAX_SIZE_TRAIN", longest, "")
    crop, reason = _crop(data, machine, side)
    yield Choice("INPUT.CROP.ENABLED", True, "")
    yield Choice("INPUT.CROP.TYPE", "absolute", "")
    yield Choice("INPUT.CROP.SIZE", (crop, crop), reason)
    if data.task != "semantic":
        yield from _kernels(data, whole, crop / side)
    if data.dim:
        yield Choice(
            "INPUT.CONTRAST_CUTOFF",
            0.5,
            f"half of the pictures use {100 * data.brightness:.0f} % of the range of brightness",
        )
    yield from _solver(data, machine, whole, batch)


def _results(data: Data) -> Iterator[Choice]:
    on = {"instance": ("INSTANCE",), "semantic": ("SEMANTIC",)}
    for kind in ("INSTANCE", "PANOPTIC", "SEMANTIC"):
        wanted = kind in on.get(data.task, (kind,))
        yield Choice(f"MODEL.KNET.TEST.{kind}_ON", wanted, "")
    targets = {"instance": ["instances"], "semantic": ["sem_seg"]}
    yield Choice("INPUT.KNET_TARGETS", targets.get(data.task, ["instances", "sem_seg"]), "")


def _side(data: Data, machine: Machine) -> tuple[int, str]:
    """The shorter side of pictures in tests, and why."""
    own = float(np.median([min(size) for size in data.sizes]))
    limit, small_limit = _SIDES[machine.device]
    side, reason = min(own, limit), f"half of the pictures have a shorter side of {own:.0f} or less"
    if own > limit:
        reason += f"; {limit} is what a {machine.name} gets through in the time"
    if data.sides:
        small = float(np.percentile(data.sides, 25))
        needed = _SMALL_CELLS * MASK_STRIDE / small
        if needed > side:
            side = min(needed, small_limit, 2 * own)
            cells = side * small / MASK_STRIDE
            reason = (
                f"a quarter of the objects is below {100 * small:.1f} % of the shorter side, "
                f"which is {cells:.1f} cells of the masks then"
            )
    return _round(side), reason


def _crop(data: Data, machine: Machine, side: int) -> tuple[int, str]:
    crop = _CROPS[machine.device]
    reason = f"what a {machine.name} gets through in the time"
    if data.sides:
        large = side * float(np.percentile(data.sides, 90))
        if large > _LARGE_SHARE * crop:
            crop = min(_round(large / _LARGE_SHARE), 2 * crop)
            reason = f"a tenth of the objects is larger than {large:.0f} pixels"
    return crop, reason


def _kernels(data: Data, whole: bool, share: float) -> Iterator[Choice]:
    """Numbers of kernels, for a crop that is `share` of the picture's shorter side."""
    most, usual = max(data.objects, default=0), float(np.percentile(data.objects or [0], 99))
    kernels = min(max(10 * math.ceil(most / 10), 30), _MAX_KERNELS)
    reason = f"a picture has up to {most} objects, 99 in 100 have at most {usual:.0f}"
    if whole:
        if kernels > 100:
            yield Choice("MODEL.KNET.NUM_KERNELS", kernels, reason)
    else:
        cropped = min(1.0, share) * min(1.0, share / data.ratio)
        in_crop = 10 * math.ceil(_CROWDED * cropped * usual / 10)
        yield Choice(
            "MODEL.KNET.NUM_KERNELS",
            min(max(in_crop, 20), kernels),
            f"a crop shows {100 * cropped:.0f} % of a picture, where objects crowd more",
        )
        yield Choice("MODEL.KNET.TEST.NUM_KERNELS", kernels, reason)
    yield Choice("TEST.DETECTIONS_PER_IMAGE", max(kernels, 100), "as many, and no less than COCO's")


def _solver(data: Data, machine: Machine, whole: bool, batch: int | None) -> Iterator[Choice]:
    own = 16 if whole else 4
    chosen = batch or _BATCHES[machine.device] * machine.processes
    reason = "as asked for" if batch else f"for a {machine.name}"
    yield Choice("SOLVER.IMS_PER_BATCH", chosen, reason)
    yield Choice(
        "SOLVER.REFERENCE_BATCH", own, "which the learning rate of the config is meant for"
    )
    if whole:
        yield Choice("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "needs no steps to be set")
    workers = min(4, (machine.cores or 1) // machine.processes - 1) if machine.cores > 2 else 0
    yield Choice("DATALOADER.NUM_WORKERS", workers, f"{machine.cores} cores")


def _round(side: float) -> int:
    return max(_DIVISOR, _DIVISOR * round(side / _DIVISOR))
