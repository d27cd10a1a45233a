"""One mapper for all tasks: from a data set record to the input of a model."""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Instances

from knet.data.annotations.coco_file import missing_keys
from knet.data.annotations.image_files import MAX_PIXELS
from knet.data.annotations.panoptic_png import ids_to_rows, read_panoptic_png, segment_key_defects
from knet.data.annotations.pictures import read_picture
from knet.data.augmentation import build_knet_augmentation
from knet.data.defects import describe, raise_first
from knet.data.labels import (
    IGNORE_LABEL,
    annotation_name,
    annotation_source,
    check_classes,
    check_label_size,
    class_defects,
    encode_annotations,
    read_label_png,
    transform_labels,
    transform_masks,
)
from knet.data.registration.catalog import common_ignore_label

__all__ = ["KNetDatasetMapper"]

logger = logging.getLogger(__name__)

_TARGETS = ("instances", "sem_seg")
_SUSPICIOUS_MAPS = 8


class KNetDatasetMapper:
    """Reads, augments and packs one record of a Detectron2 data set.

    Which targets it gives follows from the record:

    - ``pan_seg_file_name`` with ``segments_info``: things (``isthing`` of the segment, else the
      data set's thing classes) become instances; things *and* stuff
      are painted into ``sem_seg`` with their contiguous ids. Crowds of things are painted, but
      are no instances. Void becomes 255.
    - ``annotations`` (polygons or RLE): instances without crowds.
    - ``sem_seg_file_name`` without panoptic labels: ``sem_seg`` as it is.

    Label maps are resized by nearest neighbour. Polygons are rasterised before augmentation, as
    in the published training: polygon, RLE and panoptic masks then all go the same way, and
    crops need no polygon clipping.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str,
        max_pixels: int = MAX_PIXELS,
        targets: Sequence[str] = (),
        thing_ids: Collection[int] | None = None,
        num_classes: int | None = None,
        ignore_label: int = IGNORE_LABEL,
    ) -> None:
        """
        Args:
            is_train: without it no annotation is read.
            augmentations: applied in this order.
            image_format: of the picture given to the model, e.g. "RGB".
            max_pixels: a larger picture is refused before it is decoded.
            targets: which of "instances" and "sem_seg" each record must give; empty for
                whatever it offers.
            thing_ids: the classes that instances may have; None leaves them unchecked.
            num_classes: semantic labels must be below; None leaves them unchecked.
            ignore_label: of label PNGs; becomes 255.

        Raises:
            ValueError: for an unknown target, or more classes than fit below 255.
        """
        unknown = set(targets) - set(_TARGETS)
        if unknown:
            raise ValueError(f"INPUT.KNET_TARGETS holds {sorted(unknown)}; known are {_TARGETS}")
        if num_classes is not None and num_classes > IGNORE_LABEL:
            raise ValueError(f"{num_classes} classes: label {IGNORE_LABEL} means `ignore`")
        self.is_train = is_train
        self.augmentations = T.AugmentationList(list(augmentations))
        self.image_format = image_format
        self.max_pixels = max_pixels
        self.targets = tuple(targets)
        self.thing_ids = None if thing_ids is None else sorted(set(thing_ids))
        self.num_classes = num_classes
        self._class_ids = None if num_classes is None else range(num_classes)
        self.ignore_label = ignore_label
        self._maps_of_masks = 0
        mode = "training" if is_train else "inference"
        logger.debug("K-Net mapper for %s with %s", mode, self.augmentations)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Reads ``INPUT`` and the data sets' metadata: classes of the first, labels to ignore."""
        arguments = {
            "is_train": is_train,
            "augmentations": build_knet_augmentation(cfg, is_train),
            "image_format": cfg.INPUT.FORMAT,
            "max_pixels": cfg.INPUT.MAX_PIXELS,
            "targets": cfg.INPUT.KNET_TARGETS,
        }
        names = cfg.DATASETS.TRAIN if is_train else cfg.DATASETS.TEST
        if not names:
            return arguments
        meta = MetadataCatalog.get(names[0])
        stuff = meta.get("stuff_classes")
        if stuff and stuff[0] == "things":
            raise ValueError(
                f"data set {names[0]!r} has all things under one semantic label, so stuff and "
                f"thing labels collide; use its form without `_separated`, or "
                f"knet.data.register_coco_panoptic"
            )
        # Cityscapes numbers its things 11 to 18, after the stuff, so their count is no bound.
        things = meta.get("thing_dataset_id_to_contiguous_id")
        names_of_things = meta.get("thing_classes")
        if things:
            arguments["thing_ids"] = list(things.values())
        elif names_of_things:
            arguments["thing_ids"] = range(len(names_of_things))
        arguments["num_classes"] = len(stuff) if stuff else None
        # at inference no labels are read
        arguments["ignore_label"] = common_ignore_label(names if is_train else (), IGNORE_LABEL)
        return arguments

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """
        Args:
            dataset_dict: a record in Detectron2's format; left unchanged.

        Returns:
            dict with ``image`` ((C, H, W) uint8), ``height`` and ``width`` (of the file, in
            pixels), ``file_name``, ``image_id`` (if the record has it), and in training

            - ``instances``: N things with ``gt_classes`` ((N,) int64) and ``gt_masks``
              (BitMasks, (N, H, W) bool); those without a pixel left are dropped, N may be 0;
            - ``sem_seg``: (H, W) int64, 255 where there is no label.

        Raises:
            DataError: naming file, record and mend, for every error that
                ``tools/check_dataset.py`` finds in what is read here; a missing file is a
                FileNotFoundError too, a picture of another size than its record's a
                SizeMismatchError.
            ValueError: if a needed target is not there.
        """
        record = copy.copy(dataset_dict)
        image = read_picture(record, image_format=self.image_format, max_pixels=self.max_pixels)
        result: dict[str, Any] = {"height": image.shape[0], "width": image.shape[1]}
        result.update({key: record[key] for key in ("file_name", "image_id") if key in record})

        if not self.is_train:
            aug_input = T.AugInput(image)
            self.augmentations(aug_input)
            result["image"] = _to_tensor(aug_input.image)
            return result

        rows, masks, classes, sem_seg = self._read_targets(record, image.shape[:2])
        # Some crops look at the labels of what they keep.
        aug_input = T.AugInput(image, sem_seg=sem_seg)
        transforms = self.augmentations(aug_input)
        result["image"] = _to_tensor(aug_input.image)
        size = aug_input.image.shape[:2]
        if aug_input.sem_seg is not None:
            result["sem_seg"] = torch.from_numpy(aug_input.sem_seg.astype(np.int64))
        if classes is not None:
            if rows is not None:
                instances = _rows_to_instances(transform_labels(transforms, rows), classes)
            else:
                assert masks is not None
                instances = _pack(transform_masks(transforms, masks, size), classes)
            result["instances"] = instances
        return result

    def _read_targets(
        self, record: dict[str, Any], size: tuple[int, int]
    ) -> tuple[
        np.ndarray | None, list[dict[str, Any]] | None, np.ndarray | None, np.ndarray | None
    ]:
        """Labels before augmentation: rows or RLEs, classes of the instances, semantic map."""
        wants_instances = not self.targets or "instances" in self.targets
        wants_semantic = not self.targets or "sem_seg" in self.targets
        rows = masks = classes = sem_seg = None
        if "pan_seg_file_name" in record:
            rows, classes, sem_seg = self._read_panoptic(record, size)
        else:
            if wants_instances and "annotations" in record:
                masks, classes = encode_annotations(record["annotations"], size, record)
                self._check_instance_classes(classes, record)
            if wants_semantic and "sem_seg_file_name" in record:
                sem_seg = read_label_png(
                    record["sem_seg_file_name"],
                    size,
                    self.num_classes,
                    self.ignore_label,
                    describe(record),
                )
                self._warn_of_masks(sem_seg)
        for target, value in (("instances", classes), ("sem_seg", sem_seg)):
            if target in self.targets and value is None:
                raise ValueError(
                    f"{record['file_name']}: the record has no labels for {target!r}, which "
                    f"INPUT.KNET_TARGETS asks for; its keys are {sorted(record)}"
                )
        return (
            rows,
            masks,
            classes if wants_instances else None,
            sem_seg if wants_semantic else None,
        )

    def _check_instance_classes(self, classes: np.ndarray, record: dict[str, Any]) -> None:
        file, owner = annotation_source(record)
        if not class_defects(classes, self.thing_ids, file, "instance class", ""):
            return
        for position, annotation in enumerate(record["annotations"]):
            if not annotation.get("iscrowd", 0):
                label = np.array([annotation["category_id"]])
                name = annotation_name(record, position) + owner
                check_classes(label, self.thing_ids, file, "instance class", name)

    def _warn_of_masks(self, sem_seg: np.ndarray) -> None:
        """Masks of 0 and 255 pass for two-class labels without any foreground: say so once."""
        if self.num_classes != 2 or self._maps_of_masks >= _SUSPICIOUS_MAPS:
            return
        if (sem_seg == 1).any():
            self._maps_of_masks = _SUSPICIOUS_MAPS  # these are labels
        elif (sem_seg == IGNORE_LABEL).any():
            self._maps_of_masks += 1
            if self._maps_of_masks == _SUSPICIOUS_MAPS:
                logger.warning(
                    "the first %d label PNGs with unlabelled pixels hold only 0 and 255, which "
                    "means `no label`: if 255 is the foreground, convert them with "
                    "`python datasets/prepare_label_pngs.py IN OUT --map 255=1`",
                    _SUSPICIOUS_MAPS,
                )

    def _read_panoptic(
        self, record: dict[str, Any], size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Map of segment rows, class of each row (-1 where it is no instance), semantic map."""
        path = record["pan_seg_file_name"]
        name = describe(record)
        raise_first(missing_keys(record, ("segments_info",), path, name))
        segments = record["segments_info"]
        raise_first(segment_key_defects(segments, path, name))
        ids = read_panoptic_png(path, name, size, record["file_name"])
        check_label_size(ids, size, path, name, record["file_name"])
        rows = ids_to_rows(ids, segments, path, name)
        labels = np.array([segment["category_id"] for segment in segments], np.int64)
        check_classes(labels, self._class_ids, path, "class", name)
        is_instance = np.array(
            [self._is_thing(s, path) and not s.get("iscrowd", 0) for s in segments], bool
        )
        check_classes(labels[is_instance], self.thing_ids, path, "instance class", name)
        dtype = np.uint8 if labels.max(initial=0) < IGNORE_LABEL else np.int32
        sem_seg = np.concatenate([[IGNORE_LABEL], labels]).astype(dtype)[rows]
        classes = np.concatenate([[-1], np.where(is_instance, labels, -1)])
        return rows, classes, sem_seg

    def _is_thing(self, segment: dict[str, Any], path: str) -> bool:
        # Records of Detectron2's Cityscapes do not say it.
        if "isthing" in segment:
            return bool(segment["isthing"])
        if self.thing_ids is None:
            raise ValueError(
                f"{path}: segment {segment['id']} has no `isthing`, and the metadata name no things"
            )
        return segment["category_id"] in self.thing_ids


def _rows_to_instances(rows: np.ndarray, classes: np.ndarray) -> Instances:
    """Instances of the rows with a class that still own a pixel; ``classes`` has one a row."""
    candidates = np.flatnonzero(classes >= 0)
    masks = np.empty((len(candidates), *rows.shape), bool)
    for mask, row in zip(masks, candidates):
        # One vectorised pass that writes the result; counting all rows first costs more.
        np.equal(rows, row.astype(rows.dtype), out=mask)
    return _pack(masks, classes[candidates])


def _pack(masks: np.ndarray, classes: np.ndarray) -> Instances:
    kept = np.array([mask.any() for mask in masks], bool)
    if not kept.all():
        masks, classes = masks[kept], classes[kept]
    return _as_instances(torch.from_numpy(masks), classes)


def _as_instances(masks: torch.Tensor, classes: np.ndarray) -> Instances:
    instances = Instances((masks.shape[1], masks.shape[2]))
    instances.gt_classes = torch.from_numpy(classes.astype(np.int64))
    instances.gt_masks = BitMasks(masks)
    return instances


def _to_tensor(image: np.ndarray) -> torch.Tensor:
    # a copy: a picture that nothing changed is read-only
    return torch.from_numpy(image.transpose(2, 0, 1).copy())
