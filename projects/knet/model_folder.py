"""The folder that holds a whole model: `model.safetensors`, `config.yaml`, `classes.json`."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.data import Metadata

from knet.checkpoint.write_file import digest
from knet.classes import ClassIds
from knet.errors import nearest
from knet.files import read_text, write_json
from knet.zoo.models import MODELS

logger = logging.getLogger(__name__)

_FILES = WEIGHTS, CONFIG, CLASSES = "model.safetensors", "config.yaml", "classes.json"
CARD = "README.md"  # which nothing here reads
_MEND = "restore the file, or write the folder again with KNetPredictor.save_pretrained"


def find_folder(path_or_hub_id: str | os.PathLike[str], revision: str | None) -> Path:
    """A folder with all three files, downloaded once if it is `owner/name` on the Hub.

    Raises:
        FileNotFoundError: there is no such folder, or a file is missing in it.
        ImportError: it would have to be downloaded, and huggingface_hub is not installed.
    """
    folder = Path(path_or_hub_id)
    if not folder.is_dir():
        name = str(path_or_hub_id)
        if name.count("/") != 1 or name.startswith((".", "/", "~")):
            raise FileNotFoundError(
                f"{name} is no folder, no `owner/name` of a model, and no named model; there are "
                f"{nearest(name, MODELS)}"
            )
        try:
            from huggingface_hub import snapshot_download
        except ImportError as error:
            raise ImportError(
                f"{name} is no folder; to download it from the Hugging Face Hub: "
                "pip install huggingface_hub"
            ) from error
        try:
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=[*_FILES]))
        except Exception as error:  # the library has many kinds; each is passed on
            raise FileNotFoundError(
                f"{name} is no folder here, and could not be fetched from the Hugging Face Hub: "
                f"{error}"
            ) from error
    missing = [file for file in _FILES if not (folder / file).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder}: no {', '.join(missing)}; KNetPredictor.save_pretrained writes them"
        )
    return folder


def file_digests(folder: Path) -> dict[str, str]:
    """Digests of config and class names, which the weights beside them keep."""
    # of text: the ends of lines may change on the way
    return {name: digest(read_text(folder / name)) for name in (CONFIG, CLASSES)}


def compare_files(folder: Path, saved: Any) -> None:
    """Say which files are not those that were saved with the weights; they may have been edited."""
    if not isinstance(saved, dict):  # of another program
        return
    for name, value in file_digests(folder).items():
        if saved.get(name, value) != value:
            logger.warning(
                "%s is not as it was saved with the weights: it was edited, or it is damaged",
                folder / name,
            )


def write_classes(path: Path, metadata: Metadata) -> None:
    """Write what a data set's metadata say of its classes; OSError as `knet.files.whole_file`."""
    found = {key: metadata.get(key) for key in _KEYS if metadata.get(key)}
    write_json(path, found, indent=1)


def read_classes(path: Path, *, name: str, ids: ClassIds) -> Metadata:
    """The inverse of `write_classes`.

    Args:
        path: of the file.
        name: of the metadata.
        ids: the labels of the model's classes, which must have names.

    Raises:
        ValueError: the file was not written by `write_classes` for such a model; names file and
            key.
        OSError: it cannot be read.
    """
    try:
        saved = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: no JSON text ({error}): {_MEND}") from error
    if not isinstance(saved, dict):
        raise ValueError(f"{path}: no table of names and colours: {_MEND}")
    metadata = Metadata(name=name)
    for key, value in saved.items():
        if key not in _KEYS:
            raise ValueError(f"{path}: {key!r} is unknown, not {', '.join(_KEYS)}: {_MEND}")
        fits, what = _KEYS[key]
        if not fits(value):
            raise ValueError(f"{path}: {key} is {str(value)[:80]!r}, not {what}: {_MEND}")
        if key.endswith("contiguous_id"):  # JSON has no numbers for keys
            value = {int(k): v for k, v in value.items()}
        metadata.set(**{key: value})
    for key, labels in (("thing_classes", ids.things), ("stuff_classes", ids.stuff)):
        if key in saved and max(labels, default=-1) >= len(saved[key]):
            raise ValueError(
                f"{path}: {key} names {len(saved[key])} classes, but {CONFIG} beside it has the "
                f"label {max(labels)}: {_MEND}"
            )
    return metadata


def _is_list(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(fits, value))


def _is_color(value: Any) -> bool:
    return _is_list(value, lambda v: type(v) is int and 0 <= v <= 255) and len(value) == 3


def _is_id(key: str, label: Any) -> bool:
    number = key.removeprefix("-").isdecimal() and key.isascii()
    return number and type(label) is int and label >= 0


# what the file may hold of thing and stuff classes: a test, and how messages call it
_TESTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "classes": (lambda v: _is_list(v, lambda name: isinstance(name, str)), "a list of names"),
    "colors": (lambda v: _is_list(v, _is_color), "a list of [red, green, blue], 0 to 255"),
    "dataset_id_to_contiguous_id": (
        lambda v: isinstance(v, dict) and all(_is_id(*item) for item in v.items()),
        "a table of whole numbers",
    ),
}
_KEYS = {f"{kind}_{key}": test for key, test in _TESTS.items() for kind in ("thing", "stuff")}
