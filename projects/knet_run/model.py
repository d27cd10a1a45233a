"""An exported model: a picture in, results by name out, as its description says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from knet_run.pictures import MAX_PIXELS
from knet_run.runtimes import open_runtime

# of the description; a later one may mean something else
_FORMAT = 1
# the outputs that each result is drawn from
OUTPUTS = {
    "panoptic": ["panoptic_ids", *(f"segment_{c}" for c in ("ids", "classes", "isthing", "scores",
                                                            "areas"))],
    "instance": [f"instance_{c}" for c in ("scores", "classes", "masks", "boxes")],
    "semantic": ["semantic_classes"],
}  # fmt: skip
# what is needed of the metadata: a table, a list of any or of a fixed length, the values
_METADATA = {
    "results": [set(OUTPUTS)],
    "input": {
        "name": {"image", "picture"},
        "dtype": {"uint8", "float32"},
        "channel_order": {"RGB", "L"},
        "contrast_cutoff": float,
        "least_size": range(1, 2**31),
        "resize": {"short_side": range(2**31), "max_long_side": range(1, 2**31)},
    },
    "classes": [
        {"id": range(2**31), "dataset_id": range(-(2**31), 2**31), "name": str, "isthing": bool,
         "color": (range(256),) * 3}
    ],
}  # fmt: skip


class Model:
    """An exported file with its description; ValueError naming the file if it is none.

    `devices` and `threads` are those of `open_runtime`; `max_pixels` is the limit of a picture,
    also once it has the model's size.
    """

    def __init__(
        self,
        path: str,
        devices: Sequence[str] | None = None,
        *,
        threads: int | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.runtime = open_runtime(path, devices=devices, threads=threads)
        self.path, self.max_pixels = path, max_pixels
        if self.runtime.metadata is None:
            raise ValueError(f"{path} was not written by knet export: no metadata 'knet'")
        self.info = _read_metadata(path, self.runtime.metadata)
        self.takes_pictures = self.info["input"]["name"] == "picture"
        wanted = {"picture"} if self.takes_pictures else {"image", "output_size"}
        needed = {name for result in self.info["results"] for name in OUTPUTS[result]}
        missing = wanted - set(self.runtime.inputs) | needed - set(self.runtime.outputs)
        self._shape = self.runtime.inputs.get(self.info["input"]["name"], [])
        if missing or len(self._shape) != (3 if self.takes_pictures else 4):
            raise ValueError(
                f"{path}: the graph does not fit its metadata 'knet', it lacks "
                f"{', '.join(sorted(missing)) or 'an image of four axes'}: export the model again"
            )
        self.classes = {entry["id"]: entry for entry in self.info["classes"]}

    def __call__(self, image: Image.Image) -> dict[str, np.ndarray]:
        """Results of an RGB picture at its own size, by the names of the outputs.

        ValueError if it is too small or too large for the model, or the runtime fails.
        """
        size = (image.height, image.width)
        height, width = self.input_size(*size)
        if height * width > self.max_pixels:
            raise ValueError(
                f"the model wants it as {width} x {height} pixels ({self.path}: resize), more than "
                f"--max-pixels {self.max_pixels}"
            )
        feeds = self._feeds(image, height, width)
        try:
            results = self.runtime.run(feeds)
        except Exception as error:  # the library's own kinds have no common base
            raise ValueError(f"{self.path} fails: {error}") from error
        for result in self.info["results"]:
            name = "segment_classes" if result == "panoptic" else f"{result}_classes"
            unknown = set(np.unique(results[name]).tolist()) - set(self.classes)
            if unknown:
                raise ValueError(
                    f"{self.path}: its metadata 'knet' describe no classes {sorted(unknown)}, "
                    "which the model gives: export the model again"
                )
        return results

    def _feeds(self, image: Image.Image, height: int, width: int) -> dict[str, np.ndarray]:
        if self.takes_pictures:
            return {"picture": np.array(image.convert("RGB"))}
        order, dtype = self.info["input"]["channel_order"], self.info["input"]["dtype"]
        # grey and contrast before it is resized, as in training
        sized = image.convert("L" if order == "L" else "RGB")
        cutoff = self.info["input"]["contrast_cutoff"]
        if 0 < cutoff < 50:
            sized = ImageOps.autocontrast(sized, cutoff=cutoff, preserve_tone=True)
        sized = sized.resize((width, height), Image.Resampling.BILINEAR)
        pixels = np.atleast_3d(np.asarray(sized)).transpose(2, 0, 1)
        size = np.array([image.height, image.width], np.int64)
        return {"image": pixels[None].astype(dtype), "output_size": size}

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) to feed: the shorter side as trained, the longer one bounded."""
        resize = self.info["input"]["resize"]
        new = [float(height), float(width)]
        if resize["short_side"] > 0:
            scale = resize["short_side"] / min(new)
            # the shorter side exactly; a product may differ from it in the last bit
            new = [float(resize["short_side"]) if n == min(new) else n * scale for n in new]
            if max(new) > resize["max_long_side"]:
                scale = resize["max_long_side"] / max(new)
                new = [n * scale for n in new]
        rounded = [int(n + 0.5) for n in new]
        for i, fixed in enumerate(() if self.takes_pictures else self._shape[2:]):
            if isinstance(fixed, int):  # exported for one size
                rounded[i] = fixed
        least = self.info["input"]["least_size"]
        if min(rounded) < least:
            raise ValueError(
                f"{width} x {height} pixels become {rounded[1]} x {rounded[0]} for the model, "
                f"which takes sides of {least} or more"
            )
        return rounded[0], rounded[1]


def _read_metadata(path: str, text: str) -> dict[str, Any]:
    try:
        info = json.loads(text)
        if isinstance(info, dict) and info.get("results") == ["raw"]:
            raise ValueError("raw logits, not results; export without --raw to draw")
        if isinstance(info, dict) and info.get("format", _FORMAT) != _FORMAT:
            raise ValueError(
                f"they are of format {info['format']} ({info.get('producer', 'another program')}), "
                f"this program reads format {_FORMAT}: take both from one version"
            )
        _check(info, _METADATA, "all")
        ids = [entry["id"] for entry in info["classes"]]
        if len(set(ids)) < len(ids):
            raise ValueError("classes have one id twice")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: its metadata 'knet' cannot be used, export the model again: {error}"
        ) from error
    return info


def _check(value: Any, rule: Any, key: str) -> None:
    """ValueError naming the key if the value is not as the rule says, see `_METADATA`."""
    inner: list[tuple[Any, Any, str]] = []
    if isinstance(rule, dict):
        what = f"a table with {', '.join(rule)}"
        fits = isinstance(value, dict) and set(rule) <= set(value)
        inner = [(value[k], rule[k], f"{key}.{k}") for k in rule] if fits else []
    elif isinstance(rule, (list, tuple)):
        what = "a list" if isinstance(rule, list) else f"a list of {len(rule)}"
        fits = isinstance(value, list) and bool(value)
        fits = fits and (isinstance(rule, list) or len(value) == len(rule))
        inner = [(v, rule[0], f"{key}[{i}]") for i, v in enumerate(value)] if fits else []
    elif isinstance(rule, range):
        what, fits = f"{rule[0]} to {rule[-1]}", type(value) is int and value in rule
    elif isinstance(rule, set):
        what, fits = " or ".join(sorted(rule)), isinstance(value, str) and value in rule
    else:
        what, fits = rule.__name__, type(value) is rule
    if not fits:
        raise ValueError(f"{key} is {str(value)[:60]!r}, not {what}")
    for part in inner:
        _check(*part)
