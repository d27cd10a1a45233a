"""Which files of a folder are taken, as pictures and as label PNGs."""

from __future__ import annotations

import contextlib
import mimetypes
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image

from knet.data.defects import make_defect, raise_first
from knet.files import UNFINISHED

with contextlib.suppress(ImportError):  # reads HEIC, if it is installed
    import pillow_heif

    pillow_heif.register_heif_opener()

# of the files that are taken from a folder, if Pillow (with its plug-ins) reads them here
SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)
# read by plug-ins of Pillow that register themselves
_PLUGINS = {".heic": "pillow-heif", ".heif": "pillow-heif"}


def is_read(file: str | os.PathLike[str]) -> bool:
    """Whether a file in a folder is taken for a picture, by its name or suffix alone."""
    suffix = f".{os.path.basename(file).rpartition('.')[2]}".lower()  # of a suffix alone, too
    return suffix in SUFFIXES and Image.registered_extensions().get(suffix) in Image.OPEN


def left_out(folder: str | os.PathLike[str], files: Iterable[Path]) -> list[str]:
    """Messages on files whose suffix says picture or video, and which are not read."""
    counts = Counter(f.suffix.lower() for f in files if not is_read(f) and f.is_file())
    messages = []
    for suffix, count in sorted(counts.items()):
        kind = (mimetypes.guess_type(f"x{suffix}")[0] or "").partition("/")[0]
        if kind == "video":
            reason = "videos are given one by one"
        elif suffix in _PLUGINS:
            reason = f"Pillow reads them with a plug-in: pip install {_PLUGINS[suffix]}"
        elif suffix in SUFFIXES:
            reason = "this build of Pillow does not read them"
        elif kind == "image" or suffix in Image.registered_extensions():
            reason = "not taken from folders; convert them to PNG"
        else:
            continue
        messages.append(f"{folder}: {count} {suffix} left out: {reason}")
    return messages


def label_png_paths(root: Path) -> dict[str, Path]:
    """The PNGs below a folder, by relative path without suffix, sorted.

    Raises:
        DataError: if two of them have one name (``a.png`` and ``a.PNG``).
    """
    return by_stem(root, [path for path in files_below(root) if path.suffix.lower() == ".png"])


def by_stem(root: Path, files: Iterable[Path]) -> dict[str, Path]:
    """Files below a folder by relative path without suffix, sorted by it."""
    found: dict[str, Path] = {}
    twice = []
    for path in files:
        stem = path.relative_to(root).with_suffix("").as_posix()
        if stem in found:
            first, second = sorted((found[stem], path))
            problem = f"differs from {first} in its suffix only: both would have the same labels"
            twice.append(make_defect("shared-name", str(second), f"image {stem}", problem))
        found[stem] = path
    raise_first(sorted(twice, key=lambda defect: defect.file))
    return dict(sorted(found.items()))


def files_below(root: Path) -> Iterator[Path]:
    """Files at any depth but hidden ones (macOS writes `._a.jpg` beside `a.jpg`) and left-overs."""
    # Linked folders count: data are often linked into place.
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and UNFINISHED not in name:
                yield Path(folder, name)
