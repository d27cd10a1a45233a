"""Mends what is mechanical in a COCO instances JSON, into a new file, and divides it."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

from knet.data.check.record import check_measures
from knet.data.coco_file import is_id, load_json
from knet.data.defects import Defects, failure
from knet.data.formats.coco_files import CocoFile, Content, check_entries, empty_roots
from knet.data.formats.objects import measure
from knet.data.formats.split import Item, split_items
from knet.data.formats.tree import Tree
from knet.data.masks import encode_segmentation, segmentation_errors
from knet.errors import UserError
from knet.files import whole_file, write_json

PathLike = Union[str, "os.PathLike[str]"]


@dataclass(frozen=True)
class Fixed:
    """What became of a file: the files written, and sentences on what was changed, with counts."""

    files: list[Path]
    changes: list[str]


def fix(
    json_file: PathLike,
    out_json: PathLike,
    *,
    image_root: PathLike | None = None,
    split: float | None = None,
    seed: int = 1,
) -> Fixed:
    """Mends a COCO instances JSON; the file itself stays as it is.

    Mended are: a class without an annotation that is the heading of others (Roboflow's class 0),
    images and annotations that come twice, ids of annotations that are missing, 0 or come twice,
    missing ``iscrowd``, ``area`` and ``bbox`` that are missing or not those of the mask, and, with
    the folder of the pictures, names that lack their sub-folder and missing sizes. What takes a
    judgement (a broken mask, an annotation of no image) is left for the checker to name.

    Args:
        json_file: COCO instances.
        out_json: the file to write; with `split` there are two beside it, ``…_train.json`` and
            ``…_val.json``.
        image_root: folder that ``file_name`` counts from.
        split: share of the images for validation, 0 to 1; None: one file.
        seed: of the choice of these.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: a file would be written over, there is no folder for the output or of the
            pictures.
        DataError: the file is not usable, or an id is that of two different images.
        ValueError: ``split`` is not between 0 and 1.
    """
    source, target = Path(json_file), Path(out_json)
    if split is not None and not 0 < split < 1:
        raise ValueError(f"split is {split}; it must be between 0 and 1")
    targets = [target]
    if split is not None:
        targets = [target.with_name(f"{target.stem}_{part}.json") for part in ("train", "val")]
    if source.resolve() in [path.resolve() for path in targets]:
        raise UserError(f"{source} is never written over: name another file")
    for path in targets:
        if path.exists():
            raise UserError(f"{path} is there already: remove it, or name another file")
    if not target.resolve().parent.is_dir():
        raise UserError(f"{target}: there is no such folder; make it first")
    content = load_json(str(source))
    check_entries(str(source), content, is_panoptic=False)
    changes: Counter[str] = Counter()
    _drop_roots(content, changes)
    if image_root is not None:
        _complete_images(content, source, Tree(image_root), changes)
    _merge_images(content, str(source), changes)
    _mend_annotations(content, str(source), changes)
    texts = [f"{what}: {count}" for what, count in changes.items()] or ["nothing had to be changed"]
    contents = [content]
    if split is not None:
        items = [Item(image["file_name"]) for image in content["images"]]
        *parts, text = split_items(items, split, seed)
        contents = [_subset(content, {item.image for item in part}) for part in parts]
        texts.append(text)
    with contextlib.ExitStack() as stack:  # all of them or none
        for path, part_content in zip(targets, contents):
            write_json(stack.enter_context(whole_file(path)), part_content)
    return Fixed(targets, texts)


def _drop_roots(content: Content, changes: Counter[str]) -> None:
    dropped = empty_roots([content])
    content["categories"] = [c for c in content["categories"] if c not in dropped]
    _count(changes, "classes left out that are but a heading of others", len(dropped))


def _complete_images(content: Content, source: Path, tree: Tree, changes: Counter[str]) -> None:
    """Names with their sub-folders, and sizes."""
    file = CocoFile(tree, source.name, content, is_panoptic=False)
    for image in content["images"]:
        name = file.images.get(image["file_name"], "")
        if name not in tree:
            _count(changes, "pictures are missing", 1)
            continue
        if name != image["file_name"]:
            _count(changes, "names of pictures corrected to where they are", 1)
            image["file_name"] = name
        if "height" not in image or "width" not in image:
            _count(changes, "sizes read from the pictures", 1)
            image["height"], image["width"] = tree.size(name)


def _merge_images(content: Content, path: str, changes: Counter[str]) -> None:
    """One entry a file; annotations go to it."""
    by_name: dict[str, Content] = {}
    names: dict[Any, str] = {}  # id → name
    kept: dict[Any, Any] = {}  # id → that of the entry which stays
    for image in content["images"]:
        name = image["file_name"]
        if names.setdefault(image["id"], name) != name:
            problem = f"the id is that of {names[image['id']]} and of {name}"
            raise failure("duplicate-image-id", path, f"image {image['id']}", problem)
        kept[image["id"]] = by_name.setdefault(name, image)["id"]
    _count(changes, "images that came twice merged", len(content["images"]) - len(by_name))
    content["images"] = list(by_name.values())
    for annotation in content["annotations"]:
        if annotation["image_id"] in kept:
            annotation["image_id"] = kept[annotation["image_id"]]


def _mend_annotations(content: Content, path: str, changes: Counter[str]) -> None:
    sizes = {i["id"]: (i.get("height"), i.get("width")) for i in content["images"]}
    seen: set[str] = set()
    annotations = []
    for annotation in content["annotations"]:
        parts = [annotation.get(k) for k in ("image_id", "category_id", "segmentation", "iscrowd")]
        key = json.dumps(parts, sort_keys=True)
        if key in seen and annotation.get("segmentation"):
            _count(changes, "annotations that came twice left out", 1)
            continue
        seen.add(key)
        annotations.append(annotation)
        if "iscrowd" not in annotation:
            annotation["iscrowd"] = 0
            _count(changes, "missing `iscrowd` set to 0", 1)
        size = sizes.get(annotation["image_id"], (None, None))
        if None not in size:
            _mend_measures(annotation, size, path, changes)
    content["annotations"] = annotations
    used, free = (
        set[int](),
        1 + max((a["id"] for a in annotations if is_id(a.get("id"))), default=0),
    )
    for annotation in annotations:
        own = annotation.get("id")
        if not is_id(own) or own == 0 or own in used:
            annotation["id"], free = free, free + 1
            _count(changes, "ids of annotations given anew", 1)
        used.add(annotation["id"])


def _mend_measures(
    annotation: Content, size: tuple[int, int], path: str, changes: Counter[str]
) -> None:
    """Area and box of a mask that can be read."""
    mask: Any = annotation.get("segmentation")
    if segmentation_errors(mask, size, path, ""):
        return
    measured = measure(mask, size)
    if measured is None:
        return
    found, rle = Defects(path), encode_segmentation(mask, size)
    check_measures(annotation, rle, measured["area"], found, drawn=isinstance(mask, list))
    wrong = {defect.problem.split()[0] for defect in found}  # `area is …`, `bbox is …`
    for key in ("area", "bbox"):
        if key not in annotation or key in wrong:
            what = "areas" if key == "area" else "boxes"
            _count(changes, f"{what} {'counted' if key == 'area' else 'drawn'} from the mask", 1)
            annotation[key] = measured[key]


def _subset(content: Content, names: set[str]) -> Content:
    images = [image for image in content["images"] if image["file_name"] in names]
    ids = {image["id"] for image in images}
    annotations = [a for a in content["annotations"] if a["image_id"] in ids]
    return {**content, "images": images, "annotations": annotations}


def _count(changes: Counter[str], what: str, number: int) -> None:
    if number:
        changes[what] += number
