"""labelme: a JSON file beside each picture, with polygons, rectangles, circles and masks."""

from __future__ import annotations

import base64
import io
import math
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

from knet.data.coco_file import is_number, load_json
from knet.data.defects import DataError, failure
from knet.data.formats.found import Found
from knet.data.formats.maps import PaintedSource
from knet.data.formats.objects import Mask, Object, ObjectSource, Size
from knet.data.formats.split import Item
from knet.data.formats.tree import Tree, chosen_task, part_of, spread, stem_of
from knet.data.images import BROKEN_FILE
from knet.data.masks import encode_segmentation

NAME = "labelme JSON"
_SAMPLE = 5  # JSON files that recognition reads
_CORNERS = 64  # of the polygon that stands for a circle
_NO_CLASS = ("__ignore__", "_background_")  # labelme's own labels
_DRAWN = ("polygon", "rectangle", "circle", "mask")


def find(tree: Tree, task: str | None) -> Found | None:
    """The folder as this format; None if it is not."""
    by_stem = {stem_of(path): path for path in tree.pictures}
    items, lone = [], []
    files = tree.ending(".json")
    if not any(_is_labelme(tree, path) for path in spread(files, _SAMPLE)):
        return None
    for path in files:
        picture = by_stem.get(stem_of(path))
        if picture is None and _is_labelme(tree, path):
            picture = _named_picture(tree, path)
            if picture is None:
                lone.append(path)
        if picture is not None:
            items.append(Item(picture, path, part_of(picture)))
    if not items:
        raise DataError(
            f"{tree.root} holds {len(lone)} files of {NAME}, but not their pictures (of "
            f"{lone[0]}: {_content(tree, lone[0]).get('imagePath')}); put these beside the files"
        )
    labelled = {item.image for item in items}
    bare = [path for path in tree.pictures if path not in labelled]
    items += [Item(path, "", part_of(path)) for path in bare]
    source: Any = LabelmeSource(tree)
    chosen = chosen_task(task, ("instance", "semantic"), f"{tree.root}: labelme's shapes")
    if chosen == "semantic":
        source = PaintedSource(source)
    notes = [f"{tree.root} was taken for {NAME}: {len(labelled)} files with their pictures"]
    if bare:
        notes.append(f"pictures without a JSON file: {len(bare)}; they count as background")
    if lone:
        notes.append(f"JSON files without a picture: {len(lone)}, not used, first {lone[0]}")
    return Found(NAME, chosen, sorted(items, key=lambda i: i.image), source, notes)


def _content(tree: Tree, path: str) -> dict[str, Any]:
    return load_json(str(tree.root / path))


def _is_labelme(tree: Tree, path: str) -> bool:
    try:
        content = _content(tree, path)
    except DataError:  # a list, or no JSON: whoever reads the file will say so
        return False
    return isinstance(content.get("shapes"), list) and "imagePath" in content


def _named_picture(tree: Tree, path: str) -> str | None:
    """The picture that a file names, beside it or alone of this name in the folder."""
    name = PurePosixPath(str(_content(tree, path).get("imagePath")).replace("\\", "/")).name
    beside = (PurePosixPath(path).parent / name).as_posix()
    if beside in tree:
        return beside
    found = [p for p in tree.pictures if PurePosixPath(p).name == name]
    return found[0] if len(found) == 1 else None


class LabelmeSource(ObjectSource):
    """Shapes in pixels; those of one label and ``group_id`` are one object."""

    def __init__(self, tree: Tree) -> None:
        super().__init__(tree)
        self._left_out: set[str] = set()

    def objects(self, item: Item) -> tuple[Size, list[Object]]:
        """As of :class:`ObjectSource`."""
        size = self.tree.size(item.image)
        if not item.label:
            return size, []
        path = str(self.tree.root / item.label)
        content = load_json(path)
        if not isinstance(content.get("shapes"), list):
            raise failure("missing-key", path, "", "has no list `shapes`", mend="label it again")
        stated = (content.get("imageHeight"), content.get("imageWidth"))
        if None not in stated and stated != size:
            problem = f"was made for {stated[1]}x{stated[0]} pixels, its picture {item.image} has "
            raise failure("size-mismatch", path, "", f"{problem}{size[1]}x{size[0]}")
        parts: dict[Any, list[Mask]] = {}
        for number, shape in enumerate(content["shapes"], start=1):
            where = f"shape {number}"
            if not isinstance(shape, dict):
                raise failure("bad-value", path, where, f"is {shape!r}, not an object")
            name, kind = shape.get("label"), shape.get("shape_type") or "polygon"
            if not isinstance(name, str) or not name.strip():
                raise failure("bad-value", path, where, f"its label is {name!r}", mend="name it")
            if name in _NO_CLASS or kind not in _DRAWN:
                self._leave_out(name if name in _NO_CLASS else f"shapes of kind {kind}")
                continue
            group = shape.get("group_id")
            key = (name.strip(), where if group is None else f"group {group}")
            parts.setdefault(key, []).append(_mask(shape, kind, size, path, where))
        objects = [Object(key[0], _merge(masks, size)) for key, masks in parts.items()]
        return size, objects

    def _leave_out(self, what: str) -> None:
        if what not in self._left_out:
            self._left_out.add(what)
            self.notes.append(f"labelme's {what}: not used")


def _mask(shape: dict[str, Any], kind: str, size: Size, path: str, where: str) -> Mask:
    points = shape.get("points")
    needed = {"polygon": 3, "rectangle": 2, "circle": 2, "mask": 2}[kind]
    if not isinstance(points, list) or not all(
        isinstance(p, list) and len(p) == 2 and all(map(is_number, p)) for p in points
    ):
        raise failure("polygon-coordinates", path, where, "its points are not pairs of numbers")
    if len(points) < needed:
        problem = f"a {kind} of {len(points)} points"
        raise failure("polygon-empty", path, where, problem, mend="remove the shape")
    if kind == "mask":
        return _decoded(shape, points, size, path, where)
    if kind == "circle":
        (x, y), edge = points[0], points[1]
        radius = math.dist(points[0], edge)
        angles = [2 * math.pi * k / _CORNERS for k in range(_CORNERS)]
        points = [[x + radius * math.cos(a), y + radius * math.sin(a)] for a in angles]
    elif kind == "rectangle" and len(points) == 2:
        (left, top), (right, low) = points
        points = [[left, top], [right, top], [right, low], [left, low]]
    height, width = size
    # a hand may slip beyond the border
    inside = [(min(max(x, 0), width), min(max(y, 0), height)) for x, y in points]
    return [[round(float(value), 2) for point in inside for value in point]]


def _decoded(
    shape: dict[str, Any], points: list[list[float]], size: Size, path: str, where: str
) -> np.ndarray:
    """A mask that is a PNG of the box, whose corners are both within."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as image:
            crop = np.array(image) > 0
    except BROKEN_FILE as error:
        problem = f"its mask cannot be read: {error}"
        raise failure("bad-value", path, where, problem, mend="draw it again") from error
    left, top = (round(min(p[axis] for p in points)) for axis in (0, 1))
    full = np.zeros(size, bool)
    if crop.ndim != 2 or left < 0 or top < 0:
        raise failure("bad-value", path, where, "its mask is no map in the picture", mend="redraw")
    crop = crop[: size[0] - top, : size[1] - left]
    full[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
    return full


def _merge(masks: list[Mask], size: Size) -> Mask:
    if len(masks) == 1:
        return masks[0]
    polygons = [mask for mask in masks if isinstance(mask, list)]
    if len(polygons) == len(masks):
        return [polygon for mask in polygons for polygon in mask]
    return mask_util.merge([encode_segmentation(mask, size) for mask in masks])
