"""Which pictures of a folder are label maps, and of which picture each."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from knet.data.defects import DataError
from knet.data.formats.split import Item
from knet.data.formats.tree import Tree, part_of, role_of, spread, stem_of
from knet.data.images import BROKEN_FILE, open_image

# what programs add to the name of a label map, or of its picture
_LABEL_ENDS = re.compile(
    r"[_\-. ](?:masks?|labels?|label_?ids|gt|seg|segmentations?|annotations?|annot|anno|l|p|"
    r"ground_?truth|instance_?ids?|classes)$"
)
_IMAGE_ENDS = re.compile(r"[_\-. ](?:images?|img|rgb|sat|photo|leftimg8bit)$")
_STARTS = re.compile(r"^(?:masks?|labels?|gt|seg|images?|img)[_\-. ]")
_EXACT = (".png", ".bmp", ".gif", ".tif", ".tiff", ".pgm", ".ppm")
_MAP_MODES = ("1", "L", "P", "I", "I;16", "I;16B")
_SAMPLE = 10  # headers of a folder

Key = tuple[str, tuple[str, ...], str]  # part, other folders, name


@dataclass(frozen=True)
class Pairs:
    """Pictures with their label maps, pictures without, and maps without picture."""

    items: list[Item]
    bare: list[str]
    lone: list[str]


def find_pairs(tree: Tree) -> Pairs | None:
    """The pairs of a folder; None if no label map can be told from the pictures.

    Label maps are told by the names of their folders, else of the files, else by a second folder of
    the same names whose PNGs have one channel.

    Raises:
        DataError: two maps are of one picture, or two pictures of one name.
    """
    common = os.path.commonpath([os.path.dirname(path) for path in tree.pictures])
    start = len(common) + 1 if common else 0
    labels = [p for p in tree.pictures if _label_folder(p[start:])]
    if not labels:
        labels = _by_name(tree.pictures) or _by_mode(tree)
    chosen = set(labels)
    pictures = [path for path in tree.pictures if path not in chosen]
    if not labels or not pictures:
        return None
    return _pair(tree, pictures, labels, start)


def _label_folder(path: str) -> bool:
    """Whether the last folder that says what it holds says: labels."""
    roles = [role_of(folder) for folder in PurePosixPath(path).parts[:-1]]
    said = [role for role in roles if role]
    return bool(said) and said[-1] == "label"


def _by_name(pictures: Sequence[str]) -> list[str]:
    """Label maps that lie beside their pictures: `a_mask.png`, or `a.png` beside `a.jpg`."""
    stems: dict[str, list[str]] = defaultdict(list)
    for path in pictures:
        stems[stem_of(path).lower()].append(path)
    found = []
    for path in pictures:
        stem = stem_of(path).lower()
        if not path.lower().endswith(_EXACT):
            continue
        ends = _LABEL_ENDS.sub("", stem)
        beside = ends != stem and (ends in stems or _has_image_end(ends, stems))
        if beside or any(not p.lower().endswith(_EXACT) for p in stems[stem]):
            found.append(path)
    return found


def _has_image_end(stem: str, stems: dict[str, list[str]]) -> bool:
    return any(f"{stem}_{end}" in stems for end in ("image", "img", "rgb", "sat"))


def _by_mode(tree: Tree) -> list[str]:
    """The PNGs of folders that have one channel, where others do not."""
    folders: dict[str, list[str]] = defaultdict(list)
    for path in tree.pictures:
        folders[os.path.dirname(path)].append(path)
    maps = [f for f, paths in folders.items() if _are_maps(tree, paths)]
    return [] if len(maps) == len(folders) else [p for folder in maps for p in folders[folder]]


def _are_maps(tree: Tree, paths: list[str]) -> bool:
    for path in spread(paths, _SAMPLE):
        try:
            with open_image(tree.root / path) as image:
                if image.mode not in _MAP_MODES or image.format == "JPEG":
                    return False
        except BROKEN_FILE:  # no label map, then; whoever reads it as a picture will say so
            return False
    return True


def _key(path: str, start: int) -> Key:
    folders = PurePosixPath(path[start:].lower()).parts[:-1]
    others = tuple(f for f in folders if not role_of(f) and not part_of(f"{f}/x"))
    return part_of(path[start:]), others, PurePosixPath(path).stem.lower()


def _pair(tree: Tree, pictures: list[str], labels: list[str], start: int) -> Pairs:
    by_key: dict[Key, str] = {}
    by_stem: dict[str, list[str]] = defaultdict(list)
    twice: set[Key] = set()
    for path in pictures:
        part, others, stem = _key(path, start)
        for name in dict.fromkeys((stem, _IMAGE_ENDS.sub("", stem), _STARTS.sub("", stem))):
            if by_key.setdefault((part, others, name), path) != path and name == stem:
                twice.add((part, others, name))
            by_stem[name].append(path)
    maps: dict[str, str] = {}
    lone = []
    for label in labels:
        picture = _picture_of(_key(label, start), by_key, by_stem, twice)
        if picture is None:
            lone.append(label)
        elif picture in maps:
            raise DataError(
                f"{tree.root}: {maps[picture]} and {label} are both label maps of {picture}; keep "
                f"one (objects that have a file each have to be written into one map)"
            )
        else:
            maps[picture] = label
    items = []
    for picture, label in sorted(maps.items()):
        part = part_of(picture[start:]) or part_of(label[start:])
        items.append(Item(picture, label, part))
    return Pairs(items, [path for path in pictures if path not in maps], lone)


def _picture_of(
    key: Key, by_key: dict[Key, str], by_stem: dict[str, list[str]], twice: set[Key]
) -> str | None:
    part, others, stem = key
    names = (stem, _LABEL_ENDS.sub("", stem), _STARTS.sub("", stem))
    for name in names:
        own = (part, others, name)
        if own in by_key and own not in twice:
            return by_key[own]
    for name in names:  # labels whose folders are arranged in another way
        if len(by_stem.get(name, [])) == 1:
            return by_stem[name][0]
    return None
