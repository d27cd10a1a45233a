"""The files below a folder, listed once, and what the names of its sub-folders say."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from knet.data.defects import DataError
from knet.data.folders import files_below, is_read
from knet.data.images import read_header
from knet.errors import UserError, first_of

_PART = re.compile(
    r"(?<![a-z])(train|val|test)(?:ing|id|idation)?(?=$|[^a-z]|annot|label|mask|image|img|gt|seg)"
)
_LABEL = re.compile(
    r"label|mask|annot|ground.?truth|segment|semantic|instance|(?<![a-z])(?:gt|segs?)(?![a-z])"
)
_IMAGE = re.compile(
    r"image|img|photo|picture|leftimg8bit|(?<![a-z])(?:rgb|frames?|inputs?|originals?)(?![a-z])"
)


def part_of(path: str, *, name: bool = False) -> str:
    """``train``, ``val`` or ``test``, as the first folder of a path says, or ``""``.

    Args:
        path: relative, with ``/``.
        name: whether the file's own name counts, after its folders.
    """
    folders = PurePosixPath(path).parts if name else PurePosixPath(path).parts[:-1]
    for folder in folders:
        found = _PART.search(folder.lower())
        if found:
            return found[1]
    return ""


def role_of(folder: str) -> str:
    """``label`` or ``image``, if the name of one folder says what it holds, or ``""``."""
    text = _PART.sub("", folder.lower())
    return "label" if _LABEL.search(text) else "image" if _IMAGE.search(text) else ""


def stem_of(path: str) -> str:
    """A relative path without suffix."""
    return PurePosixPath(path).with_suffix("").as_posix()


class Tree:
    """A folder's files at any depth, hidden ones left out, as sorted paths relative to it.

    Args:
        root: the folder.

    Raises:
        UserError: there is no such folder, or no file in it.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(os.path.abspath(os.path.expanduser(root)))
        if not self.root.is_dir():
            what = "is a file, not a folder" if self.root.exists() else "there is no such folder"
            raise UserError(f"{root}: {what}; name the folder of a data set")
        self.files = sorted(
            path.relative_to(self.root).as_posix() for path in files_below(self.root)
        )
        if not self.files:
            raise UserError(f"{root} holds no file; name the folder of a data set")
        self.pictures = [path for path in self.files if is_read(path)]
        self._all = set(self.files)

    def __contains__(self, path: str) -> bool:
        return path in self._all

    def ending(self, *suffixes: str) -> list[str]:
        """The files with one of these suffixes, in small letters with dot."""
        return [path for path in self.files if PurePosixPath(path).suffix.lower() in suffixes]

    def named(self, names: Iterable[str]) -> list[str]:
        """The files with one of these names, those near the top first."""
        wanted = set(names)
        found = [path for path in self.files if PurePosixPath(path).name.lower() in wanted]
        return sorted(found, key=lambda path: path.count("/"))

    def content(self) -> str:
        """What is there, by suffix: ``12 .jpg, 11 .txt``."""
        counts = Counter(PurePosixPath(path).suffix.lower() or "other" for path in self.files)
        return first_of([f"{count} {suffix}" for suffix, count in counts.most_common()])

    def size(self, picture: str) -> tuple[int, int]:
        """(H, W) in pixels of a picture, from its header, turned as its EXIF tag says.

        Raises:
            DataError: it is missing or no picture.
        """
        return read_header({"file_name": str(self.root / picture)}).size


def spread(items: list[str], most: int) -> list[str]:
    """At most so many of a list, spread evenly over it."""
    step = max(1, -(-len(items) // most))
    return items[::step]


def chosen_task(task: str | None, possible: tuple[str, ...], what: str) -> str:
    """The task that is asked for, by default the first that is possible.

    Raises:
        DataError: it is not possible.
    """
    if task is None or task in possible:
        return task or possible[0]
    raise DataError(
        f"{what} do for {' or '.join(possible)} segmentation, not for {task}: choose another "
        f"task, or another folder"
    )
