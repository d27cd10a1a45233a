"""COCO's mask AP of a model's results, matched image by image."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import Params

from knet.data.coco_file import load_json
from knet.data.coco_instances import instance_file_defects
from knet.data.defects import raise_first
from knet.data.masks import repeated_masks
from knet.errors import first_of

from .mask_ap import ImageMatches, accumulate, match_image
from .spool import KeptOnDisk, Spool

__all__ = ["InstanceEvaluator"]

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 32 << 20  # of masks that are copied to the host at once
_RESULTS = "coco_instances_results.json"
# what matching needs of an annotation
_OBJECT = ("id", "image_id", "category_id", "area", "iscrowd", "segmentation")


class InstanceEvaluator(COCOEvaluator):
    """Detectron2's ``COCOEvaluator`` for masks, with the same results and results file.

    Detectron2's keeps the run lengths of every mask and gives them to pycocotools in one process
    at the end. This one matches an image as soon as it is predicted, where it is predicted;
    processes exchange what is left of that, about 3 KB for 100 detections. The numbers are those
    of pycocotools, to the last bit, for any number of processes. Matches and the data set's
    annotations wait on disk; memory holds the sizes of the images, and at the end the detections
    of one class. ``coco_instances_results.json`` is written image by image, and Detectron2's
    ``instances_predictions.pth``, the same once more, is not.

    Detectron2's gives NaN to a model that finds nothing; here its AP is 0. Annotations may lack
    ``area`` and ``iscrowd``: the area is counted from the mask, and nothing is a crowd unless it
    says so.

    Args:
        dataset_name: a data set with ``json_file``.
        output_dir: of the results file; None writes nothing.
        max_dets_per_image: detections of an image and category that AP counts.
        limits: config key → the most objects that the model can find in an image because of it;
            the log names those that the ground truth goes beyond.

    Raises:
        DataError: naming file and record, for annotations that cannot be judged.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int = 100,
        limits: Mapping[str, int] | None = None,
    ) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        # before pycocotools sees them: on broken masks it crashes or reads foreign memory
        classes = metadata.get("thing_dataset_id_to_contiguous_id")
        json_file = PathManager.get_local_path(metadata.json_file)
        raise_first(instance_file_defects(json_file, classes))
        # not the original's __init__: pycocotools opens the file in the encoding of the locale
        self._logger = logging.getLogger(COCOEvaluator.__module__)
        self._metadata = metadata
        self._output_dir: Any = output_dir
        self._coco_api = COCO()
        self._coco_api.dataset = load_json(json_file)
        with contextlib.redirect_stdout(io.StringIO()):
            self._coco_api.createIndex()
        self._do_evaluation = "annotations" in self._coco_api.dataset
        for annotation in self._coco_api.dataset.get("annotations", ()):
            annotation.setdefault("iscrowd", 0)
            if "area" not in annotation:
                annotation["area"] = float(mask_util.area(self._coco_api.annToRLE(annotation)))
        self._ids = sorted(self._coco_api.getImgIds())
        objects = self._coco_api.imgToAnns
        self._counts = [sum(not one["iscrowd"] for one in objects.get(k, ())) for k in self._ids]
        self._objects = KeptOnDisk(
            ((k, [{n: o[n] for n in _OBJECT} for o in objects.get(k, ())]) for k in self._ids),
            output_dir,
        )
        sizes = {
            k: {n: one[n] for n in ("height", "width")} for k, one in self._coco_api.imgs.items()
        }
        self._coco_api.dataset = {"categories": self._coco_api.dataset["categories"]}
        self._coco_api.imgs, self._coco_api.imgToAnns, self._coco_api.anns = sizes, {}, {}
        self._limits = dict(limits or {})
        self._parameters = Params(iouType="segm")
        self._parameters.catIds = sorted(self._coco_api.getCatIds())
        self._parameters.maxDets = sorted([1, 10, max_dets_per_image])

    def reset(self) -> None:
        """Forget all predictions."""
        self._matches = Spool(self._output_dir)
        self._predicted = self._twice = 0
        self._spool = Spool(self._output_dir) if self._output_dir else None

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Match detections with the ground truth.

        Args:
            inputs: records with ``image_id``.
            outputs: dicts with ``instances``: ``pred_masks`` (N, H, W) boolean, ``pred_boxes``,
                ``scores`` and ``pred_classes``.

        Raises:
            ValueError: the image or a class is not in the data set.
        """
        for record, output in zip(inputs, outputs):
            image_id = record["image_id"]
            results = self._results_format(output["instances"], image_id)
            if self._spool is not None and results:
                self._spool.add(json.dumps(results)[1:-1])
            if self._do_evaluation:
                self._predicted += 1
                self._matches.add_value((image_id, self._match(image_id, results)))

    def evaluate(self, img_ids: Sequence[Any] | None = None) -> dict[str, dict[str, float]]:
        """Join the matches of all processes; each of them must call this.

        Args:
            img_ids: images to judge; by default all of the data set. Objects of an image without
                prediction are missed.

        Returns:
            ``{"segm": {"AP", "AP50", "AP75", "APs", "APm", "APl", "AP-<class>"}}`` in percent in
            the first process; NaN where there is no object. Empty in others, and if there are no
            annotations or no predictions.
        """
        comm.synchronize()
        predicted, twice = map(sum, zip(*comm.all_gather((self._predicted, self._twice))))
        path = os.path.join(self._output_dir or "", _RESULTS)
        if self._spool is not None:
            self._spool.write(path)
        if not self._do_evaluation:
            logger.warning(
                "'%s' has no annotations: nothing is judged; %s",
                self._metadata.json_file,
                f"the results are in '{path}'"
                if self._output_dir
                else "without an output folder no result is written",
            )
            return {}
        if not predicted:
            logger.warning("No image was predicted: nothing is judged")
            return {}
        judged = self._judged(self._ids if img_ids is None else sorted(set(img_ids)))
        if not comm.is_main_process():
            assert not list(judged)  # but the first process gets what this one has
            return {}
        self._warn_of_truth(twice)
        evaluation = accumulate(judged, self._parameters, self._output_dir)
        with contextlib.redirect_stdout(io.StringIO()) as summary:
            evaluation.summarize()
        logger.debug("%s", summary.getvalue())
        class_names = self._metadata.get("thing_classes")
        return {"segm": self._derive_coco_results(evaluation, "segm", class_names=class_names)}

    def _judged(self, image_ids: Sequence[Any]) -> Iterator[tuple[int, ImageMatches]]:
        """Positions and matches of these images, from all processes, in any order."""
        left = {image_id: position for position, image_id in enumerate(image_ids)}
        for image_id, matches in self._matches.values():
            if image_id in left:  # else not wanted; or once more, to fill a batch
                yield left.pop(image_id), matches
        if comm.is_main_process():
            for image_id, position in left.items():
                yield position, self._match(image_id, [])

    def _warn_of_truth(self, twice: int) -> None:
        """Say what keeps perfect results from a perfect score; ``twice``: objects there twice."""
        counts = self._counts
        file, total = self._metadata.json_file, sum(counts)
        if not total:
            logger.warning(
                "'%s' has no object that counts (all are crowds, or there is none): there is no AP",
                file,
            )
        for key, limit in self._limits.items():
            surplus = [count - limit for count in counts if count > limit]
            if surplus:
                logger.warning(
                    "AP: %d of %d images of '%s' have more objects than %s (%d) lets the model "
                    "find: %d of %d objects are missed whatever it predicts; raise the key to %d",
                    *(len(surplus), len(counts), file, key, limit),
                    *(sum(surplus), total, max(counts)),
                )
        if twice:
            logger.warning(
                "AP: %d of %d objects of '%s' are there twice (same image, class and mask): a "
                "right answer to one leaves the other missed; knet check lists them",
                *(twice, total, file),
            )

    def _results_format(self, instances: Instances, image_id: Any) -> list[dict[str, Any]]:
        """COCO's results of an image, with the data set's category ids."""
        height, width = instances.image_size
        step = max(1, _CHUNK_BYTES // max(1, height * width))
        results: list[dict[str, Any]] = []
        for start in range(0, len(instances), step):
            part = instances[start : start + step].to("cpu")
            results += instances_to_coco_json(part, image_id)
        to_contiguous = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if to_contiguous is None:
            return results
        category_ids = {label: category_id for category_id, label in to_contiguous.items()}
        unknown = sorted({one["category_id"] for one in results} - set(category_ids))
        if unknown:
            names = self._metadata.get("thing_classes") or [""] * len(category_ids)
            known = [f"{category_ids[k]} {names[k]!r}" for k in sorted(category_ids)]
            raise ValueError(
                f"the model has at least {unknown[0] + 1} thing classes, but "
                f"'{self._metadata.json_file}' (data set '{self._metadata.name}') lists only "
                f"{len(known)} categories: {first_of(known, 10)}; score it on data of its classes"
            )
        return [{**one, "category_id": category_ids[one["category_id"]]} for one in results]

    def _match(self, image_id: Any, results: Sequence[Mapping[str, Any]]) -> ImageMatches:
        if image_id not in self._coco_api.imgs:
            raise ValueError(f"'{self._metadata.json_file}' has no image with the id {image_id!r}")
        objects = [
            {**annotation, "segmentation": self._coco_api.annToRLE(annotation)}
            for annotation in self._objects[image_id]
        ]
        single = [one for one in objects if not one["iscrowd"]]
        masks = [one["segmentation"] for one in single]
        self._twice += len(repeated_masks(masks, [one["category_id"] for one in single]))
        return match_image(objects, results, self._parameters)
