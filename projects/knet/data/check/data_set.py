"""Checks whole data sets: every record is read once, every defect named, everything counted.

And what is wrong with them for the config that trains and scores on them.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import build_backbone
from detectron2.utils.file_io import PathManager
from torch.utils.data import DataLoader

from knet.config_file import inference_kernels, shown
from knet.data.augmentation import largest_train_sides
from knet.data.catalog import own_data_set
from knet.data.categories import category_warnings, instance_metadata, read_categories
from knet.data.check.record import Expected, RecordSummary, inspect_record
from knet.data.check.report import DatasetReport
from knet.data.chosen_records import nothing_to_learn
from knet.data.coco_instances import instance_file_defects, scan_coco_instances
from knet.data.coco_panoptic import scan_coco_panoptic
from knet.data.defects import KINDS, DataError, Defect, Defects, is_broken, make_defect
from knet.data.images import MAX_PIXELS
from knet.data.on_error import Scan
from knet.data.tar_shards import find_member, read_bytes
from knet.errors import first_of
from knet.modeling.targets import IGNORE_LABEL

_CHUNK = 8  # records that a worker process hands back at once
_CELLS = 2  # of the mask grid, below whose square an object is small
_SMALL_SHARE = 0.01  # of the objects: fewer small ones are in every large data set


def check_dataset(
    name: str,
    *,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> DatasetReport:
    """Reads every record of a registered data set once.

    Args:
        name: of the data set, registered by this package or by others.
        workers: processes that read; 0 reads in this one.
        progress: called with the number of records read and of all.
        max_pixels: larger pictures and label PNGs are refused.

    Raises:
        KeyError: if no data set has this name.
        ValueError: if the loader fails.
    """
    report = DatasetReport(name)
    try:
        scan, meta = _scan(name)
    except DataError as error:
        report.defects += error.defects
        return report
    expected = Expected.from_metadata(meta, max_pixels=max_pixels)
    report.class_names = list(meta.get("stuff_classes") or meta.get("thing_classes") or [])
    report.defects += scan.defects
    for counts in (report.class_images, report.class_objects, report.class_pixels):
        counts += [0] * len(report.class_names)
    for index, summary in enumerate(_summaries(scan.records, expected, workers)):
        _add(report, scan, index, summary)
        if progress is not None:
            progress(index + 1, len(scan.records))
    if not report.num_errors:  # else it may be the errors' fault
        report.defects += nothing_to_learn(scan.records, name)
        report.defects += _class_defects(report, meta)
    return report


def _add(report: DatasetReport, scan: Scan, index: int, summary: RecordSummary) -> None:
    record = scan.records[index]
    report.num_images += 1
    report.defects += summary.defects
    report.crowds += summary.crowds
    report.ignored += summary.ignored
    if summary.size is not None:
        report.sizes.append(summary.size)
        if summary.objects:
            report.image_areas.append((summary.size, [area for _, area in summary.objects]))
    if "annotations" in record or "segments_info" in record:
        report.objects.append(len(summary.objects))
    for label, area in summary.objects:
        report.areas.append(area)
        _count(report.class_objects, label, 1)
        _count(report.class_pixels, label, area)
    for label, area in summary.regions.items():
        _count(report.class_pixels, label, area)
    for label in {*(label for label, _ in summary.objects), *summary.regions}:
        _count(report.class_images, label, 1)
    if index not in scan.broken and not is_broken(summary.defects):
        report.usable.append(record)


def _count(counts: list[int], label: int, number: int) -> None:
    counts.extend([0] * (label + 1 - len(counts)))  # data sets that name no classes
    counts[label] += number


def _scan(name: str) -> tuple[Scan, Metadata]:
    """All records and structural defects of a data set, whoever registered it."""
    if name not in DatasetCatalog:
        raise KeyError(f"no data set is registered as {name!r}")
    try:
        return _scan_registered(name)
    except (DataError, OSError):  # these name their file
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"the loader of data set {name!r} fails: {what}") from error


def _scan_registered(name: str) -> tuple[Scan, Metadata]:
    meta = MetadataCatalog.get(name)
    paths = [meta.get(key) for key in ("json_file", "image_root", "panoptic_json", "panoptic_root")]
    json_file, image_root, panoptic_json, panoptic_root = paths
    own = own_data_set(name)
    scan = None if own is None else own.scan()
    separated = (meta.get("stuff_classes") or [""])[0] == "things"
    if scan is None and panoptic_json and panoptic_root and image_root and not separated:
        scan = scan_coco_panoptic(
            panoptic_json=panoptic_json,
            image_root=image_root,
            panoptic_root=panoptic_root,
            sem_seg_root=None,
            meta=meta.as_dict(),
        )
    elif scan is None and meta.get("evaluator_type") == "coco" and json_file and image_root:
        derived = instance_metadata(read_categories(json_file, panoptic=False))
        class_ids = meta.get("thing_dataset_id_to_contiguous_id")
        if class_ids is None:  # Detectron2 adds them when it loads the data
            class_ids = derived["thing_dataset_id_to_contiguous_id"]
            meta = Metadata(**{**meta.as_dict(), **derived})
        scan = scan_coco_instances(json_file, image_root, class_ids)
    elif scan is None:
        scan = Scan(records=DatasetCatalog.get(name))
        if not scan.records:
            problem = "has no records"
            scan.defects = [make_defect("no-images", "", f"data set {name!r}", problem)]
        return scan, MetadataCatalog.get(name)
    source = panoptic_json or json_file
    if source:
        categories = read_categories(source, panoptic=bool(panoptic_json))
        scan.defects = [*category_warnings(categories, source), *scan.defects]
    if panoptic_json and json_file:  # what the instance evaluator reads
        scan.defects = [*scan.defects, *_instance_defects(json_file, meta)]
    return scan, meta


def _instance_defects(json_file: str, meta: Metadata) -> list[Defect]:
    try:
        return instance_file_defects(json_file, meta.thing_dataset_id_to_contiguous_id)
    except DataError as error:  # of the file as a whole; the panoptic annotations go on
        return error.defects


def _summaries(
    records: Sequence[dict[str, Any]], expected: Expected, workers: int
) -> Iterator[RecordSummary]:
    """A summary of each record, in their order."""
    chunks: DataLoader = DataLoader(
        records,  # type: ignore[arg-type]
        batch_size=_CHUNK,
        num_workers=min(workers, (len(records) + _CHUNK - 1) // _CHUNK),
        collate_fn=functools.partial(_inspect_chunk, expected=expected),
    )
    for chunk in chunks:
        yield from chunk


def _inspect_chunk(records: list[dict[str, Any]], expected: Expected) -> list[RecordSummary]:
    return [inspect_record(record, expected) for record in records]


def _class_defects(report: DatasetReport, meta: Metadata) -> list[Defect]:
    """Classes that nobody can learn or score, in one defect, and a foreground that is ignored.

    Args:
        report: of a data set without errors, all of whose records have been read.
        meta: of it.
    """
    paths = [meta.get(key) for key in ("panoptic_json", "json_file", "sem_seg_root")]
    file = next((path for path in paths if path), "")
    found, names = Defects(file, f"data set {report.name!r}"), report.class_names
    absent = [name for name, images in zip(names, report.class_images) if not images]
    if absent:
        problem = f"no label shows {len(absent)} of its {len(names)} classes: {first_of(absent)}"
        found.add("class-without-labels", problem)
    shown = [label for label, images in enumerate(report.class_images) if images]
    if report.ignored and shown in ([], [0]) and len(names) > 1:
        label = str(meta.get("ignore_label", IGNORE_LABEL))
        share = 100 * report.ignored / (report.ignored + sum(report.class_pixels))
        problem = (
            f"label {label}, which is ignored, covers {share:.1f} % of the pixels: all that is not "
            f"{names[0]!r} (class 0)"
        )
        mend = KINDS["ignored-foreground"].replace(f"{IGNORE_LABEL}=", f"{label}=")
        found.add("ignored-foreground", problem, mend=mend)
    return found


def add_config_defects(
    reports: Sequence[DatasetReport], cfg: CfgNode, *, model: bool = True
) -> None:
    """Adds to each report what the config makes of its data set.

    More objects an image than the model has kernels or gives results, objects that its mask grid
    cannot show, and pictures of DATASETS.TEST that are in DATASETS.TRAIN too.

    Args:
        reports: of data sets of the config, not necessarily all.
        cfg: the config.
        model: whether it has one, too; else only its data sets are compared.

    Raises:
        KeyError: the config's backbone does not exist.
    """
    if model and cfg.MODEL.KNET.KERNEL_HEAD == "learned":
        for report in reports:
            report.defects += _count_defects(report, cfg)
        cell = mask_cell(cfg) if any(report.image_areas for report in reports) else 0.0
        for report in reports:
            report.defects += _size_defects(report, cfg, cell)
    train = [report for report in reports if report.name in cfg.DATASETS.TRAIN]
    for report in reports:
        if report.name in cfg.DATASETS.TEST:
            report.defects += _shared_pictures(report, train)


def _count_defects(report: DatasetReport, cfg: CfgNode) -> list[Defect]:
    knet, limits = cfg.MODEL.KNET, dict[str, int]()
    trained = report.name in cfg.DATASETS.TRAIN
    if not knet.KERNEL_PEAKS or (trained and not cfg.INPUT.CROP.ENABLED):
        limits["MODEL.KNET.NUM_KERNELS"] = knet.NUM_KERNELS
    elif not trained:  # a crop holds fewer objects than its image
        limits.update([inference_kernels(cfg)])
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


def mask_cell(cfg: CfgNode) -> float:
    """The side of a cell of the masks, in pixels of the resized picture."""
    plain = cfg.clone()
    plain.defrost()
    plain.MODEL.TIMM.PRETRAINED = False  # only the shapes are asked for
    with torch.device("meta"):  # weights without values: no time to draw them
        strides = {k: shape.stride for k, shape in build_backbone(plain).output_shape().items()}
    return (
        strides[cfg.MODEL.KNET.IN_FEATURES[cfg.MODEL.KNET.MASK_LEVEL]]
        / cfg.MODEL.KNET.MASK_UPSAMPLE
    )


def _size_defects(report: DatasetReport, cfg: CfgNode, cell: float) -> list[Defect]:
    trained = report.name in cfg.DATASETS.TRAIN
    train_key = "SCALE_JITTER" if cfg.INPUT.SCALE_JITTER else "MIN_SIZE_TRAIN"
    key = f"INPUT.{train_key if trained else 'MIN_SIZE_TEST'}"
    shortest, longest = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    if trained:  # where it draws among sizes, the largest is the most that it shows of an object
        shortest, longest = largest_train_sides(cfg)
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
    size = shown(cfg.INPUT.SCALE_JITTER) if key == "INPUT.SCALE_JITTER" else shortest
    problem = (
        f"{small} of {total} objects ({100 * small / total:.0f} %) are smaller than "
        f"{_CELLS}x{_CELLS} cells of the mask grid, {cell:g} pixels each at {key} {size}"
    )
    mend = (
        f"raise {key}, or take finer masks: MODEL.KNET.MASK_LEVEL 0, finer MODEL.KNET.IN_FEATURES, "
        "or a larger MODEL.KNET.MASK_UPSAMPLE"
    )
    return [make_defect("small-objects", "", f"data set {report.name!r}", problem, mend=mend)]


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
            path = record["file_name"]
            member = find_member(path)
            if member is None:
                path = os.path.realpath(PathManager.get_local_path(path))
            size = os.path.getsize(path) if member is None else member[2]
            found[path] = (size, report.name)
    return found


def _digest(path: str) -> str:
    return hashlib.sha256(read_bytes(path)).hexdigest()
