"""What is kept of a step whose losses are not finite."""

import math
import os

import pytest
import torch

from knet.training.bad_batches import keep_broken
from knet.training.step import Metrics
from knet.training.trainer import Trainer


def broken(iteration, *, loss=math.nan, norm=1.0):
    return Metrics(iteration, 0.0, {"loss": loss}, norm, True)


def test_the_batch_is_made_anew_as_it_was(tiny_cfg, tmp_path):
    tiny_cfg.merge_from_list(["OUTPUT_DIR", str(tmp_path), "DATASETS.TEST", (), "SEED", 5,
                              "SOLVER.IMS_PER_BATCH", 4, "SOLVER.ACCUMULATION_STEPS", 2,
                              "DATALOADER.NUM_WORKERS", 0])  # fmt: skip
    trainer = Trainer(tiny_cfg)
    trainer.resume_or_load(resume=False)
    model, seen = trainer._trainer.model, []

    def note(module, arguments):
        seen.append([x["image"].clone() for x in arguments[0]])
        if len(seen) == 5:  # the first part of the third step
            with torch.no_grad():
                module.heads.rounds[2].mask_predictor.bias.fill_(math.nan)

    model.register_forward_pre_hook(note)
    path = tmp_path / "bad_batches" / "step_0000003.pth"
    with pytest.raises(FloatingPointError, match=rf"at step 3; .* Its batch is in {path}\. Go on"):
        trainer.train()
    kept = torch.load(path, weights_only=False)
    assert kept["step"] == 3 and kept["seed"] == 5
    assert math.isnan(kept["losses"]["loss_round3_mask"])
    ours = [image for part in seen[4:6] for image in part]
    assert len(kept["batch"]) == len(kept["file_names"]) == len(ours) == 4
    for sample, image, name in zip(kept["batch"], ours, kept["file_names"]):
        assert torch.equal(sample["image"], image) and sample["file_name"] == name
        assert len(sample["instances"]) and sample["sem_seg"].shape == image.shape[1:]


def test_three_are_kept(tmp_path):
    batches = [[{"file_name": "a.png"}]] * 9
    for number, step in enumerate((7, 3, 9, 1)):
        said = keep_broken(tmp_path, lambda seed, first: batches, broken(step), seed=1, parts=2)
        path = tmp_path / "bad_batches" / f"step_{step + 1:07d}.pth"
        assert said == f" Its batch is in {path}."
        os.utime(path, (number, number))
    names = sorted(path.name for path in (tmp_path / "bad_batches").iterdir())
    assert names == ["step_0000002.pth", "step_0000004.pth", "step_0000010.pth"]
    assert torch.load(path, weights_only=False)["file_names"] == ["a.png", "a.png"]


def test_who_saves(tmp_path):
    keep = lambda step: keep_broken(tmp_path, lambda *_: [[]], step, seed=1, parts=1)  # noqa: E731
    assert keep(broken(0, loss=1.0)) == ""  # another process's loss
    assert not (tmp_path / "bad_batches").exists()
    assert "is in" in keep(broken(0, loss=1.0, norm=math.inf))


def test_an_error_does_not_hide_that_of_the_step(tmp_path):
    def remake(seed, step):
        raise ValueError("image gone")

    said = keep_broken(tmp_path, remake, broken(0), seed=1, parts=1)
    assert said.startswith(" Its batch could not be saved: image gone")
