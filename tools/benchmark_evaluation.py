#!/usr/bin/env python3
"""Memory and time of panoptic and mask evaluation, against Detectron2's own evaluators.

    python tools/benchmark_evaluation.py --images 300 1200

Drawn predictions, no model: 100 instances with ragged outlines and a panoptic map an image, judged
against drawn ground truth. Every figure comes from a process of its own. Memory is the peak of the
resident memory above what is resident before the first image, annotations and predictions of the
image included; what more images add is extrapolated to `--extrapolate`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import knet  # noqa: F401  (has to come before detectron2)

# isort: split
import numpy as np
import torch
import torch.nn.functional as F
from benchmark_laps import peak_memory
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, COCOPanopticEvaluator
from detectron2.structures import Boxes, Instances
from pycocotools import mask as mask_util

from knet.data import register_coco_panoptic
from knet.data.annotations.panoptic_png import write_panoptic_png
from knet.errors import run_command
from knet.evaluation.evaluators import Evaluators
from knet.evaluation.instances import InstanceEvaluator
from knet.evaluation.panoptic import PanopticEvaluator
from knet.files import write_json
from knet.modeling.instances import mask_boxes

NAME, SCENES, OBJECTS, THINGS, STUFF = "drawn", 4, 8, 80, 53


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure and print; returns a row for each side and number of images."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="+", default=[300, 1200])
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--detections", type=int, default=100, help="instances an image")
    parser.add_argument("--size", type=int, nargs=2, default=[480, 640], metavar=("H", "W"))
    parser.add_argument("--extrapolate", type=int, default=5000, help="images; default 5000")
    args = parser.parse_args(argv)
    rows = []
    for side in args.sides:
        for images in args.images:
            # a fresh interpreter, whose memory nothing else has used
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                rows.append(pool.submit(measure, side, images, args.detections, args.size).result())
            print(
                "{side}: {images} images, peak {mb:.0f} MB, {image_ms:.0f} ms an image, "
                "{end_s:.1f} s at the end, AP {AP:.4f} PQ {PQ:.4f}".format(**rows[-1]),
                flush=True,
            )
        few, many = rows[-len(args.images)], rows[-1]
        if many["images"] > few["images"]:
            slope = (many["mb"] - few["mb"]) / (many["images"] - few["images"])
            total = many["mb"] + slope * (args.extrapolate - many["images"])
            print(
                f"{side}: {1000 * slope:.0f} KB more an image; {args.extrapolate} images would "
                f"take {total:.0f} MB"
            )
    return rows


def measure(side: str, images: int, detections: int, size: Sequence[int]) -> dict[str, Any]:
    """Evaluate drawn predictions once.

    Args:
        side: a key of `SIDES`.
        images: how many; a few scenes take turns.
        detections: instances an image.
        size: (height, width) of the images.

    Returns:
        ``mb``, ``image_ms``, ``end_s``, and ``AP`` and ``PQ`` in percent.
    """
    torch.manual_seed(0)
    row: dict[str, Any] = {"side": side, "images": images}
    with tempfile.TemporaryDirectory() as folder:
        outputs = _draw(Path(folder), images, detections, size)
        records = DatasetCatalog.get(NAME)
        evaluator = SIDES[side](f"{folder}/out")

        def run() -> None:
            start = time.perf_counter()
            evaluator.reset()
            for index, record in enumerate(records):
                evaluator.process([record], [_copied(outputs[index % SCENES])])
            middle = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                results = evaluator.evaluate()
            row.update(AP=results["segm"]["AP"], PQ=results["panoptic_seg"]["PQ"])
            row.update(image_ms=1000 * (middle - start) / images)
            row.update(end_s=time.perf_counter() - middle)

        try:
            row["mb"] = peak_memory(run, "cpu") / 1e6
        finally:
            for catalog in (DatasetCatalog, MetadataCatalog):
                catalog.remove(NAME)
    return row


def _ours(folder: str) -> Any:
    return Evaluators([PanopticEvaluator(NAME, folder), InstanceEvaluator(NAME, folder)])


def _detectron2(folder: str) -> Any:
    masks = COCOEvaluator(NAME, ("segm",), output_dir=folder, use_fast_impl=False)
    return Evaluators([COCOPanopticEvaluator(NAME, folder), masks])


SIDES = {"ours": _ours, "detectron2": _detectron2}


def _copied(output: dict[str, Any]) -> dict[str, Any]:
    """As a model gives it: nothing shared with other images (Detectron2 changes segments)."""
    ids, segments = output["panoptic_seg"]
    copied = (ids.clone(), [dict(segment) for segment in segments])
    instances = output["instances"]
    return {"panoptic_seg": copied, "instances": instances[torch.arange(len(instances))]}


def _blobs(count: int, size: Sequence[int]) -> Iterator[torch.Tensor]:
    """Ellipses whose outlines are ragged, as predicted ones are."""
    height, width = size
    y, x = torch.arange(height)[:, None] / height, torch.arange(width)[None] / width
    for _ in range(count):
        (cy, cx), (ry, rx) = torch.rand(2), 0.05 + 0.2 * torch.rand(2)
        noise = F.interpolate(torch.rand(1, 1, 30, 40), size=(height, width), mode="bilinear")[0, 0]
        yield ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 + 0.6 * noise < 1.3


def _draw(folder: Path, images: int, detections: int, size: Sequence[int]) -> list[dict[str, Any]]:
    """Write and register ground truth of `images`; returns the predictions of the scenes."""
    height, width = size
    categories = [
        {"id": k + 1, "name": f"class {k}", "isthing": int(k < THINGS)}
        for k in range(THINGS + STUFF)
    ]
    scenes, outputs = [], []
    for _ in range(SCENES):
        ids = torch.full((height, width), OBJECTS + 1, dtype=torch.int32)
        ids[height // 2 :] = OBJECTS + 2
        for number, blob in enumerate(_blobs(OBJECTS, size), start=1):
            ids[blob] = number
        present = ids.unique().tolist()
        classes = [
            int(torch.randint(THINGS, ())) if k <= OBJECTS else THINGS + k % STUFF for k in present
        ]
        scenes.append((ids.numpy(), present, classes))
        true = [ids == k for k, label in zip(present, classes) if label < THINGS]
        masks = torch.stack([*true, *_blobs(detections - len(true), size)])
        found = Instances(tuple(size))
        found.pred_masks = masks.roll((2, 3), (1, 2))
        found.pred_boxes = Boxes(mask_boxes(found.pred_masks))
        found.scores = torch.rand(len(masks))
        things = [label for label in classes if label < THINGS]
        rest = torch.randint(THINGS, (len(masks) - len(things),))
        found.pred_classes = torch.cat([torch.tensor(things, dtype=torch.int64), rest])
        segments = [
            {"id": k, "category_id": label, "isthing": label < THINGS}
            for k, label in zip(present, classes)
        ]
        outputs.append({"panoptic_seg": (ids.roll((2, 3), (0, 1)), segments), "instances": found})
    _write(folder, images, scenes, categories)
    return outputs


def _write(
    folder: Path, images: int, scenes: Sequence[tuple], categories: Sequence[dict[str, Any]]
) -> None:
    (folder / "images").mkdir()
    (folder / "panoptic").mkdir()
    height, width = scenes[0][0].shape
    info = [{"id": k, "file_name": f"{k}.png", "height": height, "width": width}
            for k in range(images)]  # fmt: skip
    panoptic, instances = [], []
    for k in range(images):
        ids, present, classes = scenes[k % SCENES]
        (folder / "images" / f"{k}.png").touch()  # never read
        write_panoptic_png(str(folder / "panoptic" / f"{k}.png"), ids)
        segments = []
        for number, label in zip(present, classes):
            mask = ids == number
            segment = {"id": number, "category_id": label + 1, "iscrowd": 0,
                       "area": int(mask.sum()), "bbox": [0, 0, width, height]}  # fmt: skip
            segments.append(segment)
            if label < THINGS:
                rle = mask_util.encode(np.asfortranarray(mask, np.uint8))
                rle["counts"] = rle["counts"].decode()
                instances.append(
                    {**segment, "id": len(instances) + 1, "image_id": k, "segmentation": rle}
                )
        panoptic.append({"image_id": k, "file_name": f"{k}.png", "segments_info": segments})
    things = [category for category in categories if category["isthing"]]
    for name, classes, annotated in (
        ("panoptic", categories, panoptic),
        ("instances", things, instances),
    ):
        content = {"images": info, "categories": classes, "annotations": annotated}
        write_json(folder / f"{name}.json", content)
    register_coco_panoptic(
        NAME,
        image_root=folder / "images",
        panoptic_root=folder / "panoptic",
        panoptic_json=folder / "panoptic.json",
        instances_json=folder / "instances.json",
    )


if __name__ == "__main__":

    def command() -> None:
        main()

    sys.exit(run_command("benchmark_evaluation.py", command))
