"""Reads a semantic data set: pictures and label PNGs, paired by name or by a file of pairs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from knet.data.defects import DataError, Defect, failure, make_defect
from knet.data.folders import SUFFIXES, by_stem, files_below, is_read, label_png_paths, left_out
from knet.data.images import read_header
from knet.data.on_error import Scan
from knet.data.progress import progressing
from knet.files import read_text


@dataclass(frozen=True)
class Pairing:
    """Pictures and label PNGs of one relative path without suffix."""

    pairs: list[tuple[str, Path, Path]]  # (that path, picture, label PNG) of each, sorted
    defects: list[Defect]  # one for each file without a counterpart
    error: DataError | None  # for all of these, if there are any
    left_out: list[str]  # a message for each kind of picture that is not read


def pair_images_with_labels(image_root: Path, sem_seg_root: Path, where: str) -> Pairing:
    """Pairs pictures and label PNGs by their relative paths without suffix.

    Raises:
        ValueError: if one folder holds the other; a DataError if there is no picture, or two
            files of one folder have one name.
    """
    images_at, labels_at = image_root.resolve(), sem_seg_root.resolve()
    if images_at == labels_at or images_at in labels_at.parents or labels_at in images_at.parents:
        raise ValueError(
            f"{where}: pictures ({image_root}) and labels ({sem_seg_root}) must be in two "
            f"folders, neither of them within the other"
        )
    files = list(files_below(image_root))
    images = by_stem(image_root, filter(is_read, files))
    unread = left_out(image_root, files)
    if not images:
        problem = "; ".join([f"{where}: no picture below {image_root}", *unread])
        suffixes = ", ".join(filter(is_read, SUFFIXES))
        mend = f"put pictures there ({suffixes}), or correct the folder"
        raise failure("no-images", str(image_root), "", problem, mend=mend)
    labels = label_png_paths(sem_seg_root)
    bare = {stem: path for stem, path in images.items() if stem not in labels}
    lone = {stem: path for stem, path in labels.items() if stem not in images}
    defects: list[Defect] = []
    problems = []
    for stem, path in bare.items():
        problem = f"no label PNG of this name below {sem_seg_root}"
        defects.append(make_defect("png-missing", str(path), f"image {stem}", problem))
    for stem, path in lone.items():
        problem = "; ".join([f"no picture of this name below {image_root}", *unread])
        defects.append(make_defect("orphan-annotation", str(path), f"image {stem}", problem))
    if bare:
        problems.append(f"{len(bare)} without a label PNG below {sem_seg_root}: {_first(bare)}")
    if lone:
        text = f"{len(lone)} label PNGs without a picture below {image_root}: {_first(lone)}"
        problems.append(text)
    error = None
    if defects:
        counts = f"{where}: of {len(images)} pictures and {len(labels)} label PNGs"
        text = f"{counts}, {'; '.join(problems + unread)}"
        mend = "a label PNG has the relative path of its picture, but for the suffix (city/a.jpg "
        mend += "and city/a.png)"
        error = DataError(make_defect(defects[0].kind, defects[0].file, "", text, mend=mend))
    pairs = [(stem, path, labels[stem]) for stem, path in images.items() if stem in labels]
    return Pairing(pairs, defects, error, unread)


def read_pairs(pairs_file: Path, image_root: Path, sem_seg_root: Path, where: str) -> Pairing:
    """The pairs that a file lists, one a line: picture, _, label PNG, relative to the folders.

    The files themselves are looked for when they are read.

    Raises:
        ValueError: a DataError if a line is no pair, a picture comes twice (but for the suffix), or
            there is no pair; or the file is not UTF-8.
    """
    file, found = str(pairs_file), dict[str, tuple[Path, Path]]()
    for number, line in enumerate(read_text(pairs_file).splitlines(), start=1):
        picture, _, label = line.partition("\t")
        if not line.strip():
            continue
        if not picture or not label or "\t" in label:
            problem = f"{line!r} is no pair"
            mend = "write the path of a picture, a tab, and the path of its label PNG"
            raise failure("bad-value", file, f"line {number}", problem, mend=mend)
        stem = Path(picture).with_suffix("").as_posix()
        if stem in found:
            problem = f"{stem} is also that of {found[stem][0]}: a picture's name, without suffix, "
            problem += "is its id"
            raise failure("shared-name", file, f"line {number}", problem)
        found[stem] = (image_root / picture, sem_seg_root / label)
    if not found:
        raise failure("no-images", file, "", f"{where}: it lists no pair", mend="list one a line")
    pairs = [(stem, *paths) for stem, paths in sorted(found.items())]
    return Pairing(pairs, [], None, [])


def scan_sem_seg(pairing: Pairing, max_images: int | None) -> Scan:
    """Reads the records of a semantic data set.

    Args:
        pairing: of its pictures and labels.
        max_images: only the first so many are read; None: all.

    Returns:
        One dict a pair: ``file_name``, ``image_id`` (the relative path without suffix), ``height``
        and ``width`` (from the picture's header) and ``sem_seg_file_name``.
    """
    defects, lost = [*pairing.defects], len(pairing.defects)
    records: list[dict[str, Any]] = []
    pairs = pairing.pairs[:max_images]
    for stem, image, label in progressing(pairs, "reading headers", "pictures"):
        record: dict[str, Any] = {"file_name": str(image), "image_id": stem}
        try:
            # Detectron2 turns pictures as their EXIF tag says.
            height, width = read_header(record).size
        except DataError as error:
            defects += error.defects
            lost += 1
            continue
        record.update(height=height, width=width, sem_seg_file_name=str(label))
        records.append(record)
    return Scan(records, lost=lost, defects=defects)


def _first(files: dict[str, Path]) -> str:
    return ", ".join(map(str, list(files.values())[:3])) + (", …" if len(files) > 3 else "")
