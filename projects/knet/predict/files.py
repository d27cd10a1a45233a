"""Which pictures are read, and which files are written."""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from knet.data.folders import SUFFIXES, is_read, left_out
from knet.errors import UserError


@dataclass
class Found:
    """The picture files that inputs stand for.

    Attributes:
        pictures: in the order of the inputs, each once.
        problems: a message for each file, folder or glob that stands for nothing.
        left_out: a message for each kind of picture or video in a folder that is not taken.
    """

    pictures: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def find_pictures(inputs: Sequence[str]) -> Found:
    """The picture files that files, folders and globs stand for.

    Args:
        inputs: a folder stands for the pictures in it (not in folders below), a glob (``**`` for
            folders at any depth) for the files that match.
    """
    result = Found()
    for name in map(os.path.expanduser, inputs):
        try:
            result.pictures += map(Path, named_files(name))
        except UserError as error:
            result.problems.append(str(error))
        result.left_out += left_out_of(name)
    result.pictures = list(dict.fromkeys(result.pictures))
    return result


def named_files(name: str, is_taken: Callable[[str], bool] = is_read) -> list[str]:
    """The files that a file, folder or glob stands for, sorted.

    Args:
        name: a folder stands for the files in it that are taken, a glob for those that match; one
            that ends with a suffix, as ``*.txt``, for all that do.
        is_taken: whether a file that is not named is, by its name.

    Raises:
        UserError: it stands for none.
    """
    path = Path(name)
    if path.is_dir():
        found = [str(path / file) for file in sorted(os.listdir(path)) if is_taken(file)]
        if not found:
            suffixes = ", ".join(filter(is_read, SUFFIXES))
            raise UserError(f"{name}: no picture in this folder ({suffixes})")
    elif path.exists():
        found = [name]
    elif not glob.has_magic(name):
        raise UserError(f"{name}: there is no such file")
    else:
        suffix = path.suffix.lower()
        found = [
            file
            for file in sorted(glob.glob(name, recursive=True))
            if (is_taken(file) or (suffix and file.lower().endswith(suffix)))
            and os.path.isfile(file)
        ]
        if not found:
            raise UserError(f"{name}: no file matches")
    return found


def left_out_of(name: str) -> list[str]:
    """A message for each kind of picture or video that is not taken from a folder or glob."""
    path = Path(name)
    if path.is_dir():
        return left_out(name, path.iterdir())
    if path.exists() or not glob.has_magic(path.name) or path.suffix:
        return []
    return left_out(name, map(Path, glob.iglob(name, recursive=True)))


def output_files(inputs: Sequence[Path], output: str, *, suffix: str | None = None) -> list[Path]:
    """The file that is written for each input.

    Args:
        inputs: at least one file.
        output: a folder if it exists as one, ends with a slash, has no suffix or there are several
            inputs (it is made if need be; files keep their names); else the one file.
        suffix: of files in a folder; None keeps that of the input, or ``.png`` where no such
            picture can be written.

    Raises:
        UserError: two inputs have one output, an input would be overwritten, pictures cannot be
            written with this suffix, or the folder cannot be written.
    """
    path = Path(os.path.expanduser(output))
    is_folder = output.endswith(("/", os.sep)) or path.is_dir() or not path.suffix
    if is_folder or len(inputs) > 1:
        if path.is_file():
            raise UserError(
                f"--output {output} is a file, and there are {len(inputs)} inputs: name a folder"
            )
        files = [path / _name(file, suffix) for file in inputs]
    else:
        if suffix is None and not _can_write(path.suffix):
            raise UserError(f"--output {output}: no picture format has the suffix {path.suffix}")
        files = [path]
    for file, source in zip(files, inputs):
        if file.exists() and source.exists() and file.samefile(source):
            raise UserError(f"--output {output} would overwrite the input {source}")
    _require_unique(files, inputs, "--output")
    writable_folder(files[0].parent, "--output")
    return files


def require_unique_stems(inputs: Sequence[Path], flag: str) -> None:
    """Raise UserError if two files differ in folder or suffix only."""
    _require_unique([file.stem for file in inputs], inputs, flag)


def writable_folder(folder: str | os.PathLike[str], flag: str) -> Path:
    """The folder, made if need be.

    Raises:
        UserError: it cannot be made, or nothing can be written in it.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):  # permissions alone do not tell
            pass
    except OSError as error:
        raise UserError(f"{flag}: {path} cannot be written: {error.strerror}") from error
    return path


def _name(file: Path, suffix: str | None) -> str:
    if suffix is None and _can_write(file.suffix):
        return file.name
    return file.stem + (suffix or ".png")


def _can_write(suffix: str) -> bool:
    return Image.registered_extensions().get(suffix.lower()) in Image.SAVE


def _require_unique(outputs: Sequence[object], inputs: Sequence[Path], flag: str) -> None:
    first: dict[object, Path] = {}
    for output, source in zip(outputs, inputs):
        if output in first:
            raise UserError(
                f"{flag}: the results of {first[output]} and {source} would have one name; "
                "take one folder at a time"
            )
        first[output] = source
