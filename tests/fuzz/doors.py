"""The doors through which files of others come in: each damages one and reads it as users do."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
import shutil
import sys
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

# isort: off
import knet  # noqa: F401  (before Detectron2)

# isort: on
import numpy as np
import onnx
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from mutations import damage_bytes, damage_file, damage_json, damage_picture, damage_yaml, pick
from numpy.random import Generator
from PIL import Image
from weights import WeightFiles

from knet.config import get_cfg_from_file
from knet.data import KNetDatasetMapper, register_custom
from knet.data.loader import seed_everything
from knet.errors import UserError
from knet.export.metadata import describe
from knet.predictor import KNetPredictor
from knet.training.optimizer import build_lr_scheduler, build_optimizer

__all__ = ["DOORS", "Base", "Door", "shares"]

_ROOT = Path(__file__).parents[2]
# what may carry a message for the user; any other exception is a defect whatever it says
_MEANT = (ValueError, OSError, KeyError, ImportError, UserError)
_NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|bad_alloc|bad allocation", re.I)
_KEY = re.compile(r"\b[A-Z][A-Z0-9_]*(?:\.[A-Z0-9_]+)*\b")
# sections of Detectron2 that no model of ours reads
_UNUSED = re.compile(r"RPN|ROI_|RETINANET|ANCHOR|PROPOSAL|KEYPOINT|PANOPTIC_FPN|LOAD_PROPOSALS")


def _import(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"fuzz_{Path(path).stem}", _ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


_sets = _import("tests/data/good_sets.py")
_models = _import("tests/export/models.py")
_bombs = _import("tests/checkpoint/bombs.py")
run_onnx = _import("tools/run_onnx.py")


class Base:
    """What is undamaged, made once: data sets, a model, its folder, weights and ONNX file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sets = {}
        for form in _sets.FORMATS:
            self.sets[form] = _sets.make_good(form, folder / form)
        self.cfg = _models.small_cfg("panoptic", "MODEL.KNET.NUM_ROUNDS", 1)
        self.cfg.INPUT.MIN_SIZE_TRAIN, self.cfg.INPUT.MIN_SIZE_TEST = (40,), 40
        self.predictor = _models.small_predictor(self.cfg, "panoptic")
        self.predictor.save_pretrained(folder / "saved")
        twin = build_model(self.cfg).eval()
        self.weights = WeightFiles(self.predictor.model, twin, folder, _bombs)
        self.picture = folder / "picture.png"
        Image.fromarray(_models.scene(48, 64, 0)).save(self.picture)
        self.metadata = describe(
            self.cfg, self.predictor.metadata, size_divisibility=32, raw=False, half=False,
            input_dtype="uint8",
        )  # fmt: skip
        self.metadata["results"] = ["semantic"]
        self.graph = _graph()


class Door:
    """Reads damaged files of one kind; `name` and `weight`, its share of all cases, in tenths."""

    name = ""
    weight = 10

    def __init__(self, base: Base) -> None:
        self.base = base

    def run(self, seed: int, number: int, *, raising: bool = False) -> tuple[str, str]:
        """Outcome and words of a case; `raising` lets the error through."""
        torch.set_num_threads(1)  # a fork has none of its parent's other threads
        rng = np.random.default_rng((seed, zlib.crc32(self.name.encode()), number))
        seed_everything(seed, number)
        folder = self.base.folder / f"{self.name}_{number}".replace(" ", "_")
        folder.mkdir()
        try:
            what, names, read = self.prepare(rng, folder, number)
            outcome, said = ("accepted", read()) if raising else self._outcome(read, names)
            return ("silent" if said == "silent" else outcome), f"{what}: {said or ''}"
        finally:
            shutil.rmtree(folder)

    def prepare(
        self, rng: Generator, folder: Path, number: int
    ) -> tuple[str, list[str], Callable[[], str | None]]:
        """Damage something: what it is, names of which an error must hold one, and the reader."""
        raise NotImplementedError

    def _outcome(self, read: Callable[[], str | None], names: Iterable[str]) -> tuple[str, str]:
        try:
            return "accepted", read() or ""
        except MemoryError:
            raise
        except (Exception, SystemExit) as error:
            text = f"{error}"
            if _NO_MEMORY.search(text):
                return "memory", text
            named = isinstance(error, _MEANT) and self.is_named(text, names)
            return ("named" if named else "unnamed"), f"{type(error).__name__}: {text}"

    def is_named(self, text: str, names: Iterable[str]) -> bool:
        return any(name in text for name in names)


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

    def damage(self, rng: Generator, root: Path) -> str:
        raise NotImplementedError

    def read(self, entry: dict[str, Any], root: Path) -> None:
        cfg = self.base.cfg.clone()
        cfg.DATASETS.CUSTOM, cfg.DATASETS.TRAIN = [entry], (entry["NAME"],)
        try:
            register_custom(cfg)
            records = DatasetCatalog.get(entry["NAME"])
            mapper = KNetDatasetMapper(cfg, True)
            for record in records:
                mapper(record)
        finally:
            with contextlib.suppress(KeyError):
                DatasetCatalog.remove(entry["NAME"])
                MetadataCatalog.remove(entry["NAME"])


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


class Yaml(Door):
    """The config, and all that is built from it."""

    name, weight = "yaml", 12

    def __init__(self, base: Base) -> None:
        super().__init__(base)
        self.content = yaml.safe_load(base.cfg.dump())
        for section in (self.content, self.content["MODEL"]):
            for key in [key for key in section if _UNUSED.search(key)]:
                del section[key]
        self.sections = yaml.safe_load(base.cfg.dump())
        self.keys = set(_flat(self.sections))

    def prepare(self, rng, folder, number):
        path = folder / "config.yaml"
        what, data = damage_yaml(rng, self.content)
        path.write_bytes(data)
        if rng.random() < 0.05:
            what = damage_file(rng, path)
        return what, [str(path)], lambda: self.read(path)

    def read(self, path: Path) -> None:
        cfg = get_cfg_from_file(str(path), ["MODEL.DEVICE", "cpu"])
        model = build_model(cfg)
        build_lr_scheduler(cfg, build_optimizer(cfg, model))
        KNetDatasetMapper(cfg, True)
        picture = np.asarray(Image.open(self.base.picture))
        KNetPredictor(cfg, model, self.base.predictor.metadata)(picture)

    def is_named(self, text, names):
        # keys of ours, or ones that do not exist, in a section that does
        return super().is_named(text, names) or any(
            word in self.keys or (word.split(".")[0] in self.sections and "." in word)
            for word in _KEY.findall(text)
        )


class Checkpoint(Door):
    """Weights and whole checkpoints, some of which we wrote."""

    name, weight = "checkpoint", 20

    def prepare(self, rng, folder, number):
        what, path, read = self.base.weights.damage(rng, folder)
        return what, [str(path)], read


class Folder(Yaml):
    """What `save_pretrained` wrote."""

    name, weight = "folder", 8

    def prepare(self, rng, folder, number):
        saved = folder / "saved"
        shutil.copytree(self.base.folder / "saved", saved)
        path = saved / pick(rng, ["classes.json", "classes.json", "config.yaml",
                                  "model.safetensors"])  # fmt: skip
        what = path.name
        if rng.random() < 0.1:
            what += f" {damage_file(rng, path)}"
        elif path.name == "classes.json":
            path.write_bytes(damage_json(rng, json.loads(path.read_text())))
        elif path.name == "config.yaml":
            damage, data = damage_yaml(rng, self.content)
            path.write_bytes(data)
            what += f" {damage}"
        else:
            path.write_bytes(damage_bytes(rng, path.read_bytes()))
        return what, [str(saved)], lambda: self.load(saved, path.name)

    def load(self, saved: Path, damaged: str) -> str | None:
        predictor = KNetPredictor.from_pretrained(saved, device="cpu")
        if damaged == "model.safetensors":
            ours, theirs = self.base.predictor.model.state_dict(), predictor.model.state_dict()
            if any(not torch.equal(value, theirs[key]) for key, value in ours.items()):
                return "silent"
        predictor(self.base.picture)
        return None


class _Onnx(Door):
    def run_model(self, path: Path, folder: Path) -> str | None:
        words = [str(path), "--input", str(self.base.picture), "--output", str(folder / "out")]
        error = io.StringIO()
        with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
            status = run_onnx.main([*words, "--max-pixels", "1000000"])
        if status:
            raise ValueError(error.getvalue())
        return None


class OnnxMetadata(_Onnx):
    name, weight = "ONNX metadata", 10

    def prepare(self, rng, folder, number):
        path = folder / "model.onnx"
        text = damage_json(rng, self.base.metadata).decode("utf-8", errors="replace")
        model = onnx.ModelProto()
        model.CopyFrom(self.base.graph)
        onnx.helper.set_model_props(model, {"knet": text})
        path.write_bytes(model.SerializeToString())
        # a picture that becomes too large or too small is named instead
        return "metadata", [path.name, self.base.picture.name], lambda: self.run_model(path, folder)


class OnnxBytes(_Onnx):
    name, weight = "ONNX bytes", 6

    def prepare(self, rng, folder, number):
        path = folder / "model.onnx"
        model = onnx.ModelProto()
        model.CopyFrom(self.base.graph)
        onnx.helper.set_model_props(model, {"knet": json.dumps(self.base.metadata)})
        path.write_bytes(model.SerializeToString())
        what = "bytes"
        if rng.random() < 0.1:
            what = damage_file(rng, path)
        else:
            path.write_bytes(damage_bytes(rng, path.read_bytes()))
        return what, [path.name, self.base.picture.name], lambda: self.run_model(path, folder)


_ALL = (PanopticJson, InstanceJson, PanopticPng, LabelPng, Photo, Yaml, Checkpoint, Folder,
        OnnxMetadata, OnnxBytes)  # fmt: skip
DOORS: dict[str, type[Door]] = {door.name: door for door in _ALL}


def shares(cases: int, names: Iterable[str] = tuple(DOORS)) -> dict[str, int]:
    """How many of all cases go to each door; those of one door alone are all of them."""
    chosen = {name: DOORS[name].weight for name in names}
    return {name: round(cases * w / sum(chosen.values())) for name, w in chosen.items()}


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterable[str]:
    for key, value in tree.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")


def _graph() -> onnx.ModelProto:
    """An image in, class 0 everywhere: what the runner needs of a graph, quick to load."""
    helper, types = onnx.helper, onnx.TensorProto
    value = helper.make_tensor("zero", types.INT32, [1], [0])
    nodes = [helper.make_node("ConstantOfShape", ["output_size"], ["semantic_classes"],
                              value=value)]  # fmt: skip
    inputs = [
        helper.make_tensor_value_info("image", types.UINT8, [1, 3, "height", "width"]),
        helper.make_tensor_value_info("output_size", types.INT64, [2]),
    ]
    outputs = [helper.make_tensor_value_info("semantic_classes", types.INT32, ["H", "W"])]
    graph = helper.make_graph(nodes, "graph", inputs, outputs)
    opsets = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)
