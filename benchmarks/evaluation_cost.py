"""Memory and time of PQ, mask AP and mIoU, against Detectron2's evaluators, which use pycocotools.

    python benchmarks/evaluation_cost.py --images 1250 5000 --size 240 320

Drawn predictions, no model: 100 instances with ragged outlines, a panoptic and a semantic map an
image, judged against drawn ground truth. Memory is the peak of the resident memory above what is
resident before the first image, annotations and predictions of the image included; of several
processes that of the first one, which joins the others' results.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import knet  # noqa: F401  (has to come before detectron2)

# isort: split
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, COCOPanopticEvaluator, SemSegEvaluator
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from workload import (
    Workload,
    blobs,
    draw_segments,
    make_inputs,
    peak_memory,
    register_data_set,
    table,
    write_data_set,
)

from knet.classes import ClassIds
from knet.evaluation.derived import instance_dataset, semantic_dataset
from knet.evaluation.instances import InstanceEvaluator
from knet.evaluation.panoptic import PanopticEvaluator
from knet.evaluation.scores import Evaluators
from knet.evaluation.semantic import SemanticEvaluator
from knet.files import write_json
from knet.modeling.instances import mask_boxes
from knet.training.launch import launch

NAME, SCENES = "drawn", 4
CLASSES = ClassIds(tuple(range(80)), tuple(range(80, 133)))
SIZE = (480, 640)
# who evaluates, and in how many processes
SIDES = {"ours": 1, "ours, two processes": 2, "detectron2": 1}


def compare_evaluation(
    counts: Sequence[int], size: tuple[int, int] = SIZE, sides: Sequence[str] = tuple(SIDES)
) -> list[dict[str, Any]]:
    """A row for each side and number of images; more images show what each of them adds."""
    rows = []
    for side in sides:
        for images in counts:
            # a fresh interpreter, whose memory nothing else has used
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                rows.append(pool.submit(measure, side, images, size=size).result())
    return rows


def measure(
    side: str, images: int, *, detections: int = 100, size: tuple[int, int] = SIZE
) -> dict[str, Any]:
    """Evaluate drawn predictions of so many images, of which a few scenes take turns, once."""
    with tempfile.TemporaryDirectory() as folder:
        work = (side, images, detections, size, Path(folder))
        scenes = make_inputs(_workload(size), CLASSES, SCENES)
        write_data_set(Path(folder), NAME, scenes, CLASSES, images)
        _forget()
        if SIDES[side] == 1:
            _measure(*work)
        else:
            launch(_measure, SIDES[side], on_gpu=False, args=work)
        return json.loads((Path(folder) / "row.json").read_text(encoding="utf-8"))


def _measure(side: str, images: int, detections: int, size: tuple[int, int], folder: Path) -> None:
    """Evaluate the share of this process; the first one writes the row."""
    row: dict[str, Any] = {"": side, "images": images}
    drawn = draw_segments(make_inputs(_workload(size), CLASSES, SCENES), CLASSES)
    torch.manual_seed(0)  # whether or not something was drawn before
    register_data_set(folder, NAME)
    outputs = [_prediction(*scene, detections) for scene in drawn]
    evaluator, records = Evaluators(_evaluators(side, str(folder))), DatasetCatalog.get(NAME)
    share = range(images)[comm.get_rank() * images // SIDES[side] :][: images // SIDES[side]]

    def run() -> None:
        start, busy = time.perf_counter(), time.process_time()
        evaluator.reset()
        for index in share:
            # as a model gives it: nothing shared with other images
            evaluator.process([records[index]], [copy.deepcopy(outputs[index % SCENES])])
        middle = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            results = evaluator.evaluate()
        row["ms an image"] = 1000 * (middle - start) / images
        row["s at the end"] = time.perf_counter() - middle
        row["CPU s"] = time.process_time() - busy  # whatever else the machine does
        if comm.is_main_process():
            row.update(PQ=results["panoptic_seg"]["PQ"], AP=results["segm"]["AP"])
            row["mIoU"] = results["sem_seg"]["mIoU"]

    try:
        row["peak, MB"] = peak_memory(run, "cpu") / 1e6
    finally:
        _forget()
    if comm.is_main_process():
        write_json(folder / "row.json", row)


def _evaluators(side: str, folder: str) -> list[Any]:
    masks, labels = instance_dataset(NAME, folder), semantic_dataset(NAME, folder)
    if side == "detectron2":
        return [
            COCOPanopticEvaluator(NAME, folder), SemSegEvaluator(labels, output_dir=folder),
            COCOEvaluator(masks, ("segm",), output_dir=folder, use_fast_impl=False),
        ]  # fmt: skip
    return [
        PanopticEvaluator(NAME, folder), SemanticEvaluator(labels, folder),
        InstanceEvaluator(masks, folder),
    ]  # fmt: skip


def _workload(size: tuple[int, int]) -> Workload:
    return Workload("", size=size, output_size=size, objects=8)


def _forget() -> None:
    for catalog in (DatasetCatalog, MetadataCatalog):
        for name in [name for name in catalog.list() if name.split("/")[0] == NAME]:
            catalog.remove(name)


def _prediction(id_map: torch.Tensor, segments: list[dict], detections: int) -> dict[str, Any]:
    """Ground truth moved by some pixels, and more instances."""
    label = {s["id"]: s["category_id"] - 1 for s in segments}
    things = [k for k in label if label[k] < len(CLASSES.things)]
    more = blobs(detections - len(things), id_map.shape)
    masks = torch.cat([torch.stack([id_map == k for k in things]).roll((2, 3), (1, 2)), more])
    found = Instances(tuple(id_map.shape))
    found.pred_masks, found.pred_boxes = masks, Boxes(mask_boxes(masks))
    found.scores = torch.rand(len(masks))
    drawn = torch.randint(len(CLASSES.things), (len(more),))
    found.pred_classes = torch.cat([torch.tensor([label[k] for k in things]), drawn])
    info = [{"id": k, "category_id": c, "isthing": c < len(CLASSES.things)}
            for k, c in label.items()]  # fmt: skip
    moved = id_map.roll((2, 3), (0, 1))
    classes = torch.zeros(len(CLASSES.things) + len(CLASSES.stuff), *moved.shape, dtype=torch.uint8)
    for k, c in label.items():
        classes[c][moved == k] = 1
    return {"panoptic_seg": (moved, info), "instances": found, "sem_seg": classes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[1250, 5000])
    parser.add_argument("--size", type=int, nargs=2, default=SIZE, metavar=("H", "W"))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), metavar="SIDE")
    args = parser.parse_args()
    scores: dict[int, set[tuple[float, ...]]] = {}
    for side in args.sides:
        rows = compare_evaluation(args.images, tuple(args.size), [side])
        print(table(rows), flush=True)
        for row in rows:
            scores.setdefault(row["images"], set()).add((row["PQ"], row["AP"], row["mIoU"]))
    for images, found in scores.items():
        print(f"{images} images: {'equal' if len(found) == 1 else 'different'} scores {found}")


if __name__ == "__main__":
    main()
