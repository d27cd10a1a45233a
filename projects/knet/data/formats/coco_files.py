"""One COCO JSON of a folder: whether it is one, and where its pictures and PNGs are."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from knet.data.coco_file import (
    IMAGE_RULES,
    Rules,
    check_keys,
    check_values,
    entries,
    is_id,
    is_text,
)
from knet.data.defects import DataError, Defects, raise_first
from knet.data.formats.tree import Tree, part_of
from knet.errors import first_of

Content = dict[str, Any]


_TEXT = (lambda value: value is None or is_text(value), "a text")
_SEGMENTS = (
    lambda value: isinstance(value, list) and all(isinstance(v, dict) for v in value),
    "a list of objects",
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


def check_entries(path: str, content: Content, is_panoptic: bool) -> None:
    """Raises DataError for what lacks the keys that are used here; the rest is the reader's."""
    needed = {
        "images": ("id", "file_name"),
        "categories": ("id", "name"),
        "annotations": ("image_id", "file_name", "segments_info") if is_panoptic else ("image_id",),
    }
    content.setdefault("annotations", [])
    number = (is_id, "a whole number")
    text = {"file_name": IMAGE_RULES["file_name"], "image_id": IMAGE_RULES["id"]}
    for key, keys in needed.items():
        rules: Rules = {**text, "segments_info": _SEGMENTS, "category_id": number}
        if key == "images":
            rules = {**text, "id": IMAGE_RULES["id"]}
        elif key == "categories":
            rules = {"id": number, "name": (is_text, "a text"), "supercategory": _TEXT}
        found = Defects(path)
        for position, entry in entries(content, key, found):
            at = found.at(f"{key}[{position}]")
            check_keys(entry, keys, at)
            check_values(entry, rules, at)
            found += at
        raise_first(found)


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
        check_entries(str(tree.root / path), content, is_panoptic)
        names = [entry["file_name"] for entry in content["images"]]
        self.png_root = ""
        taken = None
        if is_panoptic:
            pngs = [annotation["file_name"] for annotation in content["annotations"]]
            hints = (PurePosixPath(path).stem, "panoptic", "label", "mask", "annot")
            taken = _common_root(tree, pngs, path, hints)
            if taken is None:
                raise DataError(f"{tree.root}: none of the PNGs that {path} names lies in a folder")
            self.png_root = taken
        self.image_root = _common_root(tree, names, path, ("image",), other_than=taken)
        start = self.image_root or ""
        rest = [name for name in names if _join(start, name) not in tree]
        elsewhere = self._search(rest, taken) if rest else {}
        missing = [name for name in rest if name not in elsewhere]
        if len(missing) == len(names) > 0:
            raise DataError(
                f"{tree.root}: none of the {len(names)} pictures that {path} names is there "
                f"(first {names[0]}); put the pictures into the folder"
            )
        if elsewhere:
            self.image_root = None
            text = f"the names of {len(elsewhere)} pictures in {path} were corrected"
            self.notes.append(f"{text} to where they are")
        if missing:
            text = f"{len(missing)} of {len(names)} pictures that {path} names are missing"
            self.notes.append(f"{text}: {first_of(missing, 3)}")
        self.images = {name: elsewhere.get(name) or _join(start, name) for name in names}

    def _search(self, names: list[str], png_root: str | None) -> dict[str, str]:
        """Pictures by their bare names, wherever they are."""
        places: dict[str, list[str]] = defaultdict(list)
        for picture in self.tree.pictures:
            if png_root is None or not picture.startswith(f"{png_root}/"):
                places[PurePosixPath(picture).name].append(picture)
        images, part = {}, part_of(self.path, name=True)
        for name in names:
            found = places.get(name.replace("\\", "/").rpartition("/")[2], [])
            found = [p for p in found if part_of(p) == part] or found
            if len(found) > 1:
                raise DataError(
                    f"{self.tree.root}: {self.path} names {name}, which may be {found[0]} or "
                    f"{found[1]}; write their folders into file_name"
                )
            if found:
                images[name] = found[0]
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
