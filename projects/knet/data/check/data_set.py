"""Checks a whole data set: every record is read once, every defect named, everything counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from torch.utils.data import DataLoader, Dataset

from knet.data.annotations.coco_json import instance_file_defects, scan_coco_instances
from knet.data.annotations.coco_panoptic_json import scan_coco_panoptic
from knet.data.annotations.image_files import MAX_PIXELS
from knet.data.check.record import Expected, RecordSummary, inspect_record
from knet.data.check.whole_set import class_defects, nothing_to_learn
from knet.data.defects import DataError, Defect, make_defect
from knet.data.on_error import Scan, scan_dataset
from knet.data.registration.categories import (
    category_warnings,
    instance_metadata,
    read_categories,
)

__all__ = ["DatasetReport", "check_dataset"]

_CHUNK = 8  # records that a worker process hands back at once


@dataclass
class DatasetReport:
    """What is in a data set and what is wrong with it.

    Attributes:
        name: of the data set.
        class_names: by contiguous id.
        num_images: records that were read.
        sizes: (H, W) of each picture that can be read, in pixels.
        class_images: of each class, the number of images that show it.
        class_objects: of each class, the number of objects (no crowds); 0 for stuff.
        class_pixels: of each class, the number of pixels.
        objects: of each image, the number of objects (no crowds); empty for semantic data.
        areas: of each object, in pixels.
        crowds: the number of crowds.
        ignored: pixels of semantic maps without a label.
        image_areas: of each image with objects, (H, W) and the areas of its objects in pixels.
        defects: in the order of the files.
        usable: the records without an error.
    """

    name: str
    class_names: list[str] = field(default_factory=list)
    num_images: int = 0
    sizes: list[tuple[int, int]] = field(default_factory=list)
    class_images: list[int] = field(default_factory=list)
    class_objects: list[int] = field(default_factory=list)
    class_pixels: list[int] = field(default_factory=list)
    objects: list[int] = field(default_factory=list)
    areas: list[int] = field(default_factory=list)
    crowds: int = 0
    ignored: int = 0
    image_areas: list[tuple[tuple[int, int], list[int]]] = field(default_factory=list)
    defects: list[Defect] = field(default_factory=list)
    usable: list[dict[str, Any]] = field(default_factory=list)

    @property
    def num_errors(self) -> int:
        return sum(defect.severity == "error" for defect in self.defects)

    @property
    def num_warnings(self) -> int:
        return len(self.defects) - self.num_errors

    def as_dict(self) -> dict[str, Any]:
        """All but what belongs to single records, for JSON."""
        left_out = ("usable", "image_areas")
        fields = {key: value for key, value in vars(self).items() if key not in left_out}
        defects = [asdict(defect) for defect in self.defects]
        counts = {"num_errors": self.num_errors, "num_warnings": self.num_warnings}
        return {**fields, "defects": defects, **counts}


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
    counts = len(report.class_names)
    report.class_images = [0] * counts
    report.class_objects = [0] * counts
    report.class_pixels = [0] * counts
    for index, summary in enumerate(_summaries(scan.records, expected, workers)):
        _add(report, scan, index, summary)
        if progress is not None:
            progress(index + 1, len(scan.records))
    if not report.num_errors:  # else it may be the errors' fault
        report.defects += nothing_to_learn(scan.records, name)
        report.defects += class_defects(report, meta)
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
    broken = any(defect.severity == "error" for defect in summary.defects)
    if index not in scan.broken and not broken:
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
    scan = scan_dataset(name)
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
            scan.defects.append(
                make_defect("no-images", "", f"data set {name!r}", "has no records")
            )
        return scan, MetadataCatalog.get(name)
    source = panoptic_json or json_file
    if source:
        categories = read_categories(source, panoptic=bool(panoptic_json))
        scan.defects[:0] = category_warnings(categories, source)
    if panoptic_json and json_file:  # what the instance evaluator reads
        scan.defects += _instance_defects(json_file, meta)
    return scan, meta


def _instance_defects(json_file: str, meta: Metadata) -> list[Defect]:
    try:
        return instance_file_defects(json_file, meta.thing_dataset_id_to_contiguous_id)
    except DataError as error:  # of the file as a whole; the panoptic annotations go on
        return error.defects


class _Records(Dataset):
    def __init__(self, records: Sequence[dict[str, Any]], expected: Expected) -> None:
        self.records, self.expected = records, expected

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> RecordSummary:
        return inspect_record(self.records[index], self.expected)


def _summaries(
    records: Sequence[dict[str, Any]], expected: Expected, workers: int
) -> Iterator[RecordSummary]:
    """A summary of each record, in their order."""
    loader = DataLoader(
        _Records(records, expected),
        batch_size=_CHUNK,
        num_workers=min(workers, (len(records) + _CHUNK - 1) // _CHUNK),
        collate_fn=_identity,
        worker_init_fn=_one_thread,
    )
    for chunk in loader:
        yield from chunk


def _identity(chunk: list[RecordSummary]) -> list[RecordSummary]:
    return chunk


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
