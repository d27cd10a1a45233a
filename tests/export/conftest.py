"""Each small model is exported once a session."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from knet.export.metadata import describe
from knet.export.onnx_file import save_onnx
from knet.export.program import build_graph, load_program, save_program, trace
from knet.predictor import KNetPredictor

from .models import TASKS, scene, small_cfg, small_predictor


@dataclass
class Exported:
    """A model, and the files that it was exported to."""

    task: str
    predictor: KNetPredictor
    onnx: Path
    program: Path

    @cached_property
    def loaded(self) -> tuple[Any, dict[str, Any]]:
        """What is in `program`: its module and metadata."""
        return load_program(self.program)


@pytest.fixture(scope="session")
def export_once(tmp_path_factory) -> Callable[[str], Exported]:
    done: dict[str, Exported] = {}

    def export(task: str) -> Exported:
        if task not in done:
            done[task] = _export(task, tmp_path_factory.mktemp(task))
        return done[task]

    return export


@pytest.fixture(scope="session", params=list(TASKS))
def exported(request, export_once) -> Exported:
    return export_once(request.param)


@pytest.fixture(scope="session")
def panoptic(export_once) -> Exported:
    return export_once("panoptic")


def _export(task: str, folder: Path) -> Exported:
    cfg = small_cfg(task)
    predictor = small_predictor(cfg, task)
    graph = build_graph(predictor.model, channel_order=cfg.INPUT.FORMAT, onnx=True)
    program = trace(graph, example_size=(61, 83))
    metadata = describe(
        cfg, predictor.metadata, size_divisibility=predictor.model.size_divisibility,
        raw=False, precision="float32", input_dtype="uint8",
    )  # fmt: skip
    save_onnx(program, folder / "model.onnx", metadata)
    save_program(program, folder / "model.pt2", metadata)
    return Exported(task, predictor, folder / "model.onnx", folder / "model.pt2")


@pytest.fixture
def pictures(tmp_path) -> Path:
    """A folder of three pictures of different sizes."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, (height, width) in enumerate([(96, 96), (75, 130), (140, 64)]):
        Image.fromarray(scene(height, width, i)).save(folder / f"{i + 1:03d}.png")
    return folder
