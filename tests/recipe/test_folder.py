"""From a folder in any format to a trained model."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from knet.config import get_cfg_from_file
from knet.errors import UserError
from knet.evaluation.scores import MAIN_SCORES
from knet.predictor import KNetPredictor
from knet.recipe import train_folder
from knet.recipe.start import Start
from knet.recipe.steps import measure
from knet.training.curves import read_curves
from knet.training.run import train
from knet.zoo import config_path

from ..data.formats.makers import MAKERS
from ..processes import call

pytestmark = pytest.mark.usefixtures("blank_curves")

SMALL = [
    *("MODEL.BACKBONE.NAME", "build_small_resnet_backbone", "MODEL.BACKBONE.FREEZE_AT", 0),
    *("MODEL.SMALL_RESNET.CHANNELS", [16, 32, 48, 64]),
    *("MODEL.KNET.NUM_ROUNDS", 1, "MODEL.KNET.ROUND_LEVELS", []),
    *("MODEL.KNET.HIDDEN_DIM", 16, "MODEL.KNET.FFN_DIM", 16),
    *("MODEL.WEIGHTS", ""),
]
# as fast as it gets: no probes, a small model, small pictures, two steps
QUICK = [
    *("SOLVER.ACCUMULATION_STEPS", 1, "SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 2),
    *("INPUT.MIN_SIZE_TRAIN", (48, 64), "INPUT.MIN_SIZE_TEST", 48, "INPUT.CROP.SIZE", (48, 48)),
    *("TEST.PICTURES", 1, *SMALL),
]


def quick(tmp_path, name="coco", **arguments):
    data = tmp_path / "data"
    MAKERS[name][0](data)
    return train_folder(data, QUICK, output=tmp_path / "out", **arguments)


@pytest.mark.parametrize("name", MAKERS)
def test_every_format_is_trained_and_scored(tmp_path, name):
    folder = quick(tmp_path, name)
    out = tmp_path / "out"
    curves = read_curves((out / "metrics.json").read_text().splitlines())
    task = MAKERS[name][2]
    main = dict(zip(("panoptic", "instance", "semantic"), MAIN_SCORES))[task]
    assert len(curves[main]) == 1 and (out / "curves.png").is_file()
    assert main.rpartition("/")[2] in (folder / "README.md").read_text()
    predictor = KNetPredictor.from_pretrained(folder)
    results = predictor(np.zeros((48, 64, 3), np.uint8))
    assert {"panoptic": "panoptic_seg", "instance": "instances", "semantic": "sem_seg"}[
        task
    ] in results


def test_the_config_repeats_the_training_bit_by_bit(tmp_path):
    quick(tmp_path)
    config, again = tmp_path / "out" / "config.yaml", tmp_path / "again"
    train(str(config), ["OUTPUT_DIR", str(again)])
    first, second = (torch.load(folder / "model_final.pth", weights_only=False)["model"]
                     for folder in (tmp_path / "out", again))  # fmt: skip
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_jitter_goes_with_a_start_that_has_no_crops(tmp_path, monkeypatch):
    start = Start(config_path("shapes/instance.yaml"), (), "it is small", whole=False)
    monkeypatch.setattr("knet.recipe.derive.start_from", lambda *_: start)
    wishes = ["INPUT.SCALE_JITTER", (0.5, 2.0), "INPUT.COPY_PASTE", 0.5]
    MAKERS["coco"][0](tmp_path / "data")
    train_folder(tmp_path / "data", [*QUICK, *wishes], output=tmp_path / "out")
    inputs = get_cfg_from_file(tmp_path / "out" / "config.yaml").INPUT
    assert (inputs.SCALE_JITTER, inputs.COPY_PASTE) == ((0.5, 2.0), 0.5)
    assert (inputs.CROP.ENABLED, inputs.CROP.TYPE) == (True, "absolute")


def test_a_saved_model_is_trained_on(tmp_path):
    folder = quick(tmp_path)
    more = tmp_path / "more"
    train_folder(tmp_path / "data", QUICK[:-2], output=more, model=str(folder))
    cfg = get_cfg_from_file(more / "config.yaml")
    weights = str(folder / "model.safetensors")
    assert weights == cfg.MODEL.WEIGHTS
    log = (more / "log.txt").read_text()
    assert re.search(rf"{weights}: .* (\d+) of the model's \1 weights set", log)
    with pytest.raises(ValueError, match="is no semantic model"):
        train_folder(tmp_path / "data", output=tmp_path / "x", model=str(folder), task="semantic")


def test_a_saved_model_learns_other_classes(tmp_path):
    folder = quick(tmp_path)
    MAKERS["instance_ids"][0](tmp_path / "other")
    new = train_folder(tmp_path / "other", QUICK[:-2], output=tmp_path / "more", model=str(folder))
    assert KNetPredictor.from_pretrained(new).metadata.thing_classes == ["object"]


def test_resuming_takes_keys_and_no_other_wishes(tmp_path):
    quick(tmp_path)
    arguments = {"output": tmp_path / "out", "resume": True}
    with pytest.raises(UserError, match=r"--epochs cannot change with --resume"):
        train_folder(tmp_path / "data", epochs=3, **arguments)
    train_folder(tmp_path / "data", ["SOLVER.MAX_ITER", 4], **arguments)
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "step 4 of 4" in log


def test_two_processes_train(tmp_path):
    opts = [*QUICK, "SOLVER.MAX_ITER", 1]
    MAKERS["coco"][0](tmp_path / "data")
    wishes = {"output": tmp_path / "out", "num_gpus": 2}
    assert call(train_folder, tmp_path / "data", opts, **wishes).is_dir()


def test_errors_of_what_is_scored_are_never_skipped(tmp_path):
    MAKERS["coco"][0](tmp_path / "data")
    names = json.loads((tmp_path / "data/annotations/instances_val2017.json").read_text())
    (picture,) = (tmp_path / "data").rglob(names["images"][0]["file_name"])
    picture.write_bytes(picture.read_bytes()[:200])
    with pytest.raises(UserError, match=r"have 1 error.*would mislead"):
        train_folder(
            tmp_path / "data", [*QUICK, "DATASETS.ON_ERROR", "skip"], output=tmp_path / "out"
        )


def test_what_cannot_be_is_one_error(tmp_path):
    quick(tmp_path)
    with pytest.raises(UserError, match=r"holds a training: --resume .*--output"):
        train_folder(tmp_path / "data", QUICK, output=tmp_path / "out")
    with pytest.raises(UserError, match=r"lies in the data.*--output"):
        train_folder(tmp_path / "data", QUICK, output=tmp_path / "data" / "out")
    with pytest.raises(UserError, match=r"no training to resume"):
        train_folder(tmp_path / "data", QUICK, output=tmp_path / "new", resume=True)
    with pytest.raises(UserError, match=r"OUTPUT_DIR is what --output says"):
        train_folder(tmp_path / "data", ["OUTPUT_DIR", "x"], output=tmp_path / "new")
    with pytest.raises(ValueError, match=r"no such folder"):
        train_folder(tmp_path / "data", QUICK, output=tmp_path / "new", model=f"{tmp_path}/modle")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no file"):
        train_folder(tmp_path / "empty", QUICK, output=tmp_path / "new")
    picture = next((tmp_path / "data").rglob("*.jpg"))
    picture.write_bytes(picture.read_bytes()[:200])
    with pytest.raises(UserError, match=r"have 1 error.*ON_ERROR skip"):
        train_folder(tmp_path / "data", QUICK, output=tmp_path / "new")


@pytest.mark.slow
def test_everything_is_measured_said_and_resumed(tmp_path, capfd, monkeypatch):
    """Without probes left out: memory, time, and every choice with its reason."""
    found = []

    def slow(*arguments):
        """What is measured, but for a step that takes so long that few of them are chosen."""
        found.append(measure(*arguments))
        return replace(found[0], step=200.0)

    monkeypatch.setattr("knet.recipe.derive.measure", slow)
    data = tmp_path / "data"
    MAKERS["coco"][0](data)
    train_folder(data, SMALL, output=tmp_path / "out", minutes=10, batch=2)
    assert len(found) == 1 and found[0].step > 0 and found[0].picture > 0
    shown = capfd.readouterr().out
    assert re.search(r"SOLVER\.MAX_ITER +[12] +10 minutes at 2e\+02 s a step, as measured", shown)
    for words in ("was taken for COCO instances",
                  "SOLVER.ACCUMULATION_STEPS", "as asked for", "INPUT.MIN_SIZE_TEST"):  # fmt: skip
        assert words in shown
    assert train_folder(data, output=tmp_path / "out", resume=True).is_dir()
