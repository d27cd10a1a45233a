"""Recognises what a folder of data is, from its files."""

from __future__ import annotations

import os
from collections.abc import Callable

from knet.data.defects import DataError
from knet.data.formats import cityscapes, coco, label_pngs, labelme, voc, yolo
from knet.data.formats.found import Found
from knet.data.formats.tree import Tree
from knet.errors import UserError

__all__ = ["recognise"]

TASKS = ("instance", "panoptic", "semantic")
_Find = Callable[[Tree, str | None], Found | None]
# told by their folders, whatever else lies there: converted annotations, say
_TREES: tuple[_Find, ...] = (cityscapes.find, voc.find)
# that a folder cannot be at once; label maps are in folders of these formats, too
_FORMATS: tuple[_Find, ...] = (coco.find, yolo.find, labelme.find)
_KNOWN = (
    "COCO instances or panoptic (JSON), YOLO segmentation (data.yaml and labels/*.txt), labelme "
    "JSON, Pascal VOC, Cityscapes' tree, and pictures with label PNGs, instance-id PNGs or colour "
    "masks of the same names"
)


def recognise(
    folder: str | os.PathLike[str],
    val: str | os.PathLike[str] | None = None,
    task: str | None = None,
) -> Found:
    """Recognises the format of a folder, whatever its arrangement.

    Of pictures no more than headers are read, and of label maps a sample. Nothing is written.

    Args:
        folder: of pictures and labels, with parts for training and validation or without.
        val: another folder, for validation; of the same format, with the same classes.
        task: ``instance``, ``panoptic`` or ``semantic``; None: what the labels are made for. Where
            label maps may hold classes or objects it decides, whatever their numbers look like.

    Returns:
        The format, the task and sentences on what was assumed; ``prepare(output)`` makes two data
        sets of it.

    Raises:
        UserError: there is no such folder, no file in it, or no such task.
        DataError: it is none of the formats, several at once, or labels do not do for the task;
            the message says what was found and what would be recognised.
    """
    if task is not None and task not in TASKS:
        raise UserError(f"the task is {task!r}; it must be {', '.join(TASKS)}, or not given")
    found = _recognise(Tree(folder), task)
    if val is not None:
        other = _recognise(Tree(val), found.task)
        if other.format != found.format:
            raise DataError(
                f"{found.root} is {found.format}, but {other.root}, for validation, is "
                f"{other.format}; give both the same format"
            )
        found.val = other
        found.notes += other.notes
    return found


def _recognise(tree: Tree, task: str | None) -> Found:
    for find in _TREES:
        found = find(tree, task)
        if found is not None:
            return found
    matches, errors = [], []
    for find in _FORMATS:
        try:
            found = find(tree, task)
        except DataError as error:
            errors.append(error)
            continue
        if found is not None:
            matches.append(found)
    if len(matches) > 1:
        names = " and ".join(found.format for found in matches)
        raise DataError(
            f"{tree.root} is {names} at once; name a folder that holds the labels of one format"
        )
    if matches:
        return matches[0]
    if errors:
        raise errors[0]
    found = label_pngs.find(tree, task)
    if found is not None:
        return found
    pictures = len(tree.pictures)
    what = f"{pictures} pictures and no labels that are known" if pictures else "no picture"
    raise DataError(f"{tree.root} holds {what} ({tree.content()}); recognised are {_KNOWN}")
