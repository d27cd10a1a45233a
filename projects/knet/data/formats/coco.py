"""COCO's JSON, instances and panoptic, as COCO, Roboflow, CVAT and Label Studio arrange it."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from knet.data.coco_file import load_json
from knet.data.defects import DataError
from knet.data.formats.found import Found
from knet.data.formats.maps import PaintedSource
from knet.data.formats.objects import Object, ObjectSource, Size, absent_notes, instance_entry
from knet.data.formats.split import Item
from knet.data.formats.tree import Tree, chosen_task, part_of, stem_of
from knet.data.masks import segmentation_errors
from knet.errors import first_of
from knet.files import write_json

NAME, PANOPTIC = "COCO instances", "COCO panoptic"
_MOST_FILES = 50  # JSON files that are opened
_OTHER = re.compile(r"person_keypoints|captions|image_info|stuff_")
Content = dict[str, Any]


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
    annotations = content.get("annotations") or [{}]
    return isinstance(annotations[0], dict) and "segments_info" in annotations[0]


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
    if "" in parts and "train" in parts:
        raise DataError(
            f"{tree.root} holds {parts['train'][0]} and {parts[''][0]}: whether this is for "
            f"training too, no name says; keep one, or call them train and val"
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
        Item(image, path, part_of(path, name=True))
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


def empty_roots(contents: Sequence[Content]) -> list[dict[str, Any]]:
    """Categories without an annotation that are but the supercategory of others: Roboflow's first.

    Args:
        contents: of the files of all parts.
    """
    used = {
        annotation.get("category_id")
        for content in contents
        for annotation in content.get("annotations") or []
        if isinstance(annotation, dict)
    }
    categories = [c for content in contents for c in content["categories"] if isinstance(c, dict)]
    groups = {c.get("supercategory") for c in categories if c.get("supercategory") != c.get("name")}
    return [c for c in categories if c.get("id") not in used and c.get("name") in groups]


class CocoFile:
    """One JSON file, and where its pictures are.

    Attributes:
        images: name in the file → path below the tree's root.
        image_root: their common folder, below the root; None if the names have to be corrected.
        png_root: that of the panoptic PNGs.

    Raises:
        DataError: no picture or PNG that it names is there, or several have the name.
    """

    def __init__(self, tree: Tree, path: str, content: Content, is_panoptic: bool) -> None:
        self.path, self.content, self.tree = path, content, tree
        self.notes: list[str] = []
        entries = [entry for entry in content["images"] if isinstance(entry, dict)]
        names = [str(entry.get("file_name")) for entry in entries]
        self.png_root = ""
        taken = None
        if is_panoptic:
            pngs = [str(a.get("file_name")) for a in content["annotations"] if isinstance(a, dict)]
            hints = (PurePosixPath(path).stem, "panoptic", "label", "mask", "annot")
            taken = _common_root(tree, pngs, path, hints)
            if taken is None:
                raise DataError(f"{tree.root}: none of the PNGs that {path} names lies in a folder")
            self.png_root = taken
        self.image_root = _common_root(tree, names, path, ("image",), other_than=taken)
        if self.image_root is not None:
            self.images = {name: _join(self.image_root, name) for name in names}
            missing = [name for name in names if self.images[name] not in tree]
            if missing:
                text = f"{len(missing)} of {len(names)} pictures that {path} names are missing"
                self.notes.append(f"{text}: {first_of(missing, 3)}")
        else:
            self.images = self._search(names, taken)

    def _search(self, names: list[str], png_root: str | None) -> dict[str, str]:
        """Pictures by their bare names, wherever they are."""
        places: dict[str, list[str]] = defaultdict(list)
        for picture in self.tree.pictures:
            if png_root is None or not picture.startswith(f"{png_root}/"):
                places[PurePosixPath(picture).name].append(picture)
        images, missing = {}, []
        for name in names:
            found = places.get(name.replace("\\", "/").rpartition("/")[2], [])
            part = part_of(self.path, name=True)
            found = [p for p in found if part_of(p) == part] or found
            if len(found) > 1:
                raise DataError(
                    f"{self.tree.root}: {self.path} names {name}, which may be {found[0]} or "
                    f"{found[1]}; write their folders into file_name"
                )
            if found:
                images[name] = found[0]
            else:
                missing.append(name)
        if not images:
            raise DataError(
                f"{self.tree.root}: none of the {len(names)} pictures that {self.path} names is "
                f"there (first {first_of(names, 1)}); put the pictures into the folder"
            )
        if missing:
            text = f"{len(missing)} of {len(names)} pictures that {self.path} names are missing "
            self.notes.append(f"{text}and left out: {first_of(missing, 3)}")
        self.notes.append(f"the names of pictures in {self.path} were corrected to where they are")
        return images


def _join(root: str, name: str) -> str:
    return PurePosixPath(root, name).as_posix()


def _common_root(
    tree: Tree, names: list[str], path: str, hints: tuple[str, ...], other_than: str | None = None
) -> str | None:
    """The folder that the names count from; None if there is not one for most of them."""
    sample = {name for name in names if not name.startswith(("/", ".."))}
    roots: Counter[str] = Counter()
    by_end: dict[str, list[str]] = defaultdict(list)
    for picture in tree.pictures:
        by_end[PurePosixPath(picture).name].append(picture)
    for name in sample:
        for picture in by_end.get(PurePosixPath(name).name, []):
            if picture == name:
                roots[""] += 1
            elif picture.endswith(f"/{name}"):
                roots[picture[: -len(name) - 1]] += 1
    roots.pop(other_than or "\0", None)
    if not roots:
        return None
    part = part_of(path, name=True)

    def worth(root: str) -> tuple[Any, ...]:
        last = PurePosixPath(root).name.lower()
        near = PurePosixPath(root) == PurePosixPath(path).parent
        hint = next((len(hints) - k for k, hint in enumerate(hints) if hint in last), 0)
        return roots[root], part_of(f"{root}/x") == part, hint, near, root

    best = max(roots, key=worth)
    return best if roots[best] > len(set(names)) / 2 else None


class CocoSource(ObjectSource):
    """Entries of the files, which are used as they are where they can be."""

    def __init__(self, tree: Tree, files: dict[str, CocoFile], *, is_panoptic: bool) -> None:
        super().__init__(tree)
        self.files, self.is_panoptic = files, is_panoptic
        self._entries: dict[str, dict[str, tuple[Content, list[Content]]]] = {}

    def _categories(self, paths: Collection[str]) -> dict[str, list[Content]]:
        """path → categories but the empty root, by id."""
        contents = [file.content for file in self.files.values()]
        dropped = [] if self.is_panoptic else empty_roots(contents)
        names = list(dict.fromkeys(str(c["name"]) for c in dropped))
        if names:
            text = "class without an annotation, the heading of the others (as Roboflow writes it)"
            note = f"{first_of(names)}: a {text}, is left out"
            self.notes += [] if note in self.notes else [note]
        found = {}
        for path in paths:
            kept = [c for c in self.files[path].content["categories"] if c not in dropped]
            for category in kept:
                if not isinstance(category, dict) or not {"id", "name"} <= set(category):
                    raise DataError(
                        f"{self.tree.root / path}: category {category} lacks id or name"
                    )
            found[path] = sorted(kept, key=lambda c: c["id"])
        return found

    def class_names(self, items: list[Item]) -> list[str]:
        """Of the categories by id; those of one file may not lack in the other."""
        paths = list(dict.fromkeys(item.label for item in items))
        lists = {p: [str(c["name"]) for c in cs] for p, cs in self._categories(paths).items()}
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
        image, annotations = self._by_image(item.label)[item.image]
        path = str(self.tree.root / item.label)
        size = (int(image["height"]), int(image["width"]))
        names = {c["id"]: str(c["name"]) for c in self._categories([item.label])[item.label]}
        objects = []
        for annotation in annotations:
            where = f"annotation {annotation.get('id')}"
            mask = annotation.get("segmentation")
            errors = segmentation_errors(mask, size, path, where)
            if errors or annotation.get("category_id") not in names:
                raise DataError(errors[0] if errors else f"{path}: {where}: unknown category")
            crowd = bool(annotation.get("iscrowd", 0))
            objects.append(Object(names[annotation["category_id"]], mask, crowd))
        return size, objects

    def _by_image(self, path: str) -> dict[str, tuple[Content, list[Content]]]:
        if path not in self._entries:
            file = self.files[path]
            entries = [e for e in file.content["images"] if e.get("file_name") in file.images]
            by_id = {e["id"]: (e, list[Content]()) for e in entries}
            for annotation in file.content.get("annotations") or []:
                if annotation.get("image_id") in by_id:
                    by_id[annotation["image_id"]][1].append(annotation)
            self._entries[path] = {file.images[e["file_name"]]: by_id[e["id"]] for e in entries}
        return self._entries[path]

    def entry(self, name: str, items: list[Item], classes: list[str], folder: Path) -> dict:
        """The file itself, or a part of it that is written with its names and classes corrected."""
        file = self.files[items[0].label]
        categories = self._categories([file.path])[file.path]
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
        images = [e for e in content["images"] if file.images.get(e.get("file_name")) in chosen]
        if file.image_root is None:
            images = [{**e, "file_name": file.images[e["file_name"]]} for e in images]
        ids = {entry.get("id") for entry in images}
        annotations = [a for a in content.get("annotations") or [] if a.get("image_id") in ids]
        if [c["name"] for c in categories] != classes:  # the other file's order
            by_name = {c["name"]: c for c in categories}
            numbers = {by_name[n]["id"]: k for k, n in enumerate(classes, 1) if n in by_name}
            annotations = [_renumbered(annotation, numbers) for annotation in annotations]
            categories = [
                {**by_name.get(n, {"name": n}), "id": k} for k, n in enumerate(classes, 1)
            ]
        own = {"images": images, "categories": categories, "annotations": annotations}
        return {**{k: content[k] for k in ("info", "licenses") if k in content}, **own}

    def _notes(
        self, name: str, file: CocoFile, categories: list[Content], chosen: set[str]
    ) -> list[str]:
        labels = [
            labels for path, (_, labels) in self._by_image(file.path).items() if path in chosen
        ]
        if self.is_panoptic:
            labels = [[s for a in one for s in a["segments_info"]] for one in labels]
        shown = {label.get("category_id") for one in labels for label in one}
        notes = absent_notes(name, [str(c["name"]) for c in categories if c["id"] not in shown])
        bare = sum(not one for one in labels)
        if bare:
            text = f"{name}: {bare} of {len(labels)} pictures have no annotation"
            notes.append(f"{text}; they show background" if not self.is_panoptic else text)
        return notes


def _renumbered(annotation: Content, numbers: dict[int, int]) -> Content:
    if "segments_info" in annotation:
        segments = [_renumbered(segment, numbers) for segment in annotation["segments_info"]]
        return {**annotation, "segments_info": segments}
    category = annotation.get("category_id")
    # an unknown one is left for the reader to name
    return {**annotation, "category_id": numbers.get(category, category)}  # type: ignore[arg-type]
