"""Data sets of tar shards: a folder of `….tar` with `dataset.json`, which names format and classes.

A sample is a picture, `key.json` with what COCO's annotations say of one image, and `key.png` with
its panoptic or semantic labels. Whoever has shards writes `dataset.json` by hand: ``{"format":
"coco_instances", "categories": […]}``, with ``classes`` in place of ``categories`` for "semantic".

Records name members by shard, offset and size: a data set of shards is one like any other, its
pictures are drawn, shared out and gone on with as those of folders are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from knet.data.catalog import is_registered, register
from knet.data.categories import (
    check_classes,
    instance_metadata,
    panoptic_metadata,
    read_categories,
    read_class_names,
)
from knet.data.coco_file import load_json
from knet.data.coco_instances import scan_coco_instances
from knet.data.coco_panoptic import scan_coco_panoptic
from knet.data.defects import DataError, Defect, failure, make_defect
from knet.data.on_error import Scan
from knet.data.progress import progressing
from knet.data.record_cache import Source
from knet.data.register import PathLike, existing_folder
from knet.data.semantic_folders import Pairing, scan_sem_seg
from knet.data.tar_shards import member_path, picture_of, read_index, read_member
from knet.modeling.targets import IGNORE_LABEL

DESCRIPTION = "dataset.json"
# format → evaluator_type
EVALUATORS = {
    "coco_instances": "coco",
    "coco_panoptic": "coco_panoptic_seg",
    "semantic": "sem_seg",
}

Member = tuple[int, int]


def register_shards(name: str, *, shard_root: PathLike, on_error: str = "raise") -> None:
    """Registers a data set of tar shards, as `knet convert-data` writes them.

    Args:
        name: for ``cfg.DATASETS``.
        shard_root: folder of the shards and of ``dataset.json``.
        on_error: as in :func:`knet.data.register_coco_panoptic`.

    Raises:
        FileNotFoundError: naming what is missing.
        ValueError: if classes or format are not usable, the name is taken, or ``on_error`` is
            something else; a DataError for a shard that is truncated or of another size than
            ``dataset.json`` says.
    """
    root = existing_folder(shard_root, "the shards", name)
    arguments = {"shard_root": root}
    if is_registered(name, arguments, on_error):
        return
    file = os.path.join(root, DESCRIPTION)
    if not os.path.isfile(file):
        raise FileNotFoundError(
            f"data set {name!r}: no {DESCRIPTION} in {root}: `knet convert-data` writes it last; "
            'to shards of other programs, add {"format": "coco_instances", "categories": […]}'
        )
    about = load_json(file)
    form = about.get("format")
    if form not in EVALUATORS:
        known = f"format is {form!r}; known are {', '.join(EVALUATORS)}"
        raise failure("bad-value", file, "", known)
    meta = _metadata(about, file)
    shards = _shards(about, root, file)

    def scan() -> Scan:
        return _scan(form, shards, about, file, meta)

    source = Source([file, *shards], settings=arguments)
    meta.update(arguments, evaluator_type=EVALUATORS[form])
    register(name, arguments, scan, source, on_error, meta)


def _metadata(about: Mapping[str, Any], file: str) -> dict[str, Any]:
    if about["format"] == "semantic":
        names, colors = read_class_names(about.get("classes", ()), file)
        label = about.get("ignore_label", IGNORE_LABEL)
        check_classes(names, label, file)
        return {"stuff_classes": names, "stuff_colors": colors, "ignore_label": label}
    panoptic = about["format"] == "coco_panoptic"
    categories = read_categories(file, panoptic=panoptic)
    if not panoptic:
        return instance_metadata(categories)
    return {**panoptic_metadata(categories), "ignore_label": IGNORE_LABEL, "label_divisor": 1000}


def _shards(about: Mapping[str, Any], root: str, file: str) -> list[str]:
    """The paths of the shards; those that the description lists have the sizes that it says."""
    listed = about.get("shards")
    if listed is None:
        found = sorted(map(str, Path(root).glob("*.tar")))
        if not found:
            raise failure("no-images", file, "", "no .tar beside it", mend="put the shards there")
        return found
    paths = []
    for entry in listed:
        path = os.path.join(root, entry["file"])
        if not os.path.isfile(path):
            raise FileNotFoundError(f"no shard at {path}, which {file} lists: copy it again")
        size = os.path.getsize(path)
        if size != entry["bytes"]:
            read_index(path)  # names the sample at which it ends
            problem = f"has {size:,} bytes, but {DESCRIPTION} says {entry['bytes']:,}"
            raise failure("shard-truncated", path, "", problem)
        paths.append(path)
    return paths


def _scan(
    form: str, shards: list[str], about: Mapping[str, Any], file: str, meta: Mapping[str, Any]
) -> Scan:
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    pairs: list[tuple[str, Path, Path]] = []
    defects: list[Defect] = []
    for shard, key, members in _samples(shards):
        label = members.pop("png", None) if form != "coco_instances" else None
        try:
            picture, name = picture_of(shard, key, members)
        except DataError as error:
            defects += error.defects
            continue
        problem = _lacks(form, label, members)
        if problem:
            defects.append(make_defect("png-missing", shard, f"sample {key}", problem))
            continue
        image = member_path(shard, members[picture], name)
        png = "" if label is None else member_path(shard, label, f"{key}.png")
        if form == "semantic":
            pairs.append((key, Path(image), Path(png)))
            continue
        entry = _read_json(shard, key, members["json"])
        if form == "coco_instances" and not isinstance(entry.get("annotations"), list):
            problem = "`annotations` is no list; that of an image without objects is empty"
            defects.append(make_defect("bad-value", shard, f"{key}.json", problem))
            continue
        _add(content, entry, form, image, png)
    if form == "semantic":
        pairing = Pairing(sorted(pairs), defects, None, [])
        return scan_sem_seg(pairing, None)
    if form == "coco_instances":
        ids = meta["thing_dataset_id_to_contiguous_id"]
        scan = scan_coco_instances(file, "", ids, content)
    else:
        scan = scan_coco_panoptic(
            panoptic_json=file,
            image_root="",
            panoptic_root="",
            sem_seg_root=None,
            meta=meta,
            content=content,
        )
    return Scan(scan.records, scan.broken, scan.lost + len(defects), [*defects, *scan.defects])


def _samples(shards: list[str]) -> Iterator[tuple[str, str, dict[str, Member]]]:
    """(shard, key, members) of each sample; no key comes twice."""
    first: dict[str, str] = {}
    for shard in progressing(shards, "reading shards", "shards"):
        for key, members in read_index(shard):
            other = first.setdefault(key, shard)
            if other is not shard:
                raise failure("shard-order", shard, f"sample {key}", f"the key is also in {other}")
            yield shard, key, members


def _lacks(form: str, label: Member | None, members: Mapping[str, Any]) -> str:
    if form != "coco_instances" and label is None:
        return "no .png with its labels"
    return "no .json with its annotations" if form != "semantic" and "json" not in members else ""


def _read_json(shard: str, key: str, place: Member) -> dict[str, Any]:
    try:
        value = json.loads(read_member(shard, *place))
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise failure("json-invalid", shard, f"{key}.json", f"is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise failure("json-invalid", shard, f"{key}.json", "holds no object")
    return value


def _add(content: dict[str, Any], entry: dict[str, Any], form: str, image: str, png: str) -> None:
    """What COCO's one file would have of a sample."""
    picture: dict[str, Any] = {key: entry[key] for key in ("height", "width") if key in entry}
    if "image_id" in entry:
        picture["id"] = entry["image_id"]
    content["images"].append({**picture, "file_name": image})
    if form == "coco_instances":
        for annotation in entry["annotations"]:
            if isinstance(annotation, dict) and "image_id" in entry:
                annotation.setdefault("image_id", entry["image_id"])
            content["annotations"].append(annotation)
        return
    segments: dict[str, Any] = {"file_name": png}
    segments.update({key: entry[key] for key in ("image_id", "segments_info") if key in entry})
    content["annotations"].append(segments)
