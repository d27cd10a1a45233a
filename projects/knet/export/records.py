"""The pictures that an export is checked with, and that give the ranges of eight bits."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.data import DatasetCatalog

from knet.data.custom import register_data_sets, require_registered
from knet.data.images import FORMATS, read_picture
from knet.data.shapes.scene import draw_scene
from knet.errors import UserError
from knet.predict.files import find_pictures
from knet.predictor import KNetPredictor

if TYPE_CHECKING:
    from knet.export.make import Choices

_FEW = 4
_MANY = 64
_DRAWN = (96, 144, 240, 320)


class Records:
    """Pictures as the model and its graph take them.

    Args:
        predictor: the model.
        choices: what is exported; says which sizes the graph takes.
        pictures: files, folders and globs.
        data: a registered data set, whose pictures are taken if there are no others.

    Attributes:
        described: what they are.

    Raises:
        UserError: a name stands for no picture, or for no data set.
    """

    def __init__(
        self, predictor: KNetPredictor, choices: Choices, *, pictures: Sequence[str], data: str
    ) -> None:
        self.predictor, self._choices, self._data = predictor, choices, data
        found = find_pictures(pictures)
        if found.problems:
            raise UserError("; ".join(found.problems))
        names = list(map(str, found.pictures))
        self.described = f"{min(len(names), _FEW)} pictures"
        if data:
            register_data_sets(predictor.cfg, [data])
            require_registered(data)
            if not names:
                names = [record["file_name"] for record in DatasetCatalog.get(data)]
                self.described = f"{min(len(names), _FEW)} pictures of {data}"
        if not names:
            self.described = f"{len(_DRAWN)} drawn scenes (--pictures takes yours)"
        self._names = names

    def require_given(self) -> None:
        """Raise UserError if the user has named no pictures."""
        if not self._names:
            raise UserError(
                "int8 takes its ranges from pictures: name some with --pictures, a hundred of "
                "those that the model will see, or a data set with --data"
            )

    def few(self) -> Iterator[dict[str, Any]]:
        """Those of a check."""
        return self._records(_FEW)

    def many(self) -> Iterator[dict[str, Any]]:
        """Those that give ranges: up to 64, evenly over all that there are."""
        return self._records(_MANY)

    def loader(self) -> Iterator[list[dict[str, Any]]]:
        """Batches of the data set's records."""
        from knet.training.trainer import Trainer  # with all of training behind it

        for batch in Trainer.build_test_loader(self.predictor.cfg, self._data):
            yield [self.complete(record, None) for record in batch]

    def _records(self, count: int) -> Iterator[dict[str, Any]]:
        limit = self.predictor.cfg.INPUT.MAX_PIXELS
        if self._names:
            step = max(len(self._names) // count, 1)
            for name in itertools.islice(self._names, 0, step * count, step):
                picture = read_picture({"file_name": name}, image_format="RGB", max_pixels=limit)
                yield self.complete(self.predictor.prepare(picture), picture)
            return
        for i, side in enumerate(_DRAWN):
            picture = draw_scene(0, i, split="val", size=side).image[: side - 7 * i]
            yield self.complete(self.predictor.prepare(picture), picture)

    def complete(self, record: dict[str, Any], picture: np.ndarray | None) -> dict[str, Any]:
        """A record with `feed`, what the graph takes, and `picture` for graphs that resize.

        A graph that takes one size alone gets it, and so does the model.
        """
        channels = FORMATS[self.predictor.cfg.INPUT.FORMAT][1]
        if self._choices.takes_picture:
            if picture is None:
                limit = self.predictor.cfg.INPUT.MAX_PIXELS
                picture = read_picture(
                    {"file_name": record["file_name"]}, image_format="RGB", max_pixels=limit
                )
            record["picture"] = picture
        sides = [
            fixed if name not in self._choices.dynamic else side
            for name, fixed, side in zip(
                ("height", "width"), self._choices.size, record["image"].shape[-2:]
            )
        ]
        if tuple(sides) != tuple(record["image"].shape[-2:]):
            image = record["image"].reshape(1, channels, *record["image"].shape[-2:]).float()
            image = F.interpolate(image, size=sides, mode="bilinear", antialias=True)
            record["image"] = image.round().clamp(0, 255).to(torch.uint8)[0]
        # graphs take RGB
        bgr = self.predictor.cfg.INPUT.FORMAT == "BGR"
        record["feed"] = record["image"].flip(0) if bgr else record["image"]
        return record
