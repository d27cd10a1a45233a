"""Checks a whole data set: every record is read once, every defect named, everything counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from torch.utils.data import DataLoader, Dataset

from knet.data.categories import category_warnings, instance_metadata, read_categories
from knet.data.check.record import Expected, RecordSummary, inspect_record
from knet.data.check.report import DatasetReport
from knet.data.coco_instances import instance_file_defects, scan_coco_instances
from knet.data.coco_panoptic import scan_coco_panoptic
from knet.data.defects import KINDS, DataError, Defect, Defects, make_defect
from knet.data.images import MAX_PIXELS
from knet.data.label_png import IGNORE_LABEL
from knet.data.on_error import Scan
from knet.data.register import own_data_set
from knet.errors import first_of

_CHUNK = 8  # records that a worker process hands back at once


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
            scan.defects.append(make_defect("no-images", "", f"data set {name!r}", problem))
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
