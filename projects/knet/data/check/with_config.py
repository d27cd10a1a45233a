"""What is wrong with checked data sets for the config that trains and scores on them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import build_backbone
from detectron2.utils.file_io import PathManager

from knet.data.check.report import DatasetReport
from knet.data.defects import Defect, Defects, make_defect

__all__ = ["add_config_defects"]

_CELLS = 2  # of the mask grid, below whose square an object is small
_SMALL_SHARE = 0.01  # of the objects: fewer small ones are in every large data set
_BLOCK_BYTES = 1 << 20


def add_config_defects(reports: Sequence[DatasetReport], cfg: CfgNode) -> None:
    """Adds to each report what the config makes of its data set.

    More objects an image than the model has kernels or gives results, objects that its mask grid
    cannot show, and pictures of DATASETS.TEST that are in DATASETS.TRAIN too.

    Args:
        reports: of data sets of the config, not necessarily all.
        cfg: the config.

    Raises:
        KeyError: the config's backbone does not exist.
    """
    if cfg.MODEL.KNET.KERNEL_HEAD == "learned":
        for report in reports:
            report.defects += _count_defects(report, cfg)
        cell = _cell(cfg) if any(report.image_areas for report in reports) else 0.0
        for report in reports:
            report.defects += _size_defects(report, cfg, cell)
    train = [report for report in reports if report.name in cfg.DATASETS.TRAIN]
    for report in reports:
        if report.name in cfg.DATASETS.TEST:
            report.defects += _shared_pictures(report, train)


def _count_defects(report: DatasetReport, cfg: CfgNode) -> list[Defect]:
    limits = {"MODEL.KNET.NUM_KERNELS": cfg.MODEL.KNET.NUM_KERNELS}
    if cfg.MODEL.KNET.TEST.INSTANCE_ON:
        limits["TEST.DETECTIONS_PER_IMAGE"] = cfg.TEST.DETECTIONS_PER_IMAGE
    counts = np.array(report.objects, np.int64)
    found = Defects("", f"data set {report.name!r}")
    for key, limit in limits.items():
        surplus = (counts - limit).clip(0)
        if surplus.any():
            problem = (
                f"{int((surplus > 0).sum())} of {len(counts)} images have more objects than {key} "
                f"({limit}): {int(surplus.sum())} of {int(counts.sum())} objects cannot be found"
            )
            mend = f"raise {key} to {int(counts.max())}, the most that an image has"
            found.add("too-many-objects", problem, mend=mend)
    return found


def _cell(cfg: CfgNode) -> float:
    """The side of a cell of the masks, in pixels of the resized picture."""
    plain = cfg.clone()
    plain.defrost()
    plain.MODEL.TIMM.PRETRAINED = False  # only the shapes are asked for
    with torch.device("meta"):  # weights without values: no time to draw them
        strides = {k: shape.stride for k, shape in build_backbone(plain).output_shape().items()}
    return strides[cfg.MODEL.KNET.IN_FEATURES[1]] / cfg.MODEL.KNET.MASK_UPSAMPLE


def _size_defects(report: DatasetReport, cfg: CfgNode, cell: float) -> list[Defect]:
    trained = report.name in cfg.DATASETS.TRAIN
    key = "INPUT.MIN_SIZE_TRAIN" if trained else "INPUT.MIN_SIZE_TEST"
    # where training draws among sizes, the largest is the most that it shows of an object
    shortest = max(cfg.INPUT.MIN_SIZE_TRAIN) if trained else cfg.INPUT.MIN_SIZE_TEST
    longest = cfg.INPUT.MAX_SIZE_TRAIN if trained else cfg.INPUT.MAX_SIZE_TEST
    small = total = 0
    for (height, width), areas in report.image_areas:
        new = (height, width)
        if shortest:
            new = ResizeShortestEdge.get_output_shape(height, width, shortest, longest)
        scale = new[0] * new[1] / (height * width)
        small += int((np.array(areas) * scale < (_CELLS * cell) ** 2).sum())
        total += len(areas)
    if small <= _SMALL_SHARE * total:
        return []
    problem = (
        f"{small} of {total} objects ({100 * small / total:.0f} %) are smaller than "
        f"{_CELLS}x{_CELLS} cells of the mask grid, {cell:g} pixels each at {key} {shortest}"
    )
    mend = (
        f"raise {key}, or take finer masks: a finer second level of MODEL.KNET.IN_FEATURES, or a "
        "larger MODEL.KNET.MASK_UPSAMPLE"
    )
    where = f"data set {report.name!r}"
    return [make_defect("small-objects", "", where, problem, mend=mend)]


def _shared_pictures(report: DatasetReport, train: Sequence[DatasetReport]) -> list[Defect]:
    """A defect of each picture that a training set has too, as the same file or bytes."""
    if any(other is report for other in train):
        problem = "it is in DATASETS.TRAIN and in DATASETS.TEST"
        return [make_defect("picture-in-two-sets", "", f"data set {report.name!r}", problem)]
    ours, theirs = _paths([report]), _paths(train)
    # only pictures of one size in bytes can be equal: hardly any has to be read
    sizes = {size for size, _ in theirs.values()} & {size for size, _ in ours.values()}
    known: dict[str, str] = {}
    for path, (size, name) in theirs.items():
        if size in sizes:
            known.setdefault(_digest(path), f"{path} of {name!r}")
    found = []
    for path, (size, name) in ours.items():
        other = known.get(_digest(path)) if size in sizes else None
        if other is not None:
            problem = f"the picture is also in the training: {other}"
            found.append(make_defect("picture-in-two-sets", path, f"data set {name!r}", problem))
    return found


def _paths(reports: Iterable[DatasetReport]) -> dict[str, tuple[int, str]]:
    """Real paths of pictures, with their bytes and the data set's name."""
    found = {}
    for report in reports:
        for record in report.usable:
            path = os.path.realpath(PathManager.get_local_path(record["file_name"]))
            found[path] = (os.path.getsize(path), report.name)
    return found


def _digest(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
