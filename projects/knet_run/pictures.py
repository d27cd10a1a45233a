"""Which pictures are run, and how they are read."""

from __future__ import annotations

import contextlib
import glob
import itertools
import mimetypes
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageOps

with contextlib.suppress(ImportError):  # reads HEIC, if it is installed
    import pillow_heif

    pillow_heif.register_heif_opener()

MAX_PIXELS = 100_000_000


def find_pictures(inputs: Sequence[str]) -> list[Path]:
    """Files, globs and folders as a list of files; ValueError for one that leads to no picture."""
    found: list[Path] = []
    for entry in inputs:
        if Path(entry).is_dir():
            files = sorted(Path(entry).iterdir())
            matches = [file for file in files if _is_read(file)]
            _tell_left_out(entry, set(files) - set(matches))
            problem = "the folder holds no picture that Pillow reads"
        elif Path(entry).exists() or not glob.has_magic(entry):
            matches = [Path(entry)]  # a missing file is reported when its turn comes
        else:
            matches, problem = [Path(p) for p in sorted(glob.glob(entry))], "no file matches"
        if not matches:
            raise ValueError(f"{entry}: {problem}")
        found += matches
    return found


def _is_read(file: Path) -> bool:
    form = Image.registered_extensions().get(file.suffix.lower(), "")
    return form in Image.OPEN and Image.MIME.get(form, "").startswith("image/")


def _tell_left_out(folder: str, files: set[Path]) -> None:
    counts = Counter(file.suffix.lower() for file in files if file.is_file())
    for suffix, count in sorted(counts.items()):
        kind = mimetypes.guess_type(f"x{suffix}")[0] or ""
        if suffix in (".avif", ".heic", ".heif", ".jp2") or kind.startswith(("image/", "video/")):
            reason = "Pillow does not read them here" + " without pillow-heif" * (".hei" in suffix)
            print(f"knet run: {folder}: {count} {suffix} left out: {reason}", file=sys.stderr)


def image_ids(pictures: Sequence[Path]) -> list[int]:
    """COCO ids: the number that is a file's name, others counted on from the highest one."""
    numbers = [int(p.stem) if p.stem.isascii() and p.stem.isdecimal() else None for p in pictures]
    following = itertools.count(max((n for n in numbers if n is not None), default=0) + 1)
    ids: list[int] = []
    taken: set[int] = set()
    for number in numbers:
        ids.append(next(following) if number is None or number in taken else number)
        taken.add(ids[-1])
    return ids


def read_picture(path: Path, max_pixels: int) -> Image.Image:
    """An RGB picture, turned as its EXIF tag says; ValueError if it cannot be read."""
    try:
        return _decode(path, max_pixels)
    except Exception as error:  # Pillow's readers raise anything at broken files
        raise ValueError(
            f"cannot be read as a picture: {str(error) or type(error).__name__}"
        ) from error


def _decode(path: Path, max_pixels: int) -> Image.Image:
    """The header is judged before the rest is decoded."""
    if path.exists() and not path.is_file():
        raise ValueError("it is no regular file")  # a named pipe would wait for its writer
    Image.MAX_IMAGE_PIXELS = None  # the limit is ours
    with Image.open(path) as opened:
        if opened.width * opened.height > max_pixels:
            raise ValueError(
                f"it has {opened.width} x {opened.height} pixels, more than --max-pixels "
                f"{max_pixels}: scale it down, or raise the limit"
            )
        if opened.format == "EPS":
            raise ValueError("it is PostScript, a program to be run")
        # Pillow would clip some of them, and cut the lower bits of others
        kinds = " ".join([opened.mode, *(str(tile[3]) for tile in opened.tile)])
        if re.match("I|F$|F ", kinds) or re.search(";16[BLNS]", kinds):
            raise ValueError("it has more than 8 bits a channel: convert it to 8 bits")
        image = opened
        with contextlib.suppress(Exception):  # broken tags: as it is stored
            image = ImageOps.exif_transpose(opened)
        return image.convert("RGB")
