"""Writes a data set as tar shards, see `knet.data.shard_set`."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.structures import BoxMode

from knet.data.defects import describe
from knet.data.progress import progressing
from knet.data.shard_set import DESCRIPTION, EVALUATORS
from knet.data.tar_shards import find_member, photo_suffix, read_bytes, split_name
from knet.errors import UserError
from knet.files import whole_folder, write_json
from knet.modeling.targets import IGNORE_LABEL

Record = Mapping[str, Any]

_BLOCK = tarfile.BLOCKSIZE


def write_shards(name: str, folder: str | os.PathLike[str], *, shard_bytes: int) -> list[Path]:
    """Writes a registered data set; pictures and label PNGs keep their bytes.

    Keys are the names of the pictures, without suffix and folder. The folder is there whole or
    not at all, and has the same bytes every time.

    Args:
        name: of the data set; its annotations have no error.
        folder: to make.
        shard_bytes: of a shard at most; one sample may be larger.

    Returns:
        The paths of the shards.

    Raises:
        UserError: there is something at the folder, or the records are of none of the formats.
        FileNotFoundError: a picture or a label PNG is missing.
        DataError: the annotations have an error.
        OSError: the folder cannot be written.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} is there already: name a folder to make")
    records = DatasetCatalog.get(name)
    if not len(records):
        raise UserError(f"the data set {name!r} has no record")
    form = _format(records[0], name)
    meta = MetadataCatalog.get(name)
    ids = category_ids(meta)
    about: dict[str, Any] = {"format": form, **coco_classes(form, meta), "shards": []}
    with whole_folder(target) as unfinished:
        writer = _Writer(unfinished, name, shard_bytes)
        keys: dict[str, int] = {}
        for record in progressing(records, f"{name}: writing", "records"):
            if _format(record, name) != form:
                raise UserError(f"{describe(record)} has other labels than the first record")
            writer.add(_members(record, form, ids, _key(record, keys)))
        about["shards"] = writer.close()
        write_json(unfinished / DESCRIPTION, about, indent=1)
    return [target / entry["file"] for entry in about["shards"]]


def _format(record: Record, name: str) -> str:
    if "pan_seg_file_name" in record:
        return "coco_panoptic"
    if "annotations" in record and "sem_seg_file_name" not in record:
        return "coco_instances"
    if "sem_seg_file_name" in record and "annotations" not in record:
        return "semantic"
    raise UserError(
        f"data set {name!r}: records with {', '.join(sorted(record))} are of none of the formats "
        f"of shards ({', '.join(EVALUATORS)})"
    )


def category_ids(meta: Metadata) -> dict[int, int]:
    """Contiguous class → category id."""
    maps = [meta.get(f"{kind}_dataset_id_to_contiguous_id") or {} for kind in ("stuff", "thing")]
    return {index: category for one in maps for category, index in one.items()}


def coco_classes(form: str, meta: Metadata) -> dict[str, Any]:
    """The classes as `dataset.json` has them: `categories`, of "semantic" `classes`."""
    ids = category_ids(meta)
    panoptic = form == "coco_panoptic"
    kind = "thing" if form == "coco_instances" else "stuff"
    names = list(meta.get(f"{kind}_classes") or ())
    colors = meta.get(f"{kind}_colors") or [None] * len(names)
    classes = [
        {"name": label, **({} if color is None else {"color": [*map(int, color)]})}
        for label, color in zip(names, colors)
    ]
    if form == "semantic":
        label = meta.get("ignore_label")
        return {"classes": classes, "ignore_label": IGNORE_LABEL if label is None else label}
    things = set((meta.get("thing_dataset_id_to_contiguous_id") or {}).values())
    return {
        "categories": [
            {
                "id": ids.get(index, index + 1),
                **entry,
                **({"isthing": int(index in things)} if panoptic else {}),
            }
            for index, entry in enumerate(classes)
        ]
    }


def _key(record: Record, keys: dict[str, int]) -> str:
    """A key that no other sample has: the picture's name without suffix, and without dots.

    `keys` has those of the samples before, with the highest number that each was given; data sets
    with a folder for each image have one name a million times.
    """
    path = record["file_name"]
    stem = split_name(Path(path).name)[0] if find_member(path) else Path(path).stem
    key = stem = stem.replace(".", "_") or "picture"
    number = keys.get(stem, 1)
    while key in keys:
        number += 1
        key = f"{stem}_{number}"
    keys[stem] = number
    keys.setdefault(key, 1)
    return key


def _members(
    record: Record, form: str, ids: Mapping[int, int], key: str
) -> list[tuple[str, bytes]]:
    """(name, content) of a sample."""
    suffix = Path(record["file_name"]).suffix[1:].lower()
    suffix = photo_suffix(suffix, labels=form != "coco_instances")
    entry = {k: record[k] for k in ("image_id", "height", "width") if k in record}
    label = None
    if form == "coco_instances":
        entry["annotations"] = [_annotation(one, ids) for one in record["annotations"]]
    elif form == "coco_panoptic":
        label = record["pan_seg_file_name"]
        entry["segments_info"] = [coco_segment(one, ids) for one in record["segments_info"]]
    else:
        label = record["sem_seg_file_name"]
    members = [
        (f"{key}.{suffix}", read_bytes(record["file_name"])),
        (f"{key}.json", json.dumps(entry).encode()),
    ]
    return members if label is None else [*members, (f"{key}.png", read_bytes(label))]


def _annotation(annotation: Record, ids: Mapping[int, int]) -> dict[str, Any]:
    """As COCO's file has it, without the image's id."""
    entry = {k: annotation[k] for k in ("id", "iscrowd", "area", "bbox") if k in annotation}
    mode = annotation.get("bbox_mode", BoxMode.XYWH_ABS)
    if "bbox" in entry and mode != BoxMode.XYWH_ABS:
        entry["bbox"] = list(BoxMode.convert(entry["bbox"], mode, BoxMode.XYWH_ABS))
    mask = annotation.get("segmentation")
    if isinstance(mask, dict) and isinstance(mask["counts"], bytes):
        mask = {**mask, "counts": mask["counts"].decode("ascii")}
    category = annotation["category_id"]
    return {**entry, "category_id": ids.get(category, category + 1), "segmentation": mask}


def coco_segment(segment: Record, ids: Mapping[int, int]) -> dict[str, Any]:
    """A record's segment as COCO's file has it; ids: of :func:`category_ids`."""
    entry = {k: segment[k] for k in ("id", "iscrowd", "area", "bbox") if k in segment}
    category = segment["category_id"]
    return {**entry, "category_id": ids.get(category, category + 1)}


class _Writer:
    """Shards of a size, one after the other."""

    def __init__(self, folder: Path, name: str, shard_bytes: int) -> None:
        self.folder, self.stem, self.shard_bytes = folder, Path(name).name, shard_bytes
        self.shards: list[dict[str, Any]] = []
        self._tar: tarfile.TarFile | None = None

    def add(self, members: Sequence[tuple[str, bytes]]) -> None:
        size = sum(_BLOCK + -(-len(data) // _BLOCK) * _BLOCK for _, data in members)
        if self._tar is None or (
            self.shards[-1]["samples"] and self._tar.offset + size > self.shard_bytes
        ):
            self.close()
            file = f"{self.stem}-{len(self.shards):06d}.tar"
            self._tar = tarfile.open(self.folder / file, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
            self.shards.append({"file": file, "samples": 0, "bytes": 0})
        for name, data in members:
            info = tarfile.TarInfo(name)  # without time, owner and rights of the files
            info.size = len(data)
            self._tar.addfile(info, io.BytesIO(data))
        self._tar.members = []  # type: ignore[attr-defined]  # it would keep them all
        self.shards[-1]["samples"] += 1

    def close(self) -> list[dict[str, Any]]:
        """Ends the last shard; what is there of each."""
        if self._tar is not None:
            self._tar.close()
            path = self.folder / self.shards[-1]["file"]
            self.shards[-1]["bytes"] = path.stat().st_size
            self._tar = None
        return self.shards
