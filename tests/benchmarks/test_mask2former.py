"""Mask2Former is given K-Net's targets, and its logits become results that are scored right."""

import dataclasses
from types import SimpleNamespace

import ablation_run
import mask2former
import pytest
import torch
from ablation_plan import SCORES, config_of
from ablation_run import Run, run
from detectron2.structures import BitMasks, Instances
from torch import nn
from workload import Workload, make_inputs, make_step, write_data_set

from knet.classes import ClassIds
from knet.config import get_cfg_from_file
from knet.modeling.predictions import Frame
from knet.training.trainer import Trainer

TINY = mask2former.Choices(hidden=32, encoder_layers=1, decoder_layers=1, queries=6, points=64)
# random weights, and sizes of milliseconds
_OPTS = {
    "MODEL.DEVICE": "cpu", "MODEL.WEIGHTS": "", "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.BACKBONE.NAME": "build_small_resnet_backbone",
    "MODEL.SMALL_RESNET.CHANNELS": [16, 32, 48, 64], "MODEL.KNET.CLASS_PRIOR": 0.1,
    "DATASETS.CUSTOM": [], "DATASETS.TRAIN": ("drawn",), "DATASETS.TEST": ("drawn",),
    "INPUT.CROP.ENABLED": False, "INPUT.MIN_SIZE_TRAIN": (64, 64), "INPUT.MIN_SIZE_TEST": 64,
    "SOLVER.IMS_PER_BATCH": 2,
}  # fmt: skip


@pytest.fixture
def transformers():
    return pytest.importorskip("transformers")


@pytest.fixture
def drawn(tmp_path):
    """Two pictures of things; their maps of ids, and their segments."""
    work, ids = Workload("", size=(64, 96), output_size=(64, 96), objects=3), ClassIds((0, 1), ())
    scenes = make_inputs(work, ids, 2)
    return write_data_set(tmp_path, "drawn", scenes, ids, 2)


@pytest.fixture
def variant():
    mask2former.register(TINY)
    plan = TINY.variant()
    return dataclasses.replace(plan, opts={**plan.opts, **_OPTS})


@pytest.fixture
def cfg(drawn, variant, tmp_path):
    config, opts = config_of("nuclei", variant, tmp_path)
    return get_cfg_from_file(config, [*opts, "OUTPUT_DIR", str(tmp_path / "out")])


@pytest.fixture
def task():
    return mask2former.Mask2FormerTask(class_ids=ClassIds((3, 5), ()))


def test_without_transformers_there_is_one_clear_error(monkeypatch):
    monkeypatch.setattr(mask2former, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="run `pip install transformers`"):
        mask2former.main([])


def test_masks_are_padded_and_ids_become_classes(task):
    found = Instances((2, 3), gt_classes=torch.tensor([5, 3]))
    found.gt_masks = BitMasks(torch.tensor([[[1, 0, 0], [0, 0, 0]], [[0, 0, 1], [0, 1, 1]]]) > 0)
    x = {"image": torch.zeros(3, 2, 3), "instances": found}
    for batch in ([x], [task.prepare(x)]):
        ((masks, classes),) = task.targets(batch, (3, 4), torch.device("cpu"))
        assert classes.tolist() == [1, 0] and masks.dtype == torch.float32
        assert masks.tolist() == [
            [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
            [[0, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]],
        ]  # fmt: skip
    assert "instances" in x


def test_scores_are_those_of_the_softmax_without_no_object(task):
    logits = torch.tensor([[[0.1, 0.2, 0.7], [0.3, 0.6, 0.1]]]).log() + 2
    last = SimpleNamespace(class_queries_logits=logits, masks_queries_logits=torch.ones(1, 2, 4, 4))
    scores = task.predictions(last, 0, Frame((4, 4), (4, 4))).class_scores
    torch.testing.assert_close(scores, torch.tensor([[0.1, 0.2], [0.3, 0.6]]))


@pytest.mark.parametrize("shift, expected", [(0, 100.0), (40, 0.0)])
def test_perfect_logits_score_100(transformers, cfg, drawn, shift, expected):
    model = Trainer.build_model(cfg).eval()

    class Known(nn.Module):
        """Logits of the true masks, after a query that is sure of a class, and of no mask."""

        def forward(self, features, targets=None):
            id_map, segments = drawn[next(turn)]
            masks = torch.stack([id_map == s["id"] for s in segments]).float()
            masks = torch.cat([masks.new_zeros(1, *id_map.shape), masks.roll(shift, -1)]) * 40 - 20
            classes = torch.zeros(len(masks), 3)
            for row, segment in zip(classes[1:], segments):
                row[segment["category_id"] - 1] = 4.0
            classes[0, 0] = 9.0
            return None, [SimpleNamespace(class_queries_logits=classes[None],
                                          masks_queries_logits=masks[None])]  # fmt: skip

    turn, model.heads, model.inference = iter(range(2)), Known(), None
    assert Trainer.test(cfg, model)["segm"]["AP"] == pytest.approx(expected)


def test_losses_fall_on_one_batch_and_only_published_parameters_do_not_decay(transformers, cfg):
    trainer = Trainer(cfg)
    batch = next(iter(trainer.build_train_loader(cfg, prepare=trainer.model.task.prepare)))
    batch[0]["targets"] = tuple(part[:0] for part in batch[0]["targets"])  # a crop of nothing
    step = make_step(cfg, trainer.model, batch)
    for step.iter in range(30):
        step.run_step()
    totals = [sum(metrics.losses.values()) for metrics in step._read()]
    assert sum(totals[-5:]) < 0.8 * sum(totals[:5])
    assert len(step._read()[0].losses) == 3 * 2  # the first prediction, and the layer
    groups = step.optimizer.param_groups
    names = [n for g in groups if g["weight_decay"] == 0 for n in g["param_names"]]
    apart = [name for name in names if "embed" in name or "queries" in name]
    assert len(apart) == 3 and not any("pixel_level" in name for name in apart)
    assert {round(g["lr"] / TINY.rate, 6) for g in groups} == {0.1, 1.0}


def test_a_training_of_some_steps_gives_its_row(
    transformers, drawn, variant, tmp_path, monkeypatch
):
    monkeypatch.setattr(ablation_run, "_apart", lambda *_: {"step": 1.0, "test": 1.0})
    row = run(Run("nuclei", "mask2former", 1, 0.01), variant, tmp_path / "out")
    assert 0 <= row["scores"][SCORES["nuclei"]] <= 100
    assert row["steps"] == 3 and row["parameters"] > 0.01
    assert {"data", "variant", "seed", "length", "threads", "memory_mb"} <= set(row)
