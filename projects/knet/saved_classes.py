"""The class names of a predictor's folder, `classes.json`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.data import Metadata

from knet.files import write_json

__all__ = ["read_classes", "write_classes"]


def write_classes(path: str | os.PathLike[str], metadata: Metadata) -> None:
    """Write what a data set's metadata say of its classes; OSError as `knet.files.whole_file`."""
    found = {key: metadata.get(key) for key in _KEYS if metadata.get(key)}
    write_json(path, found, indent=1)


def read_classes(path: str | os.PathLike[str], *, name: str) -> Metadata:
    """The inverse of `write_classes`.

    Args:
        name: of the metadata.

    Raises:
        ValueError: the file was not written by `write_classes`; names file and key.
        OSError: it cannot be read.
    """
    mend = "restore the file, or write the folder again with KNetPredictor.save_pretrained"
    try:
        saved = json.loads(Path(path).read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:  # of bytes, too
        raise ValueError(f"{os.fspath(path)} is no JSON text in UTF-8 ({error}): {mend}") from error
    if not isinstance(saved, dict):
        raise ValueError(f"{os.fspath(path)} is no table of names and colours: {mend}")
    metadata = Metadata(name=name)
    for key, value in saved.items():
        if key not in _KEYS:
            raise ValueError(
                f"{os.fspath(path)}: {key!r} is unknown, not {', '.join(_KEYS)}: {mend}"
            )
        fits, what = _KEYS[key]
        if not fits(value):
            raise ValueError(f"{os.fspath(path)}: {key} is {str(value)[:80]!r}, not {what}: {mend}")
        if key.endswith("contiguous_id"):  # JSON has no numbers for keys
            value = {int(k): v for k, v in value.items()}
        metadata.set(**{key: value})
    return metadata


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _are_colors(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(color, list)
        and len(color) == 3
        and all(type(part) is int and 0 <= part <= 255 for part in color)
        for color in value
    )


def _are_ids(value: Any) -> bool:
    return isinstance(value, dict) and all(
        key.removeprefix("-").isdecimal() and key.isascii() and type(label) is int and label >= 0
        for key, label in value.items()
    )


_KEYS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **{f"{kind}_classes": (_are_names, "a list of names") for kind in ("thing", "stuff")},
    **{
        f"{kind}_colors": (_are_colors, "a list of [red, green, blue], 0 to 255")
        for kind in ("thing", "stuff")
    },
    **{
        f"{kind}_dataset_id_to_contiguous_id": (_are_ids, "a table of whole numbers")
        for kind in ("thing", "stuff")
    },
}
