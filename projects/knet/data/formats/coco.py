"""COCO's JSON, instances and panoptic, as COCO, Roboflow, CVAT and Label Studio arrange it."""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

from knet.data.coco_file import load_json
from knet.data.defects import DataError, failure
from knet.data.formats.coco_files import CocoFile, Content, empty_roots
from knet.data.formats.found import Found
from knet.data.formats.maps import PaintedSource
from knet.data.formats.objects import Object, ObjectSource, Size, absent_notes, instance_entry
from knet.data.formats.split import Item
from knet.data.formats.tree import Tree, chosen_task, part_of
from knet.data.masks import segmentation_errors
from knet.errors import first_of
from knet.files import write_json

NAME, PANOPTIC = "COCO instances", "COCO panoptic"
_MOST_FILES = 50  # JSON files that are opened
_OTHER = re.compile(r"person_keypoints|captions|image_info|stuff_")


def find(tree: Tree, task: str | None) -> Found | None:
    """The folder as one of these formats; None if it is not."""
    contents = _contents(tree)
    panoptic = {p: c for p, c in contents.items() if _is_panoptic(c)}
    instances = {p: c for p, c in contents.items() if p not in panoptic}
    if not contents:
        return None
    if panoptic and (task != "instance" or not instances):
        return _found(tree, panoptic, task, is_panoptic=True)
    return _found(tree, instances, task, is_panoptic=False)


def _contents(tree: Tree) -> dict[str, Content]:
    """path → content of COCO's files."""
    stems = {PurePosixPath(path).stem for path in tree.pictures}
    paths = [p for p in tree.ending(".json") if PurePosixPath(p).stem not in stems]
    contents = {}
    for path in paths[:_MOST_FILES]:
        if _OTHER.search(PurePosixPath(path).name):
            continue
        try:
            content = load_json(str(tree.root / path))
        except DataError as error:
            if re.search(r"coco|instances|panoptic|annotations|result", path.lower()):
                raise DataError(str(error)) from error
            continue  # another program's
        if isinstance(content.get("images"), list) and isinstance(content.get("categories"), list):
            contents[path] = content
    return contents


def _is_panoptic(content: Content) -> bool:
    annotations = content.get("annotations")
    first = annotations[0] if isinstance(annotations, list) and annotations else None
    return isinstance(first, dict) and "segments_info" in first


def _found(
    tree: Tree, contents: dict[str, Content], task: str | None, *, is_panoptic: bool
) -> Found:
    parts: dict[str, list[str]] = defaultdict(list)
    for path in contents:
        parts[part_of(path, name=True)].append(path)
    for part, paths in parts.items():
        if len(paths) > 1:
            raise DataError(
                f"{tree.root} holds several COCO files {f'for {part}' if part else 'of no part'} "
                f"({first_of(paths)}); keep one, or call them train and val"
            )
    if len(contents) > 1 and ("" in parts) == ("train" in parts):
        raise DataError(
            f"{tree.root} holds the COCO files {first_of(list(contents))}: which of them is for "
            f"training, no name says; keep one, or call them train and val"
        )
    files = {path: CocoFile(tree, path, c, is_panoptic) for path, c in contents.items()}
    form = PANOPTIC if is_panoptic else NAME
    if not is_panoptic:
        _check_masks(tree, contents)
    source: Any = CocoSource(tree, files, is_panoptic=is_panoptic)
    possible = ("panoptic", "instance", "semantic") if is_panoptic else ("instance", "semantic")
    chosen = chosen_task(task, possible, f"{tree.root}: {form}")
    if chosen == "semantic" and not is_panoptic:
        source = PaintedSource(source)
    items = [
        Item(image, path, part_of(path, name=True) or part_of(image))
        for path, file in files.items()
        for image in dict.fromkeys(file.images.values())
    ]
    where = first_of(list(files))
    notes = [f"{tree.root} was taken for {form}: {len(items)} pictures in {where}"]
    for file in files.values():
        notes += file.notes
    return Found(form, chosen, items, source, notes)


def _check_masks(tree: Tree, contents: dict[str, Content]) -> None:
    annotations = [
        annotation
        for content in contents.values()
        for annotation in content.get("annotations") or []
        if isinstance(annotation, dict)
    ]
    if annotations and not any(annotation.get("segmentation") for annotation in annotations):
        raise DataError(
            f"{tree.root}: {len(annotations)} annotations in {first_of(list(contents))} have boxes "
            f"only; K-Net learns from masks: export polygons or RLE"
        )


class CocoSource(ObjectSource):
    """Entries of the files, which are used as they are where they can be."""

    def __init__(self, tree: Tree, files: dict[str, CocoFile], *, is_panoptic: bool) -> None:
        super().__init__(tree)
        self.files, self.is_panoptic = files, is_panoptic
        self._annotations: dict[str, dict[str, list[Content]]] = {}

    @functools.cached_property
    def _categories(self) -> dict[str, list[Content]]:
        """path → categories but the empty root, by id."""
        contents = [file.content for file in self.files.values()]
        dropped = [] if self.is_panoptic else empty_roots(contents)
        names = list(dict.fromkeys(str(c["name"]) for c in dropped))
        if names:
            text = "class without an annotation, the heading of the others (as Roboflow writes it)"
            self.notes.append(f"{first_of(names)}: a {text}, is left out")
        return {
            path: sorted(
                (c for c in file.content["categories"] if c not in dropped), key=lambda c: c["id"]
            )
            for path, file in self.files.items()
        }

    def class_names(self, items: list[Item]) -> list[str]:
        """Of the categories by id; those of one file may not lack in the other."""
        paths = list(dict.fromkeys(item.label for item in items))
        lists = {path: [str(c["name"]) for c in self._categories[path]] for path in paths}
        first = lists[paths[0]]
        for path in paths[1:]:
            unknown = [name for name in lists[path] if name not in first]
            if unknown:
                raise DataError(
                    f"{self.tree.root}: {path} has other classes than {paths[0]}: "
                    f"{first_of(unknown)}; give all files the same categories"
                )
        return first

    def objects(self, item: Item) -> tuple[Size, list[Object]]:
        """As of :class:`ObjectSource`, from the file."""
        annotations = self._by_image(item.label)[item.image]
        path = str(self.tree.root / item.label)
        size = self.tree.size(item.image)
        names = {c["id"]: str(c["name"]) for c in self._categories[item.label]}
        objects = []
        for annotation in annotations:
            where = f"annotation {annotation.get('id')}"
            mask: Any = annotation.get("segmentation")
            errors = segmentation_errors(mask, size, path, where)
            if errors or annotation.get("category_id") not in names:
                raise DataError(errors[0] if errors else f"{path}: {where}: unknown category")
            crowd = bool(annotation.get("iscrowd", 0))
            objects.append(Object(names[annotation["category_id"]], mask, crowd))
        return size, objects

    def _by_image(self, path: str) -> dict[str, list[Content]]:
        """picture → its annotations in a file."""
        if path not in self._annotations:
            file = self.files[path]
            by_id: dict[Any, list[Content]] = {e["id"]: [] for e in file.content["images"]}
            for annotation in file.content["annotations"]:
                if annotation["image_id"] in by_id:
                    by_id[annotation["image_id"]].append(annotation)
            names = {file.images[e["file_name"]]: e["id"] for e in file.content["images"]}
            self._annotations[path] = {name: by_id[key] for name, key in names.items()}
        return self._annotations[path]

    def entry(self, name: str, items: list[Item], classes: list[str], folder: Path) -> dict:
        """The file itself, or a part of it that is written with its names and classes corrected."""
        file = self.files[items[0].label]
        categories = self._categories[file.path]
        chosen = {item.image for item in items}
        whole = chosen == set(file.images.values()) and file.image_root is not None
        same = [c["name"] for c in categories] == classes
        path = self.tree.root / file.path
        unchanged = whole and same and len(categories) == len(file.content["categories"])
        self.notes += self._notes(name, file, categories, chosen)
        if not unchanged:
            path = folder / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, self._subset(file, categories, classes, chosen))
            self.notes.append(f"{path}: written, {len(items)} pictures of {file.path}")
        image_root = self.tree.root
        if file.image_root is not None:
            image_root = image_root / file.image_root
        if not self.is_panoptic:
            return instance_entry(name, image_root, path)
        return {
            "NAME": name,
            "FORMAT": "coco_panoptic",
            "IMAGE_ROOT": str(image_root),
            "PANOPTIC_ROOT": str(self.tree.root / file.png_root),
            "PANOPTIC_JSON": str(path),
        }

    def _subset(
        self, file: CocoFile, categories: list[Content], classes: list[str], chosen: set[str]
    ) -> Content:
        """The content of a file for some pictures; ids of the classes as in the training's file."""
        content = file.content
        images = [e for e in content["images"] if file.images.get(e["file_name"]) in chosen]
        if file.image_root is None:
            images = [{**e, "file_name": file.images[e["file_name"]]} for e in images]
        ids = {entry["id"] for entry in images}
        annotations = [a for a in content["annotations"] if a["image_id"] in ids]
        if [c["name"] for c in categories] != classes:  # the other file's order
            by_name = {c["name"]: c for c in categories}
            numbers = {by_name[n]["id"]: k for k, n in enumerate(classes, 1) if n in by_name}
            where = str(self.tree.root / file.path)
            if self.is_panoptic and len(numbers) < len(classes):  # things or not, nobody says
                lacking = first_of([n for n in classes if n not in by_name])
                raise DataError(f"{where} lacks {lacking}; give both files the same categories")
            annotations = [_renumbered(annotation, numbers, where) for annotation in annotations]
            categories = [
                {**by_name.get(n, {"name": n}), "id": k} for k, n in enumerate(classes, 1)
            ]
        own = {"images": images, "categories": categories, "annotations": annotations}
        return {**{k: content[k] for k in ("info", "licenses") if k in content}, **own}

    def _notes(
        self, name: str, file: CocoFile, categories: list[Content], chosen: set[str]
    ) -> list[str]:
        labels = [labels for path, labels in self._by_image(file.path).items() if path in chosen]
        if self.is_panoptic:
            labels = [[s for a in one for s in a["segments_info"]] for one in labels]
        shown = {label.get("category_id") for one in labels for label in one}
        notes = absent_notes(name, [str(c["name"]) for c in categories if c["id"] not in shown])
        crowds = sum(label.get("iscrowd") == 1 for one in labels for label in one)
        if crowds:
            notes.append(f"{name}: crowds (iscrowd 1), which are not learned: {crowds}")
        bare = sum(not one for one in labels)
        if bare:
            text = f"{name}: pictures without an annotation: {bare} of {len(labels)}"
            notes.append(f"{text}; they show background" if not self.is_panoptic else text)
        return notes


def _renumbered(annotation: Content, numbers: dict[int, int], path: str) -> Content:
    if "segments_info" in annotation:
        segments = [_renumbered(segment, numbers, path) for segment in annotation["segments_info"]]
        return {**annotation, "segments_info": segments}
    category: Any = annotation.get("category_id")
    if category not in numbers:
        where = f"annotation {annotation.get('id')}"
        raise failure("unknown-category", path, where, f"category_id {category!r} is unknown")
    return {**annotation, "category_id": numbers[category]}
