"""Trainings in the workers of Ray Train."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from knet.errors import UserError
from knet.training import ray_train


def test_without_ray_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    importlib.reload(ray_train)  # which does not import it
    with pytest.raises(
        UserError, match=r'^training with Ray needs .* "ray\[train\]"`, or .*\[ray\]`'
    ):
        ray_train.train({"config_file": "configs/shapes/panoptic.yaml"})


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Ray Train as one worker sees it that is alone; the list gets what is reported."""
    reports = []
    storage = SimpleNamespace(
        storage_filesystem=SimpleNamespace(type_name="local"),
        experiment_fs_path=str(tmp_path / "runs" / "name"),
    )
    context = SimpleNamespace(get_storage=lambda: storage, get_node_rank=lambda: 0)

    def report(metrics, checkpoint=None):
        kept = {}
        if checkpoint is not None:
            kept = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
        reports.append((metrics, kept))

    module = SimpleNamespace(
        get_context=lambda: context, report=report,
        Checkpoint=SimpleNamespace(from_directory=Path),
    )  # fmt: skip
    monkeypatch.setattr(ray_train, "_ray_train", lambda: module)
    return SimpleNamespace(reports=reports, storage=storage)


def test_a_relative_folder_lies_on_rays_storage_and_a_restart_goes_on(
    fake, tiny_shapes, tiny_opts, tmp_path
):
    folder = tmp_path / "runs" / "name" / "out"
    opts = [
        *tiny_opts, "OUTPUT_DIR", "out", "DATASETS.TRAIN", "('tiny_train',)", "DATASETS.TEST",
        "('tiny_val',)", "SOLVER.MAX_ITER", 2, "TEST.EVAL_PERIOD", 1, "TEST.PICTURES", 0,
        "DATALOADER.NUM_WORKERS", 0, "SOLVER.CHECKPOINT_PERIOD", 1,
    ]  # fmt: skip
    config = {"config_file": "configs/shapes/panoptic.yaml", "opts": opts}
    ray_train.train(config)
    (between, _), (last, kept) = fake.reports
    assert between["step"] == 1 and between["sem_seg/mIoU"] >= 0 and last["sem_seg/mIoU"] >= 0
    assert set(kept) == {"model_final.pth", "config.yaml"}
    assert kept["model_final.pth"] == (folder / "model_final.pth").read_bytes()
    # workers that are lost before the last step
    whole = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    for path in ("model_final.pth", "model_0000001.pth"):
        (folder / path).unlink()
    ray_train.train(config)
    assert "resuming from " + str(folder / "model_0000000.pth") in (folder / "log.txt").read_text()
    again = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    assert all(torch.equal(again[name], value) for name, value in whole.items())


@pytest.mark.parametrize(
    "config, message",
    [
        ({"config_file": "c", "opt": []}, "'opt' is none: opts"),
        ({"opts": []}, "takes config_file and opts; one is due"),
    ],
)
def test_keys_are_checked(fake, config, message):
    with pytest.raises(UserError, match=message):
        ray_train.train(config)


def test_storage_that_is_no_folder(fake):
    fake.storage.storage_filesystem.type_name = "s3"
    with pytest.raises(UserError, match=r"storage is of kind s3.* OUTPUT_DIR to an absolute path"):
        ray_train.train({"config_file": "configs/shapes/panoptic.yaml"})


def test_workers_of_the_example_share_what_there_is():
    path = Path(__file__).parents[2] / "examples" / "train_with_ray.py"
    spec = importlib.util.spec_from_file_location("train_with_ray", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    assert example.share({"CPU": 2.0}, 2, use_gpu=False) == 1
    assert example.share({"CPU": 64.0, "GPU": 8.0}, 8, use_gpu=True) == 4
    with pytest.raises(UserError, match=r"4 workers take a CPU each, .* has 2: lower --workers$"):
        example.share({"CPU": 2.0}, 4, use_gpu=False)
    with pytest.raises(UserError, match=r"GPU each, and the Ray cluster has 0: .*: --cpu$"):
        example.share({"CPU": 9.0}, 2, use_gpu=True)
