"""Memory and time of panoptic and mask evaluation, against Detectron2's own evaluators.

Drawn predictions, no model: 100 instances with ragged outlines and a panoptic map an image, judged
against drawn ground truth. Memory is the peak of the resident memory above what is resident before
the first image, annotations and predictions of the image included.
"""

from __future__ import annotations

import contextlib
import copy
import io
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
from detectron2.evaluation import COCOEvaluator, COCOPanopticEvaluator
from detectron2.structures import Boxes, Instances
from knet.evaluation.evaluators import Evaluators
from workload import Workload, blobs, make_inputs, peak_memory, write_data_set

from knet.classes import ClassIds
from knet.evaluation.instances import InstanceEvaluator
from knet.evaluation.panoptic import PanopticEvaluator
from knet.modeling.instances import mask_boxes

NAME, SCENES = "drawn", 4
CLASSES = ClassIds(tuple(range(80)), tuple(range(80, 133)))


def compare_evaluation(counts: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each side and number of images; more images show what each of them adds."""
    rows = []
    for side in ("ours", "detectron2"):
        for images in counts:
            # a fresh interpreter, whose memory nothing else has used
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                rows.append(pool.submit(measure, side, images).result())
    return rows


def measure(
    side: str, images: int, *, detections: int = 100, size: tuple[int, int] = (480, 640)
) -> dict[str, Any]:
    """Evaluate drawn predictions of so many images, of which a few scenes take turns, once."""
    work = Workload("", size=size, output_size=size, objects=8)
    row: dict[str, Any] = {"": side, "images": images}
    with tempfile.TemporaryDirectory() as folder:
        scenes = make_inputs(work, CLASSES, SCENES)
        drawn = write_data_set(Path(folder), NAME, scenes, CLASSES, images)
        outputs = [_prediction(*scene, detections) for scene in drawn]
        if side == "ours":
            parts = [PanopticEvaluator(NAME, folder), InstanceEvaluator(NAME, folder)]
        else:
            masks = COCOEvaluator(NAME, ("segm",), output_dir=folder, use_fast_impl=False)
            parts = [COCOPanopticEvaluator(NAME, folder), masks]
        evaluator, records = Evaluators(parts), DatasetCatalog.get(NAME)

        def run() -> None:
            start = time.perf_counter()
            evaluator.reset()
            for index, record in enumerate(records):
                # as a model gives it: nothing shared with other images
                evaluator.process([record], [copy.deepcopy(outputs[index % SCENES])])
            middle = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                results = evaluator.evaluate()
            row["ms an image"] = 1000 * (middle - start) / images
            row["s at the end"] = time.perf_counter() - middle
            row.update(AP=results["segm"]["AP"], PQ=results["panoptic_seg"]["PQ"])

        try:
            row["peak, MB"] = peak_memory(run, "cpu") / 1e6
        finally:
            for catalog in (DatasetCatalog, MetadataCatalog):
                catalog.remove(NAME)
    return row


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
    return {"panoptic_seg": (id_map.roll((2, 3), (0, 1)), info), "instances": found}
