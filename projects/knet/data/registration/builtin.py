"""Data sets that need no preparation: *shapes*, drawn when first asked for, and photographs."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from detectron2.data import DatasetCatalog
from detectron2.utils import comm

from knet.data.registration.catalog import datasets_root
from knet.data.registration.register import register_coco_panoptic, register_shapes
from knet.data.shapes.scene import THING_NAMES
from knet.data.shapes.writer import is_current, write_shapes

__all__ = ["register_builtin"]

logger = logging.getLogger(__name__)

SHAPES_SCENES = {"train": 1600, "val": 200}
SHAPES_THINGS = {"shapes": THING_NAMES, "shapes3": THING_NAMES[:3]}
_PHOTOS = Path(__file__).parents[4] / "tests" / "fixtures" / "coco_panoptic_fixture"


def register_builtin(names: Iterable[str]) -> None:
    """Register those of the named data sets that come with the project.

    `shapes_{train,val}` and `shapes_{train,val}_instance` are written to the data sets' folder if
    they are not there; `shapes3_…` have three of the four thing classes, to fine-tune from.
    `photos_{train,val}` are the COCO photographs of the test suite.

    Raises:
        FileNotFoundError: the photographs are missing from the checkout.
    """
    for name in names:
        if name in DatasetCatalog:
            continue
        kind, _, rest = name.partition("_")
        split = rest.removesuffix("_instance")
        if kind in SHAPES_THINGS and split in SHAPES_SCENES:
            root = datasets_root() / kind
            if comm.is_main_process() and not is_current(root / split):
                logger.info("drawing %d scenes to %s", SHAPES_SCENES[split], root / split)
                write_shapes(
                    root,
                    split=split,
                    num_scenes=SHAPES_SCENES[split],
                    seed=0,
                    things=SHAPES_THINGS[kind],
                )
            comm.synchronize()
            register_shapes(root, splits=[split], prefix=kind)
        elif kind == "photos" and rest in ("train", "val"):
            annotations = _PHOTOS / "annotations"
            register_coco_panoptic(
                name,
                image_root=_PHOTOS / "images" / rest,
                panoptic_root=annotations / f"panoptic_{rest}",
                panoptic_json=annotations / f"panoptic_{rest}.json",
                instances_json=annotations / f"instances_{rest}.json",
                sem_seg_root=annotations / f"semantic_{rest}",
            )
