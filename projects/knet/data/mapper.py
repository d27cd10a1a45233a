"""One mapper for all tasks: from a data set record to the input of a model."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Instances

from knet.data.augmentation import (
    Labels,
    build_knet_augmentation,
    transform_labels,
    transform_masks,
)
from knet.data.catalog import own_data_set
from knet.data.categories import thing_ids
from knet.data.coco_file import check_keys, check_numbers
from knet.data.defects import Defects, annotation_name, describe, raise_first
from knet.data.images import MAX_PIXELS, read_picture
from knet.data.jitter import Padding
from knet.data.label_png import check_label_size, class_defects, read_label_png
from knet.data.masks import encode_segmentation, segmentation_errors
from knet.data.panoptic_png import LARGEST_ID, ids_to_rows, read_panoptic_png
from knet.data.reduced import ReducedPictures
from knet.data.register import common_ignore_label
from knet.modeling.targets import IGNORE_LABEL

logger = logging.getLogger(__name__)

_TARGETS = ("instances", "sem_seg")
_SUSPICIOUS_MAPS = 8

Record = dict[str, Any]


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

    The readers of this package have found what is wrong with the annotations; here is found what
    only a picture or a label PNG tells.
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
        checked: bool = False,
        reduced: ReducedPictures | None = None,
        padding: Padding | None = None,
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
            checked: whether the annotations of all records were checked when they were read, as
                those of this package's data sets are; others are checked here.
            reduced: keeps large pictures at the size of the training.
            padding: of the augmented pictures and their labels.

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
        self.ignore_label = ignore_label
        self.checked = checked
        self.reduced = reduced
        self.padding = padding
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
            "padding": Padding.from_config(cfg) if is_train else None,
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
        arguments["thing_ids"] = thing_ids(meta)
        arguments["num_classes"] = len(stuff) if stuff else None
        # at inference no labels are read
        arguments["ignore_label"] = common_ignore_label(names if is_train else (), IGNORE_LABEL)
        if is_train:
            arguments["reduced"] = ReducedPictures.from_config(cfg)
        arguments["checked"] = all(own_data_set(name) is not None for name in names)
        return arguments

    def __call__(self, dataset_dict: Record) -> Record:
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
                ``knet check`` finds in what is read here; a missing file is a
                FileNotFoundError too, a picture of another size than its record's a
                SizeMismatchError.
            ValueError: if a needed target is not there.
        """
        record = dataset_dict
        image, labels, size = self._read(record)
        result: Record = {"height": size[0], "width": size[1]}
        result.update({key: record[key] for key in ("file_name", "image_id") if key in record})

        # Some crops look at the labels of what they keep.
        aug_input = T.AugInput(image, sem_seg=labels.sem_seg)
        transforms = self.augmentations(aug_input)
        # a copy: a picture that nothing changed is read-only
        result["image"] = torch.from_numpy(aug_input.image.transpose(2, 0, 1).copy())
        if aug_input.sem_seg is not None:
            result["sem_seg"] = torch.from_numpy(aug_input.sem_seg.astype(np.int64))
        if labels.classes is not None:
            if labels.rows is not None:
                masks, classes = _split(transform_labels(transforms, labels.rows), labels.classes)
            else:
                masks = transform_masks(transforms, labels.masks or [], aug_input.image.shape[:2])
                classes = labels.classes
            result["instances"] = to_instances(masks, classes)
        return result if self.padding is None else self.padding(result)

    def _read(self, record: Record) -> tuple[np.ndarray, Labels, tuple[int, int]]:
        """Picture, labels, and (H, W) of the file, which may be larger."""
        if self.is_train and self.reduced is not None:
            return self.reduced.read(record, self._read_files)
        return self._read_files(record)

    def _read_files(self, record: Record) -> tuple[np.ndarray, Labels, tuple[int, int]]:
        image = read_picture(record, image_format=self.image_format, max_pixels=self.max_pixels)
        size = image.shape[0], image.shape[1]
        return image, self._read_labels(record, size) if self.is_train else Labels(), size

    def _read_labels(self, record: Record, size: tuple[int, int]) -> Labels:
        """The wanted labels of a record whose picture is (H, W)."""
        wanted = self.targets or _TARGETS
        if "pan_seg_file_name" in record:
            labels = self._read_panoptic(record, size)
        else:
            labels = Labels()
            if "instances" in wanted and "annotations" in record:
                labels = self._read_annotations(record, size)
            if "sem_seg" in wanted and "sem_seg_file_name" in record:
                labels.sem_seg = self._read_semantic(record, size)
        for target, value in (("instances", labels.classes), ("sem_seg", labels.sem_seg)):
            if target in self.targets and value is None:
                raise ValueError(
                    f"{record['file_name']}: the record has no labels for {target!r}, which "
                    f"INPUT.KNET_TARGETS asks for; its keys are {sorted(record)}"
                )
        if "instances" not in wanted:
            labels.classes = None
        if "sem_seg" not in wanted:
            labels.sem_seg = None
        return labels

    def _read_panoptic(self, record: Record, size: tuple[int, int]) -> Labels:
        """Rows and semantic map of a panoptic PNG; row 0 is void."""
        if not self.checked:
            raise_first(segment_errors(record))
        path, name = record["pan_seg_file_name"], describe(record)
        segments = record["segments_info"]
        ids = read_panoptic_png(path, name, size, record["file_name"])
        check_label_size(ids, size, path, name, record["file_name"])
        rows = ids_to_rows(ids, segments, path, name)
        classes = np.array([segment["category_id"] for segment in segments], np.int64)
        known = None if self.num_classes is None else range(self.num_classes)
        raise_first(class_defects(classes, known, path, "class", name))
        is_instance = np.array(
            [self._is_thing(s, path) and not s.get("iscrowd", 0) for s in segments], bool
        )
        things = classes[is_instance]
        raise_first(class_defects(things, self.thing_ids, path, "instance class", name))
        dtype = np.uint8 if classes.max(initial=0) < IGNORE_LABEL else np.int32
        sem_seg = np.concatenate([[IGNORE_LABEL], classes]).astype(dtype)[rows]
        classes = np.concatenate([[-1], np.where(is_instance, classes, -1)])
        return Labels(classes, rows=rows, sem_seg=sem_seg)

    def _is_thing(self, segment: Record, path: str) -> bool:
        # Records of Detectron2's Cityscapes do not say it.
        if "isthing" in segment:
            return bool(segment["isthing"])
        if self.thing_ids is None:
            raise ValueError(
                f"{path}: segment {segment['id']} has no `isthing`, and the metadata name no things"
            )
        return segment["category_id"] in self.thing_ids

    def _read_annotations(self, record: Record, size: tuple[int, int]) -> Labels:
        """Masks as compressed RLE: hundreds in a few kilobytes."""
        if not self.checked:
            positions = range(len(record["annotations"]))
            raise_first([e for k in positions for e in annotation_errors(record, k, size)])
        file = record["annotation_file" if "annotation_file" in record else "file_name"]
        masks, classes = [], []
        for position, annotation in enumerate(record["annotations"]):
            if annotation.get("iscrowd", 0):
                continue
            label = annotation["category_id"]
            if label < 0 if self.thing_ids is None else label not in self.thing_ids:
                name, wrong = annotation_name(record, position), np.array([label])
                raise_first(class_defects(wrong, self.thing_ids, file, "instance class", name))
            masks.append(encode_segmentation(annotation["segmentation"], size))
            classes.append(label)
        return Labels(np.array(classes, np.int64), masks)

    def _read_semantic(self, record: Record, size: tuple[int, int]) -> np.ndarray:
        """(H, W) uint8 labels; says once if they look like masks of 0 and 255.

        These pass for two-class labels without any foreground.
        """
        path, name = record["sem_seg_file_name"], describe(record)
        labels = read_label_png(path, size, self.num_classes, self.ignore_label, name)
        if self.num_classes != 2 or self._maps_of_masks >= _SUSPICIOUS_MAPS:
            return labels
        if (labels == 1).any():
            self._maps_of_masks = _SUSPICIOUS_MAPS  # these are labels
        elif (labels == IGNORE_LABEL).any():
            self._maps_of_masks += 1
            if self._maps_of_masks == _SUSPICIOUS_MAPS:
                logger.warning(
                    "the first %d label PNGs with unlabelled pixels hold only 0 and 255, which "
                    "means `no label`: if 255 is the foreground, convert them with "
                    "`python datasets/prepare_label_pngs.py IN OUT --map 255=1`",
                    _SUSPICIOUS_MAPS,
                )
        return labels


def _split(rows: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Masks (N, H, W) bool and classes of the rows that are instances; one class a row."""
    instances = np.flatnonzero(classes >= 0)
    masks = np.empty((len(instances), *rows.shape), bool)
    for mask, row in zip(masks, instances):
        # One vectorised pass that writes the result; counting all rows first costs more.
        np.equal(rows, row.astype(rows.dtype), out=mask)
    return masks, classes[instances]


def to_instances(masks: np.ndarray, classes: np.ndarray) -> Instances:
    """Instances of masks (N, H, W) bool; those without a pixel are left out."""
    kept = np.array([mask.any() for mask in masks], bool)
    if not kept.all():
        masks, classes = masks[kept], classes[kept]
    instances = Instances(masks.shape[1:])
    instances.gt_classes = torch.from_numpy(classes.astype(np.int64))
    instances.gt_masks = BitMasks(torch.from_numpy(masks))
    return instances


def segment_errors(record: Mapping[str, Any]) -> Defects:
    """What makes the segments of a panoptic record unusable; its PNG stays closed."""
    found = Defects(record["pan_seg_file_name"], describe(record))
    if check_keys(record, ("segments_info",), found):
        for position, segment in enumerate(record["segments_info"]):
            parts = found.record, f"segments_info[{position}]"
            place = found.at(", ".join(filter(None, parts)))
            right = check_numbers(segment, ("id", "category_id"), place)
            if right and not 0 <= segment["id"] <= LARGEST_ID:
                problem = f"id is {segment['id']}, not a whole number up to {LARGEST_ID}"
                place.add("bad-value", problem)
            found += place
    return found


def annotation_errors(
    record: Mapping[str, Any], position: int, size: tuple[int, int], file: str | None = None
) -> Defects:
    """What makes one of a record's instance annotations unusable.

    Args:
        record: in Detectron2's format.
        position: of the annotation.
        size: (H, W) of the picture.
        file: of the annotations, for messages; None: what the record knows.
    """
    annotation = record["annotations"][position]
    file = file or record.get("annotation_file", record["file_name"])
    found = Defects(str(file), annotation_name(record, position))
    check_numbers(annotation, ("category_id",), found)
    found += segmentation_errors(annotation.get("segmentation"), size, found.file, found.record)
    return found
