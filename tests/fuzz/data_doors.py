"""The doors of data sets: how training, prediction and evaluation read them."""

from __future__ import annotations

import abc
import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# isort: off
import knet  # noqa: F401  (before Detectron2)

# isort: on
import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BitMasks, Instances
from door import Base, Door
from mutations import damage_file, damage_json, damage_picture, pick
from numpy.random import Generator
from PIL import Image

from knet.classes import Category
from knet.data import KNetDatasetMapper, register_custom
from knet.evaluation import build_evaluator
from knet.report.read_results import FilePredictions
from knet.results.coco_files import ResultFiles

__all__ = ["DATA_DOORS"]

# of the panoptic set
_CATEGORIES = [
    Category(0, 3, "stem", True), Category(1, 7, "leaf", True), Category(2, 1, "soil", False)
]  # fmt: skip


@contextlib.contextmanager
def _registered(cfg: Any) -> Iterator[None]:
    before = {*DatasetCatalog.list(), *MetadataCatalog.list()}
    try:
        register_custom(cfg)
        yield
    finally:
        for catalog in (DatasetCatalog, MetadataCatalog):
            for name in set(catalog.list()) - before:
                catalog.remove(name)


class _DataSet(Door):
    """Registration, records and mapper, as training reads them."""

    form = ""

    def prepare(self, rng, folder, number):
        entry = dict(self.base.sets[self.form], NAME=f"{self.name}_{number}")
        root = folder / "set"
        shutil.copytree(self.base.folder / self.form, root)
        for key, value in entry.items():
            if isinstance(value, str):
                entry[key] = value.replace(str(self.base.folder / self.form), str(root))
        what = self.damage(rng, root)
        return what, [str(root), entry["NAME"]], lambda: self.read(entry, root)

    @abc.abstractmethod
    def damage(self, rng: Generator, root: Path) -> str:
        """Damage something of the data set; what it is."""

    def read(self, entry: dict[str, Any], root: Path) -> None:
        cfg = self.base.cfg.clone()
        cfg.DATASETS.CUSTOM, cfg.DATASETS.TRAIN = [entry], (entry["NAME"],)
        with _registered(cfg):
            records = DatasetCatalog.get(entry["NAME"])
            mapper = KNetDatasetMapper(cfg, True)
            for record in records:
                mapper(record)


class _Json(_DataSet):
    def damage(self, rng, root):
        path = root / "annotations.json"
        if rng.random() < 0.1:
            return damage_file(rng, path)
        content = damage_json(rng, json.loads(path.read_text()))
        path.write_bytes(content)
        return "json"


class PanopticJson(_Json):
    name, form, weight = "panoptic JSON", "coco_panoptic", 12


class InstanceJson(_Json):
    name, form, weight = "instance JSON", "coco_instances", 14


class PanopticPng(_DataSet):
    name, form = "panoptic PNG", "coco_panoptic"

    def damage(self, rng, root):
        return damage_picture(rng, root / "labels" / "a.png")


class LabelPng(_DataSet):
    name, form = "label PNG", "semantic"

    def damage(self, rng, root):
        return damage_picture(rng, root / "labels" / "a.png")


class Photo(_DataSet):
    """Through the loader, and through the predictor."""

    name, form, weight = "photo", "coco_instances", 14

    def prepare(self, rng, folder, number):
        what, names, read = super().prepare(rng, folder, number)
        if number % 2:
            path = folder / "set" / "images" / "a.png"
            return f"predictor: {what}", [str(path)], lambda: self._predict(path)
        return what, names, read

    def damage(self, rng, root):
        return damage_picture(rng, root / "images" / "a.png")

    def _predict(self, path: Path) -> None:
        self.base.predictor(path)


class Evaluation(_DataSet):
    """A test set whose model is perfect, but for what is damaged."""

    name, weight = "evaluation", 14

    def __init__(self, base: Base) -> None:
        super().__init__(base)
        self.perfect: dict[str, dict[str, Any]] = {}
        for form in base.sets:
            cfg = self._config(base.sets[form])
            with _registered(cfg):
                self.perfect[form] = {
                    Path(record["file_name"]).stem: _perfect(record)
                    for record in DatasetCatalog.get(base.sets[form]["NAME"])
                }

    def prepare(self, rng, folder, number):
        self.form = list(self.base.sets)[number % len(self.base.sets)]
        return super().prepare(rng, folder, number)

    def damage(self, rng, root):
        path = root / "labels" / "a.png"
        if self.form != "semantic" and (self.form == "coco_instances" or rng.random() < 0.5):
            path = root / "annotations.json"
            if rng.random() >= 0.1:
                path.write_bytes(damage_json(rng, json.loads(path.read_text())))
                return f"{self.form} json"
            return f"{self.form} json {damage_file(rng, path)}"
        return f"{self.form} {damage_picture(rng, path)}"

    def read(self, entry, root):
        cfg = self._config(entry)
        with _registered(cfg):
            evaluator = build_evaluator(cfg, entry["NAME"], str(root / "out"))
            evaluator.reset()
            mapper = KNetDatasetMapper(cfg, False)
            for record in DatasetCatalog.get(entry["NAME"]):
                output = self.perfect[self.form][Path(record["file_name"]).stem]
                evaluator.process([mapper(record)], [output])
            evaluator.evaluate()

    def _config(self, entry: dict[str, Any]) -> Any:
        cfg = self.base.cfg.clone()
        cfg.DATASETS.CUSTOM, cfg.DATASETS.TEST = [entry], (entry["NAME"],)
        return cfg


class Predictions(Evaluation):
    """Results as files, as the report judges them."""

    name, weight = "predictions", 8

    def __init__(self, base: Base) -> None:
        super().__init__(base)
        self.good = base.folder / "results"
        shutil.rmtree(self.good, ignore_errors=True)
        with ResultFiles(self.good, categories=_CATEGORIES) as files:
            for number, (stem, output) in enumerate(self.perfect["coco_panoptic"].items()):
                files.add(output, image_id=number, file_name=f"{stem}.png")

    def prepare(self, rng, folder, number):
        results = folder / "results"
        shutil.copytree(self.good, results)
        path = pick(rng, sorted(file for file in results.rglob("*") if file.is_file()))
        what = path.name
        if path.suffix == ".png":
            what += f" {damage_picture(rng, path)}"
        elif rng.random() < 0.1:
            what += f" {damage_file(rng, path)}"
        else:
            path.write_bytes(damage_json(rng, json.loads(path.read_text())))
        return what, [str(results)], lambda: self.judge(results, folder)

    def judge(self, results: Path, folder: Path) -> None:
        entry = self.base.sets["coco_panoptic"]
        cfg = self._config(entry)
        with _registered(cfg):
            predictions = FilePredictions(results, categories=_CATEGORIES)
            cfg.MODEL.KNET.TEST.PANOPTIC_ON = "panoptic" in predictions.tasks
            cfg.MODEL.KNET.TEST.INSTANCE_ON = "instance" in predictions.tasks
            cfg.MODEL.KNET.TEST.SEMANTIC_ON = "semantic" in predictions.tasks
            evaluator = build_evaluator(cfg, entry["NAME"], str(folder / "out"))
            evaluator.reset()
            records = DatasetCatalog.get(entry["NAME"])
            if predictions.missing(records):
                return
            for record in records:
                evaluator.process([record], [predictions.output_of(record)])
            evaluator.evaluate()


def _perfect(record: dict[str, Any]) -> dict[str, Any]:
    """What a model says that knows the annotations of a picture, of three classes."""
    size = record["height"], record["width"]
    if "annotations" in record:
        labels = [item["category_id"] for item in record["annotations"]]
        masks = [_mask(item["segmentation"], *size) for item in record["annotations"]]
        return {"instances": _instances(size, masks, labels)}
    if "sem_seg_file_name" in record:
        classes = np.asarray(Image.open(record["sem_seg_file_name"]))
        return {"sem_seg": torch.from_numpy(np.stack([classes == i for i in range(3)]) * 1.0)}
    rgb = np.asarray(Image.open(record["pan_seg_file_name"])).astype(np.int32)
    ids = rgb @ np.array([1, 256, 65536], np.int32)
    segments = record["segments_info"]
    things = [segment for segment in segments if segment["isthing"]]
    sem_seg = np.zeros((3, *size), np.float32)
    for segment in segments:
        sem_seg[segment["category_id"], ids == segment["id"]] = 1
    return {
        "panoptic_seg": (
            torch.from_numpy(ids),
            [{**segment, "score": 1.0} for segment in segments],
        ),
        "sem_seg": torch.from_numpy(sem_seg),
        "instances": _instances(
            size, [ids == s["id"] for s in things], [s["category_id"] for s in things]
        ),
    }


def _instances(size: tuple[int, int], masks: list[np.ndarray], labels: list[int]) -> Instances:
    found = Instances(size)
    found.pred_masks = torch.from_numpy(np.stack([np.zeros(size, bool), *masks])[1:])
    found.pred_classes, found.scores = torch.tensor(labels).long(), torch.ones(len(labels))
    found.pred_boxes = BitMasks(found.pred_masks).get_bounding_boxes()
    return found


def _mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    if isinstance(segmentation, list):
        segmentation = mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        segmentation = mask_util.frPyObjects(segmentation, height, width)
    return mask_util.decode(segmentation) > 0


DATA_DOORS = (PanopticJson, InstanceJson, PanopticPng, LabelPng, Photo, Evaluation, Predictions)
