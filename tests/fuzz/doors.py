"""The doors through which files of others come in: each damages one and reads it as users do."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import yaml
from data_doors import DATA_DOORS
from detectron2.modeling import build_model
from door import Base, Door
from mutations import damage_bytes, damage_file, damage_json, damage_yaml, pick
from PIL import Image

from knet.config import get_cfg_from_file
from knet.data import KNetDatasetMapper
from knet.predictor import KNetPredictor
from knet.training.optimizer import build_lr_scheduler, build_optimizer
from knet_run.__main__ import main as run_exported

__all__ = ["DOORS", "Base", "Door", "shares"]

_KEY = re.compile(r"\b[A-Z][A-Z0-9_]*(?:\.[A-Z0-9_]+)*\b")
# sections of Detectron2 that no model of ours reads
_UNUSED = re.compile(r"RPN|ROI_|RETINANET|ANCHOR|PROPOSAL|KEYPOINT|PANOPTIC_FPN|LOAD_PROPOSALS")


class Yaml(Door):
    """The config, and all that is built from it."""

    name, weight = "yaml", 12

    def __init__(self, base: Base) -> None:
        super().__init__(base)
        self.content = yaml.safe_load(base.cfg.dump())
        for section in (self.content, self.content["MODEL"]):
            for key in [key for key in section if _UNUSED.search(key)]:
                del section[key]
        self.keys = set(_flat(yaml.safe_load(base.cfg.dump())))

    def prepare(self, rng, folder, number):
        path = folder / "config.yaml"
        what, data = damage_yaml(rng, self.content)
        path.write_bytes(data)
        if rng.random() < 0.05:
            what = damage_file(rng, path)
        return what, [str(path), *_held_keys(data)], lambda: self.read(path)

    def read(self, path: Path) -> None:
        cfg = get_cfg_from_file(str(path), ["MODEL.DEVICE", "cpu"])
        model = build_model(cfg)
        build_lr_scheduler(cfg, build_optimizer(cfg, model))
        KNetDatasetMapper(cfg, True)
        picture = np.asarray(Image.open(self.base.picture))
        KNetPredictor(cfg, model, self.base.predictor.metadata)(picture)

    def is_named(self, text, names):
        path, *held = names
        return path in text or not {*self.keys, *held}.isdisjoint(_KEY.findall(text))


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
        held = (
            _held_keys(path.read_bytes()) if path.name == "config.yaml" and path.is_file() else []
        )
        return what, [path.name, *held], lambda: self.load(saved, path.name)

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
            status = run_exported([*words, "--max-pixels", "1000000"])
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


_ALL = (*DATA_DOORS, Yaml, Checkpoint, Folder, OnnxMetadata, OnnxBytes)
DOORS: dict[str, type[Door]] = {door.name: door for door in _ALL}


def shares(cases: int, names: Iterable[str] = tuple(DOORS)) -> dict[str, int]:
    """How many of all cases go to each door; those of one door alone are all of them."""
    chosen = {name: DOORS[name].weight for name in names}
    return {name: round(cases * w / sum(chosen.values())) for name, w in chosen.items()}


def _held_keys(text: bytes) -> list[str]:
    """Keys that a YAML has, known or not."""
    try:
        tree = yaml.safe_load(text)
        return list(_flat(tree)) if isinstance(tree, dict) else []
    except (yaml.YAMLError, ValueError, RecursionError):  # an alias may hold itself
        return []


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterable[str]:
    """Keys with a value; `MODEL` alone would be in too many messages."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
