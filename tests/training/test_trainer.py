"""The trainer: resuming, several processes, accumulation, clipping, mixed precision."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.engine import DefaultTrainer
from detectron2.utils import comm

from knet.training.distribute import distribute
from knet.training.trainer import Trainer

from .two_processes import compare_processes, register_sparse, steps, weights, write_sparse


class Interrupted(Exception):
    pass


@pytest.mark.slow
def test_resumed_training_ends_with_the_weights_of_an_uninterrupted_one(tiny_cfg, tmp_path):
    tiny_cfg.SOLVER.CHECKPOINT_PERIOD = 2
    tiny_cfg.DATASETS.TEST = ()
    tiny_cfg.OUTPUT_DIR = str(tmp_path / "whole")
    whole = Trainer(tiny_cfg)
    whole.resume_or_load(resume=False)
    start = weights(whole)
    whole.train()

    tiny_cfg.OUTPUT_DIR = str(tmp_path / "parts")
    first = Trainer(tiny_cfg)
    first.resume_or_load(resume=False)
    first._trainer.model.load_state_dict(start, strict=False)

    def interrupt():
        if first.iter == 4:
            raise Interrupted
        type(first).after_step(first)

    first.after_step = interrupt
    with pytest.raises(Interrupted):
        first.train()
    assert (Path(tiny_cfg.OUTPUT_DIR) / "model_0000003.pth").is_file()

    torch.manual_seed(99)  # whatever happened in between
    tiny_cfg.SEED = -1  # the checkpoint's seed counts
    second = Trainer(tiny_cfg)
    second.resume_or_load(resume=True)
    assert second.start_iter == 4
    second.train()
    assert second.iter == whole.iter
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(second)[name]), name
    changed = [n for n, v in weights(whole).items() if not torch.equal(v, start[n])]
    assert len(changed) == len(start)
    lines = (tmp_path / "parts" / "metrics.json").read_text().splitlines()
    assert json.loads(lines[-1])["iteration"] == 5


@pytest.mark.slow
def test_two_processes_compute_what_one_does(tiny_cfg, semantic_cfg, tiny_shapes, tmp_path):
    sparse = tiny_cfg.clone()
    # one object in one scene: the other process of the first step has no ground truth
    write_sparse(tiny_shapes, tmp_path)
    register_sparse(tiny_shapes, tmp_path)
    sparse.DATASETS.TRAIN = ("sparse_train",)
    sparse.SOLVER.IMS_PER_BATCH = 2
    semantic_cfg.merge_from_list(
        ["MODEL.KNET.KERNEL_HEAD", "fcn", "MODEL.KNET.SEMANTIC.NORM", "GN",  # of 32 groups
         "MODEL.KNET.HIDDEN_DIM", 32, "MODEL.KNET.SEMANTIC.AUX_DIM", 32]
    )  # fmt: skip
    jobs = []
    for name, cfg in [("panoptic", tiny_cfg), ("sparse", sparse), ("semantic", semantic_cfg)]:
        cfg.DATALOADER.NUM_WORKERS = 0
        cfg.SOLVER.WARMUP_FACTOR = 1.0
        cfg.SOLVER.EMA = 0.9
        cfg.SOLVER.BASE_LR = 1e-4  # three steps move weights by up to 3e-4
        cfg.MODEL.KNET.FREEZE_NORM_STATS = True  # batch statistics are a process's own
        initial = Trainer.build_model(cfg)
        cfg.MODEL.WEIGHTS = str(tmp_path / f"{name}_initial.pth")
        torch.save({"model": initial.state_dict()}, cfg.MODEL.WEIGHTS)
        jobs.append((name, cfg))

    compare_processes(jobs, tiny_shapes, tmp_path)


def test_accumulated_parts_average(tiny_cfg):
    tiny_cfg.MODEL.KNET.FREEZE_NORM_STATS = True
    tiny_cfg.SOLVER.ACCUMULATION_STEPS = 2
    trainer = Trainer(tiny_cfg)
    trainer._trainer.clip_norm = None
    parts = list(_batches(trainer, 2))
    expected = {}
    for batch in parts:
        assert len(batch) == 2
        losses = trainer._trainer.model(batch)
        (sum(losses.values()) / 2).backward()
        for name, value in losses.items():
            expected[name] = expected.get(name, 0) + value.item() / 2
    model = trainer._trainer.model
    gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
    (history,) = steps(trainer, 1)
    assert {k: history[k] for k in expected} == pytest.approx(expected, rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6)


def _batches(trainer, count):
    step = trainer._trainer
    loader = iter(step._make_loader(step.seed, 0))
    return (next(loader) for _ in range(count))


def test_all_gradients_together_are_clipped(tiny_cfg):
    trainer = Trainer(tiny_cfg)
    trainer._trainer.clip_norm = 0.5
    steps(trainer, 1)
    norms = [p.grad.norm() for p in trainer._trainer.model.parameters()]
    assert torch.stack(norms).norm().item() == pytest.approx(0.5, rel=1e-4)


def test_gradients_are_clipped_where_the_config_says_so(tiny_cfg):
    clip = tiny_cfg.SOLVER.CLIP_GRADIENTS
    clip.ENABLED, clip.CLIP_VALUE = True, 0.25
    assert Trainer(tiny_cfg)._trainer.clip_norm == 0.25
    clip.ENABLED = False
    assert Trainer(tiny_cfg)._trainer.clip_norm is None


def test_bfloat16_on_the_cpu_trains(tiny_cfg):
    tiny_cfg.SOLVER.AMP.ENABLED = True
    tiny_cfg.SOLVER.AMP.DTYPE = "bfloat16"
    trainer = Trainer(tiny_cfg)
    before = weights(trainer)
    (losses, _) = steps(trainer, 2)
    assert losses["total_loss"] > 0
    assert all(v.dtype == torch.float32 for v in weights(trainer).values())
    assert any(not torch.equal(v, before[n]) for n, v in weights(trainer).items())


def test_non_finite_loss_stops_with_its_name(tiny_cfg):
    trainer = Trainer(tiny_cfg)
    with torch.no_grad():
        trainer._trainer.model.heads.rounds[2].mask_predictor.bias.fill_(float("nan"))
    before = weights(trainer)
    with pytest.raises(FloatingPointError, match=r"'loss_round3_mask': nan.*weights are as before"):
        steps(trainer, 1)
    for name, value in weights(trainer).items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)


def test_views_are_scored_under_their_own_name(semantic_cfg):
    model = Trainer.build_model(semantic_cfg).eval()
    plain = Trainer.test(semantic_cfg, model)
    semantic_cfg.TEST.AUG.MIN_SIZES, semantic_cfg.TEST.AUG.FLIP = (96,), False
    one_view = Trainer.test_with_tta(semantic_cfg, model)
    assert set(plain) == {"sem_seg"} and set(one_view) == {"sem_seg_TTA"}
    assert one_view["sem_seg_TTA"]["mIoU"] == pytest.approx(plain["sem_seg"]["mIoU"])
    assert semantic_cfg.INPUT.MIN_SIZE_TEST == 96  # the config is not changed


def test_all_tasks_are_scored_with_views(tiny_cfg):
    tiny_cfg.TEST.AUG.MIN_SIZES, tiny_cfg.TEST.AUG.FLIP = (64, 96), True
    scores = Trainer.test_with_tta(tiny_cfg, Trainer.build_model(tiny_cfg).eval())
    assert {"panoptic_seg_TTA", "segm_TTA", "sem_seg_TTA"} <= set(scores)
    assert all(name.endswith("_TTA") for name in scores)


def test_batch_norm_of_one_value_is_refused(semantic_cfg):
    semantic_cfg.SOLVER.IMS_PER_BATCH = 4
    semantic_cfg.SOLVER.ACCUMULATION_STEPS = 4
    with pytest.raises(ValueError, match=r"two images a process.*MODEL\.KNET\.SEMANTIC\.NORM"):
        Trainer(semantic_cfg)
    semantic_cfg.MODEL.KNET.KERNEL_HEAD = "fcn"  # pools nothing
    Trainer(semantic_cfg)


def test_synchronised_norms_need_gpus(semantic_cfg, monkeypatch):
    semantic_cfg.MODEL.KNET.SEMANTIC.NORM = "SyncBN"
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"SyncBN needs GPUs.*MODEL\.KNET\.SEMANTIC\.NORM"):
        distribute(Trainer.build_model(semantic_cfg))


@pytest.mark.parametrize("names", [["disc"], ["disc", "ring"]])
def test_one_class_has_no_table_of_classes(cfg, monkeypatch, caplog, names):
    scores = {"segm": {"AP": 40.0, **({f"AP-{n}": 40.0 for n in names} if names[1:] else {})}}
    monkeypatch.setattr(DefaultTrainer, "test", classmethod(lambda *_: scores))
    cfg.DATASETS.TEST = ("tiny_val",)
    with caplog.at_level("INFO", "knet"):
        assert Trainer.test(cfg, torch.nn.Linear(1, 1)) == scores
    assert "scores on tiny_val:" in caplog.text
    assert ("classes:" in caplog.text) == (len(names) > 1)
