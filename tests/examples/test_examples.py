"""The scripts of examples/ at small size, and the notebook from top to bottom."""

import json
import runpy
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from nbclient import NotebookClient
from PIL import Image

from knet.modeling.build_neck import KNET_NECK_REGISTRY
from knet.modeling.knet import KNet

from ..test_custom_data_page import some_nuclei

ROOT = Path(__file__).parents[2]
PHOTOS = ROOT / "datasets/coco_photos"
# few kernels, small pictures, two steps
QUICK = [
    "SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.ACCUMULATION_STEPS", 1,
    "TEST.EVAL_PERIOD", 2, "MODEL.KNET.HIDDEN_DIM", 16, "MODEL.KNET.FFN_DIM", 16,
    "MODEL.KNET.NUM_ROUNDS", 1, "MODEL.KNET.ROUND_LEVELS", [],
    "INPUT.MIN_SIZE_TRAIN", [64, 64], "INPUT.MIN_SIZE_TEST", 64,
    "INPUT.CROP.SIZE", [64, 64], "DATALOADER.NUM_WORKERS", 0,
]  # fmt: skip


_SHORT = ["DATASETS.TRAIN", "('tiny_train',)", "DATASETS.TEST", "()", "SOLVER.MAX_ITER", 2,
          "DATALOADER.NUM_WORKERS", 0]  # fmt: skip


def _run(monkeypatch, name, *words):
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    return runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")


@pytest.mark.slow
def test_predict_folder(monkeypatch, model_folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        _run(
            monkeypatch, "predict_folder.py", model_folder, PHOTOS / "images/val", tmp_path / "out"
        )
    assert not end.value.code
    names = {path.stem for path in (PHOTOS / "images/val").iterdir()}
    assert {path.stem for path in (tmp_path / "out").iterdir()} == names
    assert all(f"{name}.jpg: " in capsys.readouterr().out for name in sorted(names)[:1])


@pytest.mark.slow
def test_own_loss(monkeypatch, tiny_opts, tiny_shapes, tmp_path):
    _run(monkeypatch, "own_loss.py", "configs/shapes/panoptic.yaml", *tiny_opts, *_SHORT)
    logged = json.loads((tmp_path / "out" / "metrics.json").read_text().splitlines()[-1])
    assert 0.5 < logged["loss_tversky"] < 1


@pytest.mark.slow
def test_own_neck_is_trained_and_used(monkeypatch, tiny_opts, tiny_shapes, tmp_path):
    def knet(*words):
        with pytest.raises(SystemExit) as end:
            _run(monkeypatch, "own_neck.py", *words)
        assert not end.value.code
        KNET_NECK_REGISTRY._obj_map.pop("build_sum_neck")

    config = ["--config-file", "configs/shapes/panoptic.yaml"]
    opts = [*tiny_opts, *_SHORT, "MODEL.KNET.NECK", "build_sum_neck"]
    knet("train", *config, *opts)
    out = tmp_path / "out"
    weights = torch.load(out / "model_final.pth", weights_only=True)["model"]
    assert weights["heads.neck.levels.3.weight"].shape[:2] == (16, 64)
    model = ["--config-file", out / "config.yaml", "--weights", out / "model_final.pth"]
    picture = tiny_shapes / "val/images/000001.png"
    knet("predict", picture, *model, "--output", tmp_path / "drawn")
    assert len(list((tmp_path / "drawn").iterdir())) == 1


def test_the_lazy_config_is_the_published_model():
    model = LazyConfig.load("examples/lazy_config.py").model
    model.backbone.backbone.bottom_up.stages.depth = 18  # a part replaced, which is quick to build
    model.backbone.backbone.bottom_up.stages.num_groups = 1
    del model.backbone.backbone.bottom_up.stages["num_groups"]
    built = instantiate(model)
    assert isinstance(built, KNet) and len(built.heads.rounds) == 3
    assert built.heads.kernel_head.num_thing_classes == 80


def test_coco_viewer(monkeypatch, tmp_path):
    truth = json.loads((PHOTOS / "annotations/instances_val.json").read_text())
    results = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "score": 0.9,
         "segmentation": a["segmentation"], "bbox": a["bbox"]}
        for a in truth["annotations"][:3]
    ]  # fmt: skip
    (tmp_path / "instances.json").write_text(json.dumps(results))
    monkeypatch.setenv("MPLBACKEND", "agg")
    _run(monkeypatch, "coco_viewer.py", PHOTOS / "annotations/instances_val.json",
         tmp_path / "instances.json", PHOTOS / "images/val", tmp_path / "seen.png")  # fmt: skip
    assert np.asarray(Image.open(tmp_path / "seen.png")).std() > 10


@pytest.mark.slow
def test_the_notebook(tmp_path, monkeypatch):
    notebook = nbformat.read(ROOT / "examples/quickstart.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    (settings,) = (c for c in notebook.cells if "settings" in c.metadata.get("tags", ()))
    some_nuclei(tmp_path / "nuclei", train=4, val=2)
    settings.source += f"\nopts = {QUICK!r}\noutput = {str(tmp_path / 'quick')!r}"
    settings.source += f"\ndata = data.__class__({str(tmp_path / 'nuclei')!r})"
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "projects"), prepend=":")
    done = NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": tmp_path}}
    ).execute()
    shown = [output for cell in done.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 4
    text = "".join(output.get("text", "") for output in shown)
    assert "pictures that are not trained on" in text and "score at least 0.6" in text
    assert (tmp_path / "quick/model/model.safetensors").is_file()
