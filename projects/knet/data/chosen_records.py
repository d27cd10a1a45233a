"""The records that a training or an evaluation goes through."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.build import print_instances_class_histogram
from detectron2.data.detection_utils import check_metadata_consistency

from knet.data.catalog import keep_records, own_data_set, read_records, records_folder
from knet.data.defects import Defect, make_defect, raise_first
from knet.data.records import ANNOTATED, LABELLED, flags_of, join, select
from knet.errors import UserError

logger = logging.getLogger(__name__)

Record = dict[str, Any]


class NoRecordsError(UserError):
    """Data sets have no record, or none that can be used."""


def load_records(cfg: CfgNode, names: Sequence[str], *, filter_empty: bool) -> Sequence[Record]:
    """The records of data sets, as Detectron2's `get_detection_dataset_dicts`, large ones kept.

    Args:
        cfg: the config.
        names: of registered data sets.
        filter_empty: leave out images without an object, or with crowds only.

    Raises:
        UserError: there is none, or none is left.
        whatever reading a data set raises.
    """
    folder = records_folder(cfg)
    keep_records(cfg)
    parts = [read_records(name, folder) for name in names]
    for name, part in zip(names, parts):
        if not len(part):
            raise NoRecordsError(f"Dataset {name!r} is empty!")
    records = join(parts)
    flags = flags_of(records)
    if not flags[0] & ANNOTATED:
        return records
    if filter_empty:
        kept = flags & LABELLED > 0
        count = int(kept.sum())
        text = "%d images without an object are left out, %d stay"
        logger.debug(text, len(kept) - count, count)
        records = select(records, kept)
        if not len(records):
            raise NoRecordsError(f"No valid data found in {','.join(names)}.")
    if all(MetadataCatalog.get(name).get("thing_classes") is not None for name in names):
        check_metadata_consistency("thing_classes", names)
        if isinstance(records, list):
            classes = MetadataCatalog.get(names[0]).thing_classes
            print_instances_class_histogram(records, classes)
    return records


def read_training_records(cfg: CfgNode) -> Sequence[Record]:
    """The records of all data sets in DATASETS.TRAIN; raises as `build_train_loader`."""
    names = ", ".join(cfg.DATASETS.TRAIN)
    filter_empty = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    try:
        records = load_records(cfg, cfg.DATASETS.TRAIN, filter_empty=filter_empty)
        raise_first(nothing_to_learn(records, names))
        return records
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error.filename or error}: part of {names} (DATASETS.TRAIN) "
            "is missing; datasets/README.md shows where data sets go"
        ) from error
    except NoRecordsError as error:
        for name in cfg.DATASETS.TRAIN:
            raise_first(nothing_to_learn(DatasetCatalog.get(name), name))
        lost = left_out(cfg)
        mend = "see what is in it with `knet check`"
        if lost:
            mend = f"{lost} images were left out for errors (DATASETS.ON_ERROR): {mend}"
        elif filter_empty:
            mend += "; DATALOADER.FILTER_EMPTY_ANNOTATIONS False keeps images without any object"
        raise ValueError(
            f"the data sets in DATASETS.TRAIN ({names}) cannot be trained on: {error} {mend}"
        ) from error


def left_out(cfg: CfgNode) -> int:
    """The images that the data sets in DATASETS.TRAIN lost to errors when they were read."""
    own = [own_data_set(name) for name in cfg.DATASETS.TRAIN]
    return sum(data_set.left_out for data_set in own if data_set is not None)


def nothing_to_learn(records: Sequence[Mapping[str, Any]], name: str) -> list[Defect]:
    """The defect of records all of whose annotations are crowds; else none.

    Images without any annotation teach what is no object, so a data set may consist of them.

    Args:
        records: of one or several data sets, without errors.
        name: of them, for messages.
    """
    crowds = 0
    for record in records:
        annotations = record.get("annotations", record.get("segments_info"))
        if annotations is None:
            return []  # semantic label maps
        for annotation in annotations:
            if not annotation.get("iscrowd", 0) or not annotation.get("isthing", True):
                return []
            crowds += 1
    if not crowds:
        return []
    file = str(records[0].get("annotation_file", ""))
    problem = f"all {crowds} annotations of its {len(records)} images are crowds (iscrowd 1)"
    return [make_defect("nothing-to-learn", file, f"data set {name!r}", problem)]
