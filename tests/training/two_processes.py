"""Trainings of one process and of two, compared step by step."""

import json
from functools import partial

import pytest
import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from knet.training.trainer import Trainer

from ..processes import call_in_two


def unwrap(trainer):
    return getattr(trainer._trainer.model, "module", trainer._trainer.model)


def weights(trainer):
    """Of the parameters that learn."""
    parameters = unwrap(trainer).named_parameters()
    return {name: p.detach().clone() for name, p in parameters if p.requires_grad}


def steps(trainer, count, after=lambda: None):
    """Run some steps without the hooks, `after` behind each; returns the losses of each."""
    history = []
    with EventStorage(0) as storage:
        for i in range(count):
            storage.iter = trainer._trainer.iter = i
            trainer._trainer.run_step()
            after()
            trainer._trainer.flush_metrics()
            if comm.is_main_process():
                latest = storage.latest()
                history.append({k: v[0] for k, v in latest.items() if "loss" in k})
    return history


def distributed_steps(cfg, path, count=3):
    """Some steps in float64, where Adam's division cannot blow rounding up to a step.

    A gradient that is zero in truth (of the key bias of an attention) is 1e-17 there, far below
    Adam's epsilon; in float32 its sign, and so the step, depends on the processor's kernels.
    """
    torch.set_default_dtype(torch.float64)
    try:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        gradients = []

        def look_at_gradients():
            parameters = dict(unwrap(trainer).named_parameters())
            gradients.append({name: parameters[name].grad.clone() for name in weights(trainer)})

        history = steps(trainer, count, look_at_gradients)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(p.dtype == torch.float64 for p in weights(trainer).values())
    if comm.is_main_process():
        averages, _ = trainer.checkpointer.average.split(unwrap(trainer).state_dict())
        saved = {"weights": weights(trainer), "losses": history, "gradients": gradients}
        saved["averages"] = {name: averages[name] for name in saved["weights"]}
        torch.save(saved, path)


def compare_processes(jobs, shapes_root, folder):
    """Train every job, a name and a config, in one process and in two.

    Both must compute the same, and give every parameter a gradient; `folder` holds sparse.json.
    """
    for name, cfg in jobs:
        distributed_steps(cfg, folder / f"{name}_1.pth")
    call_in_two(Worker(folder, shapes_root), jobs, folder)
    for name, _ in jobs:
        one, two = (torch.load(folder / f"{name}_{n}.pth", weights_only=True) for n in (1, 2))
        compare(name, one, two)


def compare(job, one, two):
    for a, b in zip(one["losses"], two["losses"]):
        assert set(a) == set(b) and "total_loss" in a
        for name in a:
            assert b[name] == pytest.approx(a[name], rel=1e-6), f"{job}: {name}"
    close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-11)
    for step, (a, b) in enumerate(zip(one["gradients"], two["gradients"])):
        for name, gradient in a.items():
            close(b[name], gradient, msg=f"{job}, step {step}, gradient of {name}")
    for name, value in one["weights"].items():
        close(two["weights"][name], value, msg=f"{job}, {name}")
        close(two["averages"][name], one["averages"][name], msg=f"{job}, average of {name}")
        assert not torch.equal(value, one["averages"][name]), name


class Worker:
    """Registers the data sets in a fresh process, then trains every job."""

    def __init__(self, sparse_root, shapes_root):
        self.sparse_root, self.shapes_root = sparse_root, shapes_root

    def __call__(self, jobs, folder):
        torch.set_num_threads(1)
        _register_tiny(self.shapes_root)
        register_sparse(self.shapes_root, self.sparse_root)
        for name, cfg in jobs:
            distributed_steps(cfg, folder / f"{name}_2.pth")


def _register_tiny(root):
    from knet.data import register_coco_panoptic

    for split in ("train", "val"):
        folder = root / split
        register_coco_panoptic(
            f"tiny_{split}", image_root=folder / "images", panoptic_root=folder / "panoptic",
            panoptic_json=folder / "panoptic.json", instances_json=folder / "instances.json",
            sem_seg_root=folder / "semantic",
        )  # fmt: skip


def write_sparse(shapes_root, tmp_path):
    """Two scenes: one as drawn, one all void."""
    import numpy as np

    from knet.data import write_panoptic_png

    folder, pngs = shapes_root / "train", tmp_path / "sparse"
    content = json.loads((folder / "panoptic.json").read_text())
    full = max(content["annotations"], key=lambda a: len(a["segments_info"]))
    void = next(a for a in content["annotations"] if a is not full)
    pngs.mkdir(exist_ok=True)
    source = folder / "panoptic" / full["file_name"]
    (pngs / full["file_name"]).write_bytes(source.read_bytes())
    write_panoptic_png(str(pngs / void["file_name"]), np.zeros((96, 96), dtype=np.uint32))
    content["annotations"] = [full, {**void, "segments_info": []}]
    kept = {full["image_id"], void["image_id"]}
    content["images"] = [i for i in content["images"] if i["id"] in kept]
    (tmp_path / "sparse.json").write_text(json.dumps(content))


def register_sparse(shapes_root, tmp_path):
    from knet.data import register_coco_panoptic

    images = shapes_root / "train" / "images"
    register_coco_panoptic(
        "sparse_train", image_root=images, panoptic_root=tmp_path / "sparse",
        panoptic_json=tmp_path / "sparse.json",
    )  # fmt: skip
