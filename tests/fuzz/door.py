"""What the doors share: the undamaged inputs, and how the outcome of a case is judged."""

from __future__ import annotations

import abc
import importlib.util
import re
import shutil
import sys
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

# isort: off
import knet  # noqa: F401  (before Detectron2)

# isort: on
import numpy as np
import onnx
import torch
from detectron2.modeling import build_model
from numpy.random import Generator
from PIL import Image
from weights import WeightFiles

from knet.data.loader import seed_everything
from knet.errors import UserError
from knet.export.metadata import describe

__all__ = ["Base", "Door", "import_file"]

_ROOT = Path(__file__).parents[2]
# what may carry a message for the user; any other exception is a defect whatever it says
_MEANT = (ValueError, OSError, KeyError, ImportError, UserError)
_NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|bad_alloc|bad allocation", re.I)


def import_file(path: str) -> ModuleType:
    """A module by its path in the repository."""
    spec = importlib.util.spec_from_file_location(f"fuzz_{Path(path).stem}", _ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


_sets = import_file("tests/data/good_sets.py")
_models = import_file("tests/export/models.py")
_bombs = import_file("tests/checkpoint/bombs.py")


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
            self.cfg, self.predictor.metadata, size_divisibility=32, raw=False, precision="float32",
            input_dtype="uint8",
        )  # fmt: skip
        self.metadata["results"] = ["semantic"]
        self.graph = _graph()


class Door(abc.ABC):
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

    @abc.abstractmethod
    def prepare(
        self, rng: Generator, folder: Path, number: int
    ) -> tuple[str, list[str], Callable[[], str | None]]:
        """Damage something: what it is, names of which an error must hold one, and the reader."""

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
